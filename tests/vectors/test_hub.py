"""Vectors on the Hub, against a small one on this machine: equal to the bit, a card that runs, clear refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import save

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import HubError, VectorFileError
from mi_crow_lightning.vectors import LayerQuality
from tests.tiny_gpt2 import save_gpt2
from tests.vectors.fake_hub import TOKEN, Hub, running_hub

FILE = "steering_vector.safetensors"

pytestmark = [
    # httpx says so of how huggingface_hub calls it.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.skipif(
        int(huggingface_hub.__version__.partition(".")[0]) < 1,
        reason="huggingface_hub before 1.0 keeps the Hub's address from when it was imported",
    ),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that huggingface_hub asks by default, with a cache of its own; the tests run offline otherwise."""
    with running_hub() as running:
        constants = huggingface_hub.constants
        for name, value in {"HF_HUB_OFFLINE": False, "ENDPOINT": running.endpoint, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def vector(**facts: Any) -> SteeringVector:
    directions = {f"transformer.h.{i}": torch.randn(32) for i in (3, 4)}
    quality = [
        LayerQuality("transformer.h.3", 0.9, 1.5, 0.625, 0.5, 0.125, 0.01, 12, 8, 3),
        LayerQuality("transformer.h.4", 1.0, 2.5, 0.6875, 0.6, 0.0, 0.0005, 12, 8, 4),
    ]
    known: dict[str, Any] = dict(method="mean_difference", model="tiny", tokens="ordinary", samples={"0": 12, "1": 12})
    return SteeringVector(directions, **{**known, "quality": quality, **facts})


def test_pushed_and_fetched_it_is_equal_to_the_bit(hub: Hub) -> None:
    made = vector()
    commit = made.push_to_hub("me/joy", private=True, commit_message="Joy", license="mit", tags=["joy"])
    fetched = SteeringVector.from_hub("me/joy")
    assert fetched == made and fetched.quality.to_text() == made.quality.to_text()
    assert all(torch.equal(fetched[layer], made[layer]) for layer in made)
    assert commit.startswith(f"{hub.endpoint}/me/joy/commit/")
    repository = hub.repositories["me/joy"]
    assert repository.private and repository.messages == ["Joy"]
    assert set(repository.branches["main"]) == {".gitattributes", FILE, "README.md"}
    assert any(one.startswith("PUT /lfs/") for one in hub.seen)


def test_branches_pull_requests_and_other_files(hub: Hub) -> None:
    first, second, third = vector(), vector(), vector()
    first.push_to_hub("joy")  # under the account of the token
    second.push_to_hub("me/joy", revision="better", filename="other.safetensors", card=False)
    commit = third.push_to_hub("me/joy", create_pr=True)
    assert SteeringVector.from_hub("me/joy") == first
    assert SteeringVector.from_hub("me/joy", "other.safetensors", revision="better") == second
    assert SteeringVector.from_hub("me/joy", revision="refs/pr/1") == third
    assert commit.pr_url.endswith("/me/joy/discussions/1")
    branch = hub.repositories["me/joy"].branches["better"]
    assert branch["README.md"] == hub.repositories["me/joy"].branches["main"]["README.md"]


def test_another_name_is_found_where_there_is_only_one_file(hub: Hub) -> None:
    made = vector()
    made.push_to_hub("me/joy", filename="joy.safetensors")
    assert SteeringVector.from_hub("me/joy") == made
    made.push_to_hub("me/joy", filename="more.safetensors")
    with pytest.raises(HubError, match=r"'me/joy' on the Hub has 2 safetensors files, joy.* and more.*: give file"):
        SteeringVector.from_hub("me/joy")
    with pytest.raises(HubError, match=r"has no file 'no\.safetensors': it has joy\.safetensors and more\.safetensors"):
        SteeringVector.from_hub("me/joy", "no.safetensors")


def test_endpoint_token_and_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_TOKEN")
    made = vector()
    made.push_to_hub("me/joy", endpoint=hub.endpoint, token=TOKEN, private=True)
    options: dict[str, Any] = {"endpoint": hub.endpoint, "cache_dir": tmp_path / "own"}
    assert SteeringVector.from_hub("me/joy", token=TOKEN, **options) == made
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.seen)
    assert SteeringVector.from_hub("me/joy", **options) == made
    assert SteeringVector.from_hub("me/joy", local_files_only=True, **options) == made
    assert len(hub.seen) == asked
    with pytest.raises(
        HubError, match=r"'me/other' on http.* the file is not in the cache: leave local_files_only out"
    ):
        SteeringVector.from_hub("me/other", local_files_only=True, **options)


# The card.


def card_of(hub: Hub, name: str = "me/joy") -> tuple[dict[str, Any], str]:
    text = hub.repositories[name].branches["main"]["README.md"].decode()
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_the_card_has_the_origin_and_the_quality(hub: Hub) -> None:
    vector(model="org/tiny", metadata={"note": "a | b\n# c"}).push_to_hub("me/joy", license="mit", tags=["joy"])
    metadata, body = card_of(hub)
    assert metadata["library_name"] == "mi-crow-lightning" and metadata["license"] == "mit"
    assert metadata["base_model"] == "org/tiny" and {"steering-vector", "joy"} <= set(metadata["tags"])
    assert "| layers | 2: `transformer.h.3` to `transformer.h.4` |" in body
    assert "| texts it was made from | `0`: 12, `1`: 12 |" in body and r"| note | `a \| b\n# c` |" in body
    best = "Best at `transformer.h.4`: AUROC 1 on 8 held-out texts, where random directions reach 0.688. It was made of"
    assert f"{best} 12 pairs; 0% of them point the wrong way." in body
    rows = [line for line in body.splitlines() if line.startswith("| `transformer")]
    assert [row.count("|") for row in rows] == [9, 9] and "| 0.9 | 0.625 | 1.5 | 0.5 | 0.125 | 0.01 |" in rows[0]


def test_the_card_of_a_vector_of_which_nothing_is_known(hub: Hub) -> None:
    SteeringVector({"h.0": torch.ones(2)}).push_to_hub("me/joy")
    metadata, body = card_of(hub)
    assert "base_model" not in metadata and "license" not in metadata
    assert "Nothing was measured of it" in body and "| model | not known |" in body
    assert 'from_huggingface("...")' in body
    SteeringVector({"h.0": torch.ones(2)}, model="gpt2").push_to_hub("me/joy", base_model="gpt2")
    assert card_of(hub)[0]["base_model"] == "gpt2"


def test_the_lines_of_the_card_run(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_gpt2(tmp_path / "tiny", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    vector().push_to_hub("me/joy")
    (code,) = re.findall(r"```python\n(.*?)```", card_of(hub)[1], re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert capsys.readouterr().out.startswith("I think that")
    assert names["steer"].layer_signature == "transformer.h.4"


# Refusals.


def test_what_is_not_there(hub: Hub) -> None:
    with pytest.raises(HubError, match=r"'me/no' on the Hub cannot be read: there is no such repository, or it is"):
        SteeringVector.from_hub("me/no")
    vector().push_to_hub("me/joy")
    with pytest.raises(HubError, match=r"'me/joy' on the Hub cannot be read: it has no such revision"):
        SteeringVector.from_hub("me/joy", revision="v9")
    del hub.repositories["me/joy"].branches["main"][FILE]
    with pytest.raises(HubError, match=r"has no safetensors file, .* it has \.gitattributes and README\.md"):
        SteeringVector.from_hub("me/joy")
    with pytest.raises(HubError, match=r"'a/b/c' on the Hub cannot be read: "):
        SteeringVector.from_hub("a/b/c")


def test_who_may_not_write(hub: Hub) -> None:
    for token, name in (("hf_wrong", "me/joy"), (TOKEN, "you/joy")):
        with pytest.raises(HubError, match=rf"'{name}' on the Hub cannot be written: .*token="):
            vector().push_to_hub(name, token=token)
    vector().push_to_hub("me/joy", private=True)
    with pytest.raises(HubError, match=r"there is no such repository, or it is private"):
        SteeringVector.from_hub("me/joy", token="hf_wrong")


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9"
    says = rf"'me/joy' on {nowhere} cannot be read: the Hub cannot be reached, and the file is not in the cache"
    with pytest.raises(HubError, match=says):
        SteeringVector.from_hub("me/joy", endpoint=nowhere)
    with pytest.raises(HubError, match=r"cannot be written: the Hub cannot be reached: connect"):
        vector().push_to_hub("me/joy", endpoint=nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"unset HF_HUB_OFFLINE"):
        SteeringVector.from_hub("me/joy")
    with pytest.raises(HubError, match=r"unset HF_HUB_OFFLINE"):
        vector().push_to_hub("me/joy")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (save({"w": torch.ones(2, 2)}), r"is a safetensors file of 1 tensors \(w, \.\.\.\), not a steering vector"),
        (b"<html>", r"is not a readable safetensors file"),
        (b"", r"is not a readable safetensors file"),
    ],
)
def test_files_that_are_no_vectors(hub: Hub, content: bytes, says: str) -> None:
    vector().push_to_hub("me/joy")
    hub.repositories["me/joy"].branches["main"][FILE] = content
    with pytest.raises(VectorFileError, match=rf"'me/joy' on the Hub holds no steering vector: .*{says}"):
        SteeringVector.from_hub("me/joy")


def test_a_large_file_is_refused_before_it_is_fetched(hub: Hub) -> None:
    vector().push_to_hub("me/joy")
    hub.claims[FILE] = 2**36
    with pytest.raises(HubError, match=r"has 68,719,476,736 bytes, and a vector has at most 1,073,741,824"):
        SteeringVector.from_hub("me/joy")
    assert f"GET /me/joy/resolve/main/{FILE}" not in hub.seen


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"filename": "joy.bin"}, r"filename='joy\.bin' must end with '\.safetensors'"),
        ({"card": "no"}, r"card='no'"),
        ({"create_pr": 1}, r"create_pr=1"),
        ({"tags": "joy"}, r"tags='joy'"),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        vector().push_to_hub("me/joy", **options)
