"""The page in headless Chromium, opened from disk: ``make test-browser``."""

from __future__ import annotations

import csv
import html
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning import ActivationStatistics, HookCallback, ProjectionDetector, SteeringController
from mi_crow_lightning.loggers import HistoryRow, read_compact
from mi_crow_lightning.run_page import write_page
from tests.callback.runs import data_of, module_of, run
from tests.models import WIDTH, trainer
from tests.tensorboard_plugin.browser import Browser, chromium
from tests.tensorboard_plugin.logs import BLOCKS, schema, tensor, write_plain, write_run, write_tensor
from tests.tensorboard_plugin.tab import BUSY, Tab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning"),
]

HOSTILE = (
    "</script><script>window.hit=1</script>",
    "<img src=x onerror=window.hit=1>",
    "<!--<script>",
    "\u202egnp",
    "y" * 900,
    "a&p.mi_crow_lightning.run=one&x=%41#+ ?",
)
REPORT = "HookCallback in fit: 1 hook.\n\n</pre><script>window.hit=1</script>  `x`"


class Alone(Tab):
    """The page as a file, without TensorBoard around it."""

    def open(self, **state: Any) -> None:
        parts = "".join(f"&p.mi_crow_lightning.{key}={value}" for key, value in state.items())
        self.page.open(f"{self.address}#mi_crow_lightning{parts}")
        self.ready()

    def ready(self) -> None:
        self.wait(f"{BUSY} === 'false'")

    def run(self, script: str) -> Any:
        return self.page.run(script)

    def wait(self, script: str) -> Any:
        return self.page.wait(script)

    def corner(self) -> tuple[float, float]:
        return 0.0, 0.0


def write_log(folder: Path) -> Path:
    write_run(folder / "one", range(0, 40, 2), stages=("train", "validate"))
    write_run(folder / "two", range(0, 40, 4), value=lambda name, layer, step: layer - 0.5 * step)
    write_plain(folder / "plain", range(6))
    write_tensor(folder / "damaged", "activations_rms/#1", schema(), tensor([1.0, 2.0], content=b"\0\0\0"))
    write_run(folder / "<b id=hit>hostile<b>", range(3), layers=HOSTILE, prefix="<i>x</i>")
    with SummaryWriter(str(folder / "one")) as writer:
        writer.add_text("hook_report/fit/mine", "\n".join(f"    {line}" for line in REPORT.split("\n")), 4)
        for step in range(0, 40, 2):
            writer.add_scalar("epoch", step // 20, step)
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def file(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(log, tmp_path_factory.mktemp("page") / "run with spaces.html").path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Alone]:
    """The page; afterwards, nothing may have gone wrong in it, nor been asked for."""
    browser.errors.clear()
    browser.requests.clear()
    yield Alone(browser, file.as_uri())
    assert not browser.errors
    assert {url.partition("#")[0] for url in browser.requests} <= {file.as_uri(), "about:blank"}


def value_of(log: Path, run: str, name: str, layer: str, step: int, stage: str = "train") -> np.float32:
    def wanted(row: HistoryRow) -> bool:
        return (row.name, row.layer, row.step, row.stage) == (name, layer, step, stage)

    (found,) = filter(wanted, read_compact(log / run))
    return np.float32(found.value)


def last_number(text: str) -> np.float32:
    return np.float32(text.split()[-1])


def test_a_cell_reads_the_exact_number_of_the_event_file(page: Alone, log: Path) -> None:
    page.open(run="one", name="rms")
    titles = page.run("[document.title, document.querySelector('h1').textContent]")
    assert titles == [f"Activations of {log.name}"] * 2
    page.click(3, 7)
    assert page.readout.startswith(f"{BLOCKS[3]}, step 14, epoch 0, rms ")
    assert last_number(page.readout) == value_of(log, "one", "rms", BLOCKS[3], 14)
    page.choose("Statistic", "mean")
    page.key("Home", "End")
    assert last_number(page.readout) == value_of(log, "one", "mean", BLOCKS[3], 38)
    page.choose("Stage", "validate")
    page.key("Home")
    assert last_number(page.readout) == value_of(log, "one", "mean", BLOCKS[3], 0, "validate")


def test_the_layer_is_cut_out_of_the_heatmaps(page: Alone, log: Path) -> None:
    page.open(run="one", name="rms", stage="validate", layer=BLOCKS[4], step=14)
    _, *rows = page.table(".numbers")
    assert [row[0] for row in rows] == ["mean", "rms", "abs_max"]
    for name, number in rows:
        assert np.float32(number) == value_of(log, "one", name, BLOCKS[4], 14, "validate")
    page.run("document.querySelector('.sides .overlay').focus()")
    for key in ("End", "PageDown"):
        page.page.key(key)
    assert "step 38, 8 elements" in page.run("document.querySelector('.sides .readout').textContent")
    page.open(run="plain", layer=BLOCKS[1], step=5)
    assert [row[0] for row in page.table(".numbers")[1:]] == ["mean", "rms"]


def test_two_runs_are_subtracted_and_tabulated(page: Alone, log: Path) -> None:
    page.open(run="one", name="rms")
    page.choose("Minus the run", "two")
    page.press("Table")
    one, two = (value_of(log, run, "rms", BLOCKS[1], 12) for run in ("one", "two"))
    head, *rows = page.table("section table")
    assert np.float32(rows[1][head.index("12")]) == np.float32(float(one) - float(two))
    page.press("Download CSV")
    table = page.page.downloads / "activations_rms_train.csv"
    until = time.monotonic() + 20
    while not table.exists() and time.monotonic() < until:
        page.run("1")
        time.sleep(0.05)
    with table.open(encoding="utf-8", newline="") as opened:
        lines = [line for line in csv.DictReader(opened) if (line["layer"], line["step"]) == (BLOCKS[1], "12")]
    assert [(np.float32(line["minuend"]), np.float32(line["subtrahend"])) for line in lines] == [(one, two)]


def test_the_address_leads_to_the_same_picture(page: Alone) -> None:
    page.open(run="one", name="rms")
    page.choose("Statistic", "mean")
    page.choose("Colours", "symmetric log")
    page.click(4, 3)
    link, title, readout = page.run("location.href"), page.title, page.readout
    assert "layer=model.layers.4" in unquote(link)
    page.press("Copy link")
    assert page.readout in ("The link is in the clipboard.", f"The link: {link}")
    page.page.open(link)
    page.ready()
    assert page.title == title and page.run("document.querySelector('.detail h2').textContent") == BLOCKS[4]
    page.click(4, 3)
    assert page.readout == readout
    page.run(f"location.hash = {json.dumps('#mi_crow_lightning&p.mi_crow_lightning.run=two')}")  # pasted over it
    page.wait("document.querySelector('.notes').textContent.includes('of two')")
    page.ready()
    assert page.run("document.querySelector('.detail').hidden")


def test_the_report_of_the_run_is_shown_as_it_is(page: Alone) -> None:
    page.open(run="one", view="report")
    assert page.run("document.querySelector('pre').textContent") == REPORT
    assert page.run("[...document.querySelectorAll('h2')].map((one) => one.textContent)")[-1] == "fit, mine, at step 4"
    select = "document.querySelector('section[aria-label^=Report] select')"
    page.run(f"{select}.value = 'two'; {select}.dispatchEvent(new Event('change'))")
    page.ready()
    assert "has no report" in page.title and not page.run("document.querySelectorAll('pre').length")


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that a callback wrote: of a fit with projections, and of a predict with a controller."""
    folder, vector = tmp_path_factory.mktemp("steered"), torch.ones(WIDTH)
    detectors = [ActivationStatistics("block:*"), ProjectionDetector("block:*", vectors={"up": vector})]
    watch = HookCallback(detectors, SteeringController("block:1", vector, strength=2.0), page=True)
    runner = trainer(watch, logger=TensorBoardLogger(folder, name=None, version="run"), max_epochs=2)
    run("fit", runner, module_of("llama"), data_of("llama"))
    run("predict", runner, module_of("llama"), data_of("llama"))
    return folder / "run" / "hooks.html"


@pytest.mark.parametrize(
    ("view", "shown"),
    [
        ("heatmap", ["activations rms, train, of run", "4 of 4 layers"]),
        ("steering", ["SteeringController", "model.model.layers.1"]),
        ("vectors", ["projection: up", "model.model.layers.3"]),
        ("report", ["HookCallback in fit: 3 hooks on 4 layers.", "HookCallback in predict: 3 hooks on 4 layers."]),
    ],
)
def test_every_view_of_a_real_run_opens(browser: Browser, steered: Path, view: str, shown: list[str]) -> None:
    browser.errors.clear()
    page = Alone(browser, steered.as_uri())
    page.open(view=view)
    text = page.run("document.querySelector('#panel').innerText")
    assert [one for one in shown if one not in text] == []
    assert "could not be read" not in text and not browser.errors


def test_hostile_names_stay_text(page: Alone) -> None:
    page.open(run="%3Cb%20id%3Dhit%3Ehostile%3Cb%3E")
    assert "<b id=hit>hostile<b>" in page.title and "<i>x</i>" in page.title
    page.press("Table")
    for row in range(len(HOSTILE)):
        page.click(row, 1)
        assert page.run("document.querySelector('.detail h2').textContent") == HOSTILE[row]
    page.page.open(page.run("location.href"))
    page.ready()
    assert page.run("document.querySelector('.detail h2').textContent") == HOSTILE[-1]
    assert page.run("window.hit === undefined && !document.querySelector('#hit, i, img, script[src]')")
    assert page.run("document.scripts.length") == 2


def test_what_the_tab_cannot_read_is_said(page: Alone) -> None:
    page.open(run="damaged")
    assert "cannot decode the values of run 'damaged'" in page.title
    page.choose("Run", "one")
    assert "6 of 6 layers, 20 of 20 steps" in page.title


def test_dark_mode_is_the_browsers(page: Alone) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    page.open(run="one")
    light = page.run(back)
    try:
        page.page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        page.wait("document.documentElement.classList.contains('dark')")
        assert page.run(back) != light == "rgb(255, 255, 255)"
        page.open(run="one")
        assert page.run(back) != light
    finally:
        page.page.send("Emulation.setEmulatedMedia", features=[])
    page.wait("!document.documentElement.classList.contains('dark')")


def test_nothing_else_may_run_or_be_asked(page: Alone) -> None:
    page.open(run="one")
    attempts = """(async () => {
        const failed = [];
        for (const attempt of [
            () => { document.body.innerHTML = '<img src=x onerror="window.hit=1">'; },
            () => { document.head.append(Object.assign(document.createElement('script'), {text: 'window.hit=1'})); },
            () => fetch('https://example.org/'),
        ]) { try { await attempt(); } catch (error) { failed.push(error.name); } }
        return failed;
    })()"""
    assert page.run(attempts) == ["TypeError", "TypeError", "TypeError"]
    assert page.run("window.hit === undefined")
    expected = ("TrustedHTML", "TrustedScript", "Content Security Policy")
    found = {word for word in expected for error in page.page.errors if word in error}
    assert found == set(expected) and all(any(word in error for word in expected) for error in page.page.errors)
    page.page.errors.clear()


def test_what_was_left_out_is_said_below_the_title(browser: Browser, log: Path, tmp_path: Path) -> None:
    whole = write_page(log / "one", tmp_path / "whole.html").size
    written = write_page(log / "one", tmp_path / "small.html", max_mb=(whole - 100) / 1e6)
    page = Alone(browser, written.path.as_uri())
    page.open()
    lines = page.run("[...document.querySelectorAll('h1 ~ p.about')].map((one) => one.textContent)")
    assert lines[1:] == list(written.notes) and written.notes and not browser.errors


def test_a_frame_without_an_address_shows_it_too(file: Path, tmp_path: Path) -> None:
    """W&B and MLflow show such pages in a frame that has neither an address nor any right but that of scripts."""
    content = html.escape(file.read_text(encoding="utf-8"))
    frame = f'<iframe sandbox="allow-scripts" width="1200" height="800" srcdoc="{content}"></iframe>'
    (tmp_path / "around.html").write_text(f"<!doctype html><meta charset=utf-8>{frame}", encoding="utf-8")
    with chromium(tmp_path / "browser", options=["--disable-features=IsolateSandboxedIframes"]) as browser:
        browser.open((tmp_path / "around.html").as_uri())
        browser.wait(f"{BUSY} === 'false'", "about:srcdoc")
        panel = browser.run("document.querySelector('#panel').textContent", "about:srcdoc")
        assert "of 6 layers" in panel and "could not be read" not in panel and not browser.errors


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("view", ["heatmap", "report"])
def test_it_is_accessible(page: Alone, dark: bool, view: str) -> None:
    axe = os.environ.get("AXE")
    if axe is None:
        pytest.skip("AXE does not name the file axe.min.js: make test-browser sets it")
    scheme = [{"name": "prefers-color-scheme", "value": "dark"}] if dark else []
    page.page.send("Emulation.setEmulatedMedia", features=scheme)
    page.open(run="one", name="mean", compare="two", layer=BLOCKS[2], table=1, view=view)
    page.run(Path(axe).read_text(encoding="utf-8") + "; 1")
    found = page.run(
        "axe.run(document).then(({violations}) => violations.map(({id, impact, nodes}) => [impact, id, nodes[0].html]))"
    )
    page.page.send("Emulation.setEmulatedMedia", features=[])
    assert not [violation for violation in found if violation[0] in ("serious", "critical")]
