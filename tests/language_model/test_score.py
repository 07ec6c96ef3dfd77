"""Projections of texts on a saved vector: each is numpy's, of a plain hook's activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import HookError, RegistrationError
from mi_crow_lightning.language_model import score_texts
from tests.hooks.detectors.contrasts import Reader, batches, by_hand, labels, texts
from tests.models import assert_same_handles, handles, llama

LAYERS = ["model.layers.1", "model.layers.3"]


def vector(width: int = 32) -> SteeringVector:
    rng = torch.Generator().manual_seed(3)
    return SteeringVector({f"model.{layer}": 5 * torch.randn(width, generator=rng) for layer in LAYERS})


@pytest.mark.parametrize("side", ["left", "right"])
def test_projections_auroc_and_d_prime_are_numpys(side: str, tmp_path: Path) -> None:
    model, loader = llama(), batches(texts(9), side)
    vector().save(tmp_path / "joy.safetensors")
    saved, before = SteeringVector.load(tmp_path / "joy.safetensors"), handles(model)
    table = score_texts(saved, Reader(model), loader, tokens="all", accelerator="cpu")
    assert_same_handles(before, model)
    label = labels(loader)
    assert len(table) == 2 * len(label) and repr(table) == "<projections of 18 texts at 2 layers>"
    for (layer, x), score in zip(by_hand(model, loader, LAYERS).items(), table.separability(), strict=True):
        unit = saved[f"model.{layer}"].double().numpy()
        wanted = x @ (unit / np.linalg.norm(unit))
        rows = [row for row in table if row.layer == f"model.{layer}"]
        assert [(row.place, row.label) for row in rows] == list(enumerate(label.tolist()))
        np.testing.assert_allclose([row.projection for row in rows], wanted, rtol=1e-6, atol=1e-9)
        high, low = wanted[label == 1], wanted[label == 0]
        assert score.auroc == pytest.approx(np.mean(high[:, None] > low))
        spread = np.sqrt((high.var() + low.var()) / 2)
        assert score.d_prime == pytest.approx((high.mean() - low.mean()) / spread, rel=1e-6)


def test_texts_without_labels_have_projections_alone() -> None:
    model, rows = llama(), list(batches(texts(3)))
    plain: Any = [{name: one[name] for name in ("input_ids", "attention_mask")} for one in rows]
    loader = DataLoader(plain, batch_size=None)
    table = score_texts(vector(), Reader(model), loader, tokens="all", accelerator="cpu")
    labelled = score_texts(vector(), Reader(model), batches(texts(3)), tokens="all", accelerator="cpu")
    assert [row.projection for row in table] == [row.projection for row in labelled]
    assert {row.label for row in table} == {None} and len(table.to_pandas()) == len(table)
    with pytest.raises(ValueError, match="the texts have no labels"):
        table.separability()


def test_a_vector_that_does_not_fit_is_refused_with_what_was_given() -> None:
    module, loader = Reader(llama()), batches(texts(3))
    by_role = SteeringVector({"block:1": torch.ones(32)})
    with pytest.raises(RegistrationError, match=r"the vector has 'block:1', and nothing under the name 'model"):
        score_texts(by_role, module, loader, tokens="all", accelerator="cpu")
    fitted = score_texts(by_role.fitted_to(module), module, loader, tokens="all", accelerator="cpu")
    assert {row.layer for row in fitted} == {"model.model.layers.1"}
    with pytest.raises(HookError, match=r"the vector has 5 features at 'model\.model\.layers\.1', and .* have 32"):
        score_texts(vector(5), module, loader, tokens="all", accelerator="cpu")
    with pytest.raises(TypeError, match="must be a SteeringVector"):
        score_texts({"block:1": torch.ones(32)}, module, loader)  # type: ignore[arg-type]


def test_a_loader_that_shuffles_is_refused() -> None:
    module, rows = Reader(llama()), list(batches(texts(3)))
    shuffled = DataLoader(rows, batch_size=None, sampler=RandomSampler(rows))  # type: ignore[arg-type]
    chosen = BatchSampler(SubsetRandomSampler([2, 0, 1]), 1, drop_last=False)
    for loader in (shuffled, [batches(texts(3)), shuffled], DataLoader(rows, batch_sampler=chosen)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"the loader shuffles, .*shuffle=False"):
            score_texts(vector(), module, loader, tokens="all", accelerator="cpu")
    in_order = DataLoader(rows, batch_size=None, sampler=[1, 0])  # type: ignore[arg-type]
    assert len(score_texts(vector(), module, in_order, tokens="all", accelerator="cpu")) > 0


def test_errors_are_of_the_function_that_was_called() -> None:
    with pytest.raises(HookError, match=r"^score_texts \(forward\) failed at layer") as caught:
        score_texts(vector(5), Reader(llama()), batches(texts(3)), tokens="all", accelerator="cpu")
    assert "_Projections" not in str(caught.value)
