"""Scores of continuations: each is that of its prompt and continuation alone, unpadded, steered by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import MambaConfig, MambaForCausalLM

from mi_crow_lightning import ContinuationScore, HookCallback, LanguageModel, Schedule, SteeringController, by_strength
from mi_crow_lightning.language_model import PromptScore, TextCollator
from tests.language_model.tiny import KINDS, TEXTS, VOCABULARY, WIDTH, block_of, model_of, texts_loader, tokens
from tests.models import assert_same_handles, handles, trainer

GROUPS = {"near": [" dog", "!", " fox jumps over"], "far": [" the", " quick brown"]}
SWEEP = [0.0, 3.0, -1.5]
VECTOR = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)) * 0.4


def of_one_pass(model: Any, prompt: list[int], more: list[int], strength: float, which: str) -> float:
    """The log-probability of ``more`` after ``prompt`` in numpy, from one pass without cache or padding."""
    first = {"all": 0, "generated": len(prompt) - 1, "prompt": 0}[which]
    stop = len(prompt) if which == "prompt" else None

    def add(module: Any, args: Any, output: Any) -> Any:
        x = (output if isinstance(output, Tensor) else output[0]).clone()
        x[:, first:stop] += strength * VECTOR
        return x if isinstance(output, Tensor) else (x, *output[1:])

    handle = block_of(model, 1).register_forward_hook(add)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *more]])).logits[0].double().numpy()
    handle.remove()
    rows = logits[len(prompt) - 1 : -1]
    log_p = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
    return float(sum(log_p[i, token] for i, token in enumerate(more)))


def ids_of(text: str) -> list[int]:
    found: list[int] = tokens()(text, add_special_tokens=False)["input_ids"]
    return found


def steer(tokens: str = "all", **options: Any) -> SteeringController:
    return SteeringController("block:1", VECTOR, strength="batch", tokens=tokens, **options)


def flat(batches: Any) -> list[PromptScore]:
    return [score for batch in batches for score in batch]


@pytest.mark.parametrize("which", ["all", "generated", "prompt"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_score_is_that_of_its_prompt_continuation_and_strength_alone(kind: str, which: str) -> None:
    model = model_of(kind)
    before = handles(model)
    module = ContinuationScore(LanguageModel(model, tokens()), GROUPS, sweep=SWEEP)
    found = flat(trainer(HookCallback(controllers=steer(which))).predict(module, texts_loader()))
    assert_same_handles(before, model)
    assert [(score.prompt, score.strength) for score in found] == [(text, s) for text in TEXTS for s in SWEEP]
    assert [score.row for score in found[: 2 * len(SWEEP)]] == [0] * len(SWEEP) + [1] * len(SWEEP)
    for score in found:
        given = [text for of_group in GROUPS.values() for text in of_group]
        expected = [
            of_one_pass(model, ids_of(score.prompt or ""), ids_of(text), score.strength or 0.0, which) for text in given
        ]
        np.testing.assert_allclose(score.log_probs, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(score.scores["near"], np.mean(expected[:3]), rtol=1e-4)
        np.testing.assert_allclose(score.scores["far"], np.mean(expected[3:]), rtol=1e-4)
        assert score.gap == pytest.approx(score.scores["near"] - score.scores["far"])


def test_some_continuations_have_several_tokens_and_others_one() -> None:
    lengths = [len(ids_of(text)) for of_group in GROUPS.values() for text in of_group]
    assert 1 in lengths and max(lengths) > 1


def test_the_strengths_make_a_difference() -> None:
    module = ContinuationScore(model_of("llama"), GROUPS, tokens(), sweep=SWEEP)
    columns = by_strength(trainer(HookCallback(controllers=steer())).predict(module, texts_loader()))
    gaps = {strength: [score.gap for score in column] for strength, column in columns.items()}
    assert list(gaps) == SWEEP and len({round(sum(of_one), 4) for of_one in gaps.values()}) == len(SWEEP)


def test_any_is_the_probability_that_one_of_a_group_follows() -> None:
    model, one_token = model_of("llama"), {"a": [[5], [6], [9]], "b": [[7]]}
    found = flat(trainer().predict(ContinuationScore(model, one_token, tokens(), reduce="any"), texts_loader()))
    for score, text in zip(found, TEXTS, strict=True):
        with torch.no_grad():
            p = model(input_ids=torch.tensor([ids_of(text)])).logits[0, -1].double().softmax(-1)
        assert score.scores["a"] == pytest.approx(float(p[[5, 6, 9]].sum().log()), rel=1e-4)
        assert score.strength is None


def test_only_prompts_run_when_every_continuation_is_one_token() -> None:
    model, rows = model_of("llama"), []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    trainer().predict(ContinuationScore(model, {"a": [[5], [6]]}, tokens()), texts_loader(TEXTS[:2]))
    handle.remove()
    assert [shape[0] for shape in rows] == [2]


def test_validation_logs_the_means() -> None:
    model = model_of("llama")
    module = ContinuationScore(model, GROUPS, tokens(), sweep=SWEEP)
    steering = steer(schedule=Schedule(stages=["validate", "predict"]))
    run = trainer(HookCallback(controllers=steering))
    (logged,) = run.validate(module, texts_loader(), verbose=False)
    columns = by_strength(run.predict(module, texts_loader()))
    for strength, column in columns.items():
        gaps = [score.gap for score in column]
        assert logged[f"val/score/gap/strength_{strength:g}"] == pytest.approx(np.mean(gaps), rel=1e-4)
    assert len(logged) == 3 * len(SWEEP)
    alone = trainer().validate(ContinuationScore(model, {"a": [[5]]}, tokens()), texts_loader(), verbose=False)
    assert list(alone[0]) == ["val/score/a"]


def test_batches_of_tokens_and_strengths_of_the_batch() -> None:
    model = model_of("llama")
    batch = {**TextCollator(tokens())(TEXTS[:3]), "strength": torch.tensor([0.0, 3.0, 3.0])}
    module = ContinuationScore(model, GROUPS, tokens())
    found = flat(trainer(HookCallback(controllers=steer())).predict(module, DataLoader([batch], batch_size=None)))
    assert [score.strength for score in found] == [0.0, 3.0, 3.0]
    for score, text in zip(found, TEXTS[:3], strict=True):
        expected = of_one_pass(model, ids_of(text), ids_of(" fox jumps over"), score.strength or 0.0, "all")
        assert score.log_probs[2] == pytest.approx(expected, rel=1e-4)


def test_a_model_without_a_cache_takes_continuations_of_one_token() -> None:
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, state_size=4))
    prompts = DataLoader([{"input_ids": torch.tensor([5, 7, 9])}] * 2, batch_size=2)  # type: ignore[arg-type]
    (scores,) = trainer().predict(ContinuationScore(mamba, {"a": [[5]]}), prompts)
    with torch.no_grad():
        expected = mamba(input_ids=torch.tensor([[5, 7, 9]])).logits[0, -1].log_softmax(-1)[5]
    assert scores[0].scores["a"] == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError) as caught:
        trainer().predict(ContinuationScore(mamba, {"a": [[5], [6, 7]]}), prompts)
    assert "no key-value cache" in str(caught.value) and "[6, 7] has 2 tokens" in str(caught.value)


@pytest.mark.parametrize(
    ("continuations", "part"),
    [
        ({}, "must be a dict of lists by name"),
        ([" dog"], "must be a dict of lists by name"),
        ({3: [" dog"]}, "must be a dict of lists by name"),
        ({"a": " dog"}, "must be a list, as in [' dog']"),
        ({"a": []}, "continuations['a'] is empty"),
        ({"a": [""]}, "has no tokens"),
        ({"a": [3]}, "holds 3: give texts, or lists of token IDs"),
        ({"a": [[True]]}, "holds [True]"),
        ({"a": [[-1]]}, "holds [-1]"),
        ({"a": [[5], (5,)]}, "holds the same tokens twice: [5] and (5,)"),
    ],
)
def test_wrong_continuations_are_refused(continuations: Any, part: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ContinuationScore(model_of("llama"), continuations, tokens())
    assert part in str(caught.value)


def test_texts_need_a_tokenizer_and_a_sweep_a_reader() -> None:
    model = model_of("llama")
    with pytest.raises(ValueError, match="need a tokenizer"):
        ContinuationScore(model, {"a": [" dog"]})
    with pytest.raises(ValueError, match="reduce='sum'"):
        ContinuationScore(model, {"a": [[5]]}, reduce="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError) as caught:
        trainer().predict(ContinuationScore(model, GROUPS, tokens(), sweep=SWEEP), texts_loader())
    assert "ContinuationScore(sweep=[0.0, 3.0, -1.5]) runs each prompt once per strength" in str(caught.value)
