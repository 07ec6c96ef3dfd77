"""The base of the ready-made controllers: an edit at chosen tokens, under a condition, with a strength."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._abstract import abstract
from mi_crow_lightning._arguments import check_flag
from mi_crow_lightning._saved_state import Check
from mi_crow_lightning._shown import cut, name_of, shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.conditions import Condition, where_both
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.controller import Controller, checked_edit
from mi_crow_lightning.hooks.edits import with_norms_of
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.options import SkipOptions, Unpack
from mi_crow_lightning.hooks.strengths import A_FUNCTION, Strength, Strengths, reads_batch
from mi_crow_lightning.hooks.tokens import Tokens, TokensLike
from mi_crow_lightning.warnings import ResumeWarning

__all__ = ["TokenController"]


@abstract("change")
class TokenController(Controller):
    """A controller that edits chosen tokens; a subclass overrides `change` alone.

    All other positions, padding included, stay bit-equal. ``strength`` 0 changes nothing, 1 makes the whole change.

    Args:
        layer_signature: the layers.
        strength: how much of the change to make: a number; a tensor ``(B,)`` with one value for each sample;
            ``"batch"``, to read ``batch["strength"]``, a tensor ``(B,)`` or a number; a mapping from layer (block index
            or name) to number; or a function of the context that returns a number or a tensor ``(B,)``. The rows that
            ``generate`` makes from a sample (beams, sequences) share its strength.
        tokens: the positions to edit, see `Tokens`.
        when: a further condition: ``when(x, ctx)`` returns bools, ``(B,)`` or ``(B, T)`` or one for all. Like the
            edit, it must return the same result when gradient checkpointing repeats it.
        preserve_norm: whether each edited token is scaled back to its original norm, as the last step.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        **options: ``may_skip``, see `Controller`; ``schedule``, ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: an argument is not one of the values named above.

    Examples:
        >>> import torch
        >>> from mi_crow_lightning.hooks import Layers
        >>> class Double(TokenController):
        ...     def change(self, x, strength, ctx):
        ...         return x + strength * x
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
        >>> _ = Layers(model).register_hook("0", Double(when=lambda x, ctx: x[..., 0] > 0))
        >>> model(torch.tensor([[[1.0, 2.0], [-1.0, 2.0]]]))
        tensor([[[ 2.,  4.],
                 [-1.,  2.]]])
    """

    def __init__(
        self,
        layer_signature: Signature | None = None,
        *,
        strength: Strength = 1.0,
        tokens: TokensLike = "all",
        when: Condition | None = None,
        preserve_norm: bool = False,
        hook_type: HookTypeLike = HookType.FORWARD,
        hook_id: str | None = None,
        **options: Unpack[SkipOptions],
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, **options)
        if when is not None and not callable(when):
            raise TypeError(f"when={shown(when)} must be callable, as when(x, ctx)")
        self.strength = strength
        self.tokens = Tokens.of(tokens)
        self.condition = when
        self.preserve_norm = check_flag("preserve_norm", preserve_norm)

    @property
    def strength(self) -> Strength:
        """How much of the change is made; you may set it between batches."""
        return self._strengths.given

    @strength.setter
    def strength(self, value: Strength) -> None:
        self._strengths = Strengths(value)

    @property
    def _may_be_idle(self) -> bool:
        """Whether a condition, or the strength, may leave everything unchanged."""
        return self.condition is not None or not self._strengths.number

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return the activation as if every token were edited; this must be a pure function.

        Args:
            x: the activation. Do not write to it.
            strength: a number, or float32 ``(rows, 1, ...)``; `hooks.edits` has functions that apply it.
            ctx: the facts of this call.

        Returns:
            A tensor of the same shape, dtype and device, or ``x`` itself to change nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} must override change(x, strength, ctx)")

    def _changed(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return the result of `change`; a subclass that reads the channels brings them to the last dimension first."""
        return self.change(x, strength, ctx)

    def _channel_dim(self, x: Tensor, ctx: HookContext) -> int:
        return ctx.channel_dim(x)

    def _with_norms_of(self, x: Tensor, edited: Tensor, ctx: HookContext) -> Tensor:
        return with_norms_of(x, edited, self._channel_dim(x, ctx))

    def edit(self, x: Tensor, ctx: HookContext) -> Tensor | None:
        """Return the result of `change` at the chosen tokens, and ``x`` elsewhere.

        Raises:
            StrengthMismatch, ConditionMismatch, TokensUnknown, EditMismatch: the strength, the condition, the choice
                of tokens or the result of `change` does not fit ``x``.
        """
        mask = self.tokens.mask(x, ctx, editing=True)
        chosen = mask if self.condition is None else where_both(mask, self.condition, x, ctx)
        if chosen is False:
            return None
        strength = self._strengths.number
        edited = self._changed(x, self._strengths.at(x, ctx) if strength is None else strength, ctx)
        if edited is x:
            return None
        checked_edit(edited, x)
        if self.preserve_norm:
            edited = self._with_norms_of(x, edited, ctx)
        if chosen is None or chosen is True:
            return edited
        # Not x + mask * delta: that turns -0.0 into 0.0 where the mask is off.
        return torch.where(self._wide(chosen, x, ctx), edited, x)

    def _wide(self, chosen: Tensor, x: Tensor, ctx: HookContext) -> Tensor:
        """Return the mask with trailing dimensions added to match ``x``; it is kept with the pass, like the mask."""
        kept = ctx.facts.derived if self.condition is None else None
        wide: Tensor | None = None if kept is None else kept.get(chosen)
        if wide is not None:
            return wide
        wide = chosen.reshape(*chosen.shape, *[1] * (x.dim() - chosen.dim()))
        if kept is not None:
            kept[chosen] = wide
        return wide

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse layers for which a strength by layer has no value.

        Raises:
            RegistrationError: a layer has no strength; the message names it and the layers that have one.
        """
        self._strengths.check_layers(blocks)

    def why_not_traced(self) -> str | None:
        """Return why the edit cannot be made inside a graph; ``None`` if it can."""
        if self.condition is not None:
            return "when= is evaluated while the model runs"
        if callable(self.strength) or reads_batch(self):
            return f"strength={self.strength!r} is read again in each pass"
        return self.tokens.why_not_traced()

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "strength", str(self._strengths)
        if not self.tokens._is_all:
            yield "tokens", cut(self.tokens._text, 80)
        if self.condition is not None:
            yield "when", name_of(self.condition)
        if self.preserve_norm:
            yield "preserve_norm", "True"
        yield from super()._facts()

    def state_dict(self) -> dict[str, Any]:
        """Return the switch and the strength; of a function, only the fact that it was one."""
        return super().state_dict() | {"strength": self._strengths.kept}

    _may_be_missing: tuple[str, ...] = ("strength",)  # the state of another class of hooks

    def _state_form(self) -> dict[str, Check]:
        return super()._state_form() | {"strength": _saved_strength}

    def _load(self, fields: dict[str, Any]) -> None:
        """Restore the switch and the strength; if the saved strength was a function, the present strength stays."""
        super()._load(fields)
        saved = fields.get("strength")
        if isinstance(saved, Strengths):
            self._strengths = saved
        elif saved == A_FUNCTION and not callable(self.strength):
            warn(
                f"{self!r}: its strength was a function when the checkpoint was written, which a "
                f"checkpoint cannot keep. It goes on with {self.strength!r}: pass the function again, or set strength "
                "after loading.",
                ResumeWarning,
                stacklevel=2,
            )


def _saved_strength(name: str, value: Any) -> Strengths | str:
    return A_FUNCTION if isinstance(value, str) and value == A_FUNCTION else Strengths(value)
