"""The choice whether an activation goes to the compiled look. Importing this does not load numba, which may be missing.

It is made once in a process, so that all its numbers come from the same form.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._arguments import not_known
from mi_crow_lightning._warned import warn
from mi_crow_lightning.warnings import SlowWarning

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.one_pass.buffers import Start
    from mi_crow_lightning.metrics.one_pass.in_numba.elements import Elements

VARIABLE = "MI_CROW_LIGHTNING_FAST"
"""The environment variable that switches the compiled look off; it is read once in a process."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

NOT_INSTALLED = "pip install 'mi-crow-lightning[fast]'"

_log = logging.getLogger("mi_crow_lightning")


class Choice(NamedTuple):
    """The form in use on a CPU.

    Attributes:
        add: adds an activation, see ``launch.py``; ``None`` where numpy measures.
        why: why there is none.
    """

    add: Callable[[Elements, int, Tensor, Start, int | None], None] | None
    why: str = ""


@cache
def choice() -> Choice:
    """Load the compiled look; the first time on a machine it is compiled, which takes some seconds.

    Call it where time may pass, at the start of a run. Where the look cannot be compiled or kept, a warning says why.

    Raises:
        ValueError: the environment variable has another value than ``auto`` or ``off``.
    """
    value = os.environ.get(VARIABLE) or "auto"
    if value not in ("auto", "off"):
        raise not_known(f"the environment variable {VARIABLE}", value, ("auto", "off"))
    if value == "off":
        return Choice(None, f"{VARIABLE} is off")
    if find_spec("numba") is None:
        return Choice(None, NOT_INSTALLED)
    try:
        return Choice(_load())
    except Exception as error:  # numba, LLVM, the disk: each raises what it likes
        why = f"{type(error).__name__}: {error}"
        warn(
            f"numba cannot compile the statistics here, so numpy measures them, which takes several times longer: "
            f"{why}. Where no folder can be written for what numba compiles, set NUMBA_CACHE_DIR to one that can; "
            f"{VARIABLE}=off leaves numba alone",
            SlowWarning,
            stacklevel=2,
        )
        return Choice(None, why)


def _load() -> Callable[..., None]:
    from numba import config

    if config.DISABLE_JIT:
        raise RuntimeError("NUMBA_DISABLE_JIT is set")
    from mi_crow_lightning.metrics.one_pass.in_numba.launch import launch as launch_look
    from mi_crow_lightning.metrics.one_pass.in_numba.look import SIGNATURE, add

    folder, start = add.stats.cache_path, time.perf_counter()
    if not _holds_any(folder):
        _log.info("compiling the statistics for this machine, once: this takes some seconds")
    add.compile(SIGNATURE)
    add.disable_compile()  # never in a step
    if add.stats.cache_misses:
        _log.info(f"compiled the statistics in {time.perf_counter() - start:.0f} s; they are kept in {folder}")
    return partial(launch_look, add)


def _holds_any(folder: str) -> bool:
    return os.path.isdir(folder) and any(name.startswith("look.") for name in os.listdir(folder))


def suits(x: Tensor, mask: Tensor | None) -> bool:
    """Return whether the compiled look takes this activation, of any shape, and its mask."""
    return (
        type(x) is Tensor  # a subclass may have no memory
        and x.is_cpu
        and x.dtype in DTYPES
        and x.numel() > 0
        and (mask is None or (type(mask) is Tensor and mask.is_cpu))
        and not x.is_neg()  # a lazily negated one has other bits
        and choice().add is not None
    )


def launch(elements: Elements, groups: int, buffer: Tensor, start: Start, batch: int | None = None) -> None:
    """Add an activation that suits the compiled look; for the arguments see ``launch.py``."""
    add = choice().add
    assert add is not None, "see `suits`"
    add(elements, groups, buffer, start, batch)
