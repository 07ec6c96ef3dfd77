"""ContrastDetector in a Trainer: the vectors that it extracts are numpy's over all samples, collected by hand."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import ContrastDetector, HookCallback
from mi_crow_lightning.metrics.class_moments import GROUPS
from tests.hooks.detectors.contrasts import Reader, batches, by_hand, labels, texts
from tests.hooks.detectors.extracting import ALL, PAIRS, Generating, assert_directions, extract, layers_of, scaled
from tests.models import BLOCKS, bert, gpt2, llama, trainer


@pytest.mark.parametrize("tokens", ["all", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_the_difference_of_means_over_the_chosen_tokens(make: Any, side: str, tokens: str) -> None:
    model, loader = make(), batches(texts(PAIRS), side)
    detector = ContrastDetector("block:*", tokens=tokens)
    extract(detector, model, loader)
    label = labels(loader)
    rows = by_hand(model, loader, layers_of(model), tokens)
    wanted = {layer: x[label == 1].mean(0) - x[label == 0].mean(0) for layer, x in rows.items()}
    assert len(wanted) == BLOCKS
    vector = detector.vectors(force=True)  # which classes a random model separates is left to chance
    assert_directions(vector, wanted)
    assert (vector.method, vector.model, vector.tokens) == ("mean_difference", type(model).__name__, tokens)
    assert dict(vector.samples) == {"0": PAIRS, "1": PAIRS, "pairs": PAIRS}
    assert not {*vector.metadata} - {"no_better_than_random"}


def test_the_principal_component_of_paired_differences() -> None:
    model, loader = llama(), batches(texts(PAIRS), pairs_in_batch=3)
    detector = ContrastDetector("block:*", method="pca", covariance=["difference"])
    extract(detector, model, loader)
    wanted = {}
    for layer, x in by_hand(model, loader, layers_of(model)).items():
        differences = x[0::2] - x[1::2]
        unit = np.linalg.svd(np.concatenate([differences, -differences]))[2][0]
        wanted[layer] = scaled(unit, differences.mean(0))
    assert_directions(detector.vectors(force=True), wanted)
    methods = [detector.vectors(method, force=True).method for method in (None, "mean_difference")]
    assert methods == ["pca", "mean_difference"]


def test_the_logistic_probe_separates_what_it_was_fitted_on() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    detector = ContrastDetector("block:*", method="logistic", keep_samples=True)
    extract(detector, model, loader)
    vector, label = detector.vectors(force=True), labels(loader)
    for layer, x in by_hand(model, loader, layers_of(model)).items():
        projections = x @ vector[f"model.{layer}"].double().numpy()
        assert projections[label == 1].min() > projections[label == 0].max()
        # Along the probe the vector is as long as the class means are apart.
        norm = vector.norms()[f"model.{layer}"]
        apart = projections[label == 1].mean() - projections[label == 0].mean()
        assert apart / norm == pytest.approx(norm, rel=1e-4)


def test_moments_are_numpys() -> None:
    model, loader = llama(), batches(texts(PAIRS), "right")
    detector = ContrastDetector("block:1", **ALL)
    extract(detector, model, loader)
    (x,) = by_hand(model, loader, ["model.layers.1"]).values()
    (found,) = detector.moments().values()
    for group, wanted in zip(GROUPS, (x[1::2], x[0::2], x[0::2] - x[1::2]), strict=True):
        assert found[group].n == PAIRS
        np.testing.assert_allclose(found[group].mean.numpy(), wanted.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[group].covariance.numpy(), np.cov(wanted.T), rtol=1e-7, atol=1e-12)


def test_a_vector_of_what_goes_into_a_layer_says_so() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    into, out = ContrastDetector("block:2", hook_type="pre_forward"), ContrastDetector("block:1")
    extract(into, model, loader), extract(out, model, loader)
    assert torch.equal(into.vectors()["model.model.layers.2"], out.vectors()["model.model.layers.1"])
    assert dict(into.vectors().metadata) == {"hook_type": "pre_forward"}


def test_the_passes_of_a_batch_are_one_text() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    detectors = {which: ContrastDetector("block:2", tokens=which, name=which) for which in ("all", "generated")}
    generated = trainer(HookCallback(list(detectors.values()))).predict(Generating(model), loader)
    rows: dict[str, list[np.ndarray]] = {"all": [], "generated": []}
    kept: list[Tensor] = []
    model.model.layers[2].register_forward_hook(
        lambda module, args, output: kept.append(output if isinstance(output, Tensor) else output[0])
    )
    for batch, ids in zip(loader, generated, strict=True):
        new = ids.shape[1] - batch["input_ids"].shape[1]
        mask = torch.cat([batch["attention_mask"], torch.ones(len(ids), new, dtype=torch.long)], dim=1)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
        for x, real in zip(kept.pop().double().numpy(), mask.bool().numpy(), strict=True):
            rows["all"].append(x[:-1][real[:-1]].mean(0))  # the last token that is generated is not read again
            rows["generated"].append(x[-new:-1].mean(0))
    label = labels(loader)
    for which, detector in detectors.items():
        x = np.stack(rows[which])
        found = detector.vectors(force=True)["model.model.layers.2"].numpy()
        np.testing.assert_allclose(found, x[label == 1].mean(0) - x[label == 0].mean(0), atol=1e-5)


def test_classes_by_name_and_columns_by_function() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    plain = ContrastDetector("block:1")
    extract(plain, model, loader)
    named = []
    for batch in loader:
        kinds = [("sorrow", "joy")[label] for label in batch.pop("label").tolist()]
        named.append({**batch, "kind": kinds, "of": batch.pop("pair").tolist()})
    detector = ContrastDetector(
        "block:1", classes=("sorrow", "joy"), label="kind", pair=lambda batch: torch.tensor(batch["of"])
    )
    extract(detector, model, DataLoader(named, batch_size=None))
    layer = "model.model.layers.1"
    assert torch.equal(detector.vectors()[layer], plain.vectors()[layer])
    assert dict(detector.vectors().samples) == {"sorrow": PAIRS, "joy": PAIRS, "pairs": PAIRS}
    swapped = ContrastDetector("block:1", classes=(1, 0))
    extract(swapped, model, batches(texts(PAIRS)))
    assert torch.equal(swapped.vectors()[layer], -plain.vectors()[layer])


def test_vectors_of_what_is_no_sequence() -> None:
    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0])

    torch.manual_seed(0)
    x, y, module = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0]), Classifier()
    detector = ContrastDetector("net.0", label=lambda batch: batch[1], pair=lambda batch: None)
    trainer(HookCallback(detector)).predict(module, DataLoader([(x[:4], y[:4]), (x[4:], y[4:])], batch_size=None))
    out = module.net[0](x).detach()
    torch.testing.assert_close(detector.vectors()["net.0"], out[y == 1].mean(0) - out[y == 0].mean(0))
    assert dict(detector.vectors().samples) == {"0": 3, "1": 3, "pairs": 0}


def test_what_padding_holds_does_not_count() -> None:
    class Padded(nn.Module):
        """Gives NaN at padding, as attention over nothing does."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = nn.functional.one_hot(input_ids, 64).float()
            return self.inner(torch.where(attention_mask[..., None].bool(), x, float("nan")))

    detector = ContrastDetector("inner")
    trainer(HookCallback(detector)).predict(Reader(Padded()), batches(texts(PAIRS)))
    assert detector.vectors()["model.inner"].any()


def test_tokens_in_one_row() -> None:
    class Flat(nn.Module):
        """Lays all tokens in one row for its inner layer, as mixtures of experts do."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Identity(), nn.Identity()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = nn.functional.one_hot(input_ids, 64).float()
            return self.outer(self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    detectors = [ContrastDetector(name, name=name) for name in ("inner", "outer")]
    trainer(HookCallback(detectors)).predict(Reader(Flat()), batches(texts(PAIRS)))
    inner, outer = (next(iter(detector.vectors().values())) for detector in detectors)
    assert torch.equal(inner, outer) and inner.any()
