"""Making sure that ``torch.compile`` sees the hooks of a run.

By default a compiled graph does not check, when it is called again, whether its modules still have the hooks that it
was compiled with. Hooks that were added later would be ignored silently, and so would hooks on one module where the
graph of another module of the same class fits.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo import convert_frame

__all__ = ["FreshGraphs"]


class FreshGraphs:
    """Settings of ``torch.compile`` for a run: graphs hold the hooks that are there, and check that they still are."""

    def __init__(self) -> None:
        self._settings = ExitStack()

    def begin(self, variants: int) -> bool:
        """Forget everything compiled in this process, so that graphs are compiled with the hooks that are on now.

        Args:
            variants: how many combinations of hooks may be on. Each combination is compiled.

        Returns:
            Whether there was something to forget.
        """
        compiled_before = bool(convert_frame.input_codes.seen)
        if compiled_before:
            torch._dynamo.reset()
        limit = dynamo_config.recompile_limit * variants
        self._settings.enter_context(dynamo_config.patch(skip_nnmodule_hook_guards=False, recompile_limit=limit))
        return compiled_before

    def end(self) -> None:
        """Put torch's settings back. A second call does nothing."""
        self._settings.close()
