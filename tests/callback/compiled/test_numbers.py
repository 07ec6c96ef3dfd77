"""Hooks in runs of what `torch.compile` compiled: the numbers of the uncompiled run, in graphs of one piece."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from mi_crow_lightning import ActivationStatistics, HookCallback, ScaleController, Schedule
from tests.callback.compiled.cases import (
    INDUCTOR,
    QUIET,
    WAYS,
    Counted,
    as_it_is,
    assert_same_numbers,
    fitted,
    in_place,
    small_llama,
    small_mlp,
    watched_and_steered,
    wrapped,
)
from tests.callback.runs import fit, run
from tests.models import loader, token_data, trainer, vector_data

pytestmark = QUIET


@pytest.mark.documents(
    "compatibility/the-lightningmodule-or-a-model-in-it-wrapped-or-in-place/detectors",
    "compatibility/the-lightningmodule-or-a-model-in-it-wrapped-or-in-place/logging",
)
@pytest.mark.parametrize("way", WAYS)
def test_a_fit_gives_the_numbers_of_one_that_is_not_compiled(way: Any) -> None:
    expected, _, weights = fitted(as_it_is, watched_and_steered, max_epochs=3)
    found, counted, compiled_weights = fitted(way, watched_and_steered, max_epochs=3)
    assert found is not None and expected is not None
    assert_same_numbers(found, expected)
    for one, other in zip(compiled_weights, weights, strict=True):
        torch.testing.assert_close(one, other)
    _, bare, _ = fitted(way, None)
    assert counted.breaks == bare.breaks == 0
    assert bare.graphs < counted.graphs <= bare.graphs + 2


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_other_backends(backend: str) -> None:
    callbacks, counted = [], Counted(backend)
    for way in (as_it_is, wrapped):
        watch = ActivationStatistics("model.3", statistics=["mean", "std", "dead_share"], histogram=False)
        steer = ScaleController("model.3", 2.0, schedule=Schedule(stages="train"))
        callbacks.append(HookCallback(watch, steer))
        run("fit", trainer(callbacks[-1], limit_val_batches=0), way(small_mlp(), counted.backend), vector_data())
    assert_same_numbers(*callbacks)
    assert (counted.graphs, counted.breaks) == (1, 0)


class Outputs:
    """What a layer gave in an eager run, as numpy float64, real tokens only."""

    def __init__(self, layer: nn.Module) -> None:
        self.seen: list[np.ndarray] = []
        layer.register_forward_hook(lambda module, args, output: self.seen.append(output.detach().double().numpy()))

    def tokens(self) -> np.ndarray:
        masks = [batch["attention_mask"].numpy().astype(bool) for batch in loader(token_data())]
        return np.concatenate([x[mask] for x, mask in zip(self.seen, masks, strict=True)])


@pytest.mark.documents("compatibility/the-lightningmodule-or-a-model-in-it-wrapped-or-in-place/detectors")
@pytest.mark.parametrize("way", WAYS)
def test_statistics_leave_padding_out(way: Any) -> None:
    bare = small_llama()
    outputs = Outputs(bare.model.model.layers[1])  # type: ignore[index]
    run("validate", trainer(), bare, token_data())
    x = outputs.tokens()
    watch = HookCallback(ActivationStatistics("block:1"))
    run("validate", trainer(watch), way(small_llama(), "eager"), token_data())
    found = {
        tag.split("/")[0].removeprefix("activations_"): value
        for tag, value in ((row.name, row.value) for row in watch.history())
    }
    norms = np.linalg.norm(x, axis=1)
    expected = {
        "mean": x.mean(),
        "std": x.std(),
        "min": x.min(),
        "max": x.max(),
        "token_norm_mean": norms.mean(),
        "token_norm_max": norms.max(),
        "kurtosis": ((x - x.mean()) ** 4).mean() / x.var() ** 2 - 3,
        "outlier_ratio": (rms := np.sqrt((x**2).mean(0))).max() / np.median(rms),
        "nonfinite_count": 0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["zero_share"] == found["dead_share"] == 0


def test_the_state_is_that_without_compiling() -> None:
    states = []
    for way in (as_it_is, in_place):
        detector = ActivationStatistics("model.3", schedule=Schedule("train"))
        kept: list[Any] = []

        class Keep(pl.Callback):
            def on_train_end(self, *event: Any) -> None:
                kept.append(detector.state_dict())  # noqa: B023

        fit(
            way(small_mlp(), "eager"),
            vector_data(),
            HookCallback(detector, log_every_n_steps=100),
            Keep(),
            max_epochs=1,
        )
        states.append(kept[0])
    for part in ("rows", "channels"):
        torch.testing.assert_close(states[1][part]["train"], states[0][part]["train"], rtol=1e-5, atol=1e-5)
