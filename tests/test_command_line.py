"""The command line, in particular ``layers MODEL``."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from mi_crow_lightning.__main__ import main
from tests.tiny_gpt2 import BLOCKS, save_gpt2

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_gpt2(tmp_path_factory.mktemp("models") / "gpt2"))


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mi_crow_lightning", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})


def test_a_table_of_all_layers(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", gpt2]) == 0
    out, err = capsys.readouterr()
    first, second, empty, header, *rows = out.splitlines()
    assert first == f"GPT2LMHeadModel ({gpt2}): 164,160 parameters"
    assert second == "output shapes for input_ids (2, 7), from a forward pass with tensors that hold no numbers"
    assert empty == "" and header.split() == ["layer", "role", "index", "class", "parameters", "output"]
    assert rows[0].split() == ["transformer", "GPT2Model", "164,160", "(2,", "7,", "32)"]
    assert "transformer.h.3.mlp" in out and "block:3.mlp" in out
    assert len({len(row[: row.rindex("(")]) for row in rows if "(" in row}) == 1
    assert "Traceback" not in err


def test_only_the_blocks(gpt2: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", gpt2, "--blocks"]) == 0
    rows = capsys.readouterr().out.splitlines()[4:]
    assert [row.split()[:3] for row in rows] == [[f"transformer.h.{i}", f"block:{i}", str(i)] for i in range(BLOCKS)]


@pytest.mark.parametrize(
    ("signature", "names"),
    [
        ("block:4-5.attn", ["transformer.h.4.attn", "transformer.h.5.attn"]),
        ("-1", [f"transformer.h.{BLOCKS - 1}"]),
        ("wte", ["transformer.wte"]),
    ],
)
def test_what_a_signature_matches_as_json(
    gpt2: str, signature: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layers", gpt2, "--match", signature, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in told["layers"]] == names
    assert {key: told[key] for key in told if key != "layers"} == {
        "model": gpt2,
        "module": "GPT2LMHeadModel",
        "parameters": 164_160,
        "inputs": {"input_ids": [2, 7]},
        "shapes_found_by": "fake",
        "shapes_unknown": "",
    }
    assert told["layers"][0].keys() == {"name", "role", "index", "module", "parameters", "output_shape"}
    assert told["layers"][0]["output_shape"] == [2, 7, 32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--match", "h.77"], "error: the model has no layer 'h.77'; closest: 'transformer.h.7'"),
        (["--match", "block:12"], "error: layer 'block:12': the model has 12 blocks"),
    ],
)
def test_what_matches_nothing_ends_with_two(
    gpt2: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layers", gpt2, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    "config",
    ['{"model_type": "no_such"}', "{}", "nonsense", '{"model_type": "llama", "hidden_size": "wide"}'],
)
def test_a_config_that_cannot_be_used_ends_with_two(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(config)
    assert main(["layers", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err


@pytest.mark.parametrize("arguments", [[], ["layers"], ["layers", "m", "--blocks", "--match", "x"], ["layer", "m"]])
def test_a_wrong_call_ends_with_two_and_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m mi_crow_lightning" in capsys.readouterr().err


def test_the_versions_that_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    found = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert found["mi-crow-lightning"] == version("mi-crow-lightning") and found["torch"] == version("torch")
    assert found["Python"] == platform.python_version() and {"lightning", "transformers"} <= found.keys()


def test_the_usage_names_the_script_that_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for called, name in (
        ("bin/mi-crow-lightning", "mi-crow-lightning"),
        ("x/__main__.py", "python -m mi_crow_lightning"),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        with pytest.raises(SystemExit):
            main(["--help"])
        assert f"usage: {name} [-h]" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["demo", "layers", "report", "replay"])
def test_the_installed_script_calls_main(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (module, function) = re.search(r'^mi-crow-lightning = "([\w.]+):(\w+)"$', text, re.MULTILINE).groups()
    with pytest.raises(SystemExit) as ended:
        getattr(import_module(module), function)([command, "--help"])
    assert not ended.value.code and command in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom mi_crow_lightning.__main__ import main\n"
        "try:\n    main(['layers', '--help'])\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "print([m for m in ('torch', 'lightning', 'transformers', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--match SIGNATURE" in ran.stdout and ran.stdout.endswith("[]\n")


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub of this process's own that has nothing: its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("offline", ["1", "0"])
def test_no_hub_is_asked_offline(hub: tuple[str, list[str]], offline: str, tmp_path: Path) -> None:
    address, asked = hub
    ran = program("layers", "nobody/nothing", HF_ENDPOINT=address, HF_HUB_OFFLINE=offline, HF_HOME=str(tmp_path))
    assert ran.returncode == 2 and ran.stdout == ""
    assert "Traceback" not in ran.stderr
    assert bool(asked) == (offline == "0")  # that this hub would be asked shows that the test can fail
    if offline == "1":
        assert ran.stderr.endswith(
            "error: 'nobody/nothing' is not a folder and not in the local cache, and HF_HUB_OFFLINE keeps it from "
            "being looked up on the hub: unset it, or give a folder\n"
        )
    else:
        assert "error: 'nobody/nothing': " in ran.stderr
