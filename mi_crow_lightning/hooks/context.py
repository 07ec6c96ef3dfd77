"""What a hook may know while it runs: the place, the batch, the pass, and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.layouts import Layout
from mi_crow_lightning.hooks.passes.running_batch import NO_BATCH, RunningBatch
from mi_crow_lightning.hooks.schedules import Moment, Stage

__all__ = ["HookContext", "Place", "Registry"]


class Registry(Protocol):
    """The part of `Layers` that hooks reach through their context."""

    root: nn.Module
    language_model: Any
    store: Any

    def get_hooks(self) -> list[Any]:
        """All hooks, in the order of their registration."""

    def list_layers(self) -> list[str]:
        """Names of all layers."""

    def refresh(self, hook: Any) -> None:
        """Attach a hook's handles, or remove them, as its switch says."""

    def is_attached(self, hook: Any) -> bool:
        """Whether a hook's layers call it now."""

    def has_failed(self, hook: Any) -> bool:
        """Whether a hook failed in the running pass."""


@dataclass(frozen=True, eq=False)
class Place:
    """A hook's place: one layer, or for what is asked outside a call, none.

    Attributes:
        layers: the registry that the hook is in.
        hook: the hook.
        layer: name of the layer, without wrapper prefixes.
        index: the block that the layer is or lies in, ``None`` outside the main stack.
    """

    layers: Registry = field(repr=False)
    hook: Any = None
    layer: str = ""
    index: int | None = None


_NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class HookContext(NamedTuple):
    """Facts of one call of one hook on one layer, and the way to its neighbours. They do not change.

    Outside a call a registered hook has a context too, without layer, inputs and pass.

    Attributes:
        place: the hook's place.
        running: the running batch.
        facts: what the running pass says about its tokens.
        layout: which dimensions of the layer's activation are samples and tokens.
        args: positional inputs of the layer.
        kwargs: keyword inputs of the layer.
        output: the layer's output; ``None`` before the layer.
        activation: the tensor in what the layer was given or returned; ``None`` where there is none.
        recomputing: whether this is gradient checkpointing's second run of the layer.
    """

    place: Place
    running: RunningBatch = NO_BATCH
    facts: PassFacts = PassFacts()
    layout: Layout = Layout.USUAL
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
    def index(self) -> int | None:  # type: ignore[override]  # a tuple's index(value) has no use here
        """The block that the layer is or lies in, ``None`` outside the main stack."""
        return self.place.index

    @property
    def moment(self) -> Moment | None:
        """The batch in the Trainer's time; ``None`` outside a Trainer."""
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
        """What the Trainer is doing; ``None`` outside a Trainer."""
        return self.running.stage

    @property
    def epoch(self) -> int | None:
        """The epoch, from 0; ``None`` outside a Trainer."""
        return self.moment.epoch if self.moment is not None else None

    @property
    def batch_idx(self) -> int | None:
        """The batch in its epoch, from 0; ``None`` outside a Trainer."""
        return self.moment.batch_idx if self.moment is not None else None

    @property
    def step(self) -> int | None:
        """Steps taken before this batch; ``None`` outside a Trainer."""
        return self.moment.step if self.moment is not None else None

    @property
    def decode_step(self) -> int:
        """0 while the prompt is read, then 1, 2, ...: how many tokens of each row this pass is past the prompt."""
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
        """The store that was given; ``None`` if none was."""
        return self.place.layers.store

    @property
    def hooks(self) -> list[Any]:
        """All hooks of the registry, in the order of their registration."""
        return self.place.layers.get_hooks()

    def __repr__(self) -> str:
        where = f"layer={self.layer!r}, index={self.index!r}"
        return f"HookContext({where}, moment={self.moment!r}, recomputing={self.recomputing!r})"
