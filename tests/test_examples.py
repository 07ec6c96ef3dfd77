"""The example scripts run, with a tiny model, and stay short."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Callable
from functools import partialmethod
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from mi_crow_lightning import ContrastDetector, HookCallback, SteeringVector
from tests.tiny_gpt2 import tokenizer

MOODS = ("extracted", "mean of 8 random", "their std")
PROTECTIONS = ("base model", "unprotected", "strength 1", "strength 2", "random vector, strength 2")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 5, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("default")  # what Lightning says to a user of the script is no error
def test_finetune_and_steer(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    logs = tmp_path / "logs"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["finetune_and_steer.py", "--model", str(tiny_llama), "--logdir", str(logs)])
    runpy.run_path(str(EXAMPLES / "finetune_and_steer.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(f"model.model.layers.{block} " in printed for block in range(5))
    assert "STEERED at block:3, strength 3.0" in printed
    assert f"tensorboard --logdir {logs}" in printed and "version_0" in printed
    assert list(logs.rglob("events.out.tfevents.*"))


@pytest.mark.filterwarnings("default")
def test_steer_predict(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    vector = tmp_path / "joy.safetensors"
    monkeypatch.setattr(
        sys, "argv", ["steer_predict.py", "--model", str(tiny_llama), "--output", str(vector), "--force"]
    )
    runpy.run_path(str(EXAMPLES / "steer_predict.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert SteeringVector.load(vector).method == "mean_difference"
    assert all(f" model.model.layers.{block} " in printed for block in range(5))
    assert "strength +4 at model.model.layers." in printed
    assert {"strength", *MOODS} <= scores(printed).keys()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("pairs", "trait"), [(False, None), (True, None), (False, "formal")])
def test_screening(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, pairs: bool, trait: str | None
) -> None:
    script = importlib.import_module("examples.science.screening")
    for name, value in {"LAYER": "block:1", "SETS": 2, "NEUTRAL": 6, "PLANTED": 3, "OTHERS": 9}.items():
        monkeypatch.setattr(script, name, value)
    extracted = partialmethod(ContrastDetector.vectors, force=True)  # in an untrained model there is no direction
    monkeypatch.setattr(ContrastDetector, "vectors", extracted)
    sets, others = script.texts_of_trait(trait, 0, 2, 6, 3, 9) if trait else script.texts(pairs, 0, 2, 6, 3, 9)
    assert [len(samples) for samples in (*sets, others)] == [9, 9, 9] and sum(one["label"] for one in sets[0]) == 3
    script.main(tiny_llama, pairs, trait, tmp_path / "scores")
    printed = capsys.readouterr().out
    assert "of 3 planted and" in printed and "of 2 sets have 5 or more, " in printed
    lines = [json.loads(line) for line in (tmp_path / "scores" / "set_1.jsonl").read_text("utf-8").splitlines()]
    assert sorted(line["sample"] for line in lines) == list(range(9))
    assert all((line["prompt"] is not None) == pairs for line in lines)


def scores(printed: str) -> dict[str, list[str]]:
    """The lines of the last table, by their first column."""
    return {line[:24].strip(): line[24:].split() for line in printed.splitlines()}


@pytest.mark.usefixtures("smollm2_file")
@pytest.mark.filterwarnings("default")
def test_the_real_models_mood_follows_the_vector_and_not_the_random_ones(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["steer_predict.py", "--output", str(tmp_path / "joy.safetensors")])
    runpy.run_path(str(EXAMPLES / "steer_predict.py"), run_name="__main__")
    table = scores(capsys.readouterr().out)
    extracted, mean, std = ([float(number) for number in table[name]] for name in MOODS)
    assert (extracted[2], std[2]) == (mean[2], 0), "at strength 0 all are the model as it is"
    assert all(one < other for one, other in pairwise(extracted))
    assert mean not in (sorted(mean), sorted(mean, reverse=True)), "a random direction has no side"
    assert max(extracted) - min(extracted) > 10 * (max(mean) - min(mean)) > 0
    assert all(abs(one - mean[2]) < max(deviation, 0.01) for one, deviation in zip(mean, std, strict=True))


@pytest.mark.filterwarnings("default")
def test_prevent(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["prevent.py", "--model", str(tiny_llama)])
    runpy.run_path(str(EXAMPLES / "prevent.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:28].rstrip() in PROTECTIONS]
    rows = {line[:28].rstrip(): tuple(map(float, line[28:].split())) for line in lines}
    assert tuple(rows) == PROTECTIONS and all(len(row) == 2 and row[1] > 1 for row in rows.values())


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs examples/cli.py with these arguments, in an empty folder; gives what it left."""
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(*arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["cli.py", *arguments])
        return runpy.run_path(str(EXAMPLES / "cli.py"), run_name="__main__")

    return run


CONFIG = ("--config", str(EXAMPLES / "config.yaml"))


@pytest.mark.documents("compatibility/lightningcli-yaml-and-print-config/logging")
@pytest.mark.filterwarnings("default")
def test_cli_fits_and_keeps_a_configuration_that_predicts_the_same(command_line, tmp_path: Path) -> None:
    fitted = command_line("fit", *CONFIG)["cli"]
    (watch,) = [callback for callback in fitted.trainer.callbacks if isinstance(callback, HookCallback)]
    assert {row.layer for row in watch.history() if row.stage == "train"} == {f"model.layers.{i}" for i in range(4)}
    assert watch.detectors[1].get_captured().shape == (8, 12, 32)
    assert list(tmp_path.glob("outputs/logs/configured/version_0/events.out.tfevents.*"))

    (kept,) = tmp_path.glob("outputs/logs/configured/version_0/config.yaml")
    written = yaml.safe_load(kept.read_text(encoding="utf-8"))
    written.pop("ckpt_path")
    kept.write_text(yaml.safe_dump(written), encoding="utf-8")
    assert steered(command_line("predict", *CONFIG)) == steered(command_line("predict", "--config", str(kept))) != []


def steered(left: dict[str, Any]) -> list[Any]:
    (watch,) = [callback for callback in left["cli"].trainer.callbacks if isinstance(callback, HookCallback)]
    effects = watch.effects()
    assert [effect.layer for effect in effects] == ["model.layers.1.mlp", "model.layers.2.self_attn"]
    assert all(effect.fired == 4 * 8 and effect.mean_ratio > 0 for effect in effects)  # batches, tokens
    return effects


@pytest.mark.filterwarnings("default")
def test_cli_prints_a_configuration_that_it_reads_again(command_line, tmp_path: Path, capsys) -> None:
    printed = []
    for source in (CONFIG, ("--config", "printed.yaml")):
        with pytest.raises(SystemExit) as ended:
            command_line("fit", *source, "--print_config")
        assert not ended.value.code
        printed.append(capsys.readouterr().out)
        (tmp_path / "printed.yaml").write_text(printed[-1], encoding="utf-8")
    assert printed[0] == printed[1] and "mi_crow_lightning.hooks.tokens.AllOf" in printed[0]


@pytest.mark.parametrize(
    "script", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.relative_to(EXAMPLES).as_posix()
)
def test_examples_are_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80
