"""A detector that keeps activations.

It gives you the activations themselves, as copies, on the CPU by default. This costs a copy of every activation that
is seen, and as much memory as you allow. If you only need their mean, spread or histogram, use
`ActivationStatistics`, which takes a few hundred bytes per layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mi_crow_lightning._arguments import device_of, one_of, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.errors import CaptureBudgetExceeded, TokensUnknown, UnreadableActivation
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.options import ReadingOptions, Unpack
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.positions.padding import real_tokens
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import Schedule, Stage, When
from mi_crow_lightning.hooks.tokens import Tokens, TokensLike
from mi_crow_lightning.metrics.activation import described, histogram, measure, merge_all, statistics, summarize
from mi_crow_lightning.metrics.collectives import Share, Shares
from mi_crow_lightning.metrics.rows import Row, empty_rows

__all__ = ["LayerActivationDetector"]


class LayerActivationDetector(Detector):
    """A detector that keeps the activations of its layers, by default in every stage and batch.

    Args:
        layer_signature: the layers to watch.
        hook_id: see `Hook`.
        target_dtype: dtype of the copies, or its name, ``"float16"``; ``None`` for the activation's own.
        keep: ``"last"`` keeps the last call of each layer, ``"all"`` every call since `clear_captured`.
        max_bytes: the most bytes that may be held. A capture beyond that is refused, and the others stay.
        device: the device of the copies; ``None`` for that of the activation.
        tokens: which positions to keep, see `Tokens`: ``(B, T, D)`` is then kept as ``(N, D)``, row after row,
            without padding. By default all of the activation is kept in its own shape, padding included.
        hook_type: see `Hook`.
        **options: ``name``, ``before_edits``, ``store``, ``schedule``, ``on_error``, ``channels``, see `Detector`.

    Attributes:
        tensor_metadata: ``["activations"]`` is the tensor, or a list of tensors with ``keep="all"``. If the signature
            means several layers, it is a dict of these by layer name.
        metadata: ``["activations_shape"]`` has the shapes, in the same form. With ``tokens``,
            ``["tokens_per_row"]`` has how many of the ``N`` tokens are of each row: ``captured.split(counts)`` takes
            them apart. It is ``None`` where the layer lays the tokens of all rows in one.

    Raises:
        TypeError, ValueError: an argument is not one of those named above.

    Examples:
        >>> from torch import nn, ones
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Flatten(), nn.Identity())
        >>> detector = LayerActivationDetector("0")
        >>> _ = Layers(model).register_hook("0", detector)
        >>> _ = model(ones(2, 3, 4))
        >>> detector.get_captured().shape
        torch.Size([2, 12])
    """

    def __init__(
        self,
        layer_signature: Signature | None = None,
        hook_id: str | None = None,
        target_dtype: torch.dtype | str | None = None,
        *,
        keep: Literal["last", "all"] = "last",
        max_bytes: int = 2**30,
        device: torch.device | str | None = "cpu",
        tokens: TokensLike | None = None,
        hook_type: HookTypeLike = HookType.FORWARD,
        **options: Unpack[ReadingOptions],
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, **options)
        self.target_dtype = _dtype(target_dtype) if target_dtype is not None else None
        self.keep = one_of("keep", keep, ["last", "all"])
        self.max_bytes = whole_number("max_bytes", max_bytes, 1, "a whole number of bytes")
        self.device: torch.device | None = device_of("device", device) if device is not None else None
        self.tokens = Tokens.of(tokens) if tokens is not None else None
        self._held: dict[str, _Held] = {}
        self._bytes_held = 0
        self._unread: dict[str, Stage | None] = {}  # layers captured since the last reading, and in which stage
        self._layers: list[str] = []
        self._several = False

    def default_schedule(self) -> When:
        """Return a schedule of every stage and batch."""
        return Schedule()

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Forget the activations of other layers, or those held in another form."""
        self._layers = list(layers)
        several = len(layers) > 1
        if several is not self._several or not set(self._held) <= set(layers):
            self.clear_captured()
        self._several = several

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Keep a copy of ``x`` that can enter autograd even if the run is in inference mode.

        Raises:
            UnreadableActivation: ``x`` is nested.
            CaptureBudgetExceeded: the copies would take more than ``max_bytes``.
            TokensUnknown: ``tokens`` is given, and the activation is not a sequence or its tokens are not known.
        """
        if x.is_nested:  # its readings need a shape
            raise UnreadableActivation(
                f"the activation of {ctx.layer!r} is a nested tensor, whose rows differ in length: it is not captured. "
                "For nn.TransformerEncoder, pass enable_nested_tensor=False."
            )
        dtype = self.target_dtype or x.dtype
        chosen = self._chosen(x, ctx)
        counts = None if chosen is None else chosen.sum(-1).tolist()  # of each row, or of all in one row
        kept = x.numel() if counts is None else (sum(counts) if isinstance(counts, list) else counts) * x.shape[-1]
        self._refuse_growth(kept * dtype.itemsize, ctx.layer)
        with torch.inference_mode(False):
            taken = x if chosen is None else x[chosen]  # (N, D)
            copy = taken.to(device=self.device or x.device, dtype=dtype, copy=chosen is None)
        dim = ctx.channel_dim(x) if chosen is None else -1
        self._hold(copy, dim, counts if isinstance(counts, list) else None, ctx.layer)
        self._unread[ctx.layer] = ctx.stage
        self._publish(ctx.layer)

    def _hold(self, copy: Tensor, channels: int, per_row: list[int] | None, layer: str) -> None:
        before = self._held.get(layer)
        if before is None or self.keep == "last":
            self._bytes_held -= before.bytes if before is not None else 0
            self._held[layer] = before = _Held()
        self._bytes_held += before.add(copy, channels, per_row)

    def _chosen(self, x: Tensor, ctx: HookContext) -> Tensor | None:
        """Return which positions of ``x`` to keep, bool of its leading dimensions; ``None`` for ``x`` as it is."""
        if self.tokens is None:
            return None
        if ctx.axes.of(x) is not Axes.USUAL or x.dim() not in (2, 3):
            raise TokensUnknown(
                f"tokens={self.tokens!r} needs an activation (batch, tokens, features), and {ctx.layer!r} gives "
                f"{tuple(x.shape)}: leave tokens out to keep all of it, or choose another layer"
            )
        # A choice that leaves nothing out would only be warned of a mask that does not fit; here padding is left out.
        of_all = self.tokens.kind == "which" and self.tokens.value == "all"
        try:
            mask = real_tokens(x, ctx, must_fit=True) if of_all else self.tokens.mask(x, ctx)
        except TokensUnknown as error:
            raise TokensUnknown(f"{error}. Without tokens= all of it is kept, padding included") from None
        return mask if mask is not None else x.new_ones(x.shape[:-1], dtype=torch.bool)

    def get_captured(self) -> Any:
        """Return ``tensor_metadata["activations"]``, or ``None`` if nothing was seen.

        Raises:
            RanElsewhere: the run was in processes of ``ddp_spawn`` or the like.
        """
        if self._spawned_runs is not None:
            self._spawned_runs.refuse("get_captured()")
        return self.tensor_metadata.get("activations")

    def clear_captured(self) -> None:
        """Forget all held activations."""
        self._held.clear()
        self._bytes_held = 0
        self._unread.clear()
        self.tensor_metadata.pop("activations", None)
        for name in ("activations_shape", "tokens_per_row"):
            self.metadata.pop(name, None)

    def reading_names(self) -> tuple[str, ...]:
        """Return the names: histogram, mean, std, and mean Euclidean norm over the channels."""
        return ("histogram", "mean", "std", "token_norm")

    def _described(self, name: str) -> str:
        return described({"token_norm": "token_norm_mean"}.get(name, name))

    def readings(self) -> list[Reading]:
        """Return readings of the held activations of layers seen since the last reading in the running stage.

        Layers whose activations are not floating-point numbers have no readings.
        """
        rows = zip(self._layers, self.over_ranks(), strict=True)
        return [
            reading for layer, row in rows if row[Row.COUNT] + row[Row.NONFINITE] for reading in _readings(layer, row)
        ]

    def share(self) -> Shares:
        """Share sums of the held activations of layers seen since the last reading in the running stage."""
        stage = self.context.stage if self.context is not None else None
        rows = list(empty_rows(len(self._layers)))
        for index, layer in enumerate(self._layers):
            row = self._held[layer].summarized() if self._unread.get(layer, "read") is stage else None
            rows[index] = row if row is not None else rows[index]
        home = next((row.device for row in rows if row.device.type != "cpu"), torch.device("cpu"))
        merged = yield Share(torch.stack([row if row.device == home else row.to(home) for row in rows]), merge_all)
        return merged

    def reset(self) -> None:
        """Begin the next reading. The held activations stay."""
        self._unread.clear()

    def _refuse_growth(self, size: int, layer: str) -> None:
        if self._bytes_with(size, layer) <= self.max_bytes:
            return
        self._bytes_held = sum(held.count() for held in self._held.values())  # a user may have emptied a list
        if (wanted := self._bytes_with(size, layer)) > self.max_bytes:
            raise CaptureBudgetExceeded(
                f"keeping the activation of {layer!r} would take {wanted:,} bytes, more than "
                f"max_bytes={self.max_bytes:,} ({self._bytes_held:,} bytes are held, and stay). Call clear_captured() "
                "between batches, set keep='last', watch fewer layers, use a smaller target_dtype, or raise max_bytes."
            )

    def _bytes_with(self, size: int, layer: str) -> int:
        """Return the bytes that would be held with one more activation."""
        replaced = self._held[layer].bytes if self.keep == "last" and layer in self._held else 0
        return self._bytes_held + size - replaced

    def _publish(self, layer: str) -> None:
        held = self._held[layer]
        self._put(self.tensor_metadata, "activations", layer, held.tensors)
        self._put(self.metadata, "activations_shape", layer, held.shapes)
        if self.tokens is not None:
            self._put(self.metadata, "tokens_per_row", layer, held.per_row)

    def _put(self, into: dict[str, Any], name: str, layer: str, values: list[Any]) -> None:
        value = values[0] if self.keep == "last" else values
        if self._several:
            into.setdefault(name, {})[layer] = value
        else:
            into[name] = value


@dataclass
class _Held:
    """The activations that are held of one layer. Whatever is known of them grows with each; nothing is gone over.

    Attributes:
        tensors: the activations.
        shapes: their shapes.
        per_row: how many tokens are of each row, where tokens are chosen.
        channels: the dimension of the channels of each.
        bytes: what they take together.
        row: the summary of those that were summarized; ``None`` before the first.
        summarized_up_to: how many these are.
    """

    tensors: list[Tensor] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    per_row: list[list[int] | None] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    bytes: int = 0
    row: Tensor | None = None
    summarized_up_to: int = 0

    def add(self, copy: Tensor, channels: int, per_row: list[int] | None) -> int:
        """Hold one more activation, and return its bytes."""
        self.tensors.append(copy)
        self.shapes.append(tuple(copy.shape))
        self.per_row.append(per_row)
        self.channels.append(channels)
        size = copy.numel() * copy.element_size()
        self.bytes += size
        return size

    def count(self) -> int:
        """Count the bytes of the list again, and return them."""
        self.bytes = sum(held.numel() * held.element_size() for held in self.tensors)
        return self.bytes

    def summarized(self) -> Tensor | None:
        """Return the summary of all; ``None`` if none has floating-point numbers.

        Raises:
            ValueError: someone has changed the list, so what is known of each does not fit it.
        """
        if len(self.tensors) != len(self.channels):
            raise ValueError(
                f"{len(self.tensors)} activations are held and {len(self.channels)} were captured: forget them with "
                "clear_captured(), and leave the list itself as it is"
            )
        new = range(self.summarized_up_to, len(self.tensors))
        parts = [
            _summary(self.tensors[i], self.channels[i])
            for i in new
            if self.tensors[i].numel() and self.tensors[i].is_floating_point()
        ]
        if parts:
            self.row = merge_all(torch.stack(parts if self.row is None else [self.row, *parts]))
        self.summarized_up_to = len(self.tensors)
        return self.row


def _dtype(value: torch.dtype | str) -> torch.dtype:
    """Return the dtype that a copy can have, also by its name."""
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    dtype = getattr(torch, name, None) if name.isidentifier() else value
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"target_dtype={shown(value)} must be a dtype such as torch.float16, or its name, 'float16'")
    try:
        torch.zeros(1).to(dtype)
    except (RuntimeError, NotImplementedError) as error:  # those of quantised tensors, and of bits
        raise ValueError(f"target_dtype={dtype} cannot be the dtype of a copy: choose torch.float16, say") from error
    return dtype


def _summary(held: Tensor, channels: int) -> Tensor:
    return measure(held, channels=channels).row if held.dim() else summarize(held)


def _readings(layer: str, row: Tensor) -> list[Reading]:
    values = statistics(row)
    return [
        Reading(layer, "mean", values["mean"].item()),
        Reading(layer, "std", values["std"].item()),
        Reading(layer, "token_norm", values["token_norm_mean"].item()),
        Reading(layer, "histogram", histogram(row), "histogram"),
    ]
