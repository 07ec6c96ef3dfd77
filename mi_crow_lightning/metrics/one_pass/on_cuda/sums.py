"""A kernel for further sums: one tile of an activation in each program, and a function that sums the tile."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from mi_crow_lightning.metrics.one_pass.on_cuda import look

SUMS: dict[str, Any] = {}
"""By its name how a kernel measures a further sum: a ``triton.jit`` function from the elements of a tile ``(R, C)``,
float32 and 0 where they do not count, and from which of them count, to one number. It sees single elements: a tile may
hold a part of a token. A sum that is not here is measured by torch, as it is declared."""


@triton.jit(do_not_specialize=["empty", "n_tokens"])
def sum_tiles(
    x, keep, parts, empty, n_tokens, width, tiles, x_row, x_col, keep_row, keep_col,
    MASK: tl.constexpr, OF: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Write the sum of each tile, ``empty`` where nothing in it counts."""
    program = tl.program_id(0).to(tl.int64)
    rows = program // tiles * ROWS + tl.arange(0, ROWS)
    cols = program % tiles * COLS + tl.arange(0, COLS)
    kept_rows = rows < n_tokens
    if MASK == look.BY_TOKEN:
        kept_rows = tl.load(keep + rows * keep_row, mask=kept_rows, other=0).to(tl.int1)
    kept = kept_rows[:, None] & (cols < width)[None, :]
    if MASK == look.BY_ELEMENT:
        kept = tl.load(keep + rows[:, None] * keep_row + cols[None, :] * keep_col, mask=kept, other=0).to(tl.int1)
    v = look._float32(tl.load(x + rows[:, None] * x_row + cols[None, :] * x_col, mask=kept, other=0.0))
    magnitude = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    valid = kept & (magnitude < look.INFINITY)
    number = OF(tl.where(valid, v, 0.0), valid)
    tl.store(parts + program, tl.where(tl.sum(valid.to(tl.int32)) > 0, number, empty))
