"""Draw the diagrams of the documentation: SVG files, narrow enough for a phone, readable on light and dark pages.

    python docs/diagrams.py

All text is white on the fill of its box, so the colour of the page does not matter.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from html import escape
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

from mi_crow_lightning import ActivationStatistics, ScaleController
from mi_crow_lightning.hooks.schedules import Moment, Stage

IMAGES = Path(__file__).parent / "images"

WIDTH, FONT, LINE, PAD = 440, 13, 17, 9  # of a diagram; of a letter, of a line, and around the lines of a box
TRAINER, CALLBACK, WATCHES, STEERS, WRITES = "#455a64", "#4a3fb0", "#00695c", "#b23c0a", "#1565c0"
STROKE = "#78909c"


class Box(NamedTuple):
    """Lines of text on a fill, at the left of the box."""

    x: float
    y: float
    width: float
    lines: tuple[str, ...]
    fill: str
    bold: bool = False

    @property
    def bottom(self) -> float:
        """Where the box ends."""
        return self.y + LINE * len(self.lines) + 2 * PAD - 3

    def __str__(self) -> str:
        """Return it as SVG."""
        weight = ' font-weight="600"' if self.bold else ""
        rows = [rectangle(self.x, self.y, self.width, self.bottom - self.y, self.fill)]
        for number, line in enumerate(self.lines):
            y = self.y + PAD + 11 + LINE * number
            rows.append(f'<text x="{self.x + PAD:g}" y="{y:g}"{weight}>{escape(line)}</text>')
        return "\n".join(rows)


def rectangle(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> str:
    """A filled area with round corners."""
    size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {size} rx="4" fill="{fill}" stroke="{stroke}"/>'


def arrow(*points: tuple[float, float]) -> str:
    """A line through points, with a head at the last."""
    path = " ".join(starmap("{:g},{:g}".format, points))
    return f'<polyline points="{path}" fill="none" stroke="{STROKE}" stroke-width="2" marker-end="url(#head)"/>'


def picture(says: str, height: float, parts: Iterable[object]) -> str:
    """A whole file."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" font-family="system-ui, sans-serif" font-size="{FONT}" fill="#ffffff" role="img" '
            f'aria-label="{escape(says)}">',
            '<defs><marker id="head" markerWidth="7" markerHeight="7" refX="5" refY="3" orient="auto">'
            f'<path d="M0,0 L6,3 L0,6 z" fill="{STROKE}"/></marker></defs>',
            *map(str, parts),
            "</svg>\n",
        ]
    )


def trainer_lifecycle() -> str:
    """A fit from top to bottom: events at the left, what the callback does in each at the right."""
    rows = (  # the event, what happens, and whether hooks are on the model after it
        ("on_fit_start", ("hooks are registered on their", "layers: all of them or none"), False),
        ("on_sanity_check", ("nothing is watched or steered",), False),
        ("on_train_batch_start", ("hooks that are due get handles",), True),
        ("forward", ("they observe and edit; their", "errors wait for the pass's end"), True),
        ("backward", ("gradients are read; a recompute", "is edited, and not counted"), True),
        ("optimizer step", ("not after a controller failed",), True),
        ("on_train_batch_end", ("handles are removed; a logged", "step's readings go to loggers"), False),
        ("on_validation_batch_...", ("handles, as in a training batch",), True),
        ("on_validation_epoch_end", ("the readings of the epoch", "go to the loggers"), False),
        ("on_train_end", ("hooks that never ran are named",), False),
        ("teardown, on_exception", ("hooks are unregistered:", "the model is as it was"), False),
    )
    left, right, wide = 22, 216, 180
    parts: list[object] = [
        Box(left, 0, wide, ("the Trainer",), TRAINER, bold=True),
        Box(right, 0, WIDTH - right, ("HookCallback",), CALLBACK, bold=True),
    ]
    y, began = 42.0, 0.0
    for event, what, on in rows:
        ours = Box(right, y, WIDTH - right, what, CALLBACK)
        its = Box(left, y, wide, (event, *[""] * (len(what) - 1)), TRAINER)
        parts += [its, ours, arrow((left + wide, y + 16), (right - 2, y + 16))]
        if on:
            began = began or y
        elif began:
            parts.append(rectangle(4, began, 10, y - 8 - began, WATCHES))
            began = 0.0
        y = ours.bottom + 8
    parts.append(Box(4, y + 4, WIDTH - 4, ("green, at the left: hooks are on the model, if they are due",), WATCHES))
    parts += due_by_default(y + 50)
    return picture("What HookCallback does in each event of a fit", y + 196, parts)


def due_by_default(y: float) -> list[object]:
    """The batches in which hooks are due that were given no schedule, asked of the hooks themselves."""
    parts: list[object] = [
        Box(4, y, WIDTH - 4, ("due by default, with log_every_n_steps=3, in these batches:",), TRAINER)
    ]
    hooks = (("detectors", ActivationStatistics("0"), WATCHES), ("controllers", ScaleController("0", 2.0), STEERS))
    stages = ((Stage.TRAIN, 6), (Stage.VALIDATE, 3), (Stage.PREDICT, 3))
    parts += [Box(4, y + 74 + 36 * row, 96, (name,), fill) for row, (name, _, fill) in enumerate(hooks)]
    x = 108.0
    for stage, batches in stages:
        parts.append(Box(x, y + 38, 26 * batches - 4, (stage.value,), TRAINER))
        for batch in range(batches):
            moment = Moment(stage, batch_idx=batch, step=batch, logged=stage is Stage.TRAIN and batch % 3 == 2)
            for row, (_, hook, fill) in enumerate(hooks):
                due = hook.when().due(moment)
                parts.append(rectangle(x, y + 79 + 36 * row, 22, 22, fill if due else "none", STROKE))
            x += 26
        x += 8
    return parts


def forward_pass() -> str:
    """One pass through a model: its blocks at the left, what hooks get and do at the right."""
    left, right = 118, 154

    def model(y: float, *lines: str) -> Box:
        return Box(0, y, left, lines, TRAINER)

    def beside(y: float, fill: str, *lines: str) -> Box:
        return Box(right, y, WIDTH - right, lines, fill)

    called, first, second = (
        model(0, "the model", "is called"),
        model(68, "block 0"),
        model(126, "block 1,", "with hooks"),
    )
    facts = beside(0, CALLBACK, "which tokens are real, and where the", "prompt ends: read once for the pass")
    words = (
        "controllers, one after the other:",
        "x + strength * vector at the tokens",
        "that are meant, all others bit-equal",
    )
    edit = beside(126, STEERS, *words)
    third = model(edit.bottom + 22, "block 2")
    words = "detectors see what block 2 sees, and", "add it to sums on the device; padding", "is left out"
    watch = beside(third.y, WATCHES, *words)
    last = model(watch.bottom + 16, "output")
    over = beside(last.y, CALLBACK, "the pass is over: an error of a hook is", "raised, before the optimizer steps")
    words = "after a logged step, ranks join their", "sums, once, and copy them to the host"
    joined = beside(over.bottom + 22, CALLBACK, *words)
    written = beside(joined.bottom + 22, WRITES, "readings: TensorBoard, W&B, CSV,", "history(), alarms, EarlyStopping")

    downward = ((called, first), (first, second), (edit, watch), (third, last), (over, joined), (joined, written))
    arrows = [arrow((above.x + 24, above.bottom), (above.x + 24, below.y - 2)) for above, below in downward]
    arrows += [arrow((left, box.y + 16), (right - 2, box.y + 16)) for box in (called, second, last)]
    arrows.append(arrow((right, third.y + 16), (left + 2, third.y + 16)))
    boxes = (called, facts, first, second, edit, third, watch, last, over, joined, written)
    return picture("One pass through a model, and what hooks do in it", written.bottom, [*boxes, *arrows])


DIAGRAMS: dict[str, Callable[[], str]] = {
    "trainer_lifecycle.svg": trainer_lifecycle,
    "forward_pass.svg": forward_pass,
}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, draw in DIAGRAMS.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
