"""Statistics of tokens as vectors: how alike they are, how many dimensions they fill, where the largest element is.

They cost more than those of `ActivationStatistics`, and so have a separate detector. A layer of width ``D`` keeps
16 kB, ``8 D`` bytes for ``cosine`` and ``8 D^2`` bytes for ``effective_rank`` on its device; 4096 tokens at a time are
in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor

from mi_crow_lightning._arguments import chosen, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.choices import TokenStatisticName
from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.options import DetectorOptions, Unpack
from mi_crow_lightning.hooks.positions.padding import real_tokens
from mi_crow_lightning.hooks.positions.span import Span
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.tokens import Tokens, TokensLike
from mi_crow_lightning.metrics.collectives import Share, Shares, is_distributed
from mi_crow_lightning.metrics.token_geometry import empty_row, join_rows, measure_geometry, values_of_row

__all__ = ["TOKEN_STATISTICS", "TokenStatistics"]

TOKEN_STATISTICS: tuple[TokenStatisticName, ...] = get_args(TokenStatisticName)
"""The names of what is read of tokens."""


class TokenStatistics(Detector):
    """Streams statistics of the tokens of its layers as vectors, one reading for all that was seen since the last.

    ``cosine`` (the mean over all pairs of tokens) and ``effective_rank`` say how alike representations are: in a
    collapse the cosine rises towards 1 and the rank falls towards 1. (The ``std`` of `ActivationStatistics` does not
    say it: it pools channels, and may rise.) ``median_norm`` is hardly moved by massive tokens, which ``max_channel``
    and ``max_position`` name. Both are exact over batches, micro-batches and ranks; ``median_norm`` is within 1.1 %.

    Padding is left out, and tokens with an element that is not finite. It keeps no sums in checkpoints: a reading that
    an interruption cuts in two is of the second part.

    Args:
        layer_signature: which layers.
        statistics: names of `TOKEN_STATISTICS`: ``abs_mean``, ``median_norm``, ``max_channel`` and ``max_position``
            (channel, and position among the real tokens of its text, of the largest absolute value), ``cosine``,
            ``effective_rank``; ``None`` for all.
        tokens: which positions; ``"ordinary"`` leaves massive tokens out.
        max_width: the widest layer that ``effective_rank`` is read of, whose matrix takes ``8 * max_width ** 2`` bytes.
        **options: ``name``, ``before_edits``, see `Detector`; ``hook_type``, ``hook_id``, ``schedule``, ``on_error``,
            ``channels``, see `Hook`.

    Raises:
        ValueError: a statistic or the tokens are not known, or ``max_width`` is not a positive whole number.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model, detector = nn.Sequential(nn.Identity()), TokenStatistics("0", statistics=["cosine", "max_channel"])
        >>> _ = Layers(model).register_hook("0", detector)
        >>> _ = model(tensor([[1.0, 0.0]])), model(tensor([[3.0, 0.0]]))
        >>> [(reading.name, reading.value) for reading in detector.readings()]
        [('max_channel', 0.0), ('cosine', 1.0)]
    """

    def __init__(
        self,
        layer_signature: Signature | None = None,
        *,
        statistics: Sequence[TokenStatisticName] | None = None,
        tokens: TokensLike = "all",
        max_width: int = 2048,
        **options: Unpack[DetectorOptions],
    ) -> None:
        super().__init__(layer_signature, **options)
        wanted = chosen("statistics", statistics, TOKEN_STATISTICS, "['cosine', 'effective_rank']")
        self.statistics = tuple(name for name in TOKEN_STATISTICS if name in wanted)
        self.tokens = Tokens.of(tokens)
        self.max_width = whole_number("max_width", max_width, 1)
        self._layers: dict[str, int] = {}
        self._rows: dict[tuple[str, str], Tensor] = {}  # by stage and layer
        self._widths: dict[str, int] = {}
        self._device = torch.device("cpu")

    def _facts(self) -> Iterator[tuple[str, str]]:
        if self.statistics != TOKEN_STATISTICS:
            yield "statistics", shown([*self.statistics], 80)
        if not self.tokens._is_all:
            yield "tokens", self.tokens._text
        yield from super()._facts()

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Forget all that was seen."""
        self._layers = {layer: place for place, layer in enumerate(layers)}
        self._device = torch.device("cpu") if device.type == "mps" else device
        self._rows.clear()
        self._widths.clear()

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Add the chosen tokens of ``x``."""
        mask = self.tokens.mask(x, ctx)
        channels = -1 if mask is not None else ctx.channel_dim(x)
        width = x.shape[channels]
        self._check_width(width, ctx.layer)
        x = x.to(self._device) if x.device.type == "mps" else x
        row = measure_geometry(x, mask, channels, self._positions(x, ctx), self._cosine, self._rank).to(self._device)
        key = (_key(ctx), ctx.layer)
        with torch.inference_mode(False):
            seen = self._rows.get(key)
            row = row.clone() if seen is None else join_rows(torch.stack([seen, row]))
            self._rows[key] = row

    def _check_width(self, width: int, layer: str) -> None:
        if self._widths.setdefault(layer, width) != width:
            raise ValueError(
                f"{layer!r} has {width} channels, and had {self._widths[layer]} before: hook another layer"
            )
        if self._rank and width > self.max_width:
            raise ValueError(
                f"effective_rank of {layer!r} would keep {width} x {width} numbers, {8 * width**2:,} bytes: "
                f"set max_width={width} to have it, or leave 'effective_rank' out of statistics="
            )

    def _positions(self, x: Tensor, ctx: HookContext) -> Tensor | None:
        """Return the place of each token in its text; ``None`` where that is not known."""
        if "max_position" not in self.statistics or x.dim() != 3:
            return None
        real = real_tokens(x, ctx)
        if real is None and not ctx.facts.takes_mask:
            return None  # not the tokens of a language model
        if real is not None and real.shape != x.shape[:2]:
            return None
        try:
            return Span(x, real, ctx.facts).positions
        except TokensUnknown:
            return None

    def reading_names(self) -> tuple[str, ...]:
        """Return the chosen statistics."""
        return self.statistics

    def share(self) -> Shares:
        """Share the rows of the running stage, one behind the other, and before them the layers' widths."""
        widths = torch.tensor([float(self._widths.get(layer, 0)) for layer in self._layers], dtype=torch.float64)
        if is_distributed():
            widths = yield Share(widths.to(self._device), lambda stacked: stacked.amax(0), more=True)
        for layer, width in zip(self._layers, widths.tolist(), strict=True):
            if int(width) and self._widths.setdefault(layer, int(width)) != int(width):
                raise ValueError(f"{layer!r} has {self._widths[layer]} channels here, and {int(width)} on another rank")
        rows = [self._row(layer) for layer in self._layers]
        sizes = [len(row) for row in rows]

        def merge(stacked: Tensor) -> Tensor:
            return torch.cat([join_rows(part) for part in stacked.split(sizes, dim=1)])

        merged = yield Share(torch.cat(rows), merge)
        return merged

    def _row(self, layer: str) -> Tensor:
        seen = self._rows.get((self._stage_key, layer))
        return (
            seen if seen is not None else empty_row(self._widths.get(layer, 0), self._cosine, self._rank, self._device)
        )

    def readings(self) -> Iterator[Reading]:
        """Give the readings of every layer that was seen in the running stage; one copy to the host for all."""
        merged = self.over_ranks().cpu()
        sizes = [len(self._row(layer)) for layer in self._layers]
        for layer, row in zip(self._layers, merged.split(sizes), strict=True):
            values = values_of_row(row, self._widths.get(layer, 0), self._cosine, self._rank)
            for name in self.statistics:
                if name in values:
                    yield Reading(layer, name, values[name])

    def reset(self) -> None:
        """Forget what was seen in the running stage."""
        for key in [key for key in self._rows if key[0] == self._stage_key]:
            del self._rows[key]

    def forget_run(self) -> None:
        """Drop what an earlier run left."""
        self._rows.clear()

    @property
    def _cosine(self) -> bool:
        return "cosine" in self.statistics

    @property
    def _rank(self) -> bool:
        return "effective_rank" in self.statistics

    @property
    def _stage_key(self) -> str:
        return _key(self.context)


def _key(ctx: HookContext | None) -> str:
    return ctx.stage.value if ctx is not None and ctx.stage is not None else ""
