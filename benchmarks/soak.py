"""A long soak: nothing of this process may grow with the steps of a run, with the runs, or with the tokens generated.

make soak                         # 2,000 steps, 1,000 fits, 5,000 tokens; half an hour or less on two cores
make soak ARGS="--scale 0.02"     # the same in short, to see that it runs

After each tenth part, tensors, bytes of tensors, file descriptors, threads and the memory of the process are noted. The
exit status is 1 if tensors, descriptors or threads are more at the end than after the first tenth, where memory may
settle, or if the memory of the process grew by more than 5 %. (A tenth needs more than 32 passes: as many are kept.)
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn.parameter import is_lazy

from benchmarks.__main__ import about, heading
from benchmarks.report import table
from mi_crow_lightning import (
    ActivationStatistics,
    HookCallback,
    LayerActivationDetector,
    ProjectionDetector,
    SteeringController,
    attached,
)
from mi_crow_lightning.hooks import Schedule
from tests.models import Module, llama, loader, token_data, trainer

PARTS = 10


class Held(NamedTuple):
    """What the process holds at one moment."""

    tensors: int
    tensor_kb: int
    descriptors: int
    threads: int
    resident_mb: float

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
        strided = (one for one in tensors if one.layout is torch.strided and not is_lazy(one))
        sizes = (one.numel() * one.element_size() for one in strided)
        size = sum(size for size in sizes if type(size) is int)  # in a graph, sizes may be symbols
        return cls(len(tensors), size // 1000, _descriptors(), threading.active_count(), _resident())


def _descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def _resident() -> float:
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _callback() -> HookCallback:
    width = llama().config.hidden_size
    detectors = [
        ActivationStatistics("block:*", name="statistics"),
        ProjectionDetector("block:*", torch.ones(width)),
        LayerActivationDetector("block:0"),
    ]
    steer = SteeringController("block:0", torch.ones(width), 0.1, schedule=Schedule())
    return HookCallback(detectors, steer, log_every_n_steps=1, history_size=5000)


def steps(count: int, folder: Path) -> Iterator[Held]:
    """Make one fit of ``count`` steps, each of them logged."""
    noted: list[Held] = []

    class Watched(Module):
        def on_train_batch_end(self, *batch: object) -> None:
            if (self.trainer.global_step) % max(1, count // PARTS) == 0:
                noted.append(Held.now())

    data = loader(token_data())
    epochs = -(-count // len(data))
    trainer(_callback(), max_epochs=epochs, max_steps=count, logger=CSVLogger(folder), limit_val_batches=0).fit(
        Watched(llama()), data
    )
    yield from noted


def fits(count: int, folder: Path) -> Iterator[Held]:
    """Make ``count`` fits of two steps with one callback and one module, each with its own Trainer."""
    watch, module, data = _callback(), Module(llama()), loader(token_data())
    for number in range(1, count + 1):
        trainer(watch, max_steps=2, limit_val_batches=1).fit(module, data, data)
        if number % max(1, count // PARTS) == 0:
            yield Held.now()


def tokens(count: int, folder: Path) -> Iterator[Held]:
    """Make one call of ``generate`` of ``count`` tokens, all steered and watched; its own cache grows."""
    model = llama(max_position_embeddings=count + 8).eval()
    width, streamer = model.config.hidden_size, _Noting(max(1, count // PARTS))
    hooks = [
        ActivationStatistics("block:*"),
        ProjectionDetector("block:*", torch.ones(width)),
        SteeringController("block:0", torch.ones(width), 0.1, tokens="generated"),
    ]
    ids = torch.ones(1, 4, dtype=torch.long)
    length = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
    with torch.no_grad(), attached(model, hooks):
        model.generate(ids, streamer=streamer, **length)
    yield from streamer.held


class _Noting:
    """A streamer of ``generate`` that gets each token."""

    def __init__(self, every: int) -> None:
        self.held: list[Held] = []
        self._every, self._seen = every, -1  # the prompt comes first

    def put(self, value: Tensor) -> None:
        self._seen += 1
        if self._seen and self._seen % self._every == 0:
            self.held.append(Held.now())

    def end(self) -> None:
        pass


SOAKS: dict[str, tuple[Callable[[int, Path], Iterator[Held]], int]] = {
    "steps of one fit": (steps, 2000),
    "fits": (fits, 1000),
    "tokens generated": (tokens, 5000),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="the share of the full length")
    parser.add_argument("--only", default="", help="run only what has this in its name")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(heading(about(torch.device("cpu"), 1)), flush=True)
    lines, grew = [], []
    for name, (soak, length) in SOAKS.items():
        if args.only not in name:
            continue
        count, start = max(PARTS, int(length * args.scale)), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            held = list(soak(count, Path(folder)))
        lines.append(_line(f"{count} {name}", held, time.perf_counter() - start))
        grew += [f"{name}: {what}" for what in grown(held)]
        print("\n".join(table(lines[-1:])), flush=True)
    print("\n".join(["", *table(lines), *(f"grew: {what}" for what in grew)]))
    return int(bool(grew))


def _line(name: str, held: list[Held], seconds: float) -> dict[str, str]:
    first, last = held[0], held[-1]
    cells = {what: f"{getattr(first, what):.6g}, {getattr(last, what):.6g}" for what in Held._fields}
    return {"first tenth, end": name, **cells, "seconds": f"{seconds:.0f}"}


def grown(held: list[Held]) -> list[str]:
    first, last = held[0], held[-1]
    counted = ("tensors", "descriptors", "threads")
    found = [what for what in counted if getattr(last, what) > getattr(first, what)]
    return found + ["resident_mb"] * (last.resident_mb > 1.05 * first.resident_mb)


if __name__ == "__main__":
    sys.exit(main())
