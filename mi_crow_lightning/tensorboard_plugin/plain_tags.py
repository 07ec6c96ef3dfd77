"""Runs without compact tensors: the meaning of the tags of plain scalars and histograms."""

from __future__ import annotations

import re

from mi_crow_lightning.tensorboard_plugin.metadata import Series

__all__ = ["STATISTICS", "of_histogram", "of_scalar"]

STATISTICS: tuple[str, ...] = (
    *("mean", "std", "rms", "min", "max", "abs_max", "token_norm", "token_norm_mean", "token_norm_max"),
    *("zero_share", "dead_share", "kurtosis", "outlier_ratio", "nonfinite_count", "nonfinite_batch"),
    *("tokens", "fired", "mean_ratio", "max_ratio", "broken", "auroc", "d_prime", "accuracy"),
    *("majority", "cross_entropy"),
)
"""The statistics by which a section of scalars is known to be one of a detector's."""

PREFIX = "activations"
"""The name of a detector that was given none: all its sections are known."""

_STAGES = {"val": "validate", "test": "test", "predict": "predict"}
_LOADER = re.compile(r"(.+)/dataloader_idx_(\d{1,6})", re.DOTALL)
_LONGEST_FIRST = sorted(STATISTICS, key=len, reverse=True)


def of_scalar(tag: str) -> tuple[Series, str] | None:
    """Return the series and the layer that a scalar belongs to, ``None`` for a scalar of something else.

    Examples:
        >>> of_scalar("attention_abs_max/val/h.0.attn")
        (Series(prefix='attention', name='abs_max', stage='validate', loader=None), 'h.0.attn')
        >>> of_scalar("train_loss") is None
        True
    """
    section, slash, rest = tag.partition("/")
    # A curve over the blocks has the block where others have the step.
    if not slash or not rest or rest == "by_block" or rest.startswith("by_block/"):
        return None
    for name in _LONGEST_FIRST:
        if section.endswith(f"_{name}") and len(section) > len(name) + 1:
            return _addressed(section[: -len(name) - 1], name, rest)
    if section.startswith(f"{PREFIX}_") and len(section) > len(PREFIX) + 1:
        return _addressed(PREFIX, section[len(PREFIX) + 1 :], rest)
    return None


def of_histogram(tag: str) -> tuple[Series, str] | None:
    """Return the series and the layer that a histogram belongs to, ``None`` for one of something else.

    Examples:
        >>> of_histogram("activations/h.0")
        (Series(prefix='activations', name='histogram', stage='train', loader=None), 'h.0')
    """
    section, slash, rest = tag.partition("/")
    return _addressed(PREFIX, "histogram", rest) if slash and rest and section == PREFIX else None


def _addressed(prefix: str, name: str, rest: str) -> tuple[Series, str]:
    segment, slash, layer = rest.partition("/")
    stage = _STAGES.get(segment) if slash and layer else None
    layer = rest if stage is None else layer
    of_loader = _LOADER.fullmatch(layer)
    loader = None if of_loader is None else int(of_loader[2])
    return Series(prefix, name, stage or "train", loader), layer if of_loader is None else of_loader[1]
