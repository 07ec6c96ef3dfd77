"""``HookCallback(page=True)``: the page of a run, and the report in the log that it shows."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mi_crow_lightning import ActivationStatistics, HookCallback, LayerNotFound, SteeringController
from mi_crow_lightning.run_page import write_page
from tests.callback.runs import data_of, module_of, run, told
from tests.models import WIDTH, loader, trainer
from tests.run_page.pages import embedded

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")


def watching(**options: Any) -> HookCallback:
    return HookCallback(ActivationStatistics("block:*", statistics=["mean", "std"]), **options)


def do(stage: str, callbacks: list[pl.Callback], logger: Any, **options: Any) -> pl.Trainer:
    runner = trainer(*callbacks, logger=logger, **options)
    run(stage, runner, module_of("llama"), data_of("llama"))
    return runner


def texts(folder: str) -> dict[str, list[tuple[int, str]]]:
    """The texts of a log by tag, as TensorBoard reads them."""
    log = EventAccumulator(folder, size_guidance={"tensors": 0})
    log.Reload()
    tags = [tag for tag in log.Tags()["tensors"] if tag.endswith("/text_summary")]
    found = {tag: log.Tensors(tag) for tag in tags}
    return {
        tag.removesuffix("/text_summary"): [(point.step, point.tensor_proto.string_val[0].decode()) for point in points]
        for tag, points in found.items()
    }


def test_a_run_logs_its_report_once(tmp_path: Path) -> None:
    logger, watch = TensorBoardLogger(tmp_path), watching()
    runner = do("fit", [watch], logger, max_epochs=2)
    of_fit, steps = str(watch.report()), runner.global_step
    run("predict", runner, module_of("llama"), data_of("llama"))
    of_predict = str(watch.report())
    assert steps > 0 and of_fit != of_predict
    expected = {"hook_report/fit": [(0, of_fit)], "hook_report/predict": [(steps, of_predict)]}
    found = texts(logger.log_dir)
    assert found.keys() == expected.keys()
    for tag, [(step, text)] in found.items():
        assert all(line.startswith("    ") for line in text.splitlines())  # a block of code, whatever it says
        assert [(step, "\n".join(line[4:] for line in text.splitlines()))] == expected[tag]
    index = embedded(write_page(logger.log_dir, tmp_path / "run.html").path)
    reports = index.find("reports", run="version_0")["reports"]
    assert [(one["tag"], one["step"], one["text"]) for one in reports] == [
        ("hook_report/fit", 0, of_fit),
        ("hook_report/predict", steps, of_predict),
    ]


def test_each_of_several_callbacks_logs_its_report(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    attention = HookCallback(ActivationStatistics("block:*.attn", name="attention"), name="attention")
    do("fit", [watching(), attention], logger)
    assert texts(logger.log_dir).keys() == {"hook_report/fit/1", "hook_report/fit/attention"}


def test_a_resumed_fit_logs_its_report_where_it_goes_on(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    first = do("fit", [watching()], logger)
    first.save_checkpoint(tmp_path / "first.ckpt")
    steps = first.global_step
    runner = trainer(watching(), logger=logger, max_epochs=2)
    run("fit", runner, module_of("llama"), data_of("llama"), ckpt_path=tmp_path / "first.ckpt", weights_only=False)
    assert [step for step, _ in texts(logger.log_dir)["hook_report/fit"]] == [0, steps]


def test_neither_a_dry_run_nor_another_logger_gets_a_report(tmp_path: Path) -> None:
    logger, other = TensorBoardLogger(tmp_path), CSVLogger(tmp_path / "csv")
    do("fit", [watching(dry_run=True, page=True)], [logger, other])
    assert not texts(logger.log_dir) and not list(tmp_path.rglob("*.html"))


def numbers_of(page: Path, run: str) -> dict[tuple[str, str, int, str], np.float32]:
    found = embedded(page)
    (entry,) = found.find("index")["runs"]
    numbers = {}
    for series in entry["statistics"]:
        header, arrays = found.find("matrix", run=run, **{key: series[key] for key in ("prefix", "name", "stage")})
        for step, row in zip(arrays["steps"], arrays["values"], strict=True):
            for layer, value in zip(header["layers"], row, strict=True):
                numbers[series["stage"], f"{series['prefix']}_{series['name']}", int(step), layer] = value
    return numbers


def test_the_page_at_the_end_holds_the_history(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = TensorBoardLogger(tmp_path)
    vector = torch.ones(WIDTH)
    watch = HookCallback(ActivationStatistics("block:*"), SteeringController("block:1", vector), page=True)
    (tmp_path / "lightning_logs" / "version_0").mkdir(parents=True)
    with caplog.at_level(logging.INFO, "mi_crow_lightning"):
        runner = do("fit", [watch], TensorBoardLogger(tmp_path, version=0), max_epochs=2)
        page = Path(runner.loggers[0].log_dir) / "hooks.html"
        before = page.stat().st_size
        run("predict", runner, module_of("llama"), data_of("llama"))
    assert f"HookCallback: wrote {page} ({page.stat().st_size / 1e6:.2f} MB)" in caplog.text
    assert page.stat().st_size > before and logger.save_dir == str(tmp_path)
    found = numbers_of(page, "version_0")
    expected = {(row.stage, row.tag.partition("/")[0], row.step, row.layer): row.value for row in watch.history()}
    assert len(expected) > 200 and {stage for stage, *_ in expected} == {"train", "validate", "predict"}
    for place, value in expected.items():
        assert np.array_equal(found[place], np.float32(value), equal_nan=True), place


def test_one_page_of_several_callbacks_and_of_no_other_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = TensorBoardLogger(tmp_path, name="", version="")  # all in one folder
    do("fit", [watching()], TensorBoardLogger(tmp_path, name="", version="inner"))
    attention = HookCallback(ActivationStatistics("block:*.attn", name="attention"), page=True)
    third = HookCallback(ActivationStatistics("block:*.mlp", name="third"))
    with caplog.at_level(logging.INFO, "mi_crow_lightning"):
        do("fit", [watching(page=True), attention, third], flat)
    assert caplog.text.count("HookCallback: wrote") == 1
    (page,) = tmp_path.rglob("*.html")
    (entry,) = embedded(page).find("index")["runs"]
    assert {series["prefix"] for series in entry["statistics"]} == {"activations", "attention", "third"}
    assert entry["name"] == tmp_path.name


def test_without_it_there_is_no_page(tmp_path: Path) -> None:
    do("fit", [watching()], TensorBoardLogger(tmp_path))
    assert not list(tmp_path.rglob("*.html"))


def test_a_trainer_without_event_files_is_warned_at_the_start(tmp_path: Path) -> None:
    for logger in (False, CSVLogger(tmp_path)):
        with told(r"page=True\) makes the page of the event files of a TensorBoardLogger"):
            do("fit", [watching(page=True)], logger)


def test_a_trial_is_not_warned_and_writes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = TensorBoardLogger(tmp_path)
    run("fit", trainer(watching(page=True), logger=logger, fast_dev_run=True), module_of("llama"), data_of("llama"))
    monkeypatch.chdir(tmp_path)  # the Tuner keeps a checkpoint in the working directory for a while
    module = module_of("llama")
    module.lr = 0.1
    tuner = Tuner(trainer(watching(page=True), logger=logger, max_epochs=1, limit_val_batches=0))
    data = loader(data_of("llama"))
    tuner.lr_find(module, data, data, num_training=3, attr_name="lr", update_attr=False)
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.documents("reliability/the-page-of-page-true-cannot-be-written-or-a-logger-does-not-take-it")
def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (Path(logger.log_dir) / "hooks.html").mkdir(parents=True)
    with told(r"page=True\) wrote no hooks.html: IsADirectoryError: '.*' is a folder", RuntimeWarning):
        runner = do("fit", [watching(page=True)], logger)
    assert runner.state.finished
    (file,) = Path(logger.log_dir).glob("events*")
    file.write_bytes(file.read_bytes()[:-3] + b"xyz")
    with told("wrote no hooks.html", RuntimeWarning):
        run("predict", runner, module_of("llama"), data_of("llama"))


def test_a_run_that_is_refused_writes_none(tmp_path: Path) -> None:
    with pytest.raises(LayerNotFound):
        do("fit", [HookCallback(ActivationStatistics("nowhere"), page=True)], TensorBoardLogger(tmp_path))
    assert not list(tmp_path.rglob("*.html"))


def test_the_option_is_kept_by_pickle() -> None:
    assert pickle.loads(pickle.dumps(watching(page=True))).page is True
