"""`SteeringVector.from_pairs`: numpy's directions and scores, nothing left behind, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from mi_crow_lightning import (
    ActivationStatistics,
    ContrastDetector,
    HookCallback,
    LanguageModel,
    PairCollator,
    ScaleController,
    SteeringVector,
)
from mi_crow_lightning.errors import LayerNotFound, RandomDirection
from mi_crow_lightning.language_model.contrast_pairs import contrast_pairs, split
from tests.hooks.detectors.contrasts import Reader
from tests.language_model.tiny import model_of, tokens
from tests.models import assert_same_handles, handles, trainer

NAMES = ["fox", "dog", "hello", "over", "the", "lazy", "brown", "jump", "quick", "world", "hi", "a", "b", "c", "d", "e"]
PAIRS = [(f"The {name} jumps, hello world!", f"A lazy dog and {name}") for name in NAMES]
ROOMS = [f"model.layers.{i}" for i in range(4)]


def representations(model: Any, texts: list[str], layer: int) -> np.ndarray:
    """Mean hidden state of each text, alone and without padding, float64."""
    rows = []
    for text in texts:
        ids = torch.tensor([tokens()(text)["input_ids"]])
        with torch.no_grad():
            rows.append(model(ids, output_hidden_states=True).hidden_states[layer + 1][0].double().mean(0).numpy())
    return np.stack(rows)


def test_directions_and_scores_are_numpys() -> None:
    model = model_of("llama")
    vector = SteeringVector.from_pairs(model, tokens(), PAIRS, tokens="all", batch_size=5)
    made, scored = split(PAIRS, 0.25, seed=0)
    assert vector.layers == tuple(ROOMS) and vector.samples == {"0": 12, "1": 12, "pairs": 12}
    assert (vector.method, vector.tokens, len(scored)) == ("mean_difference", "all", 4)
    for i, row in enumerate(vector.quality[:3]):  # the last hidden state has the final norm in it
        sides = [representations(model, [pair[side] for pair in made], i) for side in (0, 1)]
        delta = sides[0].mean(0) - sides[1].mean(0)
        np.testing.assert_allclose(vector[ROOMS[i]].numpy(), delta, rtol=1e-4, atol=1e-6)
        high, low = (representations(model, [pair[side] for pair in scored], i) @ delta for side in (0, 1))
        assert row.auroc == np.mean(high[:, None] > low)
        spread = np.sqrt((high.var() + low.var()) / 2)
        assert row.d_prime == pytest.approx((high.mean() - low.mean()) / spread, rel=1e-4)
        differences = sides[0] - sides[1]
        cosines = differences @ delta / np.linalg.norm(differences, axis=1) / np.linalg.norm(delta)
        assert row.coherence == pytest.approx(cosines.mean(), rel=1e-4)
        folded = []
        for control in vector.random_controls(8):
            high, low = (
                representations(model, [pair[side] for pair in scored], i) @ control[ROOMS[i]].double().numpy()
                for side in (0, 1)
            )
            auroc = np.mean(high[:, None] > low)
            folded.append(max(auroc, 1 - auroc))
        assert row.random_auroc == pytest.approx(np.mean(folded))
        assert (row.layer, row.block, row.n, row.held_out) == (ROOMS[i], i, 12, 8)
    assert vector.best_layer() == vector.quality.best().layer
    assert "random_auroc" in str(vector.quality) and len(vector.quality.to_pandas()) == 4


@pytest.mark.parametrize("method", ["mean", "pca", "logistic"])
def test_it_is_the_vector_of_a_detector_in_a_trainer(method: Any) -> None:
    lm = LanguageModel(model_of("llama"), tokens())
    lm.tokenizer.padding_side = "right"
    ours = SteeringVector.from_pairs(lm, pairs=PAIRS, layers="block:1-2", method=method, held_out=0, batch_size=4)
    kept: dict[str, Any] = {"covariance": ["difference"], "keep_samples": True}
    named = "mean_difference" if method == "mean" else method
    detector = ContrastDetector("block:1-2", method=named, tokens="ordinary", held_out=None, **kept)
    batches = torch.utils.data.DataLoader(PAIRS, batch_size=4, collate_fn=PairCollator(lm.tokenize))
    trainer(HookCallback(detector)).predict(Reader(lm.model), batches)
    theirs = detector.vectors().fitted_to(lm.model)
    assert ours.origin == theirs.origin
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in theirs)
    assert [row.p_value for row in ours.quality] == [row.p_value for row in detector.reliability()]
    assert all(np.isnan(row.auroc) and row.held_out == 0 for row in ours.quality)
    assert "with coherence" in repr(ours.quality) and ours.best_layer() in ours


def test_nothing_is_left_behind_and_hooks_of_the_language_model_take_no_part() -> None:
    lm = LanguageModel(model_of("llama", dropout=0.5).train(), tokens())
    lm.model.model.layers[2].eval()
    alone = SteeringVector.from_pairs(lm.model, tokens(), PAIRS)
    seen = ActivationStatistics("block:*", statistics=["mean"])
    lm.layers.register_hook(None, seen)
    lm.layers.register_hook(None, ScaleController("block:0", 3.0))
    before, modes = handles(lm.model), [module.training for module in lm.model.modules()]
    state, weights = torch.random.get_rng_state(), {name: one.clone() for name, one in lm.model.state_dict().items()}
    assert SteeringVector.from_pairs(lm, pairs=PAIRS) == alone
    assert_same_handles(before, lm.model)
    assert [module.training for module in lm.model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one, weights[name]) for name, one in lm.model.state_dict().items())
    assert not list(seen.readings()) and all(one.grad is None for one in lm.model.parameters())


def test_padding_and_batches_do_not_matter() -> None:
    model = model_of("gpt2")
    one, many = (SteeringVector.from_pairs(model, tokens(), PAIRS, batch_size=size) for size in (1, 16))
    for layer in one:
        torch.testing.assert_close(one[layer], many[layer], rtol=1e-4, atol=1e-5)


def test_a_failure_leaves_nothing_behind() -> None:
    model = model_of("gpt2").train()
    before = handles(model)
    with pytest.raises(IndexError):
        SteeringVector.from_pairs(model, tokens(), [*PAIRS, ("The quick brown fox " * 30, "no")], held_out=0)
    assert_same_handles(before, model)
    assert all(module.training for module in model.modules())
    SteeringVector.from_pairs(model, tokens(), [*PAIRS, ("The quick brown fox " * 30, "no")], max_length=60)


def test_directions_of_chance_are_refused_and_can_be_forced() -> None:
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(NAMES, 8)) for _ in range(40)]
    pairs = list(zip(words[:20], words[20:], strict=True))
    with pytest.raises(RandomDirection):
        SteeringVector.from_pairs(model_of("llama"), tokens(), pairs)
    forced = SteeringVector.from_pairs(model_of("llama"), tokens(), pairs, force=True)
    assert forced.metadata["no_better_than_random"] is True


def test_several_ranks_are_refused() -> None:
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        with pytest.raises(
            RuntimeError, match=r"several ranks run: make the vector before they start, or use Contrast"
        ):
            SteeringVector.from_pairs(model_of("llama"), tokens(), PAIRS)
    finally:
        distributed.destroy_process_group()


# Pairs.


def test_forms_of_pairs(tmp_path: Path) -> None:
    dicts = [{"positive": one, "negative": other, "id": 3} for one, other in PAIRS]
    columns = {"positive": [one for one, _ in PAIRS], "negative": [other for _, other in PAIRS]}
    (tmp_path / "a.json").write_text(json.dumps(PAIRS))
    (tmp_path / "b.json").write_text(json.dumps(columns))
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, dicts)) + "\n\n")
    files = [tmp_path / name for name in ("a.json", "b.json", "c.jsonl")]
    for form in (PAIRS, list(map(list, PAIRS)), iter(PAIRS), dicts, columns, *files, str(files[0])):
        assert contrast_pairs("pairs", form) == PAIRS


@pytest.mark.parametrize(
    ("pairs", "error", "says"),
    [
        ([], ValueError, r"pairs is empty: give at least one pair"),
        (3, TypeError, r"pairs=3 must be a list of pairs"),
        ([*PAIRS, ("one", "two", "three")], TypeError, r"pairs\[16\]=\('one', 'two', 'three'\) must be a pair"),
        (["ab"], TypeError, r"pairs\[0\]='ab' must be a pair"),
        ([("one", 2)], TypeError, r"pairs\[0\]=\('one', 2\) must be a pair"),
        ([{"positive": "one"}], TypeError, r"pairs\[0\]=\{'positive': 'one'\} must be a pair"),
        ([("one", " \n")], ValueError, r"pairs\[0\]: its negative text ' \\n' is empty"),
        ([("one", "one")], ValueError, r"pairs\[0\]: both texts are 'one': leave the pair out"),
        ({"positive": ["a"], "negative": []}, ValueError, r"pairs has 1 positive texts and 0 negative ones"),
        ({"positive": "a", "negative": "b"}, TypeError, r"must have two lists of texts"),
        ("nowhere.json", FileNotFoundError, r"pairs: there is no file of pairs at 'nowhere.json'"),
    ],
)
def test_pairs_that_are_none(pairs: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        SteeringVector.from_pairs(model_of("llama"), tokens(), pairs)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 5000, "is nested deeper than 100 levels"),
        ("3", "holds neither a list of pairs nor an object"),
        ("[]", "pairs is empty"),
        ("{", "is not JSON"),
        ('[["one", "one"]]', "both texts are 'one'"),
    ],
)
def test_files_that_hold_no_pairs(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(ValueError, match=says) as caught:
        contrast_pairs("pairs", tmp_path / "pairs.json")
    assert "pairs.json" in str(caught.value) and len(str(caught.value)) < 2000


def test_which_pairs_are_held_out() -> None:
    made, scored = split(PAIRS, 0.25, seed=0)
    assert sorted(made + scored) == sorted(PAIRS) and len(scored) == 4
    assert split(PAIRS, 0.25, seed=0) == (made, scored) != split(PAIRS, 0.25, seed=1)
    assert split(PAIRS, 0, seed=0) == (PAIRS, []) and split(PAIRS[:1], 0.5, seed=0) == (PAIRS[:1], [])
    assert len(split(PAIRS, 0.01, seed=0)[1]) == 1 and len(split(PAIRS, 0.99, seed=0)[0]) == 1
    twice, once = split([*PAIRS, *PAIRS], 0.25, seed=0)
    assert not set(twice) & set(once)
    assert split(PAIRS[:9], PAIRS[9:], seed=0) == (PAIRS[:9], PAIRS[9:])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"held_out": 1.0}, r"held_out=1\.0 must be a share of the pairs, from 0 to below 1"),
        ({"held_out": True}, r"held_out=True must be a share of the pairs, or other pairs"),
        ({"held_out": PAIRS[:2]}, r"held_out has 2 of the pairs"),
        ({"held_out": [("a", "a")]}, r"held_out\[0\]: both texts are 'a'"),
        ({"seed": -1}, r"seed=-1"),
        ({"batch_size": 0}, r"batch_size=0"),
        ({"max_length": 0}, r"max_length=0"),
        ({"method": "means"}, r"method='means' .*'mean'"),
        ({"force": 1}, r"force=1"),
        ({"progress": "yes"}, r"progress='yes'"),
        ({"tokenizer": 3}, r"tokenizer=3"),
        ({"tokenizer": PAIRS, "pairs": "block:2"}, r"tokenizer=\[.* must be a tokenizer"),  # it was left out
        ({"tokenizer": None}, r"texts need a tokenizer"),
        ({"model": 3}, r"model=3"),
    ],
)
def test_arguments_that_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        SteeringVector.from_pairs(**{"model": model_of("llama"), "tokenizer": tokens(), "pairs": PAIRS, **options})


def test_layers_that_match_nothing() -> None:
    with pytest.raises(LayerNotFound, match=r"block:9"):
        SteeringVector.from_pairs(model_of("llama"), tokens(), PAIRS, layers="block:9")


# Quality, in files and in arithmetic.


def test_quality_is_saved_and_follows_the_layers(tmp_path: Path) -> None:
    vector = SteeringVector.from_pairs(model_of("llama"), tokens(), PAIRS[:5])  # too few for a p-value: nan
    vector.save(tmp_path / "v.safetensors")
    loaded = SteeringVector.load(tmp_path / "v.safetensors")
    assert loaded == vector and loaded.quality.to_text() == vector.quality.to_text()
    assert np.isnan(loaded.quality[0].p_value)
    one = loaded.only(ROOMS[2])
    assert [row.layer for row in one.quality] == [ROOMS[2]] and repr(one.quality[0]) == repr(loaded.quality[2])
    assert [row.layer for row in (2 * one).normalise().with_origin(model="").quality] == [ROOMS[2]]
    assert not (-one).quality and not (one + one).quality and not one.random_like(0).quality
    inner = loaded.fitted_to(model_of("llama").model, any_model=True)
    assert [row.layer for row in inner.quality] == list(inner) == [room.removeprefix("model.") for room in ROOMS]
    assert loaded != SteeringVector(loaded, **vars(loaded.origin))
    with pytest.raises(ValueError, match="has no quality to choose a layer by"):
        (one + one).best_layer()
