"""The worked example of CONTRIBUTING.md: its statistic in real runs, against numpy in float64."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule
from mi_crow_lightning.metrics import Sum, measure
from mi_crow_lightning.metrics.one_pass import in_graph, on_cpu
from mi_crow_lightning.metrics.one_pass.on_cuda import choice
from mi_crow_lightning.report import Support
from tests.metrics.conftest import WITH_KERNEL
from tests.metrics.noted import Noted
from tests.metrics.program_contributed import DECLARATION, FASTER, TRITON, absolute_mean, run_block
from tests.metrics.program_fit_on_ranks import ACCUMULATE, NAMES, SIZES
from tests.metrics.reference import Recorder
from tests.models import Module, llama, loader, token_data, trainer

LAYERS = [f"model.model.layers.{i}" for i in range(4)]


@pytest.fixture(params=["declaration", "with faster forms"])
def contributed(request: pytest.FixtureRequest, own_statistics: None, tmp_path: Path) -> bool:
    """The example is registered; says whether numpy and graphs know its sum."""
    run_block(DECLARATION, tmp_path)
    if faster := request.param != "declaration":
        run_block(FASTER, tmp_path)
    assert ("abs_sum" in on_cpu.SUMS) == ("abs_sum" in in_graph.SUMS) == faster
    return faster


class PerStep(pl.Callback):
    """Records the tokens of each optimizer step, by layer."""

    def __init__(self, accumulate: int, batches: int) -> None:
        self.ends = {i for i in range(batches) if (i + 1) % accumulate == 0 or i == batches - 1}
        self.steps: list[dict[str, np.ndarray]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.recorder = Recorder({name: pl_module.get_submodule(name) for name in LAYERS})

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.recorder.mask = batch["attention_mask"].bool()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.ends:
            self.steps.append({name: np.concatenate(parts) for name, parts in self.recorder.seen.items()})
            for parts in self.recorder.seen.values():
                parts.clear()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.recorder.remove()


def values(readings: list[Any]) -> dict[tuple[str, str], float]:
    return {(reading.layer, reading.name): reading.value for reading in readings}


@pytest.mark.usefixtures("contributed")
@pytest.mark.parametrize("side", ["left", "right"])
def test_micro_batches_and_padding(side: str) -> None:
    data = [{name: row[name] if side == "left" else row[name].flip(0) for name in row} for row in token_data(18)]
    detector, seen = Noted("block:*", statistics=["abs_mean", "rms"], histogram=False), PerStep(2, 5)
    runner = trainer(HookCallback(detector), seen, limit_val_batches=0, accumulate_grad_batches=2)
    runner.fit(Module(llama()), loader(data), loader(data))  # four batches of 4, one of 2
    assert len(detector.noted) == len(seen.steps) == 3
    for readings, tokens in zip(detector.noted, seen.steps, strict=True):
        found = values(readings)
        assert len(found) == 8
        for layer in LAYERS:
            assert found[layer, "abs_mean"] == pytest.approx(absolute_mean(tokens[layer]), rel=1e-12)
            assert found[layer, "rms"] == pytest.approx(np.sqrt((tokens[layer] ** 2).mean()), rel=1e-12)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.usefixtures("contributed")
def test_a_checkpoint_between_two_readings(tmp_path: Path) -> None:
    def fit(ckpt_path: Path | None = None) -> list[list[Any]]:
        # Two steps an epoch and a reading each four: the checkpoint of the first epoch holds sums.
        detector = Noted("block:*", statistics=["abs_mean", "mean"], schedule=Schedule(stages="train"))
        saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}", save_top_k=-1)
        options: dict[str, Any] = dict(max_epochs=2, log_every_n_steps=4, limit_val_batches=0)
        data = loader(token_data(8))
        runner = trainer(HookCallback(detector), saver, enable_checkpointing=True, **options)
        runner.fit(Module(llama(attention_dropout=0.0)), data, data, ckpt_path=ckpt_path)
        return detector.noted

    whole = fit()
    saved = tmp_path / "saved" / "epoch=0.ckpt"
    assert b"abs_sum" in saved.read_bytes()
    resumed = fit(saved)
    assert len(whole) == len(resumed) == 1
    assert values(resumed[0]) == values(whole[0])


@pytest.mark.usefixtures("own_statistics")
def test_two_ranks(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.metrics.program_contributed", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(2)]
    assert len(ranks[0]["steps"]) == len(SIZES[0]) // ACCUMULATE
    assert values(ranks[0]["steps"][0]) == values(ranks[1]["steps"][0])
    for step, readings in enumerate(ranks[0]["steps"]):
        parts = [rank["batches"][step * ACCUMULATE + i] for rank in ranks for i in range(ACCUMULATE)]
        found = values(readings)
        for layer in LAYERS:
            assert layer in NAMES
            tokens = np.concatenate([part[layer] for part in parts])
            assert found[layer, "abs_mean"] == pytest.approx(absolute_mean(tokens), rel=1e-12)


class Silent(Module):
    """Does not log: Lightning's ``self.log`` cannot be traced."""

    def log(self, *args: Any, **options: Any) -> None:
        pass


# Dynamo looks at .grad of what it guards, and hides the warning only where warnings are no errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_in_a_compiled_model(contributed: bool) -> None:
    torch._dynamo.reset()
    readings, reports = [], []
    for compiled in (False, True):
        module = Silent(llama(num_hidden_layers=2, attention_dropout=0.0))
        if compiled:
            module.model = torch.compile(module.model, backend="aot_eager")  # type: ignore[assignment]
        detector = Noted("block:*", statistics=["abs_mean"], histogram=False)
        watch = HookCallback(detector)
        data = loader(token_data(8))
        trainer(watch, limit_val_batches=0).fit(module, data, data)
        readings.append([values(step) for step in detector.noted])
        reports.append([(f.name, f.value, f.note) for f in watch.report().features if f.name == "statistics"])
    assert len(readings[0]) == 2 and len(readings[0][0]) == 2
    for found, expected in zip(*reversed(readings), strict=True):
        assert [*found.values()] == pytest.approx([*expected.values()], rel=1e-6 if contributed else 1e-12)
    note = "measured by plain torch operations, which takes longer: {} has no form of it"
    forms = ("numpy", "a compiled graph")
    assert reports == [[] if contributed else [("statistics", "abs_sum", note.format(form))] for form in forms]
    torch._dynamo.reset()


def test_the_report_names_the_sum(contributed: bool) -> None:
    watch = HookCallback(ActivationStatistics("block:*", statistics=["abs_mean"]))
    plain = HookCallback(ActivationStatistics("block:*", name="plain"))
    data = loader(token_data(4))
    trainer(watch, plain, limit_val_batches=0).fit(Module(llama()), data, data)
    assert "statistics" not in {feature.name for feature in plain.report().features}
    if contributed:
        assert "statistics" not in {feature.name for feature in watch.report().features}
    else:
        said = watch.report().feature("statistics")
        assert (said.value, said.support) == ("abs_sum", Support.SUPPORTED)
        assert "numpy has no form of it" in str(watch.report())


def _refuses(x: Tensor, keep: Tensor) -> Tensor:
    raise AssertionError("Triton knows this sum")


@pytest.mark.skipif(not WITH_KERNEL, reason="the kernels run in Triton's interpreter: make test-kernel")
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("mask_dims", [None, 1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.usefixtures("kernel", "own_statistics")
def test_in_a_kernel(tmp_path: Path, known: bool, mask_dims: int | None, dtype: torch.dtype) -> None:
    one = run_block(DECLARATION, tmp_path).ABS_SUM
    if known:
        run_block(TRITON, tmp_path)
        one = Sum("abs_sum", _refuses)
    x = torch.randn(70, 1100, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0], x[40, 3] = torch.nan, torch.inf
    mask = None if mask_dims is None else torch.rand(x.shape[:mask_dims]) > 0.5
    assert choice.kernels_know("abs_sum") == known
    found: Tensor = measure(x, mask, sums=(one,)).row[-1]
    chosen = (x if mask is None else x[mask]).double().numpy()
    assert found.item() == pytest.approx(np.abs(chosen[np.isfinite(chosen)]).sum(), rel=1e-6 if known else 1e-12)
