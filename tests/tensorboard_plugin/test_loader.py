"""The plugin's way into TensorBoard: the entry point, what it imports, and what happens if it fails."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from tensorboard.plugins.base_plugin import TBContext

from mi_crow_lightning.loggers import compact_tensors, read_compact
from mi_crow_lightning.metrics import STATISTICS
from mi_crow_lightning.metrics.changes import EffectValues
from mi_crow_lightning.tensorboard_plugin import assets, loader, metadata, plain_tags
from mi_crow_lightning.tensorboard_plugin.packing import unpack
from tests.tensorboard_plugin.logs import BLOCKS, write_run
from tests.tensorboard_plugin.served import fetch, tensorboard

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

PACKAGE = Path(assets.__file__).parent
STATIC = PACKAGE / "static"
UPLOT = {  # release 1.6.32, as npm has it
    "uPlot.esm.js": "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}


def loaded_by(statement: str) -> set[str]:
    """The modules that a new process has loaded after a statement."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_entry_module_imports_the_base_class_alone() -> None:
    loaded = loaded_by("import mi_crow_lightning.tensorboard_plugin.loader")
    ours = {name for name in loaded if name.startswith("mi_crow_lightning.tensorboard_plugin.")}
    theirs = {name for name in loaded if name.startswith("tensorboard.")}
    assert ours == {"mi_crow_lightning.tensorboard_plugin.loader"}
    assert theirs == loaded_by("import tensorboard.plugins.base_plugin") & theirs
    assert not {"numpy", "werkzeug", "torch", "lightning"} & loaded


def test_the_plugin_imports_nothing_of_torch_and_nothing_else_of_the_package() -> None:
    loaded = loaded_by("import mi_crow_lightning.tensorboard_plugin.plugin")
    assert not {"torch", "lightning", "transformers", "torchmetrics", "safetensors"} & loaded
    ours = {name for name in loaded if name.startswith("mi_crow_lightning.")}
    here = {name for name in ours if name.startswith("mi_crow_lightning.tensorboard_plugin")}
    root = {"mi_crow_lightning._lazy", "mi_crow_lightning._moved", "mi_crow_lightning._short_names"}
    assert ours - here == root


@pytest.mark.parametrize("why", ["the module is missing", "there is no data provider"])
def test_a_plugin_that_fails_is_left_out_with_one_warning(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "the module is missing":
        monkeypatch.setitem(sys.modules, "mi_crow_lightning.tensorboard_plugin.plugin", None)
    with pytest.warns(RuntimeWarning, match="TensorBoard starts without the Activations tab") as caught:
        assert loader.ActivationsLoader().load(TBContext(data_provider=None)) is None
    assert len([one for one in caught if "Activations tab" in str(one.message)]) == 1


def test_more_steps_are_kept_unless_the_user_says_how_many() -> None:
    for given, expected in (({}, loader.SAMPLES), ({metadata.NAME: 5}, 5), ({metadata.NAME: 0}, 0)):
        flags = argparse.Namespace(samples_per_plugin=dict(given))
        loader.ActivationsLoader().fix_flags(flags)
        assert flags.samples_per_plugin == {metadata.NAME: expected}
    loader.ActivationsLoader().fix_flags(argparse.Namespace())  # of a TensorBoard that has no such option


def test_what_the_reader_repeats_of_the_package_agrees_with_it() -> None:
    assert loader._NAME == metadata.NAME == compact_tensors.PLUGIN
    assert metadata.VERSION == compact_tensors.VERSION
    assert {*STATISTICS, *EffectValues._fields} <= {*plain_tags.STATISTICS}


def test_every_file_of_the_page_is_in_the_table() -> None:
    files = {file.relative_to(STATIC).as_posix() for file in STATIC.rglob("*") if file.is_file()}
    assert files - {"uplot/LICENSE"} == {*assets.FILES} and len(assets.FILES) == len({*assets.FILES})


def test_every_import_of_the_page_is_of_a_file_in_the_table() -> None:
    for file in STATIC.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', file.read_text(encoding="utf-8")):
            assert name in assets.FILES, (file.name, name)


FORBIDDEN = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|https?://|srcdoc"


@pytest.mark.parametrize("name", [name for name in assets.FILES if "/" not in name])
def test_the_page_makes_no_markup_of_text_and_loads_nothing_from_elsewhere(name: str) -> None:
    assert not re.findall(FORBIDDEN, (STATIC / name).read_text(encoding="utf-8"))


def test_the_library_for_lines_is_the_published_one_with_its_licence() -> None:
    for name, digest in UPLOT.items():
        assert hashlib.sha256((STATIC / "uplot" / name).read_bytes()).hexdigest() == digest
    assert "MIT License" in (STATIC / "uplot" / "LICENSE").read_text(encoding="utf-8")


def until_whole(address: str) -> bytes:
    """The answer that has every step: TensorBoard answers while it still reads the log."""
    until = time.monotonic() + 30
    content = fetch(address)
    while len(unpack(content)[1]["steps"]) < 150 and time.monotonic() < until:
        time.sleep(0.1)
        content = fetch(address)
    return content


# TensorBoard 2.20 imports pkg_resources of setuptools, which is not among its dependencies.
STARTS = not version("tensorboard").startswith("2.20.") or find_spec("pkg_resources") is not None


@pytest.mark.skipif(not STARTS, reason="this TensorBoard does not start by itself")
@pytest.mark.parametrize("options", [(), ("--load_fast=false",)], ids=["fast loader", "slow loader"])
def test_a_real_tensorboard_has_the_tab_and_all_numbers(options: tuple[str, ...], tmp_path: Path) -> None:
    log, served = tmp_path / "log", tmp_path / "served"
    served.mkdir()
    write_run(log / "run", range(0, 300, 2), names=("rms",))  # more steps than TensorBoard keeps by itself
    asked = urlencode({"run": "run", "prefix": "activations", "name": "rms", "stage": "train"})
    with tensorboard(log, served, *options) as address:
        content = until_whole(f"{address}data/plugin/{metadata.NAME}/matrix?{asked}")
        listing = json.loads(fetch(f"{address}data/plugins_listing"))[metadata.NAME]
        assert listing["enabled"] and listing["tab_name"] == "Activations"
    header, arrays = unpack(content)
    rows = [np.float32(row.value) for row in read_compact(log / "run")]
    assert tuple(header["layers"]) == BLOCKS
    assert np.array_equal(arrays["values"], np.array(rows).reshape(150, len(BLOCKS)))
