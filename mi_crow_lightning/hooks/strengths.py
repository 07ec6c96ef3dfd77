"""The strength of an edit: a number, or one for each sample, layer or moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from mi_crow_lightning._arguments import is_finite, unusable
from mi_crow_lightning._shown import name_of, shown
from mi_crow_lightning.errors import StrengthMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.per_layer import Casts, PerLayer, span_of
from mi_crow_lightning.hooks.positions.rows import entry_of, of_rows

__all__ = ["A_FUNCTION", "Strength", "Strengths", "reads_batch"]

# Any, because in a configuration file jsonargparse would take only functions that are annotated to return a Tensor.
Strength: TypeAlias = (
    float | Literal["batch"] | Tensor | Mapping[int, float] | Mapping[str, float] | Callable[[HookContext], Any]
)
"""What ``strength=`` may be: see `Strengths`."""

_BATCH = "batch"
A_FUNCTION = "a function"
_FORMS = (
    "a finite number, a tensor (B,) with one for each sample, 'batch', a mapping from layer to number, or a "
    "function of the context"
)


class Strengths:
    """The argument ``strength=``, and the strength that follows from it at a layer in a pass.

    Args:
        given: a number; a tensor ``(B,)``, one for each sample; ``"batch"``, to read ``batch["strength"]``, a tensor
            ``(B,)`` or a number; a mapping from layer (block index, or name) to number; or a function
            ``f(ctx)`` that returns a number or a tensor ``(B,)``.

    Attributes:
        number: the strength, if it is one number.

    Raises:
        ValueError: it is none of these.
    """

    def __init__(self, given: Strength) -> None:
        self.given = given
        self._casts = Casts()
        self._of_layers: PerLayer[float] | None = None
        self._of_samples: Tensor | None = None
        if isinstance(given, Mapping):
            self._of_layers = PerLayer(given, "strength", _number)
        elif isinstance(given, Tensor):
            self._of_samples = _samples(given)
        elif not _is_batch(given) and not callable(given):
            self.given = _number(given, "strength")
        self.number = self.given if isinstance(self.given, float) else None

    def __str__(self) -> str:
        """Return the strength in a few words, for the ``repr`` of a hook."""
        if self._of_layers is not None:
            return f"<{len(of := self.kept)} layers, {span_of(of.values())}>"  # type: ignore[arg-type, union-attr]
        if self._of_samples is not None:
            return f"<{len(self._of_samples)} samples, {span_of(self._of_samples.tolist())}>"
        if callable(self.given):
            return name_of(self.given)
        return shown(self.given)

    @property
    def kept(self) -> float | str | Tensor | dict[int | str, float]:
        """The form that a checkpoint keeps; for a function only `A_FUNCTION`."""
        if self._of_layers is not None:
            return dict(self._of_layers.value)  # type: ignore[arg-type]  # it was given as a mapping
        if self._of_samples is not None:
            return self._of_samples.cpu()
        return self.given if isinstance(self.given, (float, str)) else A_FUNCTION

    def at(self, x: Tensor, ctx: HookContext) -> float | Tensor:
        """Return the strength for an activation.

        Args:
            x: the activation, whose first dimension is samples, or the beams or sequences of samples.
            ctx: the hook's context.

        Returns:
            A number, or a float32 tensor on the device of ``x`` that multiplies it row by row: ``(rows, 1, ...)``.

        Raises:
            StrengthMismatch: the batch has no strength, or the rows do not match the strengths.
        """
        if self._of_layers is not None:
            return self._of_layers.at(ctx)
        if self._of_samples is not None:
            return _for_rows(self._casts.of(self._of_samples, x, torch.float32), x, ctx)
        if isinstance(self.given, str):
            forms, module = "a tensor (B,) or a number", "CausalLMModule(sweep=[...])"
            given = entry_of(ctx.batch, "strength", forms, StrengthMismatch, module)
            return _for_rows(given, x, ctx, "batch['strength']")
        if callable(self.given):
            return _for_rows(self.given(ctx), x, ctx, "the strength function's result")
        assert isinstance(self.given, float)
        return self.given

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse layers that a mapping has no strength for.

        Raises:
            RegistrationError: it names the layer.
        """
        if self._of_layers is not None:
            self._of_layers.check_layers(blocks)


def reads_batch(controller: Any) -> bool:
    """Say whether a controller takes its strength from the batch."""
    return _is_batch(getattr(controller, "strength", None))


def _is_batch(value: Any) -> bool:
    return isinstance(value, str) and value == _BATCH


def _number(value: Any, name: str) -> float:
    if not is_finite(value):
        forms = _FORMS if name == "strength" else "a finite number"
        raise ValueError(f"{name}={shown(value)} must be {forms}")
    return float(value)


def _samples(value: Tensor) -> Tensor:
    if (reason := unusable(value)) is not None:
        raise ValueError(f"strength is a tensor that {reason}: it must be {_FORMS}")
    if value.dim() != 1 or not value.numel() or value.dtype == torch.bool:
        raise ValueError(f"strength must be {_FORMS}, not a {value.dtype} tensor of shape {tuple(value.shape)}")
    with torch.inference_mode(False):
        copy = value.detach().to(torch.float32, copy=True)
    if not torch.isfinite(copy).all():
        raise ValueError(f"strength holds {int((~torch.isfinite(copy)).sum())} values that are not finite")
    return copy


def _for_rows(value: Any, x: Tensor, ctx: HookContext, name: str = "strength") -> float | Tensor:
    if not isinstance(value, Tensor):
        if not is_finite(value):
            raise StrengthMismatch(f"{name} is {shown(value)}: it must be a finite number or a tensor (B,)")
        return float(value)
    if value.is_complex():
        raise StrengthMismatch(f"{name} is complex ({value.dtype}): it must be a real number or a tensor (B,) of these")
    if value.dim() > 1:
        raise StrengthMismatch(f"{name} has shape {tuple(value.shape)}: it must be a number or a tensor (B,)")
    if value.dtype is not torch.float32 or value.device != x.device:  # to ask takes a tenth of the time of a cast
        value = value.to(x.device, torch.float32, non_blocking=True)
    rows = value if value.dim() == 0 else of_rows(value, x, ctx)
    if rows is None:
        raise StrengthMismatch(
            f"{name} has {len(value)} values, one for each sample, and the activation of {ctx.layer!r} has {len(x)} "
            f"rows (shape {tuple(x.shape)}): give one value for each row, or name the sample of each row in "
            "batch['sample_of_row']. Only inside generate() may a sample have several rows, its beams or sequences"
        )
    return rows if rows.dim() == 0 else rows.reshape(-1, *[1] * (x.dim() - 1))
