"""`history()` of a long run: bounded, reaching back to the beginning, and never at the cost of a logger."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from mi_crow_lightning import ActivationStatistics, HookCallback
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.history import History
from tests.callback.configured import cli, ours, watch
from tests.counted import calls_in


def tagged(count: int, value: float = 0.0, layer: str = "h") -> list[tuple[str, Reading]]:
    return [(f"mean/{layer}.{i}", Reading(f"{layer}.{i}", "mean", value)) for i in range(count)]


def steps(history: History, stage: str = "train") -> list[int]:
    return list(dict.fromkeys(row.step for row in history.rows() if row.stage == stage))


@pytest.mark.documents("reliability/history-of-a-long-run")
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_it_never_holds_more_and_goes_back_to_the_beginning(size: int) -> None:
    history, numbers = History(size), 3
    for step in range(2000):
        history.add("train", step, tagged(numbers, step))
        assert len(history.rows()) <= max(size, numbers)
    kept = steps(history)
    assert kept[-1] == 1999
    assert [row.value for row in history.rows()] == [float(step) for step in kept for _ in range(numbers)]
    if size >= 64:
        assert kept[0] == 0
        gaps = [after - before for before, after in itertools.pairwise(kept[:-1])]
        assert len(set(gaps)) <= 1  # spread evenly
        assert len(kept) * numbers >= size / 2 - numbers


def test_a_short_run_loses_nothing() -> None:
    history = History(100)
    assert not any(history.add("train", step, tagged(10)) for step in range(10))
    assert history.add("train", 10, tagged(10))
    assert steps(history) == [0, 2, 4, 6, 8, 10]
    history.add("train", 11, tagged(10))
    history.add("train", 12, tagged(10))
    assert steps(history) == [0, 2, 4, 6, 8, 10, 12]


def test_the_stage_that_has_most_is_thinned() -> None:
    history = History(40)
    for epoch in range(10):
        for step in range(10):
            history.add("train", 10 * epoch + step, tagged(1))
        history.add("validate", 10 * epoch, tagged(1, layer="v"))
    assert steps(history, "validate") == [10 * epoch for epoch in range(10)]
    assert len(steps(history)) <= 30


def test_one_step_may_have_more_than_the_bound() -> None:
    history = History(5)
    for step, stage in enumerate(("train", "train", "train", "validate", "validate")):
        history.add(stage, step, tagged(8))
    assert (steps(history), steps(history, "validate")) == ([2], [4])


def test_tags_that_change_each_step_are_let_go_with_their_numbers() -> None:
    history = History(20)
    for step in range(500):
        history.add("train", step, tagged(2, layer=f"h{step}"))
    assert len(history._keys) == len(steps(history)) <= 10


def test_the_work_of_a_step_does_not_grow() -> None:
    def work(count: int) -> int:
        history, readings = History(200), tagged(4)
        return calls_in(lambda: [history.add("train", step, readings) for step in range(count)])

    assert work(4000) < 2.2 * work(2000)


def fit(watch: HookCallback, folder: Path, loggers: Sequence[Any] | bool, batches: int = 12) -> None:
    trainer = pl.Trainer(
        callbacks=[watch],
        logger=loggers,
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=1,
        limit_train_batches=batches,
        limit_val_batches=0,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel())


def watching(**options: Any) -> HookCallback:
    return HookCallback(ActivationStatistics("layer", statistics=["mean", "std"], histogram=False), **options)


def said_in(work: Callable[[], None]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work()
    return [str(one.message) for one in caught if "history_size" in str(one.message)]


@pytest.mark.documents("reliability/history-is-full-and-there-is-a-logger")
def test_loggers_have_every_step_and_one_warning_says_what_happened(tmp_path: Path) -> None:
    bounded, logger = watching(history_size=6), CSVLogger(tmp_path)
    (only,) = said_in(lambda: fit(bounded, tmp_path, [logger]))
    assert "history_size=6 numbers, and at step 3 there were more" in only and "Loggers get the same" in only
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert len([line for line in lines[1:] if line.strip(",")]) == 12
    kept = bounded.history()
    assert len(kept) <= 6 and kept[-1].step == 11


@pytest.mark.documents("reliability/history-is-full-and-there-is-no-logger")
def test_without_a_logger_the_warning_says_that_numbers_are_gone(tmp_path: Path) -> None:
    (only,) = said_in(lambda: fit(watching(history_size=4), tmp_path, False))
    assert "This Trainer has no logger, so they are nowhere else" in only and "set history_size=None" in only


@pytest.mark.parametrize("size", [None, 100_000])
def test_usual_runs_keep_all(size: int | None, tmp_path: Path) -> None:
    watch = watching() if size is not None else watching(history_size=None)
    assert said_in(lambda: fit(watch, tmp_path, False)) == []
    assert len(watch.history()) == 2 * 12


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "all"])
def test_wrong_sizes_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"history_size={wrong!r} must be"):
        HookCallback(history_size=wrong)


@pytest.mark.parametrize(("written", "kept"), [(8, 8), (None, 20)])
def test_a_configuration_file_sets_it(written: int | None, kept: int) -> None:
    detector = ours("ActivationStatistics", "layer", statistics=["mean"], histogram=False)
    run = cli(watch(detectors=detector, history_size=written))
    (callback,) = [one for one in run.trainer.callbacks if isinstance(one, HookCallback)]
    for step in range(20):
        callback._log._history.add("train", step, tagged(1))
    assert kept // 2 <= len(callback.history()) <= kept


@pytest.mark.parametrize("size", [1, 7, 20])
def test_all_dataloaders_are_kept_of_the_same_steps(size: int) -> None:
    history, loaders = History(size), [f"/dataloader_idx_{i}" for i in range(3)]
    for step in range(50):
        for loader in loaders:
            history.add("validate", step, [(f"activations_mean/val/h{loader}", Reading("h", "mean", float(step)))])
    steps = [[row.step for row in history.rows() if row.tag.endswith(loader)] for loader in loaders]
    assert steps[0] == steps[1] == steps[2] and steps[0][-1] == 49
    assert sum(map(len, steps)) <= max(size, 3)


def test_a_stage_that_runs_again_at_one_step_is_thinned_too() -> None:
    history = History(8)
    for again in range(100):
        history.add("test", 5, [("activations_mean/test/h", Reading("h", "mean", float(again)))])
    values = [row.value for row in history.rows()]
    assert 4 <= len(values) <= 8 and values[0] == 0.0 and values[-1] == 99.0
