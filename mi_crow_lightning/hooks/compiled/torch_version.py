"""The versions of torch whose compiler takes hooks into its graphs."""

from __future__ import annotations

import torch

__all__ = ["OLDEST", "why_torch_is_too_old"]

OLDEST = (2, 13)
"""The oldest version that hooks ran with inside a graph. 2.8 fails on many of them; none in between was tried."""


def why_torch_is_too_old(version: str = torch.__version__) -> str | None:
    """Return why this torch takes no hooks into a graph, or ``None`` if it does.

    Examples:
        >>> why_torch_is_too_old("2.8.0+cu128")
        'hooks inside graphs of torch.compile need torch 2.13 or newer, and this is torch 2.8.0+cu128'
        >>> why_torch_is_too_old("2.13.0.dev20260101")
    """
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) >= OLDEST:
        return None
    oldest = ".".join(map(str, OLDEST))
    return f"hooks inside graphs of torch.compile need torch {oldest} or newer, and this is torch {version}"
