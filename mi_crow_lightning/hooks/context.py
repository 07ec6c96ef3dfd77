"""The facts that a hook can read while it runs: its place, the batch, the pass, and the other hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.heads import Head
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.channels import BY_DIMENSIONS, Channels
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.queries import Queries
from mi_crow_lightning.hooks.passes.running_batch import NO_BATCH, RunningBatch
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["HookContext", "Place", "Registry", "Unregistered"]


class Registry(Protocol):
    """The part of `Layers` that hooks reach through their context.

    Attributes:
        loss_scale: returns by what the loss of the running backward pass is multiplied, on a device; ``None`` where
            it is not.
    """

    root: nn.Module
    language_model: Any
    store: Any
    unmasked: dict[Stage | None, bool]
    loss_scale: Callable[[torch.device], Tensor] | None

    def get_hooks(self) -> list[Any]:
        """Return all hooks, in the order of their registration."""

    def list_layers(self) -> list[str]:
        """Return the names of all layers."""

    def refresh(self, hook: Any) -> None:
        """Attach or remove a hook's handles, depending on its switch."""

    def is_attached(self, hook: Any) -> bool:
        """Return whether a hook's layers call it now."""

    def has_failed(self, hook: Any) -> bool:
        """Return whether a hook failed in the running pass."""

    def report_event(self, hook: Any, text: str, layer: str) -> None:
        """Pass on what a hook reports; ``layer`` may be empty."""

    def call(self, hook: Any, function: Callable[[], Any]) -> Any:
        """Call a function of a hook outside a pass, and treat its errors as in a pass."""


@dataclass(eq=False)
class Unregistered:
    """The registry of a hook that is called directly, as in a unit test: one layer is all that it knows.

    Attributes:
        root: the layer.
        hook: the hook.
    """

    root: nn.Module
    hook: Any
    language_model: Any = None
    store: Any = None
    unmasked: dict[Stage | None, bool] = field(default_factory=dict)
    loss_scale: Callable[[torch.device], Tensor] | None = None

    def get_hooks(self) -> list[Any]:
        """Return the hook alone."""
        return [self.hook]

    def list_layers(self) -> list[str]:
        """Return no layer: the only one has no name."""
        return []

    def refresh(self, hook: Any) -> None:
        """Do nothing: there are no handles."""

    def is_attached(self, hook: Any) -> bool:
        """Return whether it is the hook that is called."""
        return hook is self.hook

    def has_failed(self, hook: Any) -> bool:
        """Return ``False``: what the hook raises goes to the caller."""
        return False

    def report_event(self, hook: Any, text: str, layer: str) -> None:
        """Do nothing: there is no log."""

    def call(self, hook: Any, function: Callable[[], Any]) -> Any:
        """Call the function: what it raises goes to the caller."""
        return function()


@dataclass(frozen=True, eq=False)
class Place:
    """A hook's place: one layer, or none in the context outside a call.

    Attributes:
        layers: the registry that the hook is in.
        hook: the hook.
        layer: name of the layer, without wrapper prefixes.
        index: the block of its stack that the layer is or is in; ``None`` outside stacks, or if the hook is in several.
        channels: where the channels of the layer's activation are.
        queries: the learned queries that the activation may be of, in the place of tokens.
        head: the head of an attention that is the place; ``None`` at a layer.
    """

    layers: Registry = field(repr=False)
    hook: Any = None
    layer: str = ""
    index: int | None = None
    channels: Channels = field(default=BY_DIMENSIONS, repr=False)
    queries: Queries | None = field(default=None, repr=False)
    head: Head | None = field(default=None, repr=False)


_NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class HookContext(NamedTuple):
    """The facts of one call of one hook on one layer, and access to the other hooks. They do not change.

    Outside a call a registered hook also has a context, without a layer, inputs or a pass.

    Attributes:
        place: the hook's place.
        running: the running batch.
        facts: the facts about the tokens of the running pass.
        axes: which dimensions of the layer's activation are samples and tokens.
        args: positional inputs of the layer.
        kwargs: keyword inputs of the layer.
        output: the layer's output; ``None`` before the layer.
        activation: the tensor in the layer's input or output; ``None`` if there is none.
        recomputing: whether this is gradient checkpointing's second run of the layer.
    """

    place: Place
    running: RunningBatch = NO_BATCH
    facts: PassFacts = PassFacts()
    axes: Axes = Axes.USUAL
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = _NO_KWARGS
    output: Any = None
    activation: Tensor | None = None
    recomputing: bool = False

    @property
    def layers(self) -> Any:
        """The registry that the hook is in, a `Layers`."""
        return self.place.layers

    @property
    def layer(self) -> str:
        """Name of the layer, without wrapper prefixes."""
        return self.place.layer

    @property
    def index(self) -> int | None:  # type: ignore[override]  # nobody needs a tuple's index(value) here
        """The block of its stack that the layer is or is in; ``None`` outside stacks, or if the hook is in several."""
        return self.place.index

    @property
    def head(self) -> int | None:
        """The index of the head that the hook is called at; ``None`` at a layer."""
        return self.place.head.index if self.place.head is not None else None

    def channel_dim(self, x: Tensor) -> int:
        """Return the dimension of the channels of an activation of the layer, counted from the end: -1 for the last.

        The layer says which it is, or the hook's ``channels=``. Where neither they nor the shape do, a warning names
        the layer, and the dimension is a guess.

        Args:
            x: the activation.

        Raises:
            ValueError: ``channels=`` is not a dimension of ``x``.
        """
        channels = self.place.channels
        dim = channels.by_dims[x.dim()]
        if dim is None:  # only then the facts are asked, which an operation in a graph does not know
            dim = channels.of(x, (self.facts.rows, self.facts.tokens))
        if dim:
            return dim
        if channels.given is not None:
            raise ValueError(
                f"channels={channels.given} is not a dimension of the activation {tuple(x.shape)} of {self.layer!r}: "
                "give the dimension that holds its channels"
            )
        guess = channels.guess[x.dim()]
        if not torch.compiler.is_compiling():
            warn(
                f"{self.layer!r}: neither its class nor the shape {tuple(x.shape)} shows which dimension holds the "
                f"channels, so {guess % x.dim()} is taken. Pass channels= to the hook: 1 for dimension 1, -1 for the "
                "last.",
                InexactWarning,
                stacklevel=3,
            )
        return guess

    @property
    def moment(self) -> Moment | None:
        """The batch's place in the Trainer's time; ``None`` outside a Trainer."""
        return self.running.moment

    @property
    def batch(self) -> Any:
        """The running batch; ``None`` outside a Trainer."""
        return self.running.batch

    @property
    def token_mask(self) -> Callable[[Any], Tensor] | None:
        """The user's function from a batch to the mask of its real tokens."""
        return self.running.token_mask

    @property
    def stage(self) -> Stage | None:
        """The stage that the Trainer is in; ``None`` outside a Trainer."""
        return self.running.stage

    @property
    def epoch(self) -> int | None:
        """The epoch, counted from 0; ``None`` outside a Trainer."""
        return self.moment.epoch if self.moment is not None else None

    @property
    def batch_idx(self) -> int | None:
        """The index of the batch in its epoch, counted from 0; ``None`` outside a Trainer."""
        return self.moment.batch_idx if self.moment is not None else None

    @property
    def step(self) -> int | None:
        """The number of steps taken before this batch; ``None`` outside a Trainer."""
        return self.moment.step if self.moment is not None else None

    @property
    def decode_step(self) -> int:
        """How many tokens of each row this pass is past the prompt: 0 while the prompt is read, then 1, 2, ..."""
        facts = self.facts
        if facts.prompt_width is None or facts.tokens is None:
            return 0
        return max(0, (facts.past or 0) + facts.tokens - facts.prompt_width)

    @property
    def model(self) -> nn.Module:
        """The module that layer names are relative to."""
        return self.place.layers.root

    @property
    def language_model(self) -> Any:
        """The `LanguageModel` whose layers these are; ``None`` if there is none."""
        return self.place.layers.language_model

    @property
    def store(self) -> Any:
        """The store that was given; ``None`` if there was none."""
        return self.place.layers.store

    @property
    def hooks(self) -> list[Any]:
        """All hooks of the registry, in the order of their registration."""
        return self.place.layers.get_hooks()

    def __repr__(self) -> str:
        where = f"layer={self.layer!r}, index={self.index!r}"
        return f"HookContext({where}, moment={self.moment!r}, recomputing={self.recomputing!r})"
