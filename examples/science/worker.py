"""A separate process: it runs the parts that it is given, one after the other."""

import json
import logging
import time
import warnings
from pathlib import Path

import lightning.pytorch  # noqa: F401 - it sets the levels of its loggers when it is imported
import torch

from examples.science.plan import parts


def quiet() -> None:
    """Let a process show nothing but the progress of the whole, and use one thread."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "transformers", "mi_crow_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def measure(name: str, quick: bool, folder: Path) -> float:
    """Run one part, write its result whole or not at all, and return the seconds it took."""
    part, begin = next(part for part in parts(quick) if part.name == name), time.monotonic()
    result = part.run(quick)
    seconds = time.monotonic() - begin
    unfinished = folder / f".{name}.json"
    unfinished.write_text(json.dumps({"seconds": seconds, "result": result}), encoding="utf-8")
    unfinished.replace(folder / f"{name}.json")
    return seconds
