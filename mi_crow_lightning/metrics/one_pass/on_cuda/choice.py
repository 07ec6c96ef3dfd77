"""The choice whether an activation goes to the kernels. Importing this does not load triton, which may be missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mi_crow_lightning._warned import warn
from mi_crow_lightning.warnings import SlowWarning

if TYPE_CHECKING:
    from mi_crow_lightning.metrics.one_pass.buffers import Place
    from mi_crow_lightning.metrics.statistic import Sum
    from mi_crow_lightning.metrics.summary import Group

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# A program goes over all channels of its tokens: few programs with much to do each would leave the device idle.
_WIDEST, _WIDE, _MANY_TOKENS = 2**20, 2**16, 256

_devices = {"cuda"}
_refused: set[torch.device] = set()


def suits(tokens: Tensor, keep: Tensor | None) -> bool:
    """Return whether the kernels take this activation, ``(N, D)``, and its mask: they are several times faster."""
    count, width = tokens.shape
    return (
        tokens.device.type in _devices
        and type(tokens) is Tensor  # a subclass may have no memory
        and tokens.dtype in _DTYPES
        and 0 < width <= (_WIDEST if count >= _MANY_TOKENS else _WIDE)
        and count > 0
        and (keep is None or keep.device == tokens.device)
        and tokens.device not in _refused
        and _has_triton()
    )


def run_on_cpu() -> bool:
    """Return whether activations on a CPU go to the kernels, as in Triton's interpreter."""
    return "cpu" in _devices


def launched(
    tokens: Tensor, keep: Tensor | None, groups: Group, to: Place, *, add: bool = False, batch: int | None = None
) -> bool:
    """Launch the kernels for an activation that suits them; for the arguments see ``launch.py``.

    Where they cannot be built, a warning says why, once for each device.

    Returns:
        Whether they were launched. If not, nothing was written.
    """
    from mi_crow_lightning.metrics.one_pass.on_cuda.launch import launch

    return _ran(lambda: launch(tokens, keep, groups, to, add=add, batch=batch), tokens.device)


def launched_sum(tokens: Tensor, keep: Tensor | None, one: Sum) -> Tensor | None:
    """Launch the kernel for a further sum of an activation that suits the kernels.

    Returns:
        The sum, ``()`` float64; ``None`` where the sum has no form for Triton, or the kernel cannot be built.
    """
    from mi_crow_lightning.metrics.one_pass.on_cuda.launch import launch_sum
    from mi_crow_lightning.metrics.one_pass.on_cuda.sums import SUMS

    if one.name not in SUMS or tokens.device in _refused:
        return None
    parts: list[Tensor] = []
    ran = _ran(lambda: parts.append(launch_sum(tokens, keep, SUMS[one.name], one.merge.empty)), tokens.device)
    return one.merge.join(parts[0].double()) if ran else None


def kernels_know(name: str) -> bool:
    """Return whether a further sum has a form for Triton; loads triton."""
    from mi_crow_lightning.metrics.one_pass.on_cuda.sums import SUMS

    return name in SUMS


def kernels_run_on(device: torch.device) -> bool:
    """Return whether activations on this device go to the kernels."""
    return device.type in _devices and device not in _refused and _has_triton()


def _ran(launch: Callable[[], object], device: torch.device) -> bool:
    try:
        launch()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton, its compilers and the driver raise what they like
        _refused.add(device)
        warn(
            f"the statistics kernel does not run on {device}, so plain torch operations take its place, "
            f"which are several times slower: {type(error).__name__}: {error}",
            SlowWarning,
            stacklevel=3,
        )
        return False
    return True


@lru_cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
