"""Folders that claim to be autoencoders: a feature's direction, or `VectorFileError` with the name of one file."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.vectors import from_sae
from tests.strangers import as_json, changed, damaged, outcome

pytestmark = pytest.mark.faults

METADATA = {"hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2-small"}
CONFIGURATION: dict[str, Any] = {"d_in": 4, "d_sae": 2, "metadata": METADATA}
WEIGHTS = save({"W_dec": torch.ones(2, 4), "b_dec": torch.ones(4)})
HEADER: dict[str, Any] = json.loads(WEIGHTS[8 : 8 + int.from_bytes(WEIGHTS[:8], "little")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


def read(
    folder: Path, configuration: bytes = json.dumps(CONFIGURATION).encode(), weights: bytes = WEIGHTS, **options: Any
) -> Exception | SteeringVector:
    """What reading a folder gives; the error names the folder, and the file at fault in it."""
    (folder / "cfg.json").write_bytes(configuration)
    (folder / "sae_weights.safetensors").write_bytes(weights)
    result = outcome(lambda: from_sae(folder, 0, **options), folder, VectorFileError)
    if isinstance(result, VectorFileError):
        assert "cfg.json" in str(result) or "sae_weights.safetensors" in str(result)
    if isinstance(result, SteeringVector):
        result.save(folder / "v")
        assert SteeringVector.load(folder / "v") == result
    return result


def with_weights(header: str, data: bytes = WEIGHTS[-48:]) -> bytes:
    encoded = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + data


@pytest.mark.fuzz
@pytest.mark.documents("reliability/an-autoencoders-configuration-holds-something-else")
@settings(max_examples=150)
@given(changed(CONFIGURATION).map(as_json))
def test_configurations_that_hold_something_else(folder: Path, text: str) -> None:
    read(folder, text.encode("utf-8", "surrogatepass"))


@pytest.mark.fuzz
@pytest.mark.documents("reliability/an-autoencoders-configuration-holds-something-else")
@settings(max_examples=100)
@given(damaged(json.dumps(CONFIGURATION).encode()))
def test_configurations_with_damaged_bytes(folder: Path, content: bytes) -> None:
    read(folder, content)


@pytest.mark.fuzz
@pytest.mark.documents("reliability/an-autoencoders-weights-are-damaged")
@settings(max_examples=100)
@given(damaged(WEIGHTS))
def test_damaged_weights(folder: Path, content: bytes) -> None:
    read(folder, weights=content)


@pytest.mark.fuzz
@pytest.mark.documents("reliability/an-autoencoders-weights-are-damaged")
@settings(max_examples=100)
@given(changed(HEADER).map(as_json))
def test_weights_with_a_header_that_is_not_true(folder: Path, header: str) -> None:
    read(folder, weights=with_weights(header))


@pytest.mark.documents("reliability/an-autoencoders-configuration-is-nested-without-end-or-of-many-megabytes")
@pytest.mark.parametrize("deep", ["[" * 5000, '{"hook_name":' * 5000, '{"metadata": ' + "[" * 200 + "]" * 200 + "}"])
def test_configurations_that_are_nested_deep(tmp_path: Path, deep: str) -> None:
    assert "cfg.json' is nested deeper than 100 levels" in str(read(tmp_path, deep.encode()))


@pytest.mark.documents("reliability/an-autoencoders-configuration-is-nested-without-end-or-of-many-megabytes")
def test_configurations_of_many_megabytes(tmp_path: Path) -> None:
    assert isinstance(read(tmp_path), SteeringVector)
    os.truncate(tmp_path / "cfg.json", 2**34)  # sparse: whoever reads it takes 16 GB of memory
    with pytest.raises(VectorFileError, match=r"cfg.json' has 17179869184 bytes, and a configuration has at most"):
        from_sae(tmp_path, 1)


@pytest.mark.documents("reliability/an-autoencoders-decoder-has-another-shape-or-type")
@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        (torch.ones(4), "has shape (4,) of 'W_dec', and (d_sae, 4) is needed"),
        (torch.ones(2, 3), "has shape (2, 3) of 'W_dec', and (d_sae, 4) is needed"),
        (torch.ones(0, 4), "has shape (0, 4) of 'W_dec', and (d_sae, 4) is needed"),
        (torch.ones(2, 4, dtype=torch.int64), "has a row 0 of 'W_dec' that does not hold finite numbers of a float"),
        (torch.full((2, 4), torch.nan), "has a row 0 of 'W_dec' that does not hold finite numbers of a float"),
    ],
)
def test_decoders_of_another_form(tmp_path: Path, decoder: torch.Tensor, says: str) -> None:
    assert says in str(read(tmp_path, weights=save({"W_dec": decoder})))


@pytest.mark.documents("reliability/an-autoencoders-configuration-holds-something-else")
@pytest.mark.parametrize("place", [3, ["h"], {"a": 1}, True, "", "\ud800"])
def test_a_layer_that_is_given_does_not_hide_a_wrong_place(tmp_path: Path, place: Any) -> None:
    configuration = json.dumps({**CONFIGURATION, "metadata": {"hook_name": place}}).encode()
    result = read(tmp_path, configuration, layer="h.1")
    says = "surrogates not allowed" if place == "\ud800" else "as hook_name, which must be of the type str"
    assert isinstance(result, SteeringVector) if place == "" else says in str(result)


@pytest.mark.documents("reliability/an-autoencoders-configuration-holds-something-else")
@pytest.mark.parametrize("place", ["", "__metadata__", "\ud800", "h" * 1001, "blocks.\u0663.hook_resid_post"])
def test_places_that_cannot_be_layers(tmp_path: Path, place: str) -> None:
    configuration = json.dumps({**CONFIGURATION, "metadata": {"hook_name": place}}).encode()
    assert isinstance(read(tmp_path, configuration), VectorFileError)
