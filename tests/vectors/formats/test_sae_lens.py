"""Decoder rows of autoencoders in SAELens' format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.vectors import from_sae
from tests.models import llama

FEATURES, WIDTH = 16, 32
DECODER = torch.randn(FEATURES, WIDTH, generator=torch.Generator().manual_seed(0))


def autoencoder(folder: Path, configuration: dict[str, Any], **weights: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(configuration))
    save_file({"W_enc": DECODER.T.contiguous(), "W_dec": DECODER, **weights}, folder / "sae_weights.safetensors")
    return folder


def of_release_6(hook_name: str) -> dict[str, Any]:
    """As SAELens 6.54.12 writes it, in part."""
    metadata = {"sae_lens_version": "6.54.12", "hook_name": hook_name, "model_name": "gpt2-small"}
    return {"d_in": WIDTH, "d_sae": FEATURES, "dtype": "float32", "metadata": metadata, "architecture": "standard"}


@pytest.mark.parametrize("key", ["hook_name", "hook_point"])
def test_a_row_of_an_older_release(tmp_path: Path, key: str) -> None:
    configuration = {"d_in": WIDTH, "d_sae": FEATURES, "model_name": "gpt2-small", key: "blocks.3.hook_resid_post"}
    assert from_sae(autoencoder(tmp_path, configuration), 3).layers == ("block:3",)


@pytest.mark.parametrize(
    ("hook_name", "layer"),
    [
        ("blocks.3.hook_resid_post", "block:3"),
        ("blocks.3.hook_resid_pre", "block:2"),
        ("blocks.0.hook_mlp_out", "block:0.mlp"),
        ("blocks.0.hook_attn_out", "block:0.attn"),
        ("model.layers.3", "model.layers.3"),
    ],
)
def test_a_row_and_its_place(tmp_path: Path, hook_name: str, layer: str) -> None:
    vector = from_sae(autoencoder(tmp_path, of_release_6(hook_name)), feature=5)
    assert vector.layers == (layer,) and torch.equal(vector[layer], DECODER[5])
    facts = {"sae_feature": 5, "sae_hook_name": hook_name, "sae_model_name": "gpt2-small"}
    assert (vector.method, dict(vector.metadata), vector.model) == ("sae_decoder", facts, "")
    vector.check_fits(llama())


def test_a_layer_given_wins(tmp_path: Path) -> None:
    folder = autoencoder(tmp_path, of_release_6("blocks.0.hook_resid_pre"))
    assert from_sae(str(folder), 5, layer="model.embed_tokens").layers == ("model.embed_tokens",)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    folder = autoencoder(tmp_path, of_release_6("blocks.1.hook_resid_post"), W_dec=DECODER.bfloat16())
    assert torch.equal(from_sae(folder, 2)["block:1"], DECODER[2].bfloat16().float())


def test_an_autoencoder_that_sae_lens_saved(tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    configuration = sae_lens.StandardSAEConfig(d_in=WIDTH, d_sae=FEATURES)
    configuration.metadata.hook_name = "blocks.3.hook_resid_post"
    sae = sae_lens.StandardSAE(configuration)
    sae.W_dec.data.normal_()
    sae.save_model(tmp_path)
    assert torch.equal(from_sae(tmp_path, 7)["block:3"], sae.W_dec[7])


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (of_release_6("blocks.0.hook_resid_pre"), "is the input of the first block, .* give layer="),
        (
            of_release_6("blocks.3.attn.hook_z"),
            "'blocks.3.attn.hook_z', which is not the output of a block, its attention",
        ),
        ({"d_in": WIDTH}, "has no hook_name: give layer="),
        (
            {**of_release_6("blocks.3.hook_resid_post"), "d_in": 8},
            r"has shape \(16, 32\) of 'W_dec', and \(d_sae, 8\) is needed",
        ),
        ([], "does not hold a JSON object"),
        ({"metadata": 3}, "does not hold a JSON object"),
        ({"hook_name": ["blocks.3.hook_resid_post"]}, r"has \['blocks.3.hook_resid_post'\] as hook_name"),
        ({"hook_name": "h.3", "model_name": 3}, "has 3 as model_name, which must be of the type str"),
        ({"hook_name": "h.3", "d_in": "32"}, "has '32' as d_in, which must be of the type int"),
        ({"hook_name": "h" * 2000}, "has a hook with a name of 2000 characters, and at most 1000"),
    ],
)
def test_configurations_that_tell_no_place(tmp_path: Path, configuration: Any, message: str) -> None:
    with pytest.raises(VectorFileError, match=message):
        from_sae(autoencoder(tmp_path, configuration), 0)


@pytest.mark.parametrize("feature", [FEATURES, -1, True, "3"])
def test_features_that_are_not_there(tmp_path: Path, feature: Any) -> None:
    folder = autoencoder(tmp_path, of_release_6("blocks.3.hook_resid_post"))
    with pytest.raises(IndexError, match=rf"no feature {feature!r}: the autoencoder has 16, 0 to 15"):
        from_sae(folder, feature)


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no cfg.json in '.*': an autoencoder of SAELens has cfg.json and sae_w"
    ):
        from_sae(tmp_path, 0)
    folder = autoencoder(tmp_path, of_release_6("blocks.3.hook_resid_post"))
    (folder / "cfg.json").write_text("{")
    with pytest.raises(VectorFileError, match=r"cfg.json' is not JSON"):
        from_sae(folder, 0)
    autoencoder(tmp_path, of_release_6("blocks.3.hook_resid_post"), W_dec=torch.ones(4))
    with pytest.raises(VectorFileError, match=r"has shape \(4,\)"):
        from_sae(folder, 0)
    save_file({"decoder": DECODER}, folder / "sae_weights.safetensors")
    with pytest.raises(VectorFileError, match=r"holds \['decoder'\], and not 'W_dec'"):
        from_sae(folder, 0)
    (folder / "sae_weights.safetensors").write_bytes(b"pickle")
    with pytest.raises(VectorFileError, match=r"not a readable safetensors file"):
        from_sae(folder, 0)
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no sae_weights.safetensors"):
        from_sae(folder, 0)
