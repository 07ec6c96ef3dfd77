"""Models of GGUF files: saved as any model, and kept unpacked for the next load."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from mi_crow_lightning.language_model.gguf_cache import CACHE
from mi_crow_lightning.language_model.loading import load_model
from tests.callback.runs import told
from tests.language_model.tiny_gguf import write_llama

IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return write_llama(tmp_path / "models" / "tiny.gguf")


def same(one: Any, other: Any) -> bool:
    states = one.state_dict(), other.state_dict()
    equal = states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )
    return equal and torch.equal(one(IDS).logits, other(IDS).logits)


def kept(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir()) if cache.exists() else []


def test_a_model_from_gguf_is_saved_and_loaded_again(file: Path, tmp_path: Path, cache: Path) -> None:
    model = load_model(file)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert same(model, again) and not hasattr(again.config, "quantization_config")


def test_the_second_load_unpacks_nothing_and_gives_the_same(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_transformers = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    first = load_model(file)
    unpacked = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: unpacked.append(kwargs.get("gguf_file")) or load(*args, **kwargs),
    )
    second = load_model(file.parent)
    assert unpacked == [None]
    assert same(first, second) and same(first, of_transformers)
    assert first.name_or_path == second.name_or_path == str(file.parent)
    assert first.config._name_or_path == second.config._name_or_path
    second.save_pretrained(file.parent / "saved")
    assert not second.training and second.dtype == torch.float32


def test_a_file_that_changed_is_unpacked_again_in_place_of_the_old(file: Path, cache: Path) -> None:
    first, before = load_model(file), kept(cache)
    write_llama(file, seed=1)
    os.utime(file, (time.time() + 5, time.time() + 5))
    second = load_model(file)
    assert not same(first, second)
    assert len(before) == len(kept(cache)) == 1 and before != kept(cache)
    half = load_model(file, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and len(kept(cache)) == 2
    assert load_model(file, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_with_other_arguments_or_switched_off_nothing_is_kept(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model(file, attn_implementation="eager")
    monkeypatch.setenv(CACHE, "off")
    load_model(file).save_pretrained(file.parent / "saved")
    assert kept(cache) == []


def test_what_cannot_be_kept_is_said_and_the_model_is_there(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "no_folder"))
    with pytest.warns(UserWarning, match=rf"no_folder/gguf', so the next load takes as long.*Set {CACHE}"):
        model = load_model(file)
    assert model(IDS).logits.shape == (2, 6, 40)


def test_what_was_kept_and_is_damaged_is_made_again(file: Path, cache: Path) -> None:
    first = load_model(file)
    (cache / kept(cache)[0] / "model.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="cannot be read and is made again"):
        assert same(first, load_model(file))
    assert same(first, load_model(file))


def test_what_a_killed_process_left_is_removed_after_a_day(file: Path, cache: Path) -> None:
    for name, age in (("old", 2 * 86400), ("new", 0)):
        (cache / f".tmp-{name}").mkdir(parents=True)
        os.utime(cache / f".tmp-{name}", (time.time() - age,) * 2)
    load_model(file)
    assert [name for name in kept(cache) if name.startswith(".tmp-")] == [".tmp-new"]


def test_whatever_fails_while_the_weights_are_kept_the_model_is_there(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is an error of safetensors, which is none of the system's."""

    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with told("the unpacked weights cannot be kept in .* No space left on device"):
        model = load_model(file)
    assert model(IDS).logits.isfinite().all() and kept(cache) == []


def test_what_was_kept_of_a_file_with_signs_of_patterns_is_replaced(file: Path, cache: Path) -> None:
    odd = file.rename(file.with_name("tiny[q4]*.gguf"))
    load_model(odd)
    write_llama(odd, seed=1)
    os.utime(odd, (time.time() + 5, time.time() + 5))
    load_model(odd)
    assert len(kept(cache)) == 1
