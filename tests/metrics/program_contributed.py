"""The statistic that CONTRIBUTING.md shows, taken from the page; and a fit with it on two CPU processes, as a script:

python -m tests.metrics.program_contributed FOLDER
"""

from __future__ import annotations

import importlib.util
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy

from mi_crow_lightning import HookCallback
from mi_crow_lightning.metrics.known_statistics import known_names
from tests.end_of_ranks import leave_ranks
from tests.metrics.noted import Noted
from tests.metrics.program_fit_on_ranks import ACCUMULATE, NAMES, Ranked, Recorded
from tests.models import llama, trainer

DECLARATION, FASTER, TRITON = range(3)  # the blocks of the section, in the order of the page


def run_block(number: int, folder: Path) -> ModuleType:
    """Run a block of the section "A statistic" as a module: Triton reads a function's source from its file."""
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.split("\n## A statistic\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    path = folder / f"block_{number}.py"
    path.write_text(blocks[number], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def absolute_mean(tokens: np.ndarray) -> float:
    """The statistic of tokens ``(N, D)`` in float64, over the finite elements."""
    return float(np.abs(tokens[np.isfinite(tokens)].astype(np.float64)).mean())


def main(folder: str) -> None:
    torch.set_num_threads(1)
    run_block(DECLARATION, Path(folder))
    assert "abs_mean" in known_names()
    detector, seen = Noted("block:*", statistics=["abs_mean", "mean"], histogram=False), Recorded()
    options: dict[str, Any] = dict(limit_val_batches=0, use_distributed_sampler=False)
    callback = HookCallback(detector)
    runner = trainer(callback, seen, strategy=DDPStrategy(), devices=2, accumulate_grad_batches=ACCUMULATE, **options)
    runner.fit(Ranked(llama()))
    batches = [{name: batch[name] for name in NAMES if name.count(".") == 3} for batch in seen.batches]
    with Path(folder, f"{runner.global_rank}.pickle").open("wb") as file:
        pickle.dump({"batches": batches, "steps": detector.noted}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
