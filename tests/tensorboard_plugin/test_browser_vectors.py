"""The view of vectors, in headless Chromium: what real detectors logged, curves of several steps, hostile names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning import ContrastDetector, HookCallback, ProjectionDetector
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import DetectorReadings, EventRow, LoggedStep, compact, read_compact, shown, write_event
from mi_crow_lightning.metrics.separability import Separability
from tests.hooks.detectors.contrasts import Reader, batches, texts
from tests.models import WIDTH, llama
from tests.tensorboard_plugin.browser import Browser
from tests.tensorboard_plugin.logs import BLOCKS, write_run
from tests.tensorboard_plugin.served import tensorboard
from tests.tensorboard_plugin.tab import Tab, downloaded, violations

pytestmark = pytest.mark.browser

OPTIONS: dict[str, Any] = dict(
    accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False
)
STEPS = range(0, 100, 5)
HOSTILE = ("<img src=x onerror=window.hit=1>", "\u202egnp", 'a"b,c\r\n', "z" * 400)
DETECTOR = "<b id=hit>contrast"
PROJECTED = ("mean", "std", "min", "max", "cosine")
SCORES = "Separability: contrast, validate"
NOTE = "document.querySelector('.sides .notes:not(:has(.ramp))').textContent"


def score(name: str, layer: int, step: int) -> float:
    """A number that differs for each; at step 30 the layers 1 and 4 have the same AUROC."""
    if name == "auroc":
        return 0.75 if step == 30 and layer in (1, 4) else 0.5 + 0.01 * layer + 0.0001 * step
    if name == "std":
        return 0.25 + 0.01 * layer
    return layer + 0.01 * step + {"mean": 0.0, "min": -2.0, "max": 2.0, "cosine": 10.0}.get(name, 0.5)


def write_scores(folder: Path, prefix: str = "contrast", layers: Any = BLOCKS, scalars: str = "none") -> None:
    """Write what the two detectors would write of a run that is scored again and again."""
    with SummaryWriter(str(folder)) as writer:
        for step in STEPS:
            scored = [
                Reading(of, name, score(name, at, step))
                for at, of in enumerate(layers)
                for name in ("auroc", "d_prime")
            ]
            projected = [
                Reading(of, f"{direction}{name}", score(name, at, step) * (1 if direction else -1))
                for at, of in enumerate(layers)
                for direction in ("", "sad_")
                for name in PROJECTED
            ]
            events = [EventRow("train", step, "detector", "it turned", "alarm")] if step == 50 else []
            for stage, found, name in (("validate", scored, prefix), ("train", projected, f"{prefix} on")):
                detectors = [DetectorReadings(found, tuple(layers), "block:*", name)]
                logged = LoggedStep(stage, step, detectors, events=events if stage == "train" else [])
                write_event(writer, shown(logged, scalars), step, compact(logged) if scalars == "none" else ())


@pytest.fixture(scope="module")
def scored() -> list[Separability]:
    return []


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, scored: list[Separability]) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_scores(folder / "many")
    write_scores(folder / "hostile", DETECTOR, HOSTILE)
    write_scores(folder / "plain", scalars="all")
    write_run(folder / "other", range(3))
    contrast = ContrastDetector("block:*")
    directions = {"up": torch.ones(WIDTH), "odd": torch.arange(WIDTH, dtype=torch.float32)}
    watch = HookCallback(detectors=[contrast, ProjectionDetector("block:*", vectors=directions)])
    logger = TensorBoardLogger(str(folder), name=None, version="real")
    module = Reader(llama())
    pl.Trainer(callbacks=[watch], logger=logger, **OPTIONS).predict(module, batches(texts(6)))
    pl.Trainer(callbacks=[watch], logger=logger, **OPTIONS).validate(module, batches(texts(4, seed=5)), verbose=False)
    scored += contrast.separability()
    return folder


@pytest.fixture(scope="module")
def served(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(log, tmp_path_factory.mktemp("served")) as address:
        yield address


def section(title: str) -> str:
    """The section of a title, as an expression of the page."""
    return f"[...document.querySelectorAll('section')].find((one) => one.ariaLabel === {json.dumps(title)})"


def chart(title: str, index: int = 0) -> str:
    return f"{section(title)}.querySelectorAll('.chart')[{index}]"


def numbers(tab: Tab, title: str) -> dict[str, list[np.float32]]:
    """The numbers of a section's table, by layer."""
    cells = "[...row.cells].map((cell) => cell.textContent)"
    rows = tab.run(f"[...{section(title)}.querySelectorAll('tbody tr')].map((row) => {cells})")
    return {layer: [np.float32(cell) for cell in of_layer] for layer, *of_layer in rows}


def heads(tab: Tab, title: str) -> list[str]:
    found: list[str] = tab.run(f"[...{section(title)}.querySelectorAll('thead th')].map((cell) => cell.textContent)")
    return found


def titles(tab: Tab) -> list[str]:
    seen = "[...document.querySelectorAll('section > h2')].filter((one) => one.checkVisibility())"
    found: list[str] = tab.run(f"{seen}.map((one) => one.textContent)")
    return found


def over(tab: Tab, of: str) -> tuple[float, float, float, float]:
    """The plotted part of a chart, as points of the window; it is scrolled to."""
    tab.run(f"{of}.scrollIntoView({{block: 'center'}})")
    box = f"{of}.querySelector('.u-over').getBoundingClientRect()"
    x, y, width, height = tab.run(f"(({{x, y, width, height}}) => [x, y, width, height])({box})")
    frame = tab.corner()
    return frame[0] + x, frame[1] + y, width, height


def heading(tab: Tab, of: str) -> str:
    text: str = tab.wait(f"{of}.querySelector('h3').textContent")
    return text


def test_what_real_detectors_logged_is_shown_exactly(tab: Tab, log: Path, scored: list[Separability]) -> None:
    tab.open(run="real", view="vectors")
    norms = "Norms of the vectors: contrast, predict"
    assert titles(tab)[0] == SCORES and titles(tab)[-1] == norms
    assert heads(tab, SCORES) == ["layer", "auroc, step 0", "d_prime, step 0"]
    found = numbers(tab, SCORES)
    assert found == {row.layer: [np.float32(row.auroc), np.float32(row.d_prime)] for row in scored}
    best = max(scored, key=lambda row: (row.auroc, row.d_prime))
    assert f"at step 0 {best.layer} separates best, auroc " in tab.title
    rows = list(read_compact(log / "real"))
    assert numbers(tab, norms) == {row.layer: [np.float32(row.value)] for row in rows if row.name == "norm"}
    for stage in ("predict", "validate"):
        tab.choose("Projections in", stage)
        for of in ("mean", "cosine"):
            tab.choose("Projections, their", of)
            wanted: dict[str, dict[str, np.float32]] = {}
            for row in rows:
                if row.stage == stage and row.name in (f"up_{of}", f"odd_{of}"):
                    wanted.setdefault(row.layer, {})[row.name] = np.float32(row.value)
            assert len(wanted) == 4 and numbers(tab, f"Projections: {of} over the steps") == {
                layer: [values[f"odd_{of}"], values[f"up_{of}"]] for layer, values in wanted.items()
            }


def test_a_step_is_chosen_and_a_link_keeps_it(tab: Tab) -> None:
    tab.open(run="many", view="vectors")
    assert heads(tab, SCORES)[1:] == ["auroc, step 95", "d_prime, step 95"]
    assert tab.run(f"{section(SCORES)}.querySelectorAll('.chart').length") == 2
    tab.run("document.querySelector('input[type=range]').focus()")
    tab.page.key("Home")
    for _ in range(6):
        tab.page.key("ArrowRight")
    tab.ready()
    tab.wait(f"{section(SCORES)}.querySelector('thead').textContent.includes('step 30')")
    assert numbers(tab, SCORES)[BLOCKS[2]] == [np.float32(score(name, 2, 30)) for name in ("auroc", "d_prime")]
    assert f"at step 30 {BLOCKS[4]} separates best, auroc 0.75, d_prime 4.8" in tab.title  # of equals, by d prime
    assert tab.run("document.querySelector('input[type=range]').getAttribute('aria-valuetext')") == "step 30"
    tab.page.open(tab.page.run("location.href"))
    tab.ready()
    assert heads(tab, SCORES)[1:] == ["auroc, step 30", "d_prime, step 30"]


def test_curves_go_from_light_to_dark_and_are_read_out(tab: Tab) -> None:
    tab.open(run="many", view="vectors", step=30)
    assert tab.run(f"{section(SCORES)}.querySelector('.notes').textContent") == "steps from 0  to 95"
    x, y, width, height = over(tab, chart(SCORES))
    tab.page.mouse("mouseMoved", x + width - 12, y + height - 2)  # far below all: the first step is the nearest
    text = heading(tab, chart(SCORES))
    assert text.startswith("auroc over model.layers: step 0 ") and text.endswith(f" at {BLOCKS[5]}")
    assert np.float32(text.split()[5]) == np.float32(score("auroc", 5, 0))
    tab.page.click(x + width - 12, y + height - 2)
    tab.ready()
    assert "p.mi_crow_lightning.step=0" in tab.page.run("location.href")
    shades = tab.run(
        """(async () => {
        const { shade } = await import(new URL('static/shades.js', document.baseURI).href);
        return Array.from({ length: 5 }, (_, at) => Number(shade(at, 5).split(' ').at(-1).replace('%)', '')));
        })()"""
    )
    assert shades == sorted(shades, reverse=True) and len(set(shades)) == 5


def test_projections_over_the_steps_of_all_layers_and_of_one(tab: Tab) -> None:
    tab.open(run="many", view="vectors", step=20)
    title = "Projections: mean over the steps"
    assert heads(tab, title) == ["layer", "contrast on, step 20", "contrast on: sad, step 20"]
    assert numbers(tab, title)[BLOCKS[3]] == [np.float32(sign * score("mean", 3, 20)) for sign in (-1, 1)]
    x, y, width, height = over(tab, chart(title, 1))
    tab.page.mouse("mouseMoved", x + width * 50 / 95, y + height / 2)
    text = heading(tab, chart(title, 1))
    layer = text.split()[3]
    value = np.float32(score("mean", BLOCKS.index(layer), 50))
    assert text == f"contrast on: sad: {layer} {value} at step 50; alarm: it turned"
    tab.page.click(x + width * 50 / 95, y + height / 2)
    tab.ready()
    address = tab.page.run("location.href")
    assert "step=50" in address and f"layer={layer}" in address
    assert tab.run(NOTE).startswith(f"{layer}: mean, mean ± std")
    x, y, width, height = over(tab, chart(title, 1))
    tab.page.mouse("mouseMoved", x + 1, y + 2)
    assert heading(tab, chart(title, 1)).startswith("contrast on: sad: max ")
    tab.choose("Projections at", "all layers")
    assert "layer=" not in tab.page.run("location.href")


def test_a_run_of_plain_scalars_shows_the_same(tab: Tab) -> None:
    tab.open(run="plain", view="vectors", step=30)
    found = numbers(tab, SCORES)
    assert found[BLOCKS[2]] == [np.float32(score(name, 2, 30)) for name in ("auroc", "d_prime")]


def test_the_csv_file_holds_every_number(tab: Tab) -> None:
    tab.open(run="many", view="vectors")
    tab.press("Download vectors as CSV")
    lines = downloaded(tab, "vectors.csv")
    assert len(lines) == len(STEPS) * len(BLOCKS) * 4
    for line in lines:
        sign = -1 if line["name"] == "mean" else 1
        name = line["name"].removeprefix("sad_")
        wanted = sign * score(name, BLOCKS.index(line["layer"]), int(line["step"]))
        assert np.float32(line["value"]) == np.float32(wanted) and line["run"] == "many"
    assert {(line["detector"], line["stage"]) for line in lines} == {("contrast", "validate"), ("contrast on", "train")}


def test_tabs_switch_the_view_by_keyboard(tab: Tab) -> None:
    tab.open(run="many", name="auroc", stage="validate", prefix="contrast")
    assert tab.run("document.querySelector('.heatmap').checkVisibility()")
    tab.run("document.querySelector('[role=tab][aria-selected=true]').focus()")
    for name in tab.run("[...document.querySelectorAll('[role=tab]')].map((one) => one.textContent)")[1:]:
        tab.page.key("ArrowRight")
        tab.wait(f"document.activeElement.textContent === '{name}'")
        if name == "Vectors":
            break
    tab.ready()
    assert tab.run("document.querySelector('[role=tab][aria-selected=true]').textContent") == "Vectors"
    assert not tab.run("document.querySelector('.heatmap').checkVisibility()")
    assert "view=vectors" in tab.page.run("location.href")
    tab.page.key("Home")
    tab.wait("document.querySelector('.heatmap').checkVisibility()")
    tab.ready()
    assert "view=" not in tab.page.run("location.href") and "6 of 6 layers, 20 of 20 steps" in tab.title


def test_hostile_names_stay_text(tab: Tab) -> None:
    tab.open(run="hostile", view="vectors")
    title = f"Separability: {DETECTOR}, validate"
    assert titles(tab)[0] == title and DETECTOR in tab.title
    assert list(numbers(tab, title)) == list(HOSTILE)
    for layer in HOSTILE[::3]:
        tab.choose("Projections at", layer)
        assert tab.run(NOTE).startswith(layer)
    tab.page.open(tab.page.run("location.href"))
    tab.ready()
    assert tab.run(NOTE).startswith(HOSTILE[3])
    assert tab.run("window.hit === undefined && !document.querySelector('#hit, img, script[src*=hit]')")


def test_a_run_without_vectors_gives_way_to_one_with_them(tab: Tab) -> None:
    tab.open(run="other", view="vectors")
    runs = "[...document.querySelectorAll('.toolbar select')].filter((one) => one.checkVisibility())[0].options"
    assert sorted(tab.run(f"[...{runs}].map((one) => one.text)")) == ["hostile", "many", "plain", "real"]
    assert "other" not in tab.title


def test_a_log_without_vectors_says_so(page: Browser, tmp_path: Path) -> None:
    page.errors.clear()
    write_run(tmp_path / "log" / "one", range(3))
    (tmp_path / "served").mkdir()
    with tensorboard(tmp_path / "log", tmp_path / "served") as address:
        tab = Tab(page, address)
        tab.open(view="vectors")
        assert "No run of this log has vectors yet" in tab.title and not page.errors
        assert not tab.run("[...document.querySelectorAll('.toolbar')].some((one) => one.checkVisibility())")


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_accessible(tab: Tab, dark: bool) -> None:
    tab.open(run="many", view="vectors", step=30, layer=BLOCKS[1] if dark else "")
    assert not violations(tab, dark)
