"""Making sure that ``torch.compile`` sees the hooks of a run.

By default a compiled graph does not ask, when it is called again, whether its modules have other hooks than those it
was compiled with: hooks that were added later would be ignored without a word, and so would those on one module where
the graph of another of the same class fits.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo import convert_frame

__all__ = ["FreshGraphs"]


class FreshGraphs:
    """While a run goes on, graphs are compiled with the hooks that are there and asked whether these still are."""

    def __init__(self) -> None:
        self._settings = ExitStack()

    def begin(self, variants: int) -> bool:
        """Forget what was compiled in this process, and compile anew with the hooks that are on the model now.

        Args:
            variants: in how many ways hooks may be on and off, each of which is compiled.

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
        """Put torch's settings back; doing so twice is harmless."""
        self._settings.close()
