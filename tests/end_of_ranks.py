"""The end of a program on several ranks."""

from __future__ import annotations

from torch import distributed


def leave_ranks() -> None:
    """Leave the process group: gloo's threads may abort the process at its exit, and Lightning leaves them running."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
