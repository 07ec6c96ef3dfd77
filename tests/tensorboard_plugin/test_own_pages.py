"""TensorBoard's own pages in a browser: what charts say of themselves, bands of summaries, the settings of hooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController
from tests.callback.runs import data_of, module_of, run
from tests.models import trainer
from tests.tensorboard_plugin.browser import Browser, chromium
from tests.tensorboard_plugin.served import fetch, tensorboard

pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

# TensorBoard's pages are made of elements with shadow roots.
DEEP = """((root) => {
    const all = (root) => [...root.querySelectorAll('*')].flatMap((one) =>
        [one, ...(one.shadowRoot ? all(one.shadowRoot) : [])]);
    return all(root);
})(document)"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A steered fit whose loggers show a summary."""
    folder = tmp_path_factory.mktemp("log")
    steer = SteeringController("model.0", torch.ones(32), 4.0, hook_id="joy", schedule=Schedule())
    watch = HookCallback(ActivationStatistics("model.*"), steer, scalars="summary")
    logger = TensorBoardLogger(folder, name="run", version="")
    run("fit", trainer(watch, logger=logger, max_epochs=3), module_of(), data_of())
    return folder


@pytest.mark.browser
@pytest.mark.parametrize("options", [(), ("--load_fast=false",)])
def test_both_loaders_know_the_descriptions(log: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    with tensorboard(log, tmp_path, *options) as address:
        found = json.loads(fetch(f"{address}data/plugin/scalars/tags"))["run"]
    text = found["activations_rms/val/model.*/max"]["description"]
    assert "The largest over the layers <code>model.*</code>." in text
    assert "<code>sqrt(sum(x**2) / n)</code>. Unit: activations." in text


@pytest.fixture(scope="module")
def page(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, str]]:
    folder = tmp_path_factory.mktemp("served")
    with tensorboard(log, folder) as address, chromium(folder / "browser") as browser:
        fetch(f"{address}data/plugin/scalars/tags")
        yield browser, address


def has(selector: str, text: str = "") -> str:
    """A script that finds an element, which holds a text."""
    return f"{DEEP}.some((one) => one.matches({json.dumps(selector)}) && one.textContent.includes({json.dumps(text)}))"


@pytest.mark.browser
@pytest.mark.parametrize(
    ("name", "selector", "text"),
    [
        ("scalars", "#markdown", "The smallest over the layers model.*. abs_max: largest abs(x)."),
        ("custom_scalars", "tf-custom-scalar-margin-chart-card", ""),
        ("hparams", "vaadin-grid-cell-content, td, div", "hooks/0/strength"),
    ],
)
def test_the_pages_show_it(page: tuple[Browser, str], name: str, selector: str, text: str, tmp_path: Path) -> None:
    browser, address = page
    browser.open(f"{address}#{name}")
    try:
        browser.wait(has(selector, text), seconds=60)
    finally:
        browser.screenshot(tmp_path / f"{name}.png")
    assert browser.errors == []
