"""The packaged SmolLM2-135M: watching changes no bit of its training, and steering changes its text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning import (
    ActivationStatistics,
    HookCallback,
    LanguageModel,
    LayerActivationDetector,
    Schedule,
    SteeringController,
)
from tests.models import Module, assert_same_handles, handles, loader, trainer

TEXTS = ["The harbour was quiet in the morning.", "Rain fell.", "Two boats came in late.", "Tide was low at noon."]


@pytest.fixture
def lm(smollm2: LanguageModel) -> Iterator[LanguageModel]:
    """The model; every test leaves it in evaluation mode."""
    yield smollm2
    smollm2.model.eval()


@pytest.fixture
def rows(lm: LanguageModel) -> list[dict[str, Tensor]]:
    lm.tokenizer.padding_side = "left"
    encodings = lm.tokenize(TEXTS)
    return [{name: values[i] for name, values in encodings.items()} for i in range(len(TEXTS))]


def train(lm: LanguageModel, rows: list[dict[str, Tensor]], weights: dict[str, Tensor], *callbacks: Any) -> Any:
    """Two steps from the same weights and random state; what came of them."""
    lm.model.load_state_dict(weights)
    module = Module(lm.model)
    torch.manual_seed(7)
    run = trainer(*callbacks, limit_val_batches=0)
    run.fit(module, loader(rows, batch_size=2), loader(rows))
    assert run.global_step == 2
    state = {name: value.clone() for name, value in module.state_dict().items()}
    moments = [value for entry in run.optimizers[0].state_dict()["state"].values() for value in entry.values()]
    return state, moments, run.callback_metrics["loss"], torch.get_rng_state()


def test_training_with_detectors_is_bit_identical(lm: LanguageModel, rows: list[dict[str, Tensor]]) -> None:
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    before = handles(lm.model)
    bare = train(lm, rows, weights)
    watch = HookCallback(
        [
            ActivationStatistics("block:*"),
            ActivationStatistics("block:*.mlp", name="mlp"),
            LayerActivationDetector("block:12", name="kept"),
        ]
    )
    watched = train(lm, rows, weights, watch)
    assert len({row.layer for row in watch.history() if row.tag.startswith("activations_")}) == 30

    assert watched[0].keys() == bare[0].keys()
    assert all(torch.equal(watched[0][name], bare[0][name]) for name in bare[0])
    assert not torch.equal(
        bare[0]["model.model.layers.3.mlp.up_proj.weight"], weights["model.layers.3.mlp.up_proj.weight"]
    )
    assert len(watched[1]) == len(bare[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(watched[1], bare[1], strict=True))
    assert torch.equal(watched[2], bare[2]) and torch.equal(watched[3], bare[3])
    assert_same_handles(before, lm.model)
    lm.model.load_state_dict(weights)


def test_statistics_of_every_block_are_those_of_its_hidden_states(
    lm: LanguageModel, rows: list[dict[str, Tensor]]
) -> None:
    watch = HookCallback(ActivationStatistics("block:*", schedule=Schedule(stages="validate")))
    lm.model.eval()
    module = Module(lm.model)
    module.eval()
    trainer(watch).validate(module, loader(rows), verbose=False)
    rms = {row.layer: row.value for row in watch.history() if row.name == "rms"}

    encodings = lm.tokenize(TEXTS)
    with torch.no_grad():
        states = lm.model(**encodings, output_hidden_states=True).hidden_states
    real = encodings["attention_mask"].bool()
    # The last hidden state is behind the final norm, so the last block has no counterpart.
    for block in (0, 7, 28):
        wanted = states[block + 1][real].double().square().mean().sqrt().item()
        assert rms[f"model.model.layers.{block}"] == pytest.approx(wanted, rel=1e-5)


def test_steering_changes_the_text_and_switching_off_brings_it_back(
    lm: LanguageModel, rows: list[dict[str, Tensor]]
) -> None:
    captured = LayerActivationDetector("block:18")
    lm.layers.register_hook("block:18", captured)
    means = []
    for text in ("I love this, it is wonderful and makes me happy.", "I hate this, it is awful and makes me sad."):
        lm.inference.execute_inference([text])
        means.append(captured.get_captured()[0].mean(0))
    lm.layers.unregister_hook(captured)

    module = Module(lm.model, new_tokens=6)
    module.eval()
    steer = SteeringController("block:18", means[0] - means[1], strength=4.0, tokens="generated")
    run = trainer(HookCallback(controllers=steer))
    (plain,) = trainer().predict(module, loader(rows[:2]))
    (steered,) = run.predict(module, loader(rows[:2]))
    steer.disable()
    (off,) = run.predict(module, loader(rows[:2]))
    prompt = rows[0]["input_ids"].shape[0]
    assert torch.equal(off, plain)
    assert torch.equal(steered[:, :prompt], plain[:, :prompt])
    assert (steered[:, prompt:] != plain[:, prompt:]).any(dim=1).all()
