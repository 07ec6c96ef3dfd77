"""The page as a file: what is in it is what the event files hold, and nothing of it can be more than data."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.loggers import EventRow, read_compact, read_compact_histograms
from mi_crow_lightning.metrics import STATISTICS
from mi_crow_lightning.run_page import write_page
from tests.run_page.pages import embedded
from tests.tensorboard_plugin.logs import (
    BLOCKS,
    EDGES,
    schema,
    tensor,
    write_events,
    write_plain,
    write_run,
    write_tensor,
)
from tests.tensorboard_plugin.wsgi import Log

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

NAMES = STATISTICS[:13]
RMS = {"prefix": "activations", "name": "rms", "stage": "train"}
HOSTILE = (
    "</script><script>window.hit=1</script>",
    "<!--<script>",
    "\u202egnp.exe",
    "\u2028\"'`${window.hit=1}]]>",
    "h." + "9" * 5000,
    "h.\u0000\n",
    "half \ud800",
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_run(folder / "one", range(0, 40, 2), stages=("train", "validate"), scalars="all")
    write_events(folder / "one", EventRow("train", 4, "switch", "</script>"), EventRow("validate", 9, "warning", "w"))
    write_run(folder / "deep" / "two", range(5))
    write_plain(folder / "plain", range(4))
    (folder / "empty").mkdir()
    return folder


def test_the_page_holds_every_answer_of_the_tab(log: Path, tmp_path: Path) -> None:
    page = write_page(log, tmp_path / "run.html")
    assert page.runs == ("deep/two", "one", "plain") and page.notes == ()
    assert page.size == page.path.stat().st_size < 400_000
    found, served = embedded(page.path), Log(log)
    index = served.index()
    assert found.find("index") == {**index, "samples": None}
    asked = 0
    for run in index["runs"]:
        name = {"run": run["name"]}
        for route in ("epochs", "events"):
            assert found.find(route, **name) == served.get(route, **name).json
        for kind, series in [("matrix", one) for one in run["statistics"]] + [
            ("histogram", one) for one in run["histograms"]
        ]:
            query = {key: series[key] for key in ("prefix", "name", "stage")}
            for layer in index["layers"][series["layers"]] if kind == "histogram" else [None]:
                more = {} if layer is None else {"layer": layer}
                header, arrays = served.unpacked(kind, **name, **query, **more)
                same_header, same_arrays = found.find(kind, **name, **query, **more)
                assert same_header == header and same_arrays.keys() == arrays.keys()
                for key, numbers in arrays.items():
                    assert same_arrays[key].dtype == numbers.dtype
                    assert np.array_equal(same_arrays[key], numbers, equal_nan=True), (run["name"], key)
                asked += 1
    assert asked == (2 * 3 + 3 + 2) + (2 + 1 + 1) * len(BLOCKS)  # statistics of one, two, plain; then histograms


def test_chosen_runs_and_a_single_run(log: Path, tmp_path: Path) -> None:
    assert write_page(log, tmp_path / "a.html", runs=["plain", "one"]).runs == ("one", "plain")
    page = write_page(log / "one", tmp_path / "b.html")
    assert page.runs == ("one",) and embedded(page.path).about["title"] == "Activations of one"
    header, arrays = embedded(page.path).find("matrix", run="one", **RMS)
    rows = [row.value for row in read_compact(log / "one") if (row.stage, row.name) == ("train", "rms")]
    assert header["layers"] == list(BLOCKS) and np.array_equal(arrays["values"].ravel(), np.float32(rows))


def test_a_folder_with_event_files_and_runs_below_it(tmp_path: Path) -> None:
    folder = tmp_path / "name"
    write_run(folder, range(2))
    assert write_page(folder, tmp_path / "a.html").runs == ("name",)
    write_run(folder / "name", range(3))
    assert write_page(folder, tmp_path / "b.html").runs == (".", "name")
    page = write_page(folder, tmp_path / "c.html", runs=["."])
    assert page.runs == ("name",) and len(embedded(page.path).find("matrix", run="name", **RMS)[1]["steps"]) == 2


class Elements(HTMLParser):
    """The tags of a page, with their attributes and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("", {}, ""))  # the text after it belongs to no tag

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = tag, attributes, text + data


def elements(page: Path) -> list[tuple[str, dict[str, str | None], str]]:
    parser = Elements()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.found


def test_the_policy_allows_the_two_texts_of_the_page_and_nothing_else(log: Path, tmp_path: Path) -> None:
    page = write_page(log, tmp_path / "run.html").path
    found = elements(page)
    (policy,) = [given["content"] for tag, given, _ in found if tag == "meta" and "http-equiv" in given]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    (script,) = [text for tag, given, text in found if tag == "script" and given == {"type": "module"}]
    (styles,) = [text for tag, _, text in found if tag == "style"]
    for name, text in (("script-src", script), ("style-src", styles)):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:" and len(rules) == 8
    addresses = [given[name] for _, given, _ in found for name in ("src", "href", "action") if name in given]
    assert addresses == ["data:,"]
    assert [tag for tag, _, _ in found].index("meta") < [tag for tag, _, _ in found].index("style")
    assert "Copyright (c) 2025, Leon Sorokin" in script  # the licence of what is in the page


def test_hostile_names_are_in_the_data_alone(tmp_path: Path) -> None:
    plain, hostile = tmp_path / "plain" / "run", tmp_path / "hostile" / "<b id=hit>"
    write_run(plain, range(2), layers=tuple(f"h.{at}" for at in range(len(HOSTILE) - 1)))
    write_run(hostile, range(2), layers=HOSTILE[:-1], prefix="<i>")
    pages = [write_page(folder.parent, tmp_path / f"{folder.parent.name}.html").path for folder in (plain, hostile)]
    frames = [re.sub(r'(id="answers">)[^<]*', r"\1", page.read_text(encoding="utf-8")) for page in pages]
    assert frames[0] == frames[1]
    found = embedded(pages[1])
    assert tuple(found.find("index")["layers"][0]) == HOSTILE[:-1]
    for layer in HOSTILE[:-1]:
        query = {"prefix": "<i>", "name": "histogram", "stage": "train", "layer": layer}
        assert found.find("histogram", run="<b id=hit>", **query)[0] == {"parts": 1}


def test_a_name_that_no_address_can_hold_is_not_found_as_in_the_tab(tmp_path: Path) -> None:
    write_tensor(tmp_path / "run", "a/#1", schema(layers=["h.0", HOSTILE[-1]]), tensor([1.0, 2.0]))
    other = schema(kind="histogram", layer=HOSTILE[-1], edges=[0.0, 1.0])
    write_tensor(tmp_path / "run", "a/#2", other, tensor([1.0]))
    found = embedded(write_page(tmp_path, tmp_path / "run.html").path)
    assert found.find("index")["layers"][0] == ["h.0", HOSTILE[-1]]
    assert found.find("histogram", run="run", **RMS, layer=HOSTILE[-1]) == 404


def test_what_the_tab_cannot_read_is_the_same_error_in_the_page(tmp_path: Path) -> None:
    write_tensor(tmp_path / "run", "activations_rms/#1", schema(), tensor([1.0, 2.0], content=b"\0\0\0"))
    assert embedded(write_page(tmp_path, tmp_path / "run.html").path).find("matrix", run="run", **RMS) == 422


def test_nan_and_infinity_stay(tmp_path: Path) -> None:
    odd = [math.nan, math.inf, -math.inf, -0.0, 1e-45, 3.4e38]
    write_run(tmp_path / "run", range(3), names=("rms",), value=lambda name, layer, step: odd[(layer + step) % 6])
    _, arrays = embedded(write_page(tmp_path, tmp_path / "run.html").path).find("matrix", run="run", **RMS)
    expected = np.array([[odd[(layer + step) % 6] for layer in range(6)] for step in range(3)], dtype=np.float32)
    assert np.array_equal(arrays["values"].view(np.uint32), expected.view(np.uint32))


def numbers() -> np.ndarray[Any, Any]:
    """Numbers that wander from step to step, each with noise: 13 statistics x 30 layers x 1000 steps."""
    random = np.random.default_rng(0)
    wandering = 1 + np.cumsum(0.01 * random.standard_normal((13, 30, 1000)), axis=2)
    level = np.exp(random.standard_normal((13, 30, 1)))
    found: np.ndarray[Any, Any] = (level * (wandering + 0.02 * random.standard_normal((13, 30, 1000)))).astype(
        np.float32
    )
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 layers x 1000 steps x 13 statistics, and histograms of every layer."""
    folder, values, place = tmp_path_factory.mktemp("large"), numbers(), {name: at for at, name in enumerate(NAMES)}
    layers = tuple(f"model.layers.{at}" for at in range(30))
    write_run(folder, range(1000), layers, NAMES, value=lambda name, layer, step: values[place[name], layer, step])
    return folder


def test_a_page_of_30_layers_and_1000_steps_is_below_2_megabytes(large: Path, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    page = write_page(large, tmp_path / "run.html", progress=lambda *sizes: said.append(sizes))
    size = sum(file.stat().st_size for file in large.iterdir())
    assert len(said) > 1 and said == sorted(said) and {total for _, total in said} == {size} and said[-1][0] <= size
    assert page.size < 2_000_000 and not page.notes
    found = embedded(page.path)
    for name, expected in zip(NAMES, numbers(), strict=True):
        _, arrays = found.find("matrix", run=large.name, **{**RMS, "name": name})
        assert np.array_equal(arrays["values"], expected.T)


@pytest.fixture(scope="module")
def moderate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, values = tmp_path_factory.mktemp("moderate"), numbers()
    write_run(
        folder, range(300), names=("mean", "rms"), value=lambda name, layer, step: values[len(name) - 3, layer, step]
    )
    return folder


@pytest.mark.parametrize("share", [0.6, 0.4, 0.15])
def test_a_page_that_would_be_too_large_loses_steps_evenly_and_says_so(
    moderate: Path, log: Path, tmp_path: Path, share: float
) -> None:
    least = write_page(log / "plain", tmp_path / "least.html").size
    whole = write_page(moderate, tmp_path / "whole.html", max_mb=math.inf)
    limit = least + share * (whole.size - least)
    page = write_page(moderate, tmp_path / "run.html", max_mb=limit / 1e6)
    found, run = embedded(page.path), {"run": moderate.name}
    assert page.size < limit < whole.size and found.about["lines"][1:] == list(page.notes)
    assert not whole.notes and not [note for note in page.notes if "more than" in note]
    header, arrays = found.find("matrix", **run, **RMS)
    _, drawn = found.find("histogram", **run, **{**RMS, "name": "histogram"}, layer=BLOCKS[3])
    for what, steps in (("statistics", arrays["steps"]), ("histograms", drawn["steps0"])):
        said = re.findall(rf"its {what} are those of every (\d+)[a-z]+ of up to 300 steps", " ".join(page.notes))
        (every,) = said or ["1"]
        assert steps.tolist() == sorted({*range(0, 300, int(every)), 299}) and len(steps) >= 10
    assert len(drawn["steps0"]) < 300 and (len(arrays["steps"]) < 300) == (len(page.notes) == 2)
    written = {(row.step, row.layer): row.value for row in read_compact(moderate) if row.name == "rms"}
    for row, step in enumerate(arrays["steps"]):
        assert [written[step, layer] for layer in header["layers"]] == arrays["values"][row].tolist()
    counted = {row.step: row.counts for row in read_compact_histograms(moderate) if row.layer == BLOCKS[3]}
    assert [counted[step] for step in drawn["steps0"]] == [tuple(row) for row in drawn["counts0"]]
    assert drawn["edges0"].tolist() == list(EDGES)


def test_no_step_is_left_out_where_texts_are_what_is_large(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(log / "one", folder)
    text = np.random.default_rng(0).bytes(400_000).hex()
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("hook_report/fit", f"    {text}", 0)
    page = write_page(folder, tmp_path / "run.html", max_mb=0.3)
    _, arrays = embedded(page.path).find("matrix", run="run", **RMS)
    assert len(arrays["steps"]) == 20 and len(page.notes) == 1 and "more than the 0.3 MB" in page.notes[0]


def test_a_page_that_cannot_be_small_is_written_and_says_so(log: Path, tmp_path: Path) -> None:
    page = write_page(log, tmp_path / "run.html", max_mb=0.1)
    assert page.path.exists() and "more than the 0.1 MB" in page.notes[-1]
