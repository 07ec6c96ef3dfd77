"""The cost of a logged step in event files: time and bytes, by what is written.

    python -m benchmarks.logging_cost

The time is the processor time of the process, so it includes the thread that writes the file: it computes checksums in
Python, and the training loop waits that long for it. It is the least of 60 steps: other load on the machine only adds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, LoggedStep, write
from mi_crow_lightning.metrics import EDGES, STATISTICS
from mi_crow_lightning.metrics.histogram import Histogram

LAYERS = tuple(f"model.model.layers.{i}" for i in range(100))
STEPS = 60

_X = np.random.default_rng(0).normal(size=2**20)
_COUNTS = tuple(map(float, np.histogram(_X, EDGES)[0]))
_HISTOGRAM = Histogram(EDGES, _COUNTS, _X.min(), _X.max(), float(_X.size), _X.sum(), (_X**2).sum())


class Logger:
    """A logger like Lightning's TensorBoardLogger: its ``experiment`` is a writer."""

    def __init__(self, folder: str) -> None:
        self.experiment = SummaryWriter(folder)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        raise AssertionError("a logger with a SummaryWriter is given events")


def readings(statistics: int, histograms: bool, step: int) -> list[Reading]:
    """Make the readings of a step, in the order of ActivationStatistics."""
    made = []
    for layer in LAYERS:
        made += [Reading(layer, name, step + i / 7) for i, name in enumerate(STATISTICS[:statistics])]
        if histograms:
            made.append(Reading(layer, "histogram", _HISTOGRAM, "histogram"))
    return made


def in_one_event(logger: Logger, step: LoggedStep, scalars: str) -> None:
    """Write a step as HookCallback does."""
    write([logger], step, scalars)


def one_by_one(logger: Logger, step: LoggedStep) -> None:
    """Write a step without it: ``add_scalar`` for each number, ``add_histogram_raw`` with the same bins."""
    writer = logger.experiment
    for tag, reading in step.tagged:
        if isinstance(reading.value, Histogram):
            edges, counts, *moments = reading.value
            writer.add_histogram_raw(tag, *moments, edges[1:], counts, step.step)
        else:
            writer.add_scalar(tag, reading.value, step.step)


def measure(
    statistics: int, histograms: bool, write_step: Callable[[Logger, LoggedStep], Any], steps: int
) -> tuple[float, float]:
    """Return the least milliseconds and the bytes of a step, without the first, which also holds the schemas."""
    made = [readings(statistics, histograms, step) for step in range(steps + 1)]
    with tempfile.TemporaryDirectory() as folder:
        logger = Logger(folder)
        sizes, times = [], []
        for step, of_step in enumerate(made):
            start = time.process_time()
            write_step(logger, LoggedStep("train", step, [DetectorReadings(of_step, LAYERS, "block:*")]))
            logger.experiment.flush()
            times.append(time.process_time() - start)
            sizes.append(sum(file.stat().st_size for file in Path(folder).iterdir()))
        logger.experiment.close()
    return 1e3 * min(times[1:]), (sizes[-1] - sizes[0]) / steps


def rows(steps: int = STEPS) -> list[dict[str, Any]]:
    """Measure each way to write 100 layers with 8 or 14 statistics, with and without histograms."""
    ways: dict[str, Callable[[Logger, LoggedStep], Any]] = {"one call each": one_by_one}
    for scalars in ("all", "summary", "none"):
        ways[f"scalars={scalars!r}"] = partial(in_one_event, scalars=scalars)
    found: list[dict[str, Any]] = []
    for statistics, histograms, (name, way) in product((8, 14), (False, True), ways.items()):
        milliseconds, size = measure(statistics, histograms, way, steps)
        what = f"100 layers x {statistics} statistics{', histograms' if histograms else ''}: {name}"
        found.append({"row": what, "value": round(milliseconds, 2), "unit": "ms a logged step"})
        found.append({"row": what, "value": round(size / 1000, 1), "unit": "kB a logged step"})
    return found


if __name__ == "__main__":
    for row in rows():
        print(f"{row['row']:65}{row['value']:>10} {row['unit']}")
