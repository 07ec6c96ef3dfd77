"""Tiny fine-tunes by ``transformers.Trainer``, and what to compare of two."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from tests.models import VOCABULARY

# With these, and a sampler that draws no order, a run can be compared with Lightning's.
PLAIN: dict[str, Any] = dict(
    optim="adamw_torch", max_grad_norm=0.0, lr_scheduler_type="constant", weight_decay=0.0, learning_rate=1e-3
)


# The name that the installed version gives to gradient checkpointing.
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)


class InOrder(Trainer):
    """A Trainer that takes the samples in their order, and the mean of each micro-batch's loss."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def rows(count: int = 12, width: int = 9) -> list[dict[str, torch.Tensor]]:
    """Rows of tokens, every third padded on the right by another number of tokens."""
    torch.manual_seed(1)
    made = []
    for index in range(count):
        ids, mask = torch.randint(3, VOCABULARY, (width,)), torch.ones(width, dtype=torch.long)
        if index % 3 == 2:
            mask[width - 1 - index % 4 :] = 0
        ids = ids.masked_fill(mask == 0, 0)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
    return made


def trainer(model: nn.Module, folder: Path, kind: type[Trainer] = InOrder, **changes: Any) -> Any:
    """A Trainer of six steps on a CPU, that says nothing and logs nowhere unless ``changes`` say otherwise."""
    named = {name: changes.pop(name) for name in ("callbacks", "compute_metrics", "eval_dataset") if name in changes}
    options: dict[str, Any] = dict(
        **PLAIN,
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        max_steps=6,
        logging_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments = TrainingArguments(**{**options, **changes})
    return kind(model=model, args=arguments, train_dataset=rows(), **{"eval_dataset": rows(8), **named})


def in_tensorboard(folder: Path) -> dict[str, Any]:
    """Arguments of a Trainer whose event files go to a folder ``run`` in a folder."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "run")
    of_before = {"logging_dir": str(folder / "run")} if transformers.__version__ < "5" else {}
    return {"report_to": "tensorboard", **of_before}


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def numbers(table: Any) -> list[tuple[Any, ...]]:
    """The rows of a history without the name of their run."""
    return [(row.stage, row.step, row.tag, row.value) for row in table]
