"""Answers of Neuronpedia's API: the vector and its place, and a refusal of whatever is neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.vectors import from_neuronpedia
from tests.models import WIDTH, llama
from tests.strangers import as_json, changed, outcome

pytestmark = pytest.mark.faults

GOT = {
    "modelId": "gpt2-small",
    "layer": "2-neuronpedia-resid-pre",
    "index": "17",
    "vectorLabel": "joy",
    "hookName": "blocks.2.hook_resid_pre",
    "vector": [0.5, -1, 2e-3],
    "vectorDefaultSteerStrength": 20,
    "createdAt": "2026-01-02T03:04:05",
}
NEW = {"modelId": "gpt2-small", "source": "2-neuronpedia-resid-post", "index": "17", "label": "joy"} | {
    "hookName": "blocks.2.hook_resid_post",
    "values": [0.5, -1, 2e-3],
    "defaultSteerStrength": 20,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


@pytest.mark.documents("reliability/an-answer-of-neuronpedia-holds-something-else")
@pytest.mark.parametrize(
    ("answer", "layer"),
    [({"vector": GOT}, "block:1"), (GOT, "block:1"), ({"message": "Success", "url": "u", "vector": NEW}, "block:2")],
)
def test_answers(answer: dict[str, Any], layer: str, tmp_path: Path) -> None:
    (tmp_path / "joy.json").write_text(json.dumps(answer))
    vector = from_neuronpedia(answer)
    assert from_neuronpedia(tmp_path / "joy.json") == from_neuronpedia(str(tmp_path / "joy.json")) == vector
    assert vector.layers == (layer,) and torch.equal(vector[layer], torch.tensor([0.5, -1.0, 0.002]))
    source = "2-neuronpedia-resid-pre" if layer == "block:1" else "2-neuronpedia-resid-post"
    named = {"neuronpedia_model": "gpt2-small", "neuronpedia_source": source, "neuronpedia_index": "17"}
    place = {"hook_name": answer.get("vector", answer)["hookName"] if "vectorLabel" not in answer else GOT["hookName"]}
    assert dict(vector.metadata) == {**place, **named, "label": "joy", "default_strength": 20.0}


@pytest.mark.documents("reliability/an-answer-of-neuronpedia-holds-something-else")
def test_it_fits_a_model_and_a_layer_can_be_given() -> None:
    wide = {**GOT, "vector": [1.0] * WIDTH, "hookName": None}
    with pytest.raises(VectorFileError, match=r"the answer of Neuronpedia has no hook_name: give layer="):
        from_neuronpedia(wide)
    assert from_neuronpedia(wide, layer="block:3").fitted_to(llama()).layers == ("model.layers.3",)


@pytest.mark.documents("reliability/an-answer-of-neuronpedia-holds-something-else")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vector": []}, "has no list of numbers as vector"),
        ({"vector": [1.0, None]}, "has None in its vector, which must hold finite numbers"),
        ({"vector": [1.0, True]}, "has True in its vector"),
        ({"vector": [float("nan")]}, "has nan in its vector"),
        ({"hookName": 3}, "has 3 as hookName, which must be a text"),
        ({"hookName": "blocks.0.hook_resid_pre"}, "which is the input of the first block"),
        ({"hookName": "blocks.9.hook_mlp_in"}, "is not the output of a block"),
        ({"modelId": 3}, "has 3 as modelId, which must be a str"),
        ({"vectorDefaultSteerStrength": "20"}, "as vectorDefaultSteerStrength, which must be a float"),
    ],
)
def test_answers_that_hold_something_else(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "joy.json").write_text(json.dumps({"vector": {**GOT, **change}}))
    for answer in ({"vector": {**GOT, **change}}, tmp_path / "joy.json"):
        with pytest.raises(VectorFileError) as caught:
            from_neuronpedia(answer)
        assert says in str(caught.value) and len(str(caught.value)) < 2048


@pytest.mark.documents("reliability/an-answer-of-neuronpedia-holds-something-else")
def test_other_files(tmp_path: Path) -> None:
    for content, says in (
        ("[" * 5000, "is nested deeper than 100 levels"),
        ("3", "does not hold a JSON object"),
        (json.dumps({"vectors": [GOT, GOT]}), "holds a list of 2 vectors: give one of them"),
        (json.dumps({"vector": {**GOT, "vector": [1.0] * (2**20 + 1)}}), "a vector of 1048577 numbers"),
    ):
        (tmp_path / "joy.json").write_text(content)
        with pytest.raises(VectorFileError, match=r"joy\.json'") as caught:
            from_neuronpedia(tmp_path / "joy.json")
        assert says in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no answer of Neuronpedia at 'nowhere\.json'"):
        from_neuronpedia("nowhere.json")


@pytest.mark.fuzz
@pytest.mark.documents("reliability/an-answer-of-neuronpedia-holds-something-else")
@settings(max_examples=150, deadline=None)
@given(changed({"vector": GOT}).map(as_json))
def test_any_answer(folder: Path, text: str) -> None:
    (file := folder / "joy.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    result = outcome(lambda: from_neuronpedia(file), file, VectorFileError)
    if isinstance(result, SteeringVector):
        result.save(folder / "again.safetensors")
        assert SteeringVector.load(folder / "again.safetensors") == result
