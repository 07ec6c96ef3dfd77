"""ContrastDetector scores held-out samples: its curves, and which runs they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from mi_crow_lightning import ContrastDetector, HookCallback
from mi_crow_lightning.errors import NothingExtracted
from tests.callback.runs import OnEvent, told
from tests.hooks.detectors.contrasts import Reader, batches, by_hand, labels, texts
from tests.hooks.detectors.extracting import ALL, HELD_OUT, PAIRS, extract, layers_of
from tests.models import llama, trainer


@pytest.mark.parametrize(
    ("signature", "scalars", "curves"), [("block:*", "summary", 2), ("block:*", "none", 0), ("*.?_proj", "all", 0)]
)
def test_there_is_one_curve_over_the_blocks_where_each_layer_is_in_one_of_its_own(
    signature: str, scalars: Any, curves: int, tmp_path: Path
) -> None:
    logger, callback = TensorBoardLogger(tmp_path), HookCallback(ContrastDetector(signature, **ALL), scalars=scalars)
    run, loader = trainer(callback, logger=logger), batches(texts(4))
    run.predict(Reader(llama()), loader)
    run.validate(run.lightning_module, loader, verbose=False)
    logger.finalize("success")
    tags = EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]
    assert len([tag for tag in tags if "/by_block/" in tag]) == curves and callback.history()


def by_rank(scores: np.ndarray, label: np.ndarray) -> float:
    positive, negative = scores[label == 1][:, None], scores[label == 0]
    return float((positive > negative).mean() + (positive == negative).mean() / 2)


@pytest.mark.parametrize("method", ["mean_difference", "pca", "logistic"])
def test_held_out_samples_are_scored_on_each_layers_direction(method: str, tmp_path: Path) -> None:
    model, loader, other = llama(), batches(texts(PAIRS)), batches(texts(HELD_OUT, seed=5), "right")
    detector = ContrastDetector("block:*", method=method, **ALL)
    callback = HookCallback(detectors=detector, monitor=["contrast_auroc/val/*"])
    logger = TensorBoardLogger(tmp_path)
    run = trainer(callback, logger=logger)
    run.predict(Reader(model), loader)
    run.validate(Reader(model), other, verbose=False)

    label, table = labels(other), {row.layer: row for row in detector.separability()}
    assert list(table) == list(detector.vectors(force=True))
    for layer, x in by_hand(model, other, layers_of(model)).items():
        projections = x @ detector.vectors(force=True)[f"model.{layer}"].double().numpy()
        row = table[f"model.{layer}"]
        assert (row.n, row.auroc) == (2 * HELD_OUT, pytest.approx(by_rank(projections, label), abs=1e-6))
        groups = projections[label == 1], projections[label == 0]
        spread = np.sqrt((groups[0].var() + groups[1].var()) / 2)
        assert row.d_prime == pytest.approx((groups[0].mean() - groups[1].mean()) / spread, rel=1e-4)
    assert len({row.auroc for row in table.values()}) > 1  # else this shows little
    best = table[detector.best_layer()]
    assert (best.auroc, best.d_prime) == max((row.auroc, row.d_prime) for row in table.values())

    logged = {(row.stage, row.name, row.layer): row for row in callback.history()}
    for layer, row in table.items():
        assert logged["validate", "auroc", layer].value == row.auroc
        assert logged["validate", "auroc", layer].tag == f"contrast_auroc/val/{layer}"
        assert logged["validate", "d_prime", layer].value == row.d_prime
        norm = detector.vectors("mean_difference", force=True).norms()[layer]
        assert logged["predict", "norm", layer].value == pytest.approx(norm, rel=1e-6)
        assert run.callback_metrics[f"contrast_auroc/val/{layer}"].item() == pytest.approx(row.auroc)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    assert {f"contrast_auroc/val/{layer}" for layer in table} <= set(events.Tags()["scalars"])
    for name in ("auroc", "d_prime"):
        curve = [(point.step, point.value) for point in events.Scalars(f"contrast_{name}/by_block/val")]
        assert curve == [(i, pytest.approx(getattr(row, name))) for i, row in enumerate(table.values())]
    assert "contrast_norm/by_block/predict" not in events.Tags()["scalars"]


def test_each_run_begins_anew_and_broken_off_ones_give_nothing() -> None:
    model, first, second = llama(), batches(texts(PAIRS)), batches(texts(4, seed=3))
    detector = ContrastDetector("block:1")
    with pytest.raises(NothingExtracted, match="has no vectors: predict on batches with labels must reach its end"):
        detector.vectors()
    extract(detector, model, first)
    one = detector.vectors()
    extract(detector, model, second)
    two = detector.vectors()
    assert one.samples["pairs"] == PAIRS and two.samples["pairs"] == 4

    def fail(*_: Any) -> None:
        raise RuntimeError("the run broke")

    run = trainer(HookCallback(detectors=detector), OnEvent("on_predict_epoch_end", fail))
    with pytest.raises(RuntimeError, match="the run broke"):
        # Our callback comes first, so its stage ends before the other one fails.
        run.predict(Reader(model), first)
    assert detector.vectors() == one
    other = ContrastDetector("block:1")
    broken = trainer(HookCallback(other), OnEvent("on_predict_batch_end", lambda t, m, i: fail() if i == 2 else None))
    with pytest.raises(RuntimeError, match="the run broke"):
        broken.predict(Reader(model), first)
    with pytest.raises(NothingExtracted):
        other.vectors()
    extract(other, model, first)
    assert other.vectors() == one


def test_scores_belong_to_the_last_extraction() -> None:
    model, loader, other = llama(), batches(texts(PAIRS)), batches(texts(HELD_OUT, seed=5))
    detector = ContrastDetector("block:1")
    unlabelled = [{k: v for k, v in batch.items() if k != "label"} for batch in other]
    with told(r"has no vectors to score in validate: run predict before it"):
        extract(detector, model, DataLoader(unlabelled, batch_size=None), "validate", logger=False)
    extract(detector, model, loader)
    with pytest.raises(NothingExtracted, match="since predict: run validate on labelled batches"):
        detector.separability()
    extract(detector, model, other, "validate")
    assert detector.separability()[0].n == 2 * HELD_OUT
    extract(detector, model, loader)
    with pytest.raises(NothingExtracted):
        detector.best_layer()


def test_other_stages() -> None:
    model, loader, other = llama(), batches(texts(PAIRS)), batches(texts(HELD_OUT, seed=5))
    detector = ContrastDetector("block:1", stage="validate", held_out="test")
    for stage, data in (("validate", loader), ("test", other), ("predict", other)):
        extract(detector, model, data, stage)
    assert detector.vectors().samples["pairs"] == PAIRS and detector.separability()[0].n == 2 * HELD_OUT
    alone = ContrastDetector("block:1", held_out=None)
    extract(alone, model, loader), extract(alone, model, other, "validate")
    with pytest.raises(NothingExtracted, match="held_out is None"):
        alone.separability()


def test_the_scores_can_be_plotted() -> None:
    pytest.importorskip("matplotlib")
    detector = ContrastDetector("block:*", **ALL)
    with pytest.raises(NothingExtracted):
        detector.plot()
    run = trainer(HookCallback(detector))
    run.predict(Reader(llama()), batches(texts(PAIRS)))
    run.validate(run.lightning_module, batches(texts(HELD_OUT, seed=5)), verbose=False)
    fig, ax = detector.plot()
    auroc, d_prime = (axes.lines[0].get_ydata().tolist() for axes in fig.axes)
    assert auroc == [row.auroc for row in detector.separability()] and ax is fig.axes[0]
    assert d_prime == [row.d_prime for row in detector.separability()]
