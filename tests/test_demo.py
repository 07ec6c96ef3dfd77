"""``mi-crow-lightning demo`` without the packaged model, and with one that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mi_crow_lightning import _demo
from mi_crow_lightning.__main__ import main

ROOT = Path(__file__).parents[1]


@pytest.mark.filterwarnings("default")  # what Lightning says to a user of the script is no error
def test_a_tiny_model_takes_the_place_of_one_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_demo, "_NEEDED", ("llm_smollm3", "yaml", "gguf_4"))
    assert main(["demo", "--logdir", "logs"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("Not installed: llm-smollm3, gguf-4. A tiny model") and "[demo]" in first
    printed = "\n".join(rest)
    assert all(f"model.model.layers.{block} " in printed for block in range(5))
    assert "STEERED at block:3, strength 3.0" in printed and "--logdir logs" in printed
    assert list(tmp_path.glob("logs/demo/version_0/events.out.tfevents.*"))


def test_a_model_that_is_not_there_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", str(tmp_path / "none")]) == 2
    assert "error: there is no folder or GGUF file" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["demo", "--model"], ["layers"]], ids=" ".join)
def test_a_model_that_is_not_on_this_machine_is_named(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "nobody/no-model"]) == 2
    assert "nobody/no-model" in capsys.readouterr().err.partition("error: ")[2]


def test_a_script_that_was_not_installed_is_missed_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_demo, "_PLACES", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match=r"finetune_and_steer\.py is neither in .*a nor in .*b: install the "):
        _demo.run_demo("any")


def test_a_console_of_few_letters_is_no_reason_to_stop(tmp_path: Path) -> None:
    lines = ("import sys", "from mi_crow_lightning import _demo")
    script = "\n".join((*lines, "try:", "    _demo.run_demo('none')", "except OSError:", "    print('\\u2603')"))
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0 and ran.stdout.strip() == b"?", ran.stderr
