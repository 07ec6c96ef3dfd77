"""Events in the tab, in headless Chromium: marks on the time axis, the list, and what a link keeps of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.loggers import EventRow, read_events
from tests.tensorboard_plugin.browser import Browser
from tests.tensorboard_plugin.logs import BLOCKS, tensor, write_events, write_run, write_tensor
from tests.tensorboard_plugin.served import tensorboard
from tests.tensorboard_plugin.tab import Tab, downloaded, violations

pytestmark = pytest.mark.browser

EVENTS = (
    EventRow("train", 4, "switch", "on, by its schedule: train, from step 4", "half"),
    EventRow("train", 4, "warning", "3 rows were left out"),
    EventRow("train", 9, "detector", "beyond 1e4", "alarm", BLOCKS[2]),
    EventRow("validate", 20, "strength", "strength 1 -> 2", "half"),
    EventRow("train", 55, "exception", "ValueError: no"),
    EventRow("predict", 3, "detector", "elsewhere", "alarm"),
)
HOSTILE = ("<img src=x onerror=window.hit=1>", "\u202egnp", "=1+1", 'say "a, b"\r\nc', "y" * 600, "new kind,&#=")
LINES = "[...document.querySelectorAll('.tooltip:not([hidden]) div')].map((line) => line.textContent)"
LIST = "[...document.querySelectorAll('.events tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"


def hostile_events() -> Iterator[EventRow]:
    for step, text in enumerate(HOSTILE):
        yield EventRow("train", step, text if step == 5 else "detector", text, text, text)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_run(folder / "one", range(0, 40, 2), stages=("train", "validate", "predict"))
    write_events(folder / "one", *EVENTS)
    write_run(folder / "plain", range(3))
    write_run(folder / "hostile", range(8))
    write_events(folder / "hostile", *hostile_events())
    write_run(folder / "damaged", range(3))
    content = json.dumps({"version": 1, "kind": "event", "stage": "train"}).encode()
    write_tensor(folder / "damaged", "events/#1", content, tensor([1.0, 2.0], content=b"\0\0\0"))
    with SummaryWriter(str(folder / "one")) as writer:
        for step in range(0, 40, 2):
            writer.add_scalar("epoch", step // 20, step)
    return folder


@pytest.fixture(scope="module")
def served(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(log, tmp_path_factory.mktemp("served")) as address:
        yield address


def sign(tab: Tab, index: int) -> tuple[float, float]:
    """The middle of a sign above the heatmap, as a point of the window."""
    x, y = tab.run(
        f"""(() => {{
        const overlay = document.querySelector('.overlay');
        const box = overlay.getBoundingClientRect();
        const {{events, eventsAt}} = overlay.dataset;
        return [box.x + Number(events.split(' ')[{index}]), box.y + Number(eventsAt) + 8];
        }})()"""
    )
    frame = tab.corner()
    return x + frame[0], y + frame[1]


def kinds(tab: Tab) -> dict[str, bool]:
    """The kinds that can be shown, and whether they are."""
    script = "[...document.querySelectorAll('.kinds button')].map((one) => [one.textContent, one.ariaPressed])"
    return {text[1:] if text != "List of events" else text: pressed == "true" for text, pressed in tab.run(script)}


def press(tab: Tab, kind: str) -> None:
    tab.run(f"document.querySelector('.kinds [data-kind={json.dumps(kind)}]').click()")
    tab.ready()


def test_events_stand_at_their_steps(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    data: dict[str, str] = tab.run("({...document.querySelector('.overlay').dataset})")
    left, width = float(data["left"]), float(data["cellWidth"])
    places = [(float(x) - left) / width for x in data["events"].split()]
    assert places == pytest.approx([2.5, 5, 10.5, 20])  # in a column, before one, in one, behind the last
    tab.page.mouse("mouseMoved", *sign(tab, 0))
    assert tab.run(LINES) == ["step 4: half: on, by its schedule: train, from step 4", "step 4: 3 rows were left out"]
    tab.page.mouse("mouseMoved", *sign(tab, 3))
    assert tab.run(LINES) == ["step 55: ValueError: no"]


def test_the_cell_that_is_read_out_names_the_events_of_its_step(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    tab.key("Home", "Home", "ArrowRight", "ArrowRight")
    readout = f"{BLOCKS[0]}, step 4, epoch 0, half: on, by its schedule: train, from step 4, 3 rows were left out, rms "
    assert tab.readout.startswith(readout)
    tab.key("ArrowRight")
    assert tab.readout.startswith(f"{BLOCKS[0]}, step 6, epoch 0, rms ")
    tab.key("End")
    assert tab.readout.startswith(f"{BLOCKS[0]}, step 38, epoch 1, ValueError: no, rms ")


def test_a_click_on_a_sign_goes_to_its_step_and_layer(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    tab.page.click(*sign(tab, 1))
    tab.ready()
    assert "p.mi_crow_lightning.step=9" in tab.page.run("location.href")
    assert tab.run("document.querySelector('.detail h2').textContent") == BLOCKS[2]


def test_the_list_holds_what_the_event_file_holds(tab: Tab, log: Path) -> None:
    tab.open(run="one", name="rms")
    assert tab.run("document.querySelector('section[aria-label=Events]').hidden")
    tab.press("List of events")
    rows = [row for row in read_events(log / "one") if row.stage != "predict"]
    listed = [[cells[0], cells[1], cells[2][1:], *cells[3:]] for cells in tab.run(LIST)]
    assert listed == [[str(row.step), row.stage, row.kind, row.hook, row.layer, row.text] for row in rows]
    tab.choose("Stage", "predict")
    assert [cells[0] for cells in tab.run(LIST)] == ["3"]


def test_the_list_works_by_keyboard_and_leaves_a_range(tab: Tab) -> None:
    tab.open(run="one", name="rms", events=1, **{"from": 10, "to": 20})
    places = tab.run("document.querySelector('.overlay').dataset.events").split()
    assert len(places) == 1 and len(tab.run(LIST)) == 5
    tab.run("document.querySelector('.go[aria-label=\"Go to step 4\"]').focus()")
    tab.page.key("Enter")
    tab.ready()
    tab.wait("document.querySelector('.notes').textContent.includes('20 of 20 steps')")
    assert "p.mi_crow_lightning.step=4" in tab.page.run("location.href")


def test_a_kind_is_hidden_and_a_link_keeps_that(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    names = ["Exceptions (1)", "Warnings (1)", "Reports of detectors (1)", "Hooks on or off (1)", "Strengths (1)"]
    assert kinds(tab) == {**dict.fromkeys(names, True), "List of events": False}
    for kind in ("warning", "switch", "exception"):
        press(tab, kind)
    tab.press("List of events")
    assert [cells[0] for cells in tab.run(LIST)] == ["9", "20"]
    tab.page.open(tab.page.run("location.href"))
    tab.ready()
    hidden = ("Exceptions (1)", "Warnings (1)", "Hooks on or off (1)")
    assert kinds(tab) == {**{name: name not in hidden for name in names}, "List of events": True}
    assert len(tab.run("document.querySelector('.overlay').dataset.events").split()) == 2
    press(tab, "warning")
    assert [cells[0] for cells in tab.run(LIST)] == ["4", "9", "20"]
    assert tab.run("document.activeElement === document.body || document.activeElement.dataset.kind === 'warning'")


def test_the_charts_of_a_layer_name_events_and_epochs(tab: Tab) -> None:
    tab.open(run="one", name="rms", layer=BLOCKS[1])
    chart = "document.querySelector('.detail .chart')"
    over = f"{chart}.querySelector('.u-over').getBoundingClientRect()"
    x, y, width, height = tab.run(f"(({{x, y, width, height}}) => [x, y, width, height])({over})")
    tab.run(f"{chart}.scrollIntoView({{block: 'center'}})")
    x, y, width, height = tab.run(f"(({{x, y, width, height}}) => [x, y, width, height])({over})")
    frame = tab.corner()
    texts = {}
    for step in (4, 6, 10, 20):
        tab.page.mouse("mouseMoved", frame[0] + x + width * step / 38, frame[1] + y + height / 2)
        texts[step] = tab.wait(f"{chart}.querySelector('h3').textContent").partition(f" at step {step}")[2]
    assert texts == {
        4: "; half: on, by its schedule: train, from step 4; 3 rows were left out",
        6: "",
        10: f"; alarm, {BLOCKS[2]}: beyond 1e4",
        20: "; epoch 1; half: strength 1 -> 2",
    }


def test_the_csv_file_holds_the_listed_events(tab: Tab) -> None:
    tab.open(run="hostile", name="rms", events=1)
    tab.press("Download events as CSV")
    lines = downloaded(tab, "events.csv")
    expected = [[str(row.step), row.kind, row.hook, row.layer, row.text] for row in hostile_events()]
    found = [[line[name] for name in ("step", "kind", "hook", "layer", "text")] for line in lines]
    assert [[cell.removeprefix("'") for cell in line] for line in found] == expected
    assert found[2][4] == "'=1+1" and {line["run"] for line in lines} == {"hostile"}


def test_hostile_events_stay_text(tab: Tab) -> None:
    tab.open(run="hostile", name="rms", events=1, layer=BLOCKS[0])
    assert [cells[5] for cells in tab.run(LIST)] == list(HOSTILE)
    for column in range(len(HOSTILE)):
        tab.page.mouse("mouseMoved", *sign(tab, column))
        (line,) = tab.run(LINES)
        assert line == f"step {column}: {HOSTILE[column]}, {HOSTILE[column]}: {HOSTILE[column]}"
    press(tab, HOSTILE[5])
    assert len(tab.run(LIST)) == len(HOSTILE) - 1
    tab.page.open(tab.page.run("location.href"))
    tab.ready()
    assert tab.run("window.hit === undefined && !document.querySelector('img, script[src*=hit]')")


def test_a_run_without_events_shows_nothing_of_them(tab: Tab) -> None:
    tab.open(run="plain", name="rms", events=1)
    assert tab.run("document.querySelector('.kinds').checkVisibility()") is False
    assert tab.run("document.querySelector('.overlay').dataset.events") == ""


def test_events_that_cannot_be_read_take_no_number_along(tab: Tab) -> None:
    tab.open(run="damaged", name="rms")
    assert "3 of 3 steps" in tab.title and "Not all events are shown: TensorBoard cannot decode" in tab.title
    assert all("422" in error for error in tab.page.errors)
    tab.page.errors.clear()


def test_the_slow_loader_shows_the_same(page: Browser, log: Path, tmp_path: Path) -> None:
    page.errors.clear()
    with tensorboard(log, tmp_path, "--load_fast=false") as address:
        tab = Tab(page, address)
        tab.open(run="one", name="rms", events=1)
        until = time.monotonic() + 30
        while len(tab.run(LIST)) < 5 and time.monotonic() < until:  # it may not have read everything yet
            tab.open(run="one", name="rms", events=1)
        assert [cells[5] for cells in tab.run(LIST)] == [row.text for row in EVENTS if row.stage != "predict"]


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_accessible(tab: Tab, dark: bool) -> None:
    state: dict[str, Any] = dict(run="one", name="rms", events=1, hide="warning", layer=BLOCKS[2])
    tab.open(**state)
    assert not violations(tab, dark)
