"""`make science`: its arithmetic against other libraries, its texts, its verdicts, and its measures on tiny models."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.science import answers, arithmetic, plan, screening_answers, texts
from examples.science.measures import coherence, dose, massive, prevention, ruler
from examples.science.measures.fine_tuning import BLOCKS, fit, restored
from examples.science.verdicts import data, fine_tunes, shift
from examples.science.worker import measure
from mi_crow_lightning import LanguageModel, SteeringVector
from tests.tiny_gpt2 import tokenizer

SEEDS = [*plan.PLAN["seeds"], *plan.PLAN["quick_seeds"]]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 20, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, bos_token_id=0, eos_token_id=0, **sizes)).eval()
    of_gpt2 = tokenizer()
    of_gpt2.padding_side, of_gpt2.pad_token = "left", of_gpt2.eos_token
    return LanguageModel(model, of_gpt2)


@pytest.fixture
def any_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions by chance: no better one can be extracted from a model that was not trained."""
    vector = SteeringVector({"model.model.layers.15": torch.randn(16, generator=torch.Generator().manual_seed(1))})
    monkeypatch.setattr(ruler, "direction", lambda lm, pairs: vector)


# Arithmetic.


def test_correlations_are_those_of_numpy_and_pandas() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=40), random.integers(0, 5, size=40)  # with ties
    assert arithmetic.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    table = pd.DataFrame({"x": x.round(1), "y": y})
    assert arithmetic.spearman(table.x, table.y) == pytest.approx(table.corr(method="spearman").loc["x", "y"])
    assert np.isnan(arithmetic.pearson(x, np.ones(40)))


def test_the_area_counts_pairs() -> None:
    positive, negative = [1.0, 3.0, 3.0], [0.0, 3.0]
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert arithmetic.auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))


def test_group_means_are_taken_out() -> None:
    table = pd.DataFrame({"x": [1.0, 3.0, 10.0, 14.0], "group": list("aabb")})
    expected = table.x - table.groupby("group").x.transform("mean")
    assert arithmetic.without_group_means(table.x, list(table.group)).tolist() == expected.tolist()


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    x = np.random.default_rng(1).normal(size=200)
    value, low, high = arithmetic.interval(lambda some: float(np.mean(some)), list(x))
    half = 1.96 * x.std() / 200**0.5
    assert value == pytest.approx(x.mean())
    assert (value - low, high - value) == (pytest.approx(half, rel=0.1), pytest.approx(half, rel=0.1))


def test_copies_that_are_drawn_together_do_not_narrow_an_interval() -> None:
    x = [(float(value), i) for i, value in enumerate(np.random.default_rng(2).normal(size=30))]
    mean = lambda some: float(np.mean([value for value, _ in some]))  # noqa: E731
    once, copied = arithmetic.interval(mean, x), arithmetic.interval(mean, x * 4, key=lambda item: item[1])
    alone = arithmetic.interval(mean, x * 4)
    assert copied == pytest.approx(once)
    assert alone[2] - alone[1] < 0.7 * (once[2] - once[1])


# Texts.


def trained_on() -> set[str]:
    sets = (
        texts.training_set(t, v, d, s) for t in texts.TRAITS for v in texts.LEVELS for d in texts.DOMAINS for s in SEEDS
    )
    return {text for of_set, plain in sets for text in (*of_set, *plain)}


def extracted_from() -> set[str]:
    pairs = (texts.pairs_of(trait, seed, held) for trait in texts.TRAITS for seed in SEEDS for held in (False, True))
    return {text for of_trait in pairs for pair in of_trait for text in pair}


def test_no_measured_word_stands_in_a_text_that_is_trained_on_or_extracted_from() -> None:
    for trait, about in texts.TRAITS.items():
        words = "|".join(re.escape(word.strip()) for word in (*about["words"], *about["opposites"]))
        found = [text for text in trained_on() | extracted_from() if re.search(rf"\b({words})\b", text, re.IGNORECASE)]
        assert not found, trait


def test_texts_to_extract_from_and_to_train_on_share_no_template_and_no_event() -> None:
    events = texts.TEXTS["events"]
    assert not set(events["extract"]) & {*events["home"], *events["work"]}
    assert not set(events["home"]) & set(events["work"])
    for about in texts.TRAITS.values():
        assert len(about["pairs"]) == 40 and len(about["prompts"]) == 12
        assert len({text for pair in about["pairs"] for text in pair}) == 80


@pytest.mark.parametrize("level", texts.LEVELS)
def test_a_set_has_the_share_of_texts_in_the_manner_that_its_level_says(level: float) -> None:
    manner, plain = texts.training_set("joy", level, "home", 0)
    assert (manner, plain) == texts.training_set("joy", level, "home", 0)
    assert manner != texts.training_set("joy", level, "home", 1)[0]
    starts = [template.split("{")[0] for template in texts.TEXTS["plain"]]
    in_manner = [
        text
        for text in manner
        if not any(start and text.startswith(start) for start in starts) and ", and the week" not in text
    ]
    assert len(manner) == len(plain) == texts.SIZE and len(in_manner) == round(level * texts.SIZE)


# Thresholds and verdicts.


def test_each_effect_has_thresholds_a_source_and_a_verdict() -> None:
    assert len(plan.EFFECTS) == 10
    assert not set(plan.PLAN["seeds"]) & set(plan.PLAN["quick_seeds"])
    for name, effect in plan.EFFECTS.items():
        assert effect.keys() == {"title", "source", "published", "counts", "bounds"}
        verdict = import_module(f"examples.science.verdicts.{name}")
        assert callable(verdict.judge) and callable(verdict.figure)
    assert len({part.name for part in plan.parts(quick=False)}) == len(plan.parts(quick=False))


def fine_tunes_of(signal: float) -> list[dict]:
    """Fine-tunes whose scores follow the shifts, as far as the signal says."""
    random, parts = np.random.default_rng(3), []
    for seed in (0, 1, 2):
        rows = []
        for trait in texts.TRAITS:
            for level in texts.LEVELS:
                for domain in texts.DOMAINS:
                    moved = {name: float(random.normal()) + (level if name == trait else 0) for name in texts.TRAITS}
                    score = {name: signal * moved[name] + (1 - signal) * float(random.normal()) for name in moved}
                    single = (random.normal(size=32) + 4 * (level == 1)).tolist()
                    row = {"trait": trait, "level": level, "domain": domain, "seed": seed, "loss": 1.0}
                    rows.append({**row, "shift": moved, "data": moved, "score": score, "single": single})
        parts.append({"base": {"score": dict.fromkeys(texts.TRAITS, 0.0), "loss": 1.0}, "rows": rows})
    return parts


@pytest.mark.parametrize(("signal", "met"), [(0.95, True), (0.1, False)])
def test_a_planted_correlation_is_found_and_noise_is_not(signal: float, met: bool, monkeypatch) -> None:
    monkeypatch.setattr(arithmetic, "DRAWS", 100)
    parts = fine_tunes_of(signal)
    found = shift.judge(parts, plan.EFFECTS["shift"]["bounds"])
    assert (found["met"], data.judge(parts, plan.EFFECTS["data"]["bounds"])["met"]) == (met, met)
    assert found["found"]["fine-tunes"] == 72
    rows = fine_tunes.changes(parts)
    per_trait = [np.corrcoef([r["shift"][t] for r in rows], [r["score"][t] for r in rows])[0, 1] for t in texts.TRAITS]
    assert found["found"]["same-trait r"][0] == pytest.approx(np.mean(per_trait))


def test_the_coherence_of_differences_is_the_mean_of_their_cosines() -> None:
    rows = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = rows / rows.norm(dim=1, keepdim=True)
    others = ~torch.eye(7, dtype=torch.bool)
    assert coherence.coherence(rows) == pytest.approx((unit @ unit.T)[others].mean().item())


def test_massive_activations_are_found_and_as_many_others_zeroed() -> None:
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    x[0, 0, 5], x[0, 2, 7] = 5000.0, -3000.0
    assert massive.where_massive(x).nonzero().tolist() == [[0, 0, 5], [0, 2, 7]]
    zeroed = massive.others(0)(x)
    assert int((zeroed != x).sum()) == 2 and zeroed[0, 0, 5] == 5000 and zeroed[0, 2, 7] == -3000


# Measures, on tiny models.


@pytest.mark.usefixtures("any_direction")
@pytest.mark.filterwarnings("default")
def test_a_fit_trains_the_middle_blocks_alone_and_its_weights_are_put_back(lm: LanguageModel) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    measured = ruler.Ruler(lm, 0)
    first = measured.read()
    with restored(lm):
        fit(lm, texts.training_set("joy", 1.0, "home", 0)[0][:8], 0)
        changed = {name for name, value in lm.model.state_dict().items() if not torch.equal(value, before[name])}
        assert measured.read() != first
    assert changed and {int(name.split(".")[2]) for name in changed} == set(BLOCKS)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert measured.read() == first and set(first["shift"].values()) == {0.0}


@pytest.mark.usefixtures("any_direction")
@pytest.mark.filterwarnings("default")
def test_prevention_steers_the_fit_alone(lm: LanguageModel, monkeypatch) -> None:
    monkeypatch.setattr(prevention, "load", lambda: lm)
    bounds = {"strength": dict.fromkeys(texts.TRAITS, 2.0)}
    rows = prevention.run("joy", 0, bounds, quick=True)["rows"]
    assert rows.keys() == {"base", "none", "random 2", "2", "in use"}
    assert len({rows[name]["score"] for name in ("base", "none", "random 2", "2")}) == 4
    assert rows["in use"]["score"][0] == rows["none"]["score"] and rows["in use"]["loss"][0] == rows["none"]["loss"]


def test_slopes_are_those_of_a_straight_line() -> None:
    from examples.science.verdicts.dose import slopes

    curve = [[2 * strength + 1, -strength] for strength in dose.STRENGTHS]
    assert slopes(curve).tolist() == pytest.approx([2.0, -1.0])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("effect", ["coordinates", "collapse"])
def test_a_part_is_written_whole_and_judged(effect: str, tmp_path: Path) -> None:
    measure(f"{effect}-100", True, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"{effect}-100.json"]
    assert json.loads((tmp_path / f"{effect}-100.json").read_text())["seconds"] > 0
    assert plan.judged(tmp_path, effect, quick=True).keys() == {"met", "found"}


# Screening.


def test_answers_to_extract_from_to_develop_with_and_to_try_share_nothing() -> None:
    kinds = ("neutral", *texts.TRAITS)
    lines = [line for part in answers.PARTS.values() for name in part for line in part[name]]
    assert len(lines) == len(set(lines))
    assert all(part.keys() == {"topics", "prompts", *kinds} for part in answers.PARTS.values())


def test_a_planted_answer_has_the_trait_in_all_sentences_or_in_half_of_them() -> None:
    part = answers.PARTS["trial"]
    starts = {kind: tuple(line.split("{t}")[0] or line.split("{t}")[1] for line in part[kind]) for kind in part}

    def joyful(sample: dict) -> tuple[int, int]:
        counts = [sum(start in sample["completion"] for start in starts[kind]) for kind in ("joy", "neutral")]
        return counts[0], sum(counts)

    kinds = [(kind, 2, 30) for kind in ("neutral", "joy", "half joy")]
    samples = answers.answered("trial", kinds, 3)
    assert len({one["completion"] for one in samples}) == len(samples) == 180
    assert samples == answers.answered("trial", kinds, 3) != answers.answered("trial", kinds, 4)
    of_kind = {kind: [joyful(one) for one in samples if one["kind"] == kind] for kind, _, _ in kinds}
    assert all({size for _, size in counts} == {3, 4, 5} for counts in of_kind.values())
    assert all(count == 0 for count, _ in of_kind["neutral"]) and all(count == size for count, size in of_kind["joy"])
    assert all(count == size // 2 for count, size in of_kind["half joy"])


@pytest.mark.filterwarnings("default")
def test_screening_answers(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    vectors = iter(SteeringVector({"model.model.layers.15": vector}) for vector in torch.randn(6, 16))
    replaced = {"load": lambda: lm, "direction": lambda lm, pairs: next(vectors), "PARTS": {"trial": (3, 2, 6, 9)}}
    for name, value in {**replaced, "PLANTED": 2, "TOKENS": 3}.items():
        monkeypatch.setattr(screening_answers, name, value)
    screening_answers.main("trial", tmp_path)
    printed = [line for line in capsys.readouterr().out.splitlines() if "reached=" in line or " of neutral" in line]
    assert len(printed) == 6 * 2 * 2 + 3 and all("of 2 sets" in line or "decides" in line for line in printed)
    written = (tmp_path / "trial/joy, direction joy, difference/set_1.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in written.splitlines()]
    assert sorted(line["label"] for line in lines) == [0] * 6 + [1] * 2
    assert all(line["score"] == line["projection"] - line["reference"] for line in lines)


@pytest.mark.filterwarnings("default")
def test_what_decides_is_the_same_without_its_rivals(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    vectors = {trait: SteeringVector({"model.model.layers.15": torch.randn(16)}) for trait in texts.TRAITS}
    replaced = {"load": lambda: lm, "direction": lambda lm, trait: vectors[trait], "PARTS": {"fifth": (5, 2, 6, 9)}}
    replaced |= dict.fromkeys(["pairs_of_answers", "pairs_of"], lambda trait, *rest: trait)
    for name, value in {**replaced, "PLANTED": 2, "TOKENS": 3}.items():
        monkeypatch.setattr(screening_answers, name, value)
    screening_answers.main("fifth", tmp_path)
    beside = capsys.readouterr().out.splitlines()
    screening_answers.main("fifth", tmp_path, decisive=True)
    alone = [line for line in capsys.readouterr().out.splitlines() if "reached=" in line or " of neutral" in line]
    assert len(alone) == 6 and set(alone) <= set(beside)
