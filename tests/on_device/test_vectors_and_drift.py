"""Vectors and drift of a model on the device: those of the model on a CPU, which other tests compare with numpy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mi_crow_lightning import ContrastDetector, DriftDetector, HookCallback
from tests.hooks.detectors.contrasts import Reader, batches, texts
from tests.models import WIDTH, Module, llama, loader, token_data, trainer

CPU: dict[str, Any] = {"accelerator": "cpu"}


def test_contrast_vectors(on_device: dict[str, Any]) -> None:
    found = []
    for options in (CPU, on_device):
        detector = ContrastDetector("block:*", covariance=["difference"])
        runner, reader = trainer(HookCallback(detectors=detector), **options), Reader(llama())
        runner.predict(reader, batches(texts(10)))
        runner.validate(reader, batches(texts(10, seed=1)), verbose=False)
        found.append(
            (
                detector.vectors("mean_difference", force=True),
                detector.vectors("pca", force=True),
                detector.separability(),
            )
        )
    for name, vector in found[0][0].items():
        other = found[1][0][name]
        assert other.device.type == "cpu"
        torch.testing.assert_close(other, vector, rtol=1e-3, atol=1e-6)
        assert abs(torch.cosine_similarity(found[1][1][name], found[0][1][name], dim=0)) > 0.99
    for one, other in zip(found[0][2], found[1][2], strict=True):
        assert other.layer == one.layer and other.auroc == pytest.approx(one.auroc, abs=0.03)


def test_drift_from_a_reference(on_device: dict[str, Any]) -> None:
    tables = []
    for options in (CPU, on_device):
        base = DriftDetector("block:*", "start", sketch_size=WIDTH)
        trainer(HookCallback(base), **options).validate(Module(llama()).eval(), loader(token_data()), verbose=False)
        model = llama()
        model.model.layers[1].mlp.down_proj.weight.data *= 3
        moved = DriftDetector("block:*", base.reference(), sketch_size=WIDTH)
        trainer(HookCallback(moved), **options).validate(Module(model).eval(), loader(token_data()), verbose=False)
        tables.append(moved.table())
    for one, other in zip(*tables, strict=True):
        assert other.layer == one.layer and other.tokens == one.tokens
        assert other.cosine == pytest.approx(one.cosine, abs=1e-4)
        assert other.cka == pytest.approx(one.cka, abs=1e-3)
    assert tables[1][0].cosine == pytest.approx(1.0, abs=1e-4) and tables[1][1].cosine < 0.999
