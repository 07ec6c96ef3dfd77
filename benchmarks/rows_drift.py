"""Drift from the adapter switched off, in turns with the bare step and with a step and one more forward pass."""

from __future__ import annotations

import copy
import warnings
from importlib import import_module
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.cases import Case, Measured
from benchmarks.report import NotRun, Section, Target
from benchmarks.turns import Variant, take_turns
from mi_crow_lightning import DriftDetector, HookCallback, Schedule

NEVER = 10**9


class SecondPass(pl.Callback):
    """Runs each batch a second time with the adapter off, and looks at nothing."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Do nothing: both events are timed."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad(), module.model.disable_adapter():
            module.model(**batch, labels=batch["input_ids"])


def drifting(case: Case, rounds: int) -> Section:
    """Measure training steps with LoRA."""
    model = with_lora(case.make())
    due = Schedule(stages="train")
    variants = [
        Variant("bare"),
        Variant("a second forward pass, adapter off", [SecondPass()], timed_hooks=False),
        Variant(
            "DriftDetector, every block", [HookCallback(DriftDetector("block:*", schedule=due), log_every_n_steps=1)]
        ),
    ]
    variants[2].timed_hooks = False
    take_turns(case, Measured(model), case.data(model.config.vocab_size), variants, rounds)
    bare, second, drift = variants
    clock = "cpu" if case.on_cpu else "wall"
    ratio = drift.ratio(second, clock)
    note = f"{ratio.least:.2f}-{ratio.most:.2f}"
    return Section(
        f"Drift from the adapter switched off, a training step with LoRA: {case.title}",
        f"{rounds} rounds after warming up; every step is due, read and written.",
        [variant.line(bare, case.on_cpu) for variant in variants],
        [
            Target(
                f"drift on due steps over a step and one forward pass; {case.name}", ratio.median, 1.10, "ratio", note
            )
        ],
    )


def with_lora(model: Any) -> Any:
    """Return a copy of a model under LoRA.

    Raises:
        NotRun: peft is not installed.
    """
    try:
        peft = import_module("peft")
    except ModuleNotFoundError:
        raise NotRun("the package peft is not installed") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
