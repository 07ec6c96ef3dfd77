"""``HookTrainerCallback(page=True)``: the page of a run of ``transformers.Trainer``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mi_crow_lightning import ActivationStatistics, Detector, HookTrainerCallback
from mi_crow_lightning.alarms import Alarm, Threshold
from mi_crow_lightning.warnings import FailureWarning, NothingSeenWarning
from tests.callback.test_end_page import numbers_of
from tests.hf_trainer.fits import in_tensorboard, trainer
from tests.hf_trainer.test_attached import Failing
from tests.models import llama
from tests.run_page.pages import embedded

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
torch.set_num_threads(1)


def watching(**options: Any) -> HookTrainerCallback:
    watched = ActivationStatistics("block:*", name=options.get("name"))
    return HookTrainerCallback(watched, report="off", **{"page": True, **options})


def test_the_page_holds_the_history_and_what_happened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = trainer(llama(), tmp_path, **in_tensorboard(tmp_path), eval_strategy="steps", eval_steps=3)
    watch, page = watching(alarms=Alarm(Threshold("rms", above=1e-6, layers="*.2"), "log")), tmp_path / "run/hooks.html"
    with watch.attach(runner), caplog.at_level(logging.INFO, "mi_crow_lightning"):
        runner.train()
        before = page.stat().st_size
        assert len(list((tmp_path / "run").glob("events*"))) == 1  # none for the page
        runner.evaluate()
    assert f"HookTrainerCallback: wrote {page} ({page.stat().st_size / 1e6:.2f} MB)" in caplog.text
    assert caplog.text.count("wrote") == 2 and page.stat().st_size >= before
    found = numbers_of(page, "run")
    expected = {(row.stage, row.tag.partition("/")[0], row.step, row.layer): row.value for row in watch.history()}
    assert {place[::2] for place in expected} >= {("train", 6), ("validate", 6)}
    for place, value in expected.items():
        assert np.array_equal(found[place], np.float32(value), equal_nan=True), place
    kinds = {row["kind"] for row in embedded(page).find("events", run="run")["events"]}
    assert kinds == {"alarm"}


class Chatty(Detector):
    """Reports more than a run keeps, which is said when the run ends."""

    def observe(self, x: torch.Tensor, ctx: Any) -> None:
        for index in range(100):
            self.report_event(f"{ctx.moment.step}.{index}")


def test_one_page_of_several_callbacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one that was attached first ends last, and its page has what the others wrote at their ends."""
    watches = [
        HookTrainerCallback(
            [ActivationStatistics("block:*", name=name), Chatty("block:0", name=f"chatty {name}")],
            report="off",
            name=name,
            page=name != "a",
        )
        for name in ("a", "b", "c")
    ]
    runner = trainer(llama(), tmp_path, **in_tensorboard(tmp_path), callbacks=watches[::-1])
    for watch in watches:
        watch.attach(runner)
    with caplog.at_level(logging.INFO, "mi_crow_lightning"):
        runner.train()
    assert caplog.text.count("wrote") == 1
    page = embedded(tmp_path / "run/hooks.html")
    (entry,) = page.find("index")["runs"]
    assert {series["prefix"] for series in entry["statistics"]} == {"a", "b", "c"}
    assert [row["kind"] for row in page.find("events", run="run")["events"]].count("left out") == 2


def test_a_run_that_fails_or_has_no_event_files_has_none(tmp_path: Path) -> None:
    runner = trainer(llama(), tmp_path, Failing, **in_tensorboard(tmp_path))
    with watching().attach(runner) as watch, pytest.raises(ValueError, match="broke"):
        runner.train()
    assert not list(tmp_path.rglob("*.html")) and not watch._end_page._writers
    says = pytest.warns(NothingSeenWarning, match=r"this Trainer writes none.*report_to='tensorboard'")
    with watching().attach(silent := trainer(llama(), tmp_path)), says:
        silent.evaluate()
    with watching(page=False).attach(runner):
        runner.evaluate()
    assert not list(tmp_path.rglob("*.html"))


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "run/hooks.html").mkdir(parents=True)
    runner = trainer(llama(), tmp_path, **in_tensorboard(tmp_path))
    with watching().attach(runner), pytest.warns(FailureWarning, match=r"HookTrainerCallback\(page=True\) wrote no"):
        runner.train()
    assert runner.state.global_step == 6
