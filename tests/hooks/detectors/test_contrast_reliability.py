"""ContrastDetector says how far its pairs agree, and refuses directions that chance makes as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import ContrastDetector, HookCallback
from mi_crow_lightning.errors import NothingExtracted, RandomDirection
from tests.hooks.detectors.contrasts import Reader
from tests.models import trainer

WIDTH, PAIRS = 24, 20


class Two(nn.Module):
    """Two layers: the second takes away all that the classes differ in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, noise: Tensor) -> None:
        self.second(self.first(x) * 0 + noise)


class Runs(Reader):
    def read(self, batch: dict[str, Tensor]) -> None:
        self.model(batch["x"], batch["noise"])


def loader(shift: float, paired: bool = True, pairs: int = PAIRS, batch_size: int = 8) -> DataLoader[Any]:
    rng = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 2 * pairs, WIDTH, generator=rng)
    label = torch.arange(2 * pairs) % 2
    x[label == 1, :4] += shift
    rows = [{"x": a, "noise": b, "label": int(c)} for a, b, c in zip(x, noise, label, strict=True)]
    for i, row in enumerate(rows if paired else ()):
        row["pair"] = i // 2
    return DataLoader(rows, batch_size=batch_size)  # type: ignore[arg-type]


def extracted(shift: float, *signature: str, **data: Any) -> ContrastDetector:
    detector = ContrastDetector([*signature] or ["first"])
    trainer(HookCallback(detector)).predict(Runs(Two()), loader(shift, **data))
    return detector


@pytest.mark.parametrize("paired", [True, False])
def test_classes_that_are_alike_give_no_vector(paired: bool) -> None:
    detector = extracted(0.0, paired=paired)
    with pytest.raises(RandomDirection) as caught:
        detector.vectors()
    said = str(caught.value)
    assert said.startswith("the direction is not better than a random one at 'model.first': ")
    assert f"of {'flipped signs of 20 differences' if paired else 'labels dealt out again to 40 samples'}" in said
    assert ("The coherence is 0." in said) == paired and "vectors(force=True) returns it anyway" in said
    forced = detector.vectors(force=True)
    assert forced.metadata == {"no_better_than_random": True}
    assert [control.method for control in detector.controls()] == ["random"] * 8


@pytest.mark.parametrize("paired", [True, False])
def test_classes_that_differ_give_one(paired: bool) -> None:
    detector = extracted(1.5, paired=paired)
    assert detector.vectors().metadata == {} and detector.vectors(force=True).metadata == {}
    (row,) = detector.reliability()
    assert row.p_value < 0.01 and (row.n, row.block) == ((PAIRS if paired else 2 * PAIRS), None)
    assert np.isnan(row.coherence) != paired


def test_layers_without_a_difference_are_named() -> None:
    detector = extracted(1.5, "first", "second")
    with pytest.warns(UserWarning, match=r"at 1 of 2 layers the direction is not better than a random one: model\.sec"):
        vector = detector.vectors()
    assert not vector.metadata and [row.is_random for row in detector.reliability()] == [False, True]
    assert len(detector.vectors(force=True)) == 2


@pytest.mark.parametrize("batch_size", [4, 40])
def test_the_figures_are_those_of_numpy(batch_size: int) -> None:
    detector = extracted(0.7, batch_size=batch_size)
    rows = loader(0.7).dataset
    x = torch.stack([row["x"] for row in rows]).double().numpy()  # type: ignore[attr-defined]
    differences = x[1::2] - x[0::2]
    mean = differences.mean(0)
    units = differences / np.linalg.norm(differences, axis=1, keepdims=True)
    gram = units @ units.T
    with_others = differences @ differences.sum(0) - (differences**2).sum(1)
    (row,) = detector.reliability()
    assert row.coherence == pytest.approx((units @ mean / np.linalg.norm(mean)).mean(), abs=1e-12)
    assert row.pairwise == pytest.approx((gram.sum() - PAIRS) / (PAIRS * (PAIRS - 1)), abs=1e-12)
    assert row.anti_steerable == (with_others < 0).mean()


def test_they_are_readings() -> None:
    callback = HookCallback(ContrastDetector("first"))
    trainer(callback).predict(Runs(Two()), loader(1.5))
    (row,) = callback.detectors[0].reliability()
    named = {reading.name: reading.value for reading in callback.history()}
    assert (named["coherence"], named["anti_steerable"]) == pytest.approx((row.coherence, row.anti_steerable))
    unpaired = HookCallback(ContrastDetector("first"))
    trainer(unpaired).predict(Runs(Two()), loader(1.5, paired=False))
    assert {reading.name for reading in unpaired.history()} == {"norm"}


def test_a_few_pairs_are_not_judged() -> None:
    detector = extracted(0.0, pairs=5)
    assert len(detector.vectors()) == 1
    assert repr(detector.reliability()).endswith("; too few to judge>")


def test_before_a_run_there_is_nothing() -> None:
    for ask in (ContrastDetector("first").reliability, ContrastDetector("first").controls):
        with pytest.raises(NothingExtracted):
            ask()
