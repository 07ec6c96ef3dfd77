"""A script: a screening on two CPU processes, ``python -m tests.language_model.program_screening FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from tests.end_of_ranks import leave_ranks
from tests.language_model.screened import screening
from tests.language_model.tiny import TEXTS
from tests.models import trainer


def main(folder: str) -> None:
    found = {}
    for drop_last in (False, True):
        module, run = screening(), trainer(strategy=DDPStrategy(), devices=2)
        loader: DataLoader[str] = DataLoader(TEXTS, batch_size=2, drop_last=drop_last)  # type: ignore[arg-type]
        run.validate(module, loader, verbose=False)
        found[str(drop_last)] = [(row.sample, row.score, row.text) for row in module.table()]
    Path(folder, f"{run.global_rank}.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
