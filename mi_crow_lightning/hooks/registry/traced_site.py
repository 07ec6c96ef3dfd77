"""A site inside a graph of ``torch.compile``: traced with the model, or called by an operation of the graph.

torch looks for hooks when it compiles, so the handle stays on the layer for the whole run. A hook that is traced is
switched by a Python bool, for which each setting is compiled; one that is called looks at its switch when it is called.
Values that change from batch to batch reach a traced hook as tensors; otherwise every batch would be compiled again.
Of a traced hook no error is caught: it shows when the graph is made. If the layer runs outside a graph after all, this
is a site like any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.activations import put_input, put_output, take_input, take_output
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.handles import NO_KEYWORDS
from mi_crow_lightning.hooks.passes.reentrancy import running
from mi_crow_lightning.hooks.registry.called_in_graph import (
    KNOWN_TO_LAYER_ALONE,
    call_from_graph,
    edit_of,
    number_of,
)
from mi_crow_lightning.hooks.registry.calling import call, call_again, call_observe
from mi_crow_lightning.hooks.registry.sites import Site, Ways
from mi_crow_lightning.hooks.schedules import Stage

__all__ = ["TracedSite"]


class TracedSite(Site):
    """One hook on one layer that runs inside a compiled graph; the arguments are those of `Site`.

    Attributes:
        is_called: whether the graph calls the hook; otherwise the hook is traced.
    """

    is_traced = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._on = False
        self._may_run = False
        self._number = number_of(self)
        # Written in the graph but never read there: reading it would add a condition to compile for.
        self._ran_in: Stage | None = None

    @property
    def on(self) -> bool:
        """Whether the hook runs when the layer does."""
        return self._on

    def ran_in(self, stage: Stage) -> bool:
        """Return whether the hook was called here in a stage, the running batch included."""
        return self._ran_in is stage or super().ran_in(stage)

    def hold(self) -> None:
        """Put the hook on the layer, for the whole run."""
        if self.is_called and self._source is not None:
            self._watchers.graph_call(self._source).is_reported = True
        super().switch(True)

    def enter_stage(self, stage: Stage | None) -> None:
        """Set whether graphs of a stage call the hook at all; it changes only with the stage."""
        self._may_run = stage is None or self.hook.when().may_be_due_in(stage)

    def switch(self, on: bool, ways: Ways | None = None) -> None:
        """Set whether the hook runs with its layer; the handle stays."""
        if self._ran_in is not None:
            self.fired.add(self._ran_in)
            self._ran_in = None
        self._on = on

    def remove(self) -> None:
        """Take the hook off the layer; doing so twice is harmless."""
        self._on = False
        super().remove()

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KEYWORDS, output: Any = None
    ) -> Any:
        if self.is_called:
            if torch.compiler.is_compiling():
                return self._call_from_graph(args, kwargs, output) if self._may_run else None
            return super().__call__(module, args, kwargs, output) if self._on else None
        if not self._on:
            return None
        if not torch.compiler.is_compiling():
            return super().__call__(module, args, kwargs, output)
        batch = self._shared.traced.running
        self._ran_in = batch.stage
        return self._in_graph(module, args, kwargs, output, batch)

    def _call_from_graph(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Let the graph that is being compiled call the hook."""
        forward = self.hook.hook_type is HookType.FORWARD
        x = take_output(output) if forward else take_input(args, kwargs)
        number, of_encoder = None, False
        if self._source is not None:
            source = self._watchers.graph_call(self._source)
            number = None if source.is_root else source.number
            of_encoder = source.facts is not None and source.facts.at_layer(args, kwargs) is not source.facts
        edited = call_from_graph(x, self._edits, self._shared.traced.seen, number, self._number, of_encoder)
        if edited is None:
            return None
        return put_output(output, edited) if forward else put_input(args, kwargs, edited)

    def run(self, x: Tensor, facts: PassFacts | None, of_encoder: bool) -> Tensor | None:
        """Call the hook when the graph runs, as `Site` does at a layer outside graphs.

        Args:
            x: the activation.
            facts: those of the pass; ``None`` where the graph does not know them.
            of_encoder: whether the activation belongs to the encoder's tokens.

        Returns:
            The edited activation; ``None`` where nothing is to be changed.
        """
        shared, hook, passes = self._shared, self.hook, self._shared.passes
        if not self._on or running.context is not None:
            return None
        is_again = torch._C._current_graph_task_id() != -1
        if is_again and not self._edits:  # it saw the activation when the layer ran first
            return None
        here = passes.threads.state
        if facts is None:
            facts = passes.facts_at(self.token_sources, recomputing=is_again) if here.calls or is_again else PassFacts()
        if of_encoder:
            facts = facts._of_encoder
        batch = facts.batch if is_again and facts.batch is not None else here.batch
        inputs = KNOWN_TO_LAYER_ALONE
        ctx = HookContext(self.place, batch, facts, self._axes, inputs, inputs, inputs, x, is_again)
        if is_again:
            acted = passes.acted_in(self, facts, self.match.name)
            return call_again(hook, edit_of, ctx, self.match.module) if acted else None
        self.fired.add(batch.stage)
        if not hook.enabled or hook.id in here.failed:
            passes.note_idle(self, facts)
            return None
        if self._observes_only:
            call_observe(hook, ctx, self.match.module, passes)  # type: ignore[arg-type]
            return None
        edited: Tensor | None = call(hook, edit_of, ctx, self.match.module, passes, self if self._edits else None)
        if edited is not None and shared.effects is not None:
            with torch.no_grad():
                pair = (x.detach(), edited.detach()) if x.is_floating_point() else None
                shared.effects.note_tensors(hook.id, ctx, pair)
        return edited
