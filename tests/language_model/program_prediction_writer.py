"""A script: predict on two CPU processes, ``python -m tests.language_model.program_prediction_writer FOLDER MODE``.

The texts go to ``FOLDER/texts.rank0.jsonl`` and ``.rank1.jsonl``, what the logger gets to ``FOLDER/table.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from mi_crow_lightning import HookCallback, PredictionWriter
from tests.end_of_ranks import leave_ranks
from tests.language_model.test_sweep import module_of, steer
from tests.language_model.tiny import TEXTS, model_of, texts_loader
from tests.models import trainer


class TableLogger(CSVLogger):
    """Takes text as `WandbLogger` does."""

    def log_text(self, key: str, columns: Any, data: Any, step: int) -> None:
        (Path(self.save_dir) / "table.json").write_text(json.dumps([key, columns, data, step]), "utf-8")


def main(folder: str, mode: str) -> None:
    module = module_of(model_of("llama"))
    module._shown.prompts = 2
    writer = PredictionWriter(f"{folder}/texts.jsonl", mode)
    callbacks = HookCallback(controllers=steer()), writer
    run = trainer(*callbacks, strategy=DDPStrategy(), devices=2, logger=TableLogger(folder))
    run.predict(module, texts_loader(TEXTS, batch_size=2), return_predictions=False)
    assert writer.file == Path(folder) / f"texts.rank{run.global_rank}.jsonl"


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
