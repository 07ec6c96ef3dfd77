"""What a hook may know while it runs: the place, the batch, the pass, and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.layouts import Layout
from mi_crow_lightning.hooks.schedules import Moment, Stage

if TYPE_CHECKING:
    from mi_crow_lightning.hooks.hook import Hook
    from mi_crow_lightning.hooks.layers import Layers

__all__ = ["HookContext"]


@dataclass(frozen=True)
class HookContext:
    """Frozen facts of one call of one hook on one layer, and the way to its neighbours.

    Outside a call a registered hook has a context too, without layer, inputs and pass.

    Attributes:
        layers: the registry that the hook is in.
        layer: name of the layer, without wrapper prefixes.
        index: the block that the layer is or lies in, ``None`` outside the main stack.
        args: positional inputs of the layer.
        kwargs: keyword inputs of the layer.
        moment: the batch in the Trainer's time; ``None`` outside a Trainer.
        batch: the running batch; ``None`` outside a Trainer.
        token_mask: the user's function from a batch to the mask of its real tokens.
        facts: what the running pass says about its tokens.
        layout: which dimensions of the layer's activation are samples and tokens.
        recomputing: whether this is gradient checkpointing's second run of the layer.
    """

    layers: Layers = field(repr=False)
    layer: str = ""
    index: int | None = None
    args: tuple[Any, ...] = field(default=(), repr=False)
    kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    moment: Moment | None = None
    batch: Any = field(default=None, repr=False)
    token_mask: Callable[[Any], Tensor] | None = None
    facts: PassFacts = field(default=PassFacts(), repr=False)
    layout: Layout = Layout.USUAL
    recomputing: bool = False

    @property
    def stage(self) -> Stage | None:
        """What the Trainer is doing; ``None`` outside a Trainer."""
        return self.moment.stage if self.moment is not None else None

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
        return self.layers.root

    @property
    def language_model(self) -> Any:
        """The `LanguageModel` whose layers these are; ``None`` if there is none."""
        return self.layers.language_model

    @property
    def store(self) -> Any:
        """The store that was given; ``None`` if none was."""
        return self.layers.store

    @property
    def hooks(self) -> list[Hook]:
        """All hooks of the registry, in the order of their registration."""
        return self.layers.get_hooks()
