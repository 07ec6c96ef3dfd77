"""A script: a `SummingDetector` on two CPU processes, ``python -m tests.hooks.program_sums_on_ranks FOLDER``.

Ranks have batches of different sizes, in predict also another number of them. Each writes its readings and what a plain
hook saw to ``FOLDER/<rank>.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from mi_crow_lightning import HookCallback, Schedule
from tests.end_of_ranks import leave_ranks
from tests.hooks.summing import Spread
from tests.models import Module, llama, token_data, trainer

LAYER = "model.model.layers.1"
SIZES = {"train": ((4, 2, 3, 1), (3, 3, 1, 2)), "predict": ((4, 3, 2), (4,))}


class Resumable(DataLoader[Any]):
    """Goes on after the batch at which a checkpoint was written; plain loaders begin their epoch again."""

    done = 0

    def __iter__(self) -> Any:
        first = self.done
        for i, batch in enumerate(super().__iter__()):
            if i >= first:
                self.done = i + 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]


class Ranked(Module):
    """Each rank has data of its own."""

    def __init__(self) -> None:
        super().__init__(llama(attention_dropout=0.0))

    def batches(self, stage: str) -> Any:
        rows = iter(token_data(40)[20 * self.global_rank :])
        batches = [default_collate([next(rows) for _ in range(size)]) for size in SIZES[stage][self.global_rank]]
        return Resumable(batches, batch_size=None)  # type: ignore[arg-type]

    def train_dataloader(self) -> Any:
        return self.batches("train")

    def predict_dataloader(self) -> Any:
        return self.batches("predict")

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(**batch).logits


class Tokens(pl.Callback):
    """What the real tokens of the layer were, by a plain hook."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._handle = pl_module.get_submodule(LAYER).register_forward_hook(self._note)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *event: Any) -> None:
        self._mask = batch["attention_mask"].bool()

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *event: Any) -> None:
        self._mask = batch["attention_mask"].bool()

    def _note(self, module: Any, args: Any, output: Any) -> None:
        self.seen.append(output.detach()[self._mask].double())

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._handle.remove()


def watching() -> HookCallback:
    always = Spread("block:*", hook_id="spread", schedule=Schedule())
    # It sees nothing between a checkpoint and the reading, and is read all the same.
    early = Spread("block:*", hook_id="early", name="early", schedule=Schedule(stages="train", batches=[0]))
    return HookCallback([always, early], name="watch")


def fit(ckpt_path: Path | None = None, *callbacks: pl.Callback, **options: Any) -> HookCallback:
    """Four steps with one reading."""
    watch = watching()
    fixed: dict[str, Any] = dict(limit_val_batches=0, log_every_n_steps=4, max_steps=4, use_distributed_sampler=False)
    trainer(watch, *callbacks, **{**fixed, **options}).fit(Ranked(), ckpt_path=ckpt_path)
    return watch


def rows(watch: HookCallback) -> dict[str, float]:
    return {row.tag: row.value for row in watch.history()}


def main(folder: str) -> None:
    torch.set_num_threads(1)
    two: dict[str, Any] = dict(strategy=DDPStrategy(), devices=2)
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    in_train, in_predict = Tokens(), Tokens()
    found = {"train": rows(fit(None, in_train, saver, **two, enable_checkpointing=True))}
    found["resumed"] = rows(fit(Path(folder, "step=2.ckpt"), strategy=DDPStrategy(), devices=2))
    watch = watching()
    runner = trainer(watch, in_predict, strategy=DDPStrategy(), devices=2, use_distributed_sampler=False)
    runner.predict(Ranked(), return_predictions=False)
    found["predict"] = rows(watch)
    seen = {"train": torch.cat(in_train.seen), "predict": torch.cat(in_predict.seen)}
    torch.save({"rows": found, "seen": seen}, f"{folder}/{runner.global_rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_ranks()
