"""The packaged SmolLM2-135M: vectors from the contrast pairs of the examples."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.science.lab import gaps
from examples.science.texts import TRAITS, pairs_of
from mi_crow_lightning import (
    ContrastDetector,
    HookCallback,
    LanguageModel,
    PairCollator,
    SteeringController,
    SteeringVector,
    Tokens,
)
from mi_crow_lightning.hooks import Layers
from tests.hooks.detectors.contrasts import Reader
from tests.models import trainer

BLOCK = "model.model.layers.18"
NEUTRAL = ["The weather today is", "My neighbour told me that the day was", "In my opinion this was", "I feel"]
GOOD, BAD = [" great", " wonderful", " happy", " good"], [" terrible", " awful", " sad", " bad"]


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    texts = json.loads((Path(__file__).parents[3] / "examples" / "joy_and_sorrow.json").read_text())
    return list(zip(texts["positive"], texts["negative"], strict=True))


@pytest.fixture(scope="module")
def extracted(smollm2: LanguageModel, pairs: Any) -> dict[str, ContrastDetector]:
    """From twelve pairs, scored on four others: over all tokens, without the first of each text, and ordinary ones."""
    smollm2.tokenizer.padding_side = "right"
    chosen = {"all": Tokens("all"), "later": ~Tokens(positions=[0]), "ordinary": Tokens("ordinary")}
    detectors = {name: ContrastDetector("block:*", tokens=tokens, name=name) for name, tokens in chosen.items()}
    run, module, collate = (
        trainer(HookCallback(list(detectors.values()))),
        Reader(smollm2.model),
        PairCollator(smollm2.tokenize),
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run.predict(module, DataLoader(pairs[:12], batch_size=4, collate_fn=collate))
    # With all tokens always; without the first one of each text, another one is massive in one of them.
    assert sum("in 24 of 24 texts one token has more" in str(one.message) for one in warned) == 1
    assert sum("channel 507 holds 9" in str(one.message) for one in warned) == 1
    run.validate(module, DataLoader(pairs[12:], batch_size=4, collate_fn=collate), verbose=False)
    return detectors


def test_the_vector_is_the_difference_of_mean_hidden_states(
    smollm2: LanguageModel, pairs: Any, extracted: dict[str, ContrastDetector]
) -> None:
    means: list[list[Tensor]] = [[], []]
    for pair in pairs[:12]:
        for rows, text in zip(means, pair, strict=True):
            with torch.no_grad():
                states = smollm2.model(**smollm2.tokenize([text]), output_hidden_states=True).hidden_states
            rows.append(states[19][0, 1:].double().mean(0))  # what block 18 gives, without the first token
    wanted = torch.stack(means[0]).mean(0) - torch.stack(means[1]).mean(0)
    vector = extracted["later"].vectors()
    # A text alone and one in a batch differ by rounding, which massive activations make large.
    torch.testing.assert_close(vector[BLOCK].double(), wanted, rtol=1e-3, atol=1e-3 * wanted.norm().item())
    assert len(vector) == 30 and vector.samples == {"0": 12, "1": 12, "pairs": 12}
    assert vector.tokens == "~Tokens(positions=[0])"


def test_held_out_pairs_are_told_apart_once_the_first_token_is_left_out(extracted: dict[str, ContrastDetector]) -> None:
    auroc = {name: {row.layer: row.auroc for row in d.separability()} for name, d in extracted.items()}
    # The first token's massive activation, divided by the length of the text, drowns all else in the mean.
    assert auroc["later"][BLOCK] == 1.0 > auroc["all"][BLOCK]
    assert auroc["later"][extracted["later"].best_layer()] == 1.0
    assert auroc["ordinary"][BLOCK] == 1.0


def test_no_channel_dominates_a_vector_of_ordinary_tokens(extracted: dict[str, ContrastDetector]) -> None:
    def share(name: str) -> float:
        return max(float((v**2).max() / (v**2).sum()) for v in extracted[name].vectors(force=True).values())

    assert share("ordinary") < 0.3 < share("all")


def test_it_steers_and_its_random_control_does_less(
    smollm2: LanguageModel, extracted: dict[str, ContrastDetector]
) -> None:
    """The log-probability of four good next words over four bad ones, after neutral beginnings."""
    vector = extracted["later"].vectors().fitted_to(smollm2.model)
    (layer,) = [name for name in vector if BLOCK.endswith(name)]
    first = partial(smollm2.tokenizer.encode, add_special_tokens=False)
    good, bad = (torch.tensor([first(word)[0] for word in words]) for words in (GOOD, BAD))
    batch = smollm2.tokenize(NEUTRAL)
    last = batch["attention_mask"].sum(1) - 1

    def gap(direction: SteeringVector, strength: float) -> float:
        layers = Layers(smollm2.model)
        layers.register_hook(layer, SteeringController(layer, direction[layer], strength))
        with torch.no_grad():
            logits = smollm2.model(**batch).logits[range(len(NEUTRAL)), last].log_softmax(-1)
        layers.unregister_all_hooks()
        return (logits[:, good].mean() - logits[:, bad].mean()).item()

    steered = [gap(vector, strength) for strength in (-1.0, 0.0, 1.0, 2.0)]
    control = [gap(vector.random_like(0), strength) for strength in (-1.0, 0.0, 1.0, 2.0)]
    assert steered == sorted(steered) and steered[1] == control[1]
    assert steered[-1] - steered[0] > 3 * (max(control) - min(control))


def test_one_call_gives_the_vector_and_it_steers_as_make_science_says(smollm2: LanguageModel) -> None:
    """The dose response of the joyful manner at block 15, as in `examples/science`."""
    about, pairs = TRAITS["joy"], pairs_of("joy", 0)
    vector = SteeringVector.from_pairs(smollm2, pairs=pairs, layers="block:15")
    assert vector.samples["pairs"] == 19
    (quality,) = vector.quality
    assert quality.auroc > 0.8 > quality.random_auroc and quality.anti_steerable == 0 and quality.p_value < 0.01
    smollm2.tokenizer.padding_side = "left"
    steer = SteeringController("block:15", vector, strength="batch")
    slopes = {}
    for one in (vector, vector.random_like(0)):
        steer.vector = one
        low, none, high = gaps(smollm2, about, about["prompts"], steer, sweep=(-2.0, 0.0, 2.0))
        slopes[one.is_random] = (high - low) / 4
        assert one.is_random or bool((low < none).all() and (none < high).all())
    # `make science` has 1.02 nats per strength over three draws of the pairs; a random vector about none.
    assert 0.7 < slopes[False].mean() < 1.3 and abs(slopes[True].mean()) < 0.3
