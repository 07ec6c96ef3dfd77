"""Alarms in the tab, in headless Chromium: a run in which three fired, as a Trainer wrote it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, Schedule
from mi_crow_lightning.alarms import Alarm, NonFinite, Threshold, WithoutEffect
from mi_crow_lightning.loggers import EventRow, read_events
from tests.alarms.test_alarms import NAN_AT, Faulty
from tests.callback.runs import data_of, fit
from tests.tensorboard_plugin.served import tensorboard
from tests.tensorboard_plugin.tab import Tab, violations
from tests.tensorboard_plugin.test_browser_events import LINES, LIST, kinds, press, sign

pytestmark = pytest.mark.browser

LAYER = "model.3"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fit with an alarm on a reading, one on values that are not finite, and one on a controller."""
    folder = tmp_path_factory.mktemp("log")
    idle = FunctionController("model.0", lambda x: x + 0, hook_id="idle", schedule=Schedule(stages="train"))
    alarms = [
        Alarm(Threshold("rms", above=0.0, layers="model.1"), "log", name="too large"),
        Alarm(WithoutEffect(patience=3), "log"),
        Alarm(NonFinite(), ["warn", "log"]),
    ]
    watch = HookCallback(ActivationStatistics("model.*"), idle, alarms=alarms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(Faulty(layer=LAYER), data_of(), watch, logger=TensorBoardLogger(str(folder), "run", ""), max_epochs=2)
    assert [(one.alarm, one.step) for one in watch.fired()] == [
        ("too large", 0),
        ("WithoutEffect", 2),
        ("NonFinite", 3),
    ]
    return folder


@pytest.fixture(scope="module")
def served(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(log, tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture(scope="module")
def written(log: Path) -> list[EventRow]:
    """The alarms of the event file."""
    return [row for row in read_events(log / "run") if row.kind == "alarm"]


def opened(tab: Tab, **state: Any) -> Tab:
    tab.open(run="run", name="rms", **state)
    return tab


def test_an_alarm_is_one_mark_at_its_step_though_it_warned_as_well(tab: Tab, written: list[EventRow]) -> None:
    opened(tab)
    data: dict[str, str] = tab.run("({...document.querySelector('.overlay').dataset})")
    places = [(float(x) - float(data["left"])) / float(data["cellWidth"]) for x in data["events"].split()]
    at_the_end = 9  # a warning that the controller changed nothing
    assert places == pytest.approx([step + 0.5 for step in (*(row.step for row in written), at_the_end)], abs=0.01)
    tab.page.mouse("mouseMoved", *sign(tab, 2))
    assert tab.run(LINES) == [f"step {NAN_AT}: {LAYER}: {written[2].text}"]
    glyphs = tab.run(
        """(async () => {
        const {marksOfEvents} = await import(new URL('static/events.js', document.baseURI).href);
        const at = (...kinds) => kinds.map((kind) => ({kind, step: 3}));
        const signs = [at('warning', 'alarm'), at('alarm', 'exception'), at('warning')];
        return signs.map((events) => marksOfEvents(events, [3], null, null)[0].glyph);
        })()"""
    )
    assert glyphs == ["\u25bc", "\u2715", "!"]


def test_the_list_says_which_controller_and_layer_an_alarm_is_of(tab: Tab, written: list[EventRow]) -> None:
    opened(tab, events=1)
    rows = [cells for cells in tab.run(LIST) if cells[2][1:] == "alarm"]
    assert [[cells[0], cells[1], *cells[3:]] for cells in rows] == [
        [str(row.step), row.stage, row.hook, row.layer, row.text] for row in written
    ]
    assert [(row.hook, row.layer) for row in written] == [("", "model.1"), ("idle", "model.0"), ("", LAYER)]
    grave = "[...document.querySelectorAll('.events .grave')].map((row) => row.cells[2].textContent.slice(1))"
    assert tab.run(grave).count("alarm") == 3


def test_a_click_on_an_alarm_opens_its_layer_at_its_step(tab: Tab) -> None:
    opened(tab)
    tab.page.click(*sign(tab, 2))
    tab.ready()
    assert f"p.mi_crow_lightning.step={NAN_AT}" in tab.page.run("location.href")
    assert tab.run("document.querySelector('.detail h2').textContent") == LAYER
    tab.key("Home", *["ArrowRight"] * NAN_AT)
    at, said = f"step {NAN_AT}, epoch 0, ", f"{LAYER}: alarm NonFinite: layer '{LAYER}' gave values that are not finite"
    assert tab.readout.startswith(f"{LAYER}, {at}{said}")


def test_alarms_are_the_first_kind_that_can_be_hidden(tab: Tab) -> None:
    opened(tab)
    names = list(kinds(tab))
    assert names[:2] == ["Alarms (3)", "Warnings (1)"]
    press(tab, "alarm")
    assert kinds(tab)["Alarms (3)"] is False
    tab.press("List of events")
    assert "alarm" not in {cells[2][1:] for cells in tab.run(LIST)}


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_accessible(tab: Tab, dark: bool) -> None:
    opened(tab, events=1, layer=LAYER)
    assert not violations(tab, dark)
