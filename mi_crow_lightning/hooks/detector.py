"""The detector: a hook that observes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mi_crow_lightning._abstract import abstract
from mi_crow_lightning._arguments import check_flag, check_store, one_line
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.activations import take_input, take_output
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.options import HookOptions, Unpack
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.metrics.collectives import Shares, exchange

if TYPE_CHECKING:  # hooks do not touch the disk; a configuration file finds the store's class by this name
    from mi_crow_lightning.store import Store

__all__ = ["Detector"]


@abstract("observe")
class Detector(Hook):
    """A hook that observes activations and never changes a number of the run.

    A subclass overrides `observe`, and also `readings` and `reset` to have something logged. The base class
    takes the tensor out of the layer's input or output and detaches it.

    Args:
        layer_signature: see `Hook`.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        store: a store for subclasses that write to one.
        name: first part of the tags of its readings; needed if two detectors would otherwise share a tag.
        before_edits: whether to see what the layer itself produced, before controllers on the same layer
            edit it.
        **options: ``schedule`` and ``on_error``, see `Hook`.

    Attributes:
        by_block: names of the readings that TensorBoard also shows as one curve over the blocks.
        metadata: facts about what was seen.
        tensor_metadata: tensors kept from what was seen.
        resumed: stages for which `load_state_dict` restored sums: they are read even if nothing is seen before the
            next reading. A subclass that restores sums adds the stage; the callback removes it once it has been read.

    Examples:
        >>> class TokenCount(Detector):
        ...     tokens = 0
        ...     def observe(self, x, ctx):
        ...         self.tokens += x.shape[0] * x.shape[1]
        >>> TokenCount("block:0").enabled
        True
    """

    _observes = True
    by_block: tuple[str, ...] = ()
    _has_readings = True  # whether it may have any: one without takes no part in what is logged
    _ends_stage = False  # whether a reading ends more than a row of sums, so that a stage has only one

    def __init__(
        self,
        layer_signature: Signature | None = None,
        hook_type: HookTypeLike = HookType.FORWARD,
        hook_id: str | None = None,
        store: Store | None = None,
        *,
        name: str | None = None,
        before_edits: bool = False,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, **options)
        self.store = check_store(store)
        self.name = name if name is None else one_line("name", name, "/", ": it becomes part of a tag")
        self.before_edits = check_flag("before_edits", before_edits)
        self.metadata: dict[str, Any] = {}
        self.tensor_metadata: dict[str, Any] = {}
        self.resumed: set[Stage] = set()
        self._of_all_ranks: Tensor | None = None

    def _facts(self) -> Iterator[tuple[str, str]]:
        if self.name is not None:
            yield "name", repr(self.name)
        if self.before_edits:
            yield "before_edits", "True"
        yield from super()._facts()

    def process_activations(self, module: nn.Module, input: tuple[Any, ...], output: Any) -> None:
        """Take the activation out of the layer's input or output, and `observe` it.

        You may call this directly, as in a unit test: a hook that is not registered gets a context that knows the
        layer alone.

        Raises:
            NoTensorFound: there is no tensor in it.
        """
        ctx = self.context
        forward = self.hook_type is HookType.FORWARD
        if ctx is None:
            x = take_output(output) if forward else take_input(input, {})
            self._observe(x, self._context_alone(module, x, input, output if forward else None))
        elif ctx.activation is not None and (output is ctx.output if forward else input is ctx.args):
            self._observe(ctx.activation, ctx)
        else:
            self._observe(take_output(output) if forward else take_input(input, ctx.kwargs), ctx)

    def process_activation(self, output: Any) -> None:
        """Observe the layer's output: a short form of `process_activations`, for use in your own ``_hook_fn``."""
        x = take_output(output)
        self._observe(x, self.context or self._context_alone(nn.Identity(), x, (), output))

    def _observe(self, x: Tensor, ctx: HookContext) -> None:
        with torch.no_grad():
            # An inference tensor needs no detaching, and torch would not report writes to the alias.
            alias = torch.compiler.is_compiling() or not x.is_inference()
            self.observe(x.detach() if alias else x, ctx)

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Observe one activation of one layer.

        Args:
            x: the activation, ``(B, T, D)`` in a transformer, detached. It shares the running model's memory:
                do not write to it, and copy what you keep.
            ctx: the facts of this call.
        """

    @property
    def tag_prefix(self) -> str:
        """First part of the tags of its readings."""
        return self.name or "activations"

    def reading_names(self) -> tuple[str, ...]:
        """Return the names of the readings, the same at every layer; two detectors must not share a tag."""
        return ()

    @property
    def _shown_by_default(self) -> tuple[str, ...] | None:
        """Names of the readings that loggers show if ``scalars=`` asks for no others; ``None`` for all, always."""
        return None

    def _described(self, name: str) -> str:
        """Return what loggers say of a reading, as markdown; empty for nothing."""
        return ""

    def readings(self) -> Iterable[Reading]:
        """Return what was seen since the last `reset`, for the loggers; the stage is ``self.context.stage``."""
        return ()

    def share(self) -> Shares:
        """Return what this rank saw in the running stage, to be merged with what the other ranks saw; see `exchange`.

        Before `readings` is called, every rank gives its share, whether the hook is on there or not, in one collective
        for all detectors. `over_ranks` then returns the merged result. The base class shares nothing.
        """
        return None
        yield  # a generator

    def _receive(self, merged: Tensor | None) -> None:
        """Keep the merged result of `share` for the next `over_ranks`."""
        self._of_all_ranks = merged

    def over_ranks(self) -> Tensor:
        """Return the merged result of `share`, on the host; outside a Trainer all ranks exchange it now."""
        merged, self._of_all_ranks = self._of_all_ranks, None
        return merged if merged is not None else exchange([self.share()])[0]

    def report_event(self, text: str, layer: str | None = None) -> None:
        """Report something that happened, for a mark on the run's time axis in TensorBoard.

        It is written at the running step. With several ranks those of rank 0 are written: report what all ranks saw
        in `readings`, where `over_ranks` has it. Outside a Trainer, and in a graph of ``torch.compile``, it does
        nothing. A run keeps its first 200 events of all kinds.

        Args:
            text: what happened, in a line; of a long one the ends are kept.
            layer: the layer; left out, the one that the detector is called at, if it is called at one.

        Raises:
            TypeError: the text, or the layer, is not a string.

        Examples:
            >>> class Alarm(Detector):
            ...     def observe(self, x, ctx):
            ...         if x.abs().amax() > 1e4:
            ...             self.report_event("an activation is beyond 1e4")
        """
        if torch.compiler.is_compiling():
            return
        for name, value in (("text", text), ("layer", layer)):
            if not isinstance(value, str) and (name == "text" or value is not None):
                raise TypeError(f"report_event: {name}={shown(value)} must be a string")
        if self._registry is not None:
            called_at = self.context.layer if self.context is not None else ""
            self._registry.report_event(self, text, called_at if layer is None else layer)

    def reset(self) -> None:
        """Begin the next reading; called after the `readings` were written."""
