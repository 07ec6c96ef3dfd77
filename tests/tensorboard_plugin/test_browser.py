"""The tab in headless Chromium, against a real `tensorboard` process: ``make test-browser``."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from benchmarks import rows_tab
from mi_crow_lightning.loggers import HistoryRow, read_compact
from tests.tensorboard_plugin.browser import Browser
from tests.tensorboard_plugin.logs import BLOCKS, schema, tensor, write_plain, write_run, write_tensor
from tests.tensorboard_plugin.served import tensorboard
from tests.tensorboard_plugin.tab import Tab, downloaded, violations

pytestmark = pytest.mark.browser

STEPS = range(0, 40, 2)
OTHER = tuple(f"{stack}.block.{i}" for stack in ("encoder", "decoder") for i in range(3))
HOSTILE = (
    "<img src=x onerror=window.hit=1>",
    "<script>window.hit=1</script>",
    "\u202egnp",
    "y" * 900,
    "=1+1",
    "a&p.mi_crow_lightning.run=one&x=%41#+ ?",
    'say "a, b"\r\nc',
)


def write_log(folder: Path) -> Path:
    write_run(folder / "one", STEPS, stages=("train", "validate"))
    write_run(folder / "two", range(0, 40, 4), value=lambda name, layer, step: layer - 0.5 * step)
    write_run(folder / "stacks", range(8), layers=OTHER)
    write_plain(folder / "plain", range(6))
    with SummaryWriter(str(folder / "plain")) as writer:
        for step in range(6):
            writer.add_scalar("epoch", step // 3, step)
    write_tensor(folder / "damaged", "activations_rms/#1", schema(), tensor([1.0, 2.0], content=b"\0\0\0"))
    write_run(folder / "<b id=hit>hostile<b>", range(3), layers=HOSTILE, prefix="<i>x</i>")
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def served(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(log, tmp_path_factory.mktemp("served")) as address:
        yield address


def value_of(log: Path, run: str, name: str, layer: str, step: int, stage: str = "train") -> float:
    """A number of the event file."""

    def wanted(row: HistoryRow) -> bool:
        return (row.name, row.layer, row.step, row.stage) == (name, layer, step, stage)

    (found,) = filter(wanted, read_compact(log / run))
    return found.value


def last_number(text: str) -> np.float32:
    return np.float32(text.split()[-1])


def test_a_cell_reads_the_exact_number_of_the_event_file(tab: Tab, log: Path) -> None:
    tab.open(run="one", name="rms")
    tab.click(3, 7)
    assert tab.readout.startswith(f"{BLOCKS[3]}, step 14, rms ")
    assert last_number(tab.readout) == np.float32(value_of(log, "one", "rms", BLOCKS[3], 14))
    tab.choose("Statistic", "mean")
    tab.click(5, 19)
    assert last_number(tab.readout) == np.float32(value_of(log, "one", "mean", BLOCKS[5], 38))
    tab.choose("Stage", "validate")
    assert "validate" in tab.title


def test_keys_move_over_the_cells(tab: Tab, log: Path) -> None:
    tab.open(run="one", name="rms")
    moves = [
        (["Home"], 0, 0, 0),
        (["Home"], 0, 0, 0),
        (["ArrowRight", "ArrowRight", "ArrowDown"], 0, 1, 4),
        (["End"], 0, 1, 38),
        (["ArrowRight"], 0, 1, 38),
        (["Home"], 2, 0, 0),
        (["End"], 2, 5, 38),
        (["ArrowUp", "ArrowLeft"], 0, 4, 36),
        (["PageUp"], 0, 0, 36),
    ]
    for keys, modifiers, layer, step in moves:
        tab.key(*keys, modifiers=modifiers)
        assert tab.readout.startswith(f"{BLOCKS[layer]}, step {step}, rms "), keys
        assert last_number(tab.readout) == np.float32(value_of(log, "one", "rms", BLOCKS[layer], step))
    tab.key("Enter")
    assert tab.wait("document.querySelector('.detail h2').textContent") == BLOCKS[0]


def test_a_click_opens_the_layer(tab: Tab, log: Path) -> None:
    tab.open(run="one", name="rms")
    tab.click(2, 5)
    assert tab.run("document.querySelector('.detail h2').textContent") == BLOCKS[2]
    head, *rows = tab.table(".numbers")
    assert head == ["statistic", "one"] and [name for name, _ in rows] == ["mean", "rms", "abs_max"]
    for name, value in rows:
        assert np.float32(value) == np.float32(value_of(log, "one", name, BLOCKS[2], 10))
    assert tab.run("document.querySelectorAll('.detail .uplot').length") == 3
    assert tab.run("document.querySelectorAll('.detail .heatmap').length") == 1
    tab.press("Close the layer")
    assert tab.run("document.querySelector('.detail').hidden")


def test_dragging_chooses_a_range_of_steps(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    (x, y), (to, _) = tab.cell(1, 4), tab.cell(1, 9)
    tab.page.mouse("mouseMoved", x, y)
    tab.page.mouse("mousePressed", x, y, pressed=True)
    tab.page.mouse("mouseMoved", (x + to) / 2, y, pressed=True)
    tab.page.mouse("mouseMoved", to, y, pressed=True)
    tab.page.mouse("mouseReleased", to, y)
    tab.ready()
    assert "6 of 20 steps" in tab.title
    tab.key("Home")
    assert ", step 8, " in tab.readout
    tab.press("All steps")
    assert "20 of 20 steps" in tab.title
    tab.choose("From step", "30")
    assert "5 of 20 steps" in tab.title


def test_layers_are_found_and_sorted(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    for search, layers in (("*.[4]", 0), ("*.4", 1), ("*.?", 6), ("LAYERS.2", 1), ("nothing", 0), ("(", 0), ("", 6)):
        tab.choose("Find layers", search)
        assert f"{layers} of 6 layers" in tab.title, search
    tab.choose("Layers by", "value at the step")
    tab.key("Home")
    assert tab.readout.startswith(BLOCKS[5])  # its rms is the largest
    tab.choose("Layers by", "name")
    tab.key("Home", modifiers=2)
    assert tab.readout.startswith(BLOCKS[0])


def test_every_scale_has_a_legend(tab: Tab) -> None:
    tab.open(run="one", name="mean")
    words = "document.querySelector('.legend canvas').getAttribute('aria-label')"
    for scale, legend in (
        ("symmetric log", "from -2 to 2"),
        ("each layer by itself", "each layer"),
        ("linear", "to 2"),
    ):
        tab.choose("Colours", scale)
        assert legend in tab.run(words)


def test_nan_and_infinity_have_colours_of_their_own_and_no_outlier_is_lost(tab: Tab) -> None:
    tab.open(run="one")
    script = """(async () => {
        const load = (name) => import(new URL(`static/${name}.js`, document.baseURI).href);
        const [colours, drawing] = await Promise.all(['colours', 'drawing'].map(load));
        const row = [0, NaN, Infinity, -Infinity, 4, 1];
        const scales = colours.SCALES.map(([kind]) => colours.makeScale(kind, [row]));
        const found = scales.map((scale) => row.map((value) => scale.colour(value, 0)));
        const of = (numbers) => String(drawing.extreme((_, at) => numbers[at], 0, 0, numbers.length));
        const extremes = [[1, -3, 2], [1, NaN, 9], [1, -Infinity, 9], [-0.5]].map(of);
        return { found, extremes, own: [colours.MISSING, colours.ABOVE, colours.BELOW] };
    })()"""
    answer = tab.run(script)
    for colours in answer["found"]:
        assert colours[1:4] == answer["own"]
        assert [colours[0], colours[4]] == [[68, 1, 84], [253, 231, 37]]  # the ends of viridis
        assert colours[5] not in (colours[0], colours[4], *answer["own"])
    assert answer["extremes"] == ["-3", "NaN", "-Infinity", "-0.5"]


def test_the_table_and_the_csv_file_hold_the_same_numbers(tab: Tab, log: Path) -> None:
    tab.open(run="one", name="abs_max", **{"from": 10, "to": 20})
    tab.press("Table")
    head, *rows = tab.table("section table")
    assert head == ["layer", *(str(step) for step in range(10, 21, 2))] and [row[0] for row in rows] == list(BLOCKS)
    assert np.float32(rows[4][2]) == np.float32(value_of(log, "one", "abs_max", BLOCKS[4], 12))
    tab.press("All steps")
    head, *rows = tab.table("section table")
    assert head == ["layer", *(str(step) for step in range(16, 40, 2))]  # those before the last step
    assert np.float32(rows[4][2]) == np.float32(value_of(log, "one", "abs_max", BLOCKS[4], 18))
    tab.choose("From step", "10")
    tab.choose("To step", "20")
    tab.press("Download CSV")
    lines = downloaded(tab, "activations_abs_max_train.csv")
    rows = [row for row in read_compact(log / "one") if row.name == "abs_max" and row.stage == "train"]
    expected = {(row.layer, row.step): np.float32(row.value) for row in rows if 10 <= row.step <= 20}
    assert {(line["layer"], int(line["step"])): np.float32(line["value"]) for line in lines} == expected
    assert {(line["run"], line["stage"], line["name"]) for line in lines} == {("one", "train", "abs_max")}


def test_a_csv_file_holds_any_name(tab: Tab) -> None:
    tab.open(run="one")
    script = """(async (layers) => {
        const { csvOf } = await import(new URL('static/table.js', document.baseURI).href);
        const rows = layers.map((layer, at) => ({ layer, at }));
        const view = { steps: [3], rows: layers.map(() => [0.5]) };
        const series = { prefix: 'a', name: 'rms', stage: 'train', loader: null };
        return csvOf({ rows, view, run: { name: 'r, "1"' }, compare: null, series });
    })"""
    lines = list(csv.DictReader(io.StringIO(tab.run(f"{script}({json.dumps(HOSTILE)})"), newline="")))
    assert [line["layer"].removeprefix("'") for line in lines] == list(HOSTILE)
    assert [line["layer"][0] for line in lines if "1+1" in line["layer"]] == ["'"]  # not a formula to a spreadsheet
    assert {(line["run"], line["step"], line["value"]) for line in lines} == {('r, "1"', "3", "0.5")}


def test_a_link_shows_somebody_else_the_same(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    tab.choose("Statistic", "mean")
    tab.choose("Stage", "validate")
    tab.choose("Colours", "symmetric log")
    tab.choose("Find layers", "*layers.?")
    tab.click(4, 3)
    link = tab.page.run("location.href")
    assert "layers.4" in unquote(link)
    title, readout = tab.title, tab.readout
    tab.page.open(link)
    tab.ready()
    assert tab.title == title and "validate" in title
    assert tab.run("document.querySelector('.detail h2').textContent") == BLOCKS[4]
    assert tab.run("document.querySelector('.numbers caption').textContent") == "Numbers at step 6"
    tab.click(4, 3)
    assert tab.readout == readout
    assert tab.page.run("location.href") == link


def test_two_runs_are_subtracted(tab: Tab, log: Path) -> None:
    tab.open(run="one", name="rms")
    tab.choose("Minus the run", "two")
    assert "minus two" in tab.title and "10 of 20 steps" in tab.title
    tab.click(1, 3)
    one, two = (value_of(log, run, "rms", BLOCKS[1], 12) for run in ("one", "two"))
    found = re.search(r"step 12, (\S+) minus (\S+) is (\S+)", tab.readout)
    assert found is not None
    assert [np.float32(text) for text in found.groups()] == [np.float32(one), np.float32(two), np.float32(one - two)]
    head, *rows = tab.table(".numbers")
    assert head == ["statistic", "one, step 12", "two, step 12", "difference"] and rows[1][0] == "rms"
    assert [np.float32(text) for text in rows[1][1:]] == [np.float32(one), np.float32(two), np.float32(one - two)]


def test_the_layer_shows_the_histograms_of_both_runs(tab: Tab) -> None:
    tab.open(run="one", name="rms", compare="two", layer=BLOCKS[0])
    titles = tab.wait("[...document.querySelectorAll('.sides h3')].map((one) => one.textContent)")
    assert titles == ["histogram of one over the steps", "histogram of two over the steps"]
    tab.run("document.querySelector('.sides .overlay').focus()")
    for key in ("End", "PageDown"):  # the last step, the lowest bin
        tab.page.key(key)
    counts = [bin + 1 + 38 % 5 for bin in range(6)]
    expected = f"from -4 to -1, step 38, {counts[0]} elements, {100 * counts[0] / sum(counts):.3g} %"
    assert tab.run("document.querySelector('.sides .readout').textContent") == expected


def test_numbers_are_written_as_numpy_writes_them(tab: Tab) -> None:
    tab.open(run="one")
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    edge = np.array([0, 0x80000000, 1, 0x7F7FFFFF, 0x00800000, 0x3F800001, 0x4B800000], dtype=np.uint32)
    numbers = np.concatenate([bits, edge]).view(np.float32)
    script = """(async (bits) => {
        const { exact } = await import(new URL('static/numbers.js', document.baseURI).href);
        return Array.from(new Float32Array(new Uint32Array(bits).buffer), exact);
    })"""
    written = tab.run(f"{script}({numbers.view(np.uint32).tolist()})")
    assert np.array_equal(np.array(written, dtype=np.float32), numbers, equal_nan=True)
    digits = [len(re.sub(r"e.*|[-.]|nan|inf", "", text).strip("0")) for text in written]
    shortest = [len(re.sub(r"e.*|[-.]|nan|inf", "", str(number)).strip("0")) for number in numbers]
    assert digits == shortest


def test_two_steps_stand_side_by_side(tab: Tab, log: Path) -> None:
    tab.open(run="one", name="rms", layer=BLOCKS[1], step=30)
    tab.press("Profile")
    tab.choose("Beside step", "4")
    head, *rows = tab.table(".numbers")
    assert head == ["statistic", "one, step 30", "one, step 4", "difference"] and rows[1][0] == "rms"
    now, then = (np.float32(value_of(log, "one", "rms", BLOCKS[1], step)) for step in (30, 4))
    assert [np.float32(text) for text in rows[1][1:3]] == [now, then]
    assert np.float32(rows[1][3]) == np.float32(float(now) - float(then))
    profile = "document.querySelector('section[aria-label^=Profile]')"
    texts = tab.run(f"[...{profile}.querySelectorAll('.key, h3')].map((one) => one.textContent)")
    assert texts == ["step 30", "step 4", "rms over model.layers"]
    of_box = "({x, y, width, height}) => [x, y, width, height]"
    box = tab.run(f"({of_box})({profile}.querySelector('.u-over').getBoundingClientRect())")
    frame = tab.corner()
    tab.page.click(frame[0] + box[0] + box[2] * 0.6, frame[1] + box[1] + box[3] / 2)  # the fourth of six layers
    tab.ready()
    assert tab.run("document.querySelector('.detail h2').textContent") == BLOCKS[3]


def test_the_tabs_of_the_views_work_by_keyboard(tab: Tab) -> None:
    tab.open(run="one")
    script = """(async () => {
        const { Switch } = await import(new URL('static/views.js', document.baseURI).href);
        const panel = document.createElement('div');
        const chosen = [];
        const made = new Switch([['a', 'A'], ['b', 'B'], ['c', 'C']], panel, (name) => {
            chosen.push(name);
            made.show(name);
        });
        document.body.append(made.root, panel);
        made.show('a');
        const press = (key, more = {}) => {
            const event = new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true, ...more });
            return !document.activeElement.dispatchEvent(event);
        };
        made.tabs[0].focus();
        const taken = ['ArrowRight', 'End', 'ArrowRight', 'ArrowLeft', 'Home', 'x'].map((key) => press(key));
        taken.push(press('End', { ctrlKey: true }));
        made.tabs[1].click();
        const state = made.tabs.map((one) => [one.getAttribute('aria-selected'), one.tabIndex]);
        const labelled = panel.getAttribute('aria-labelledby');
        made.root.remove();
        panel.remove();
        return { chosen, taken, state, labelled };
    })()"""
    answer = tab.run(script)
    assert answer["chosen"] == ["b", "c", "a", "c", "a", "b"]
    assert answer["taken"] == [True] * 5 + [False] * 2
    assert answer["state"] == [["false", -1], ["true", 0], ["false", -1]] and answer["labelled"] == "view-b"


def test_encoder_and_decoder_are_apart(tab: Tab) -> None:
    tab.open(run="stacks")
    tops = [float(top) for top in tab.run("document.querySelector('.overlay').dataset.tops").split()]
    height = float(tab.run("document.querySelector('.overlay').dataset.rowHeight"))
    assert [low - high > height for high, low in pairwise(tops)] == [at == 2 for at in range(5)]
    tab.click(3, 0)
    assert tab.readout.startswith("decoder.block.0, ")


def test_a_run_of_plain_scalars_is_shown(tab: Tab) -> None:
    tab.open(run="plain", name="rms")
    assert "6 of 6 layers, 6 of 6 steps" in tab.title
    tab.click(0, 2)
    assert tab.readout.startswith(f"{BLOCKS[0]}, step 2, epoch 0, rms ")
    tab.click(0, 5)
    assert tab.readout.startswith(f"{BLOCKS[0]}, step 5, epoch 1, rms ")
    assert tab.run("document.querySelectorAll('.detail .heatmap').length") == 1


def test_hostile_names_stay_text(tab: Tab) -> None:
    tab.open(run="%3Cb%20id%3Dhit%3Ehostile%3Cb%3E")
    assert "<b id=hit>hostile<b>" in tab.title
    tab.press("Table")
    for row in range(len(HOSTILE)):
        tab.click(row, 1)
        assert tab.run("document.querySelector('.detail h2').textContent") == HOSTILE[row]
    tab.click(5, 1)
    tab.page.open(tab.page.run("location.href"))
    tab.ready()
    assert "<b id=hit>hostile<b>" in tab.title
    assert tab.run("document.querySelector('.detail h2').textContent") == HOSTILE[5]
    assert tab.run("window.hit === undefined && !document.querySelector('#hit, i, img, script[src*=hit]')")
    assert tab.page.run("window.hit === undefined")


def test_what_cannot_be_read_is_said_in_place_of_another_picture(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    tab.choose("Run", "damaged")
    assert "cannot decode the values of run 'damaged'" in tab.title
    assert tab.run("document.querySelector('.heatmap').clientHeight") == 0
    assert all("422" in error for error in tab.page.errors)
    tab.page.errors.clear()
    tab.choose("Run", "one")
    assert "6 of 6 layers, 20 of 20 steps" in tab.title
    tab.click(3, 7)
    assert tab.readout.startswith(f"{BLOCKS[3]}, step 14, ")


def test_dark_mode_is_followed(tab: Tab) -> None:
    tab.open(run="one", name="rms")
    back = "getComputedStyle(document.body).backgroundColor"
    light = tab.run(back)
    tab.page.run("document.body.classList.add('dark-mode')")
    tab.wait("document.documentElement.classList.contains('dark')")
    assert tab.run(back) != light
    tab.page.run("document.body.classList.remove('dark-mode')")
    tab.wait("!document.documentElement.classList.contains('dark')")
    assert tab.run(back) == light


def test_a_growing_log_is_followed(tab: Tab, log: Path) -> None:
    write_run(log / "growing", range(3))
    tab.open()
    reload = "document.querySelector('app-header-reload button, button.reload-button').click()"
    until = time.monotonic() + 30
    while "of growing" not in tab.title and time.monotonic() < until:  # the newest run is the one that is shown
        tab.page.run(reload)
        time.sleep(0.5)
    tab.choose("Run", "growing")
    assert "3 of 3 steps" in tab.title
    write_run(log / "growing", range(3, 7))
    while "7 of 7 steps" not in tab.title and time.monotonic() < until:
        tab.page.run(reload)
        time.sleep(0.5)
    tab.key("End")
    assert ", step 6, " in tab.readout


def test_a_log_without_activations_says_so(page: Browser, tmp_path: Path) -> None:
    page.errors.clear()
    (tmp_path / "log").mkdir()
    (tmp_path / "served").mkdir()
    with tensorboard(tmp_path / "log", tmp_path / "served") as address:
        tab = Tab(page, address)
        tab.open()
        assert "No run of this log has activations yet" in tab.title and not page.errors


@pytest.mark.parametrize("options", [("--load_fast=false",), ("--path_prefix=/some/where",)])
def test_other_ways_to_start_tensorboard(options: tuple[str], page: Browser, log: Path, tmp_path: Path) -> None:
    page.errors.clear()
    with tensorboard(log, tmp_path, *options) as address:
        tab = Tab(page, address)
        tab.open(run="one", name="rms")
        assert "6 of 6 layers, 20 of 20 steps" in tab.title
        tab.click(3, 7)
        assert last_number(tab.readout) == np.float32(value_of(log, "one", "rms", BLOCKS[3], 14))
        assert tab.page.run("location.href").startswith(address)
        assert not [error for error in page.errors if "/font-roboto/" not in error]  # TensorBoard's own, with a prefix


def test_the_benchmark_measures_it() -> None:
    section = rows_tab.tab(layers=3, steps=4, rounds=1)
    assert len(section.lines) == 2 and len(section.targets) == 4
    assert all(target.value is not None and 1 < target.value < 60_000 for target in section.targets)


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_accessible(tab: Tab, dark: bool) -> None:
    tab.open(run="one", name="mean", compare="two", layer=BLOCKS[2], table=1)
    assert not violations(tab, dark)
