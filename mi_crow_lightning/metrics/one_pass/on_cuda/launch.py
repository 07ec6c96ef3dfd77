"""Launching the two kernels: nothing waits for the device, and memory is a small share of the activation's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning.metrics.one_pass.buffers import Place
from mi_crow_lightning.metrics.one_pass.on_cuda.finish import finish
from mi_crow_lightning.metrics.one_pass.on_cuda.look import ALL, BY_ELEMENT, BY_TOKEN, FLOATS, INTS, look
from mi_crow_lightning.metrics.one_pass.on_cuda.sums import sum_tiles
from mi_crow_lightning.metrics.summary import Group

_WARPS = 8
_EACH = 32  # elements of a tile that a thread holds
_TILE = _WARPS * 32 * _EACH
_ROWS = (64, 32, 16, 8)  # of a tile; these make every thread's share whole rows of 16 bytes
_WIDE = 64  # channels of a program of the second kernel: divides every tile's width
_MANY = 128  # programs of the first kernel that the second takes at a time


def launch(tokens: Tensor, keep: Tensor | None, groups: Group, to: Place, *, add: bool, batch: int | None) -> None:
    """Look at an activation and write its row and channels, or add them to those that are there.

    Args:
        tokens: ``(N, D)`` bfloat16, float16 or float32; neither is 0.
        keep: bool ``(N, 1)`` or ``(N, D)``; None for all.
        groups: what to compute.
        to: where to write.
        add: whether to add to the numbers there; else they are replaced.
        batch: the batch's index; None if it is not known.
    """
    count, width = tokens.shape
    rows = _rows(count, tokens.device)
    cols = _TILE // rows
    programs, tiles = -(-count // rows), -(-width // cols)
    flags = _flags(groups)
    floats = tokens.new_empty(programs * FLOATS.value, dtype=torch.float32)
    ints = tokens.new_empty(programs * INTS.value, dtype=torch.int32)
    sums, peaks, units = _channel_parts(tokens, programs, tiles) if flags["CHANNELS"] else (floats, floats, floats)
    given = tokens if keep is None else keep
    vec = 16 // tokens.element_size()
    with _current(tokens.device):
        look[(programs,)](
            tokens, given, floats, ints, sums, peaks, units, count, width, *tokens.stride(), *given.stride(),
            MASK=_mask_kind(keep), **flags, ROWS=rows, COLS=cols, REP=_EACH // vec, VEC=vec,
            PLANES=(_EACH * tiles).bit_length(), num_warps=_WARPS, **_options(),
        )  # fmt: skip
        finish[(1 + (-(-width // _WIDE) if flags["CHANNELS"] else 0),)](
            *to, -1 if batch is None else batch, floats, ints, sums, peaks, units, programs, width, cols,
            ADD=add, **flags, MANY=_MANY, WIDE=_WIDE,
        )  # fmt: skip


def launch_sum(tokens: Tensor, keep: Tensor | None, of: Any, empty: float) -> Tensor:
    """Look at an activation and return a further sum of each tile of it, ``(number of tiles,)`` float32.

    Args:
        tokens: ``(N, D)``, as for `launch`.
        keep: bool ``(N, 1)`` or ``(N, D)``; None for all.
        of: the sum of a tile, see ``sums.py``.
        empty: the sum of a tile where nothing counts.
    """
    count, width = tokens.shape
    rows = _ROWS[-1]
    cols = _TILE // rows
    programs, tiles = -(-count // rows), -(-width // cols)
    parts = tokens.new_empty(programs * tiles, dtype=torch.float32)
    given = tokens if keep is None else keep
    with _current(tokens.device):
        sum_tiles[(programs * tiles,)](
            tokens, given, parts, empty, count, width, tiles, *tokens.stride(), *given.stride(),
            MASK=_mask_kind(keep), OF=of, ROWS=rows, COLS=cols, num_warps=_WARPS,
        )  # fmt: skip
    return parts


def _mask_kind(keep: Tensor | None) -> int:
    kind: int = (ALL if keep is None else BY_TOKEN if keep.shape[1] == 1 else BY_ELEMENT).value
    return kind


def _channel_parts(tokens: Tensor, programs: int, tiles: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make room for what the programs see of each channel, and for the units of their tiles."""
    size = programs * tokens.shape[1]
    both = tokens.new_empty(2 * size, dtype=torch.float32)
    return both[:size], both[size:], tokens.new_empty(programs * tiles, dtype=torch.float32)


def _rows(count: int, device: torch.device) -> int:
    """Return the most tokens that a program can have while each multiprocessor has two programs."""
    return next((rows for rows in _ROWS if count >= rows * _programs_at_once(device)), _ROWS[-1])


@lru_cache
def _programs_at_once(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter
        return 2
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache
def _flags(groups: Group) -> dict[str, bool]:
    return {
        "MOMENTS": Group.MOMENTS in groups,
        "EXTREMES": Group.EXTREMES in groups,
        "NORMS": Group.TOKENS in groups,
        "CHANNELS": Group.CHANNELS in groups,
        "BINS": Group.BINS in groups,
    }


@lru_cache
def _options() -> dict[str, int]:
    # Half of an NVIDIA multiprocessor's registers: a program computes while the other waits for memory.
    return {} if torch.version.hip else {"maxnreg": 128}


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the activation's."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
