"""The reports that runs begin with, as TensorBoard's texts hold them."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import numpy as np

__all__ = ["REPORT", "Report", "plain_report"]

REPORT = "hook_report/"
"""The first part of a report's tag; the stage follows."""


class Report(NamedTuple):
    """A report that a run began with.

    Attributes:
        tag: its tag.
        step: the step at which the run began.
        text: the report.
    """

    tag: str
    step: int
    text: str


def plain_report(value: Any) -> str:
    r"""Return a report as it was before it became a block of code in Markdown.

    Examples:
        >>> plain_report(np.array([b"    HookCallback in fit: 1 hook.\n\n    hook"], dtype=object))
        'HookCallback in fit: 1 hook.\n\nhook'
    """
    parts = [part.decode("utf-8", "replace") for part in np.asarray(value).reshape(-1) if isinstance(part, bytes)]
    return textwrap.dedent("\n".join(parts))
