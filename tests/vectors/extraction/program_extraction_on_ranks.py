"""A script: ``python -m tests.vectors.extraction.program_extraction_on_ranks FOLDER``.

Extraction and scoring on two CPU processes: each rank has pairs of its own, of uneven number, and writes what its
detector gives.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from mi_crow_lightning import ContrastDetector, HookCallback
from mi_crow_lightning.metrics.class_moments import GROUPS
from mi_crow_lightning.vectors.extraction.layer_moments import Extraction
from mi_crow_lightning.vectors.extraction.row_means import Rows
from tests.end_of_ranks import leave_ranks
from tests.hooks.detectors.contrasts import Reader, batches, texts
from tests.models import llama, trainer

PAIRS, HELD_OUT = (7, 4), (2, 5)  # of each rank
METHODS = ("mean_difference", "pca", "logistic")


def rows(pairs: tuple[int, int], seed: int) -> list[list[dict[str, Any]]]:
    """Those of each rank."""
    all_rows = texts(sum(pairs), seed)
    return [all_rows[: 2 * pairs[0]], all_rows[2 * pairs[0] :]]


class Ranked(Reader):
    """Each rank has data of its own, and only the first runs the side layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.side = nn.Identity()

    def read(self, batch: dict[str, torch.Tensor]) -> None:
        output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        if self.global_rank == 0:
            self.side(output.logits)

    def predict_dataloader(self) -> Any:
        return batches(rows(PAIRS, seed=0)[self.global_rank])

    def val_dataloader(self) -> Any:
        return batches(rows(HELD_OUT, seed=5)[self.global_rank])


def extract(runner: Any, module: Reader, detector: ContrastDetector, *data: Any) -> dict[str, Any]:
    """Both runs, and all that the detector gives."""
    runner.predict(module, *data[:1])
    runner.validate(module, *data[1:], verbose=False)
    moments = {
        f"{layer} {group}": [torch.tensor(float(found.n)), found.mean, found.covariance]
        for layer, groups in detector.moments().items()
        for group, found in groups.items()
    }
    vectors = {method: dict(detector.vectors(method, force=True)) for method in METHODS}
    scores = [list(row[:4]) for row in detector.separability()]
    reliability = [list(row[:6]) for row in detector.reliability()]
    return {"vectors": vectors, "moments": moments, "scores": scores, "reliability": reliability}


def detector() -> ContrastDetector:
    return ContrastDetector("block:*", covariance=GROUPS, keep_samples=True)


def refused_widths(rank: int) -> str:
    """What is said where one layer is not as wide on one rank as on the other."""
    extraction, label = Extraction(), torch.tensor([0, 1])
    for layer, width in {"alike": 4, "wider": 3 + rank}.items():
        extraction.add(layer, Rows(torch.ones(2, width), label, None, torch.zeros(2, dtype=torch.bool)))
    try:
        extraction.reduce(["alike", "wider"], torch.device("cpu"))
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: str) -> None:
    torch.set_num_threads(1)
    watch = HookCallback([detector(), side := ContrastDetector("side", name="side", covariance=GROUPS)])
    runner = trainer(watch, strategy=DDPStrategy(), devices=2, use_distributed_sampler=False)
    given = extract(runner, Ranked(llama()), watch.detectors[0])
    given["side"] = dict(side.vectors(force=True))["side"]
    given["refused"] = refused_widths(runner.global_rank)
    torch.save(given, f"{folder}/{runner.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
