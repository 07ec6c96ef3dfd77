"""Sweeps over vectors: each record is that of its vector alone, and of strength 0 that of no hook, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mi_crow_lightning import (
    AblationController,
    CausalLMModule,
    ContinuationScore,
    HookCallback,
    HookError,
    ScaleController,
    Schedule,
    SteeringController,
    SteeringVector,
    by_strength,
    by_vector,
    sweep_table,
)
from mi_crow_lightning.language_model import GeneratedText, PromptScore
from tests.language_model.test_continuation_score import GROUPS, flat
from tests.language_model.tiny import KINDS, TEXTS, WIDTH, model_of, texts_loader, tokens
from tests.models import assert_same_handles, handles, trainer

SWEEP = [0.0, 3.0, -1.5]
LAYER = "model.layers.1"


def direction(seed: int, scale: float = 0.4) -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) * scale


def vector(seed: int = 5) -> SteeringVector:
    return SteeringVector({"layers.1": direction(seed), "h.1": direction(seed)}, method="by hand")  # of either model


def given() -> dict[str, Any]:
    return {"joy": vector(), "plain": direction(6), "random": vector().random_controls(2)}


NAMES = ["joy", "plain", "random 0", "random 1"]


def steer(own: Any, which: str = "all", **options: Any) -> SteeringController:
    return SteeringController("block:1", own, **{"strength": "batch", "tokens": which, **options})


def score(model: Any, **options: Any) -> ContinuationScore:
    return ContinuationScore(model, GROUPS, tokens(), **{"sweep": SWEEP, **options})


def directions() -> list[Any]:
    first, second = vector().random_controls(2)
    return [vector(), direction(6), first, second]


@pytest.mark.parametrize("which", ["all", "generated", "prompt"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_record_is_that_of_its_vector_alone(kind: str, which: str) -> None:
    model = model_of(kind)
    before, steering = handles(model), steer(direction(1), which)
    found = trainer(HookCallback(controllers=steering)).predict(score(model, vectors=given()), texts_loader())
    assert_same_handles(before, model)
    assert torch.equal(steering.vector, direction(1))  # its own again
    of_vectors = by_vector(found)
    assert list(of_vectors) == NAMES
    for name, alone in zip(NAMES, directions(), strict=True):
        of_one = flat(trainer(HookCallback(controllers=steer(alone, which))).predict(score(model), texts_loader()))
        wanted = [one._replace(vector=name, is_random=name.startswith("random")) for one in of_one]
        assert of_vectors[name] == wanted  # to the bit
    assert len(
        {one.log_probs[0] for one in of_vectors["joy"]} & {one.log_probs[0] for one in of_vectors["plain"]}
    ) == len(TEXTS)  # those of strength 0 alone


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_is_no_hook_bit_for_bit(kind: str) -> None:
    model = model_of(kind)
    module = score(model, sweep=[0.0], vectors=given())
    found = by_vector(trainer(HookCallback(controllers=steer(direction(1)))).predict(module, texts_loader()))
    plain = flat(trainer().predict(score(model, sweep=None), texts_loader()))
    for records in found.values():
        assert [one.log_probs for one in records] == [one.log_probs for one in plain]


def test_generation_sweeps_vectors_too() -> None:
    model, options = model_of("llama"), {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    module = CausalLMModule(model, tokens(), generation=options, sweep=[0, 6], vectors=given())
    found = by_vector(trainer(HookCallback(controllers=steer(direction(1)))).predict(module, texts_loader()))
    assert list(found) == NAMES and module.vectors == NAMES and "vectors" not in module.hparams
    for name, alone in zip(NAMES, directions(), strict=True):
        module = CausalLMModule(model, tokens(), generation=options, sweep=[0, 6])
        of_one = flat(trainer(HookCallback(controllers=steer(alone))).predict(module, texts_loader()))
        assert [(one.strength, one.token_ids) for one in found[name]] == [(o.strength, o.token_ids) for o in of_one]
    assert len({tuple(one.token_ids) for one in found["joy"]}) > len(TEXTS)
    shown = CausalLMModule(model, tokens(), generation=options, sweep=[0, 6], vectors=given(), log_text=1)
    run = trainer(HookCallback(controllers=steer(direction(1))))
    with pytest.raises(ValueError, match="log_text=1 shows texts with one column for each strength"):
        run.predict(shown, texts_loader())


def test_validation_logs_each_vector() -> None:
    steering = steer(direction(1), schedule=Schedule(stages=["validate", "predict"]))
    module, run = score(model_of("llama"), vectors=given()), trainer(HookCallback(controllers=steering))
    (logged,) = run.validate(module, texts_loader(), verbose=False)
    table = sweep_table(run.predict(module, texts_loader()))
    assert len(logged) == 3 * len(SWEEP) * len(NAMES)
    for row in table:
        assert logged[f"val/score/gap/{row.vector}/strength_{row.strength:g}"] == pytest.approx(row.mean, rel=1e-4)


def test_every_controller_along_a_vector_takes_it_and_others_stay() -> None:
    model = model_of("llama")
    along = AblationController("block:2", direction(2), strength="batch")
    hooks = [steer(direction(1)), along, ScaleController("block:0", 1.1)]
    both = {"joy": SteeringVector({"layers.1": direction(5), "layers.2": direction(7)})}
    found = flat(trainer(HookCallback(controllers=hooks)).predict(score(model, vectors=both), texts_loader()))
    alone = [
        steer(direction(5)),
        AblationController("block:2", direction(7), strength="batch"),
        ScaleController("block:0", 1.1),
    ]
    wanted = flat(trainer(HookCallback(controllers=alone)).predict(score(model), texts_loader()))
    assert [one.log_probs for one in found] == [one.log_probs for one in wanted]


def test_a_path_is_a_vector(tmp_path: Path) -> None:
    vector().save(tmp_path / "joy.safetensors")
    vector().random_like(3).save(tmp_path / "random.safetensors")
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("joy", "random")}
    module = score(model_of("llama"), vectors=paths)
    found = by_vector(trainer(HookCallback(controllers=steer(direction(1)))).predict(module, texts_loader()))
    assert [records[0].is_random for records in found.values()] == [False, True]


def test_a_run_that_breaks_off_leaves_the_controllers_own_vector() -> None:
    steering = steer(direction(1))
    module = score(model_of("llama"), vectors={"joy": vector(), "wide": torch.ones(WIDTH + 1)})
    with pytest.raises(HookError, match=f"{WIDTH + 1}"):
        trainer(HookCallback(controllers=steering)).predict(module, texts_loader())
    assert torch.equal(steering.vector, direction(1))
    other = score(model_of("llama"), vectors={"elsewhere": SteeringVector({"layers.3": direction(1)})})
    with pytest.raises(HookError, match=r"vectors\['elsewhere'\] has nothing for layer"):
        trainer(HookCallback(controllers=steering)).predict(other, texts_loader())
    assert torch.equal(steering.vector, direction(1))


@pytest.mark.parametrize(
    ("vectors", "error", "said"),
    [
        ({}, TypeError, "vectors={} must map at least one name to a vector"),
        ([direction(1)], TypeError, "must map at least one name to a vector"),
        (vector(), TypeError, "must map at least one name to a vector"),
        ({"random": []}, ValueError, "must hold at least one vector, and each name once"),
        ({"a 0": direction(1), "a": [direction(1)]}, ValueError, "each name once"),
        ({"a/b": direction(1)}, ValueError, "vectors: name"),
        ({"a": "no file"}, FileNotFoundError, r"vectors\['a'\]"),
    ],
)
def test_what_is_no_vector_is_refused(vectors: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        score(model_of("llama"), vectors=vectors)


def test_vectors_that_nothing_steers_along_are_refused() -> None:
    scale = ScaleController("block:1", 2.0, strength="batch")
    for sweep, hook in ((SWEEP, scale), (None, steer(direction(1)))):
        module = score(model_of("llama"), sweep=sweep, vectors=given())
        with pytest.raises(ValueError, match=r"ContinuationScore\(vectors=...\) runs each prompt along each vector"):
            trainer(HookCallback(controllers=hook)).predict(module, texts_loader())


def test_records_of_several_vectors_are_not_mixed() -> None:
    records = [GeneratedText("a", 1.0, "b", [1], 0, 0, name) for name in ("x", "y")]
    with pytest.raises(ValueError, match="steered along 2 vectors: group them with by_vector"):
        by_strength(records)
    assert list(by_strength(records[:1])) == [1.0]


def records(prompts: int = 7, strengths: tuple[float, ...] = (2.0, -1.0, 0.0)) -> list[PromptScore]:
    """Gaps that a vector raises, unevenly, and that random ones move to either side."""
    rng, found = np.random.default_rng(0), []
    for name, slope in (("joy", 0.9), ("random 0", 0.3), ("random 1", -0.4)):
        gaps = rng.normal(slope, 2.0, prompts)[:, None] * np.array(strengths) + rng.normal(size=(prompts, 1))
        found += [
            PromptScore(f"{i}", s, {"glad": gaps[i, j]}, gaps[i, j], [], i, name, name != "joy")
            for i in range(prompts)
            for j, s in enumerate(strengths)
        ]
    return found


def test_the_table_and_its_dose_response_are_numpys() -> None:
    given = records()
    table = sweep_table([given[:11], [given[11:]]])
    assert [(row.vector, row.strength) for row in table[:4]] == [*(("joy", s) for s in (2, -1, 0)), ("random 0", 2)]
    spans, slopes = {}, {}
    for name in ("joy", "random 0", "random 1"):
        of = np.array([one.gap for one in given if one.vector == name]).reshape(7, 3)
        rows = [row for row in table if row.vector == name]
        np.testing.assert_allclose([row.mean for row in rows], of.mean(0), rtol=1e-12)
        np.testing.assert_allclose([row.std for row in rows], of.std(0, ddof=1), rtol=1e-12)
        spans[name] = of.mean(0)[0] - of.mean(0)[1]
        slopes[name] = np.polyfit([2, -1, 0], of.T, 1)[0]
    (row,) = table.dose_response()
    assert (row.vector, row.n, row.monotone, row.beyond_random) == ("joy", 7, True, True)
    others = [spans["random 0"], spans["random 1"]]
    assert (row.span, row.random_low, row.random_high) == pytest.approx((spans["joy"], min(others), max(others)))
    assert row.anti_steerable == (slopes["joy"] < 0).mean() > 0
    assert row.random_anti_steerable == np.concatenate([slopes["random 0"], slopes["random 1"]]).__lt__(0).mean()
    assert row.p_value == pytest.approx(1 / 3)
    assert repr(table.dose_response()) == "<dose and response of 1 vector: 1 beyond the random ones, joy>"
    frame = table.to_pandas()
    assert list(frame.columns)[:4] == ["vector", "strength", "mean", "std"] and len(frame) == len(table) == 9
    assert "<table" in table._repr_html_() and "anti_steerable" in str(table.dose_response())


def test_what_lies_among_the_random_ones_is_not_beyond() -> None:
    swapped = [one._replace(is_random=one.vector == "joy") for one in records()]
    rows = sweep_table(swapped).dose_response()
    assert [(row.vector, row.beyond_random) for row in rows] == [("random 0", True), ("random 1", True)]
    alike = [one._replace(vector=f"copy {i}", is_random=i > 0) for i in range(3) for one in records()[:21]]
    (row,) = sweep_table(alike).dose_response()
    assert row.beyond_random is False and row.p_value == 1.0


def test_a_table_without_random_vectors_and_with_other_measures() -> None:
    alone = [one._replace(vector=None) for one in records()[:21]]
    table = sweep_table(alone, "glad")
    assert repr(table) == "<glad at 3 strengths of 1 vector: vector>"
    (row,) = table.dose_response()
    assert row.beyond_random is None and np.isnan(row.p_value) and np.isnan(row.random_low)
    lengths = sweep_table([GeneratedText("a", 1.0, "b", [1] * 3, 0, 0)], lambda record: len(record.token_ids))
    assert lengths[0].mean == 3 and np.isnan(lengths[0].std)
    with pytest.raises(ValueError, match="at least two strengths"):
        lengths.dose_response()


def test_the_figure_has_the_random_band() -> None:
    pytest.importorskip("matplotlib")
    table = sweep_table(records())
    _, ax = table.plot()
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [-1, 0, 2])
    means = {row.strength: row.mean for row in table if row.vector == "joy"}
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [means[s] for s in (-1, 0, 2)])
    assert len(ax.collections) == 1 and ax.get_ylabel() == "gap"
    two = sweep_table([*records(), *(one._replace(vector="other") for one in records()[:21])])
    said = [text.get_text() for text in two.plot()[1].get_legend().get_texts()]
    assert said[0] == "joy" and said[-1] == "other"
    with pytest.raises(ValueError, match="no vector that is not a random one"):
        sweep_table([one for one in records() if one.is_random]).plot()


@pytest.mark.parametrize(
    ("predictions", "measure", "error", "said"),
    [
        (records()[:5], "gap", ValueError, "each vector needs as many records at each strength"),
        (records(), "sad", ValueError, "measure='sad' is not known"),
        (records(), 3, TypeError, "measure=3 must be 'gap', a group's name, or a function"),
        ([GeneratedText("a", 1.0, "b", [1], 0, 0)], "gap", ValueError, "for GeneratedText give a function"),
        ([GeneratedText("a", None, "b", [1], 0, 0)], len, ValueError, "the records have no strengths"),
        (["text"], "gap", TypeError, "hold a str"),
    ],
)
def test_what_makes_no_table_is_refused(predictions: Any, measure: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        sweep_table(predictions, measure)
