"""Words and numbers as figures show them."""

from __future__ import annotations

import math
from typing import get_args

from mi_crow_lightning.choices import StageName

__all__ = ["STAGES", "fitted", "plain", "short", "stage_title", "unit_of"]

_TITLES: dict[str, str] = {"train": "training", "validate": "validation", "test": "test", "predict": "predict"}
STAGES: tuple[StageName, ...] = get_args(StageName)
"""The stages, in the order in which one is chosen."""

_UNITS = {
    **dict.fromkeys(("mean", "std", "rms", "min", "max", "abs_max"), "activations"),
    **dict.fromkeys(("token_norm_mean", "token_norm_max"), "activations"),
    **dict.fromkeys(("zero_share", "dead_share"), "0 to 1"),
    **{"nonfinite_count": "elements", "nonfinite_batch": "batch", "tokens": "tokens", "fired": "calls"},
    **dict.fromkeys(("mean_ratio", "max_ratio"), "|change| / |activation|"),
}


def unit_of(name: str) -> str:
    """Return the unit of a reading, as the page about statistics has it; empty if it has none or is not known."""
    return _UNITS.get(name, "")


def stage_title(stage: str) -> str:
    """Return what a title calls a stage."""
    return _TITLES.get(stage, stage)


def plain(text: str, most: int = 60) -> str:
    r"""Return a name as matplotlib draws it letter by letter: no formula between dollars, no line break, not too long.

    Examples:
        >>> plain("a$b$"), plain("model.layers.11.self_attn.q_proj", most=20)
        ('a\\$b\\$', 'model.laye…tn.q_proj')
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return fitted(printable, most).replace("$", r"\$")


def fitted(text: str, most: int) -> str:
    """Return a text of at most ``most`` letters: the beginning and the end of one that is longer."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def short(value: float) -> str:
    """Return a number in a few digits.

    Examples:
        >>> short(0.0), short(1234.5), short(123456.0), short(-2e-05), short(float("inf"))
        ('0', '1230', '1.2e+05', '-2e-05', 'inf')
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}".replace("-0", "0") if value == 0 else f"{value:g}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{float(f'{value:.3g}'):.10g}"
    return f"{value:.2g}"
