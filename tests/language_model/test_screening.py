"""`DataScreening`: scores, ranks and samples, against plain passes of single rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler

from mi_crow_lightning import HookCallback, ProjectionDetector, Schedule
from mi_crow_lightning.errors import HookError, NothingExtracted, RegistrationError, VectorMismatch
from mi_crow_lightning.language_model import ScreenedSample, ScreeningTable
from mi_crow_lightning.language_model.generation import Generation
from tests.callback.runs import assert_bit_equal
from tests.language_model.screened import PAIRS, V, greedy, of_completion, of_own_answer, projections, screening
from tests.language_model.tiny import TEXTS, tokens
from tests.models import assert_same_handles, handles, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")


def screen(module: Any, samples: Any, *callbacks: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"batch_size": 3, **options}
    trainer(*callbacks).validate(module, DataLoader(samples, **given), verbose=False)
    return module.table() if len(module._means.vector_names) == 1 else None


def close(value: Any) -> Any:
    return pytest.approx(value, rel=1e-4, abs=1e-6)


def test_texts_score_their_mean_projection() -> None:
    module = screening()
    table = screen(module, TEXTS)
    expected = [projections(module.model, tokens()(text)["input_ids"]).mean() for text in TEXTS]
    assert [row.sample for row in table] == list(np.argsort(expected)[::-1])
    for row in table:
        assert (row.score, row.projection, row.reference) == (close(expected[row.sample]), row.score, 0.0)
        assert (row.text, row.prompt, row.label) == (TEXTS[row.sample], None, None)
    against = table.against(ScreeningTable(table[:2]))
    mean = (table[0].projection + table[1].projection) / 2
    assert [row.score for row in against] == [row.projection - mean for row in table]


def test_pairs_are_compared_with_the_models_own_answers() -> None:
    module = screening(generation={"max_new_tokens": 5, "do_sample": False})
    before = handles(module), {name: weight.clone() for name, weight in module.state_dict().items()}
    table = screen(module, PAIRS)
    assert_same_handles(before[0], module)
    assert_bit_equal(before[1], dict(module.state_dict()))
    for row in table:
        pair = PAIRS[row.sample]
        assert row.projection == close(of_completion(module.model, **pair))
        assert row.reference == close(of_own_answer(module.model, pair["prompt"], 5))
        assert row.score == row.projection - row.reference and (row.prompt, row.text) == tuple(pair.values())
    assert sorted(row.sample for row in table) == [0, 1, 2, 3]


def test_without_answers_a_completion_scores_its_mean_projection() -> None:
    module = screening(generation=False)
    for row in screen(module, PAIRS):
        assert row.score == row.projection == close(of_completion(module.model, **PAIRS[row.sample]))
        assert row.reference == 0.0
    compared = [{**pair, "reference": " the fox"} for pair in PAIRS]
    for row in screen(module, compared):
        assert row.reference == close(of_completion(module.model, row.prompt, " the fox"))


def test_the_end_token_of_an_answer_does_not_count() -> None:
    module = screening()
    ids = tokens()("Hello")["input_ids"]
    answer = greedy(module.model, ids, 6, end=-1)[len(ids) :]
    at = next(i for i in range(1, 6) if answer[i] not in answer[:i])  # the answer ends there, after other tokens
    module.generation = Generation({"max_new_tokens": 6, "do_sample": False, "eos_token_id": answer[at]})
    table = screen(module, PAIRS)
    for row in table:
        assert row.reference == close(of_own_answer(module.model, row.prompt, 6, end=answer[at]))


def test_pairs_are_compared_with_a_reference_completion() -> None:
    samples = [{**pair, "reference": " the fox", "label": i % 2} for i, pair in enumerate(PAIRS)]
    module = screening()
    for options in ({}, {"collate_fn": list}):
        table = screen(module, samples, **options)
        for row in table:
            pair = PAIRS[row.sample]
            assert row.projection == close(of_completion(module.model, **pair))
            assert row.reference == close(of_completion(module.model, pair["prompt"], " the fox"))
            assert row.label == row.sample % 2
    ones = [row.score for row in table if row.label]
    zeros = [row.score for row in table if not row.label]
    assert table.auroc() == np.mean([[one > zero for zero in zeros] for one in ones])
    assert f"auroc {table.auroc():.3g} of 2 samples labelled 1 and 2 labelled 0" in repr(table)


def test_several_vectors_in_one_pass() -> None:
    module = screening(vector=None, vectors={"up": V, "down": -V})
    screen(module, TEXTS)
    up, down = module.table("up"), module.table("down")
    assert {row.sample: row.score for row in up} == {row.sample: close(-row.score) for row in down}
    with pytest.raises(ValueError, match="vector=None is not known: choose one of 'up', 'down'"):
        module.table()


def test_massive_tokens_are_left_out_by_default() -> None:
    module = screening(tokens="ordinary")
    embed = module.model.get_input_embeddings().weight
    massive = tokens()("Hello")["input_ids"][0]
    with torch.no_grad():
        embed[massive] = 1e4 * embed[massive]
    table = screen(module, ["Hello world, the fox", "the fox over there"], batch_size=2)
    ids = tokens()("Hello world, the fox")["input_ids"]
    by_sample = {row.sample: row for row in table}
    assert ids[0] == massive and by_sample[0].projection == close(projections(module.model, ids)[1:].mean())


@pytest.mark.parametrize(("drop_last", "batch_size"), [(False, 2), (True, 2), (True, 3)])
def test_what_was_flagged_is_left_out_of_the_dataset(drop_last: bool, batch_size: int) -> None:
    module = screening()
    table = screen(module, TEXTS, drop_last=drop_last, batch_size=batch_size)
    seen = len(TEXTS) // batch_size * batch_size if drop_last else len(TEXTS)
    assert len(table) == seen
    threshold = table[1].score
    flagged = table[0].sample
    if seen < len(TEXTS):
        with pytest.warns(UserWarning, match=f"{len(TEXTS) - seen} of the dataset's 5 samples have no score"):
            kept = table.kept(TEXTS, threshold)
    else:
        kept = table.kept(TEXTS, threshold)
    assert list(kept) == [text for i, text in enumerate(TEXTS) if i != flagged]
    assert [row.sample for row in table.above(threshold)] == [flagged]
    with pytest.raises(ValueError, match="has 1 samples, and sample"):
        table.kept(TEXTS[:1], threshold)


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
def test_shuffled_samples_are_refused_without_an_index() -> None:
    for options in ({"shuffle": True}, {"sampler": SubsetRandomSampler(range(5))}, {"batch_sampler": [[0, 1]]}):
        given = {"batch_size": 1} if "batch_sampler" in options else {}
        with pytest.raises(ValueError, match=r"sampler may shuffle.*put 'index' into each sample"):
            screen(screening(), TEXTS, **given, **options)
    plain = {row.sample: row.score for row in screen(screening(), TEXTS)}
    indexed = [{"text": text, "index": i} for i, text in enumerate(TEXTS)]
    shuffled = screen(screening(), indexed, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert {row.sample: close(row.score) for row in shuffled} == plain


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([5, 6], "the batch is a Tensor"),
        ([{"prompt": "a"}], "a screened sample is a text, a dict with 'text'"),
        ([{"text": 5}], r"'text'=.* must be strings"),
        ([{"text": "Hi there", "label": 7}], r"'label'=\[7\] must be 1"),
        ([{"text": "Hi there", "index": 1.5}], "'index'=.* must be a whole number for each of 1"),
    ],
)
def test_other_batches_are_refused(batch: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        screen(screening(), batch)


def test_wrong_uses() -> None:
    with pytest.raises(NothingExtracted, match="no samples were scored"):
        screening().table()
    several = screening()
    several._means.layer_signature = "block:*"
    with pytest.raises(ValueError, match=r"layer='block:\*' means 4 layers"):
        screen(several, TEXTS)
    assert not several.model.model.layers[0]._forward_hooks
    with pytest.raises(ValueError, match="give one dataloader"):
        trainer().validate(screening(), [DataLoader(TEXTS), DataLoader(TEXTS)], verbose=False)
    with pytest.raises(ValueError, match=r"generate returned 8 answers to 4 prompts"):
        screen(
            screening(generation={"num_return_sequences": 2, "do_sample": True, "max_new_tokens": 2}),
            PAIRS,
            batch_size=4,
        )


def test_two_samples_of_one_index_are_refused() -> None:
    samples = [{"text": text, "index": 7} for text in TEXTS[:2]]
    with pytest.raises(ValueError, match=r"two samples have the 'index' 7, and different texts: '.*' and '"):
        screen(screening(), samples)
    assert len(screen(screening(), [samples[0], samples[0]])) == 1  # as of a sampler that repeats one


def test_errors_are_of_the_class_that_the_user_made() -> None:
    for changes, error in (({"vector": torch.ones(5)}, VectorMismatch), ({"layer": "model.layers"}, RegistrationError)):
        with pytest.raises(error, match=r"^DataScreening\(layer_signature="):
            screen(screening(**changes), TEXTS)
    with pytest.raises(HookError, match=r"^DataScreening \(forward\) failed at layer 'model.rotary_emb'"):
        screen(screening(layer="model.rotary_emb"), TEXTS)


def test_beside_the_hooks_of_a_callback() -> None:
    watch = HookCallback(ProjectionDetector("block:2", V, schedule=Schedule(stages="validate")))
    module = screening()
    table = screen(module, TEXTS, watch)
    assert [row.score for row in table] == [row.score for row in screen(screening(), TEXTS)]
    assert len(watch.history()) == 5


def test_a_text_without_tokens_has_no_score() -> None:
    table = screen(screening(max_length=1), PAIRS)
    assert all(np.isnan(row.score) for row in table) and "no samples with a score" in repr(table)
    with pytest.raises(NothingExtracted, match="no percentile"):
        table.percentile(99)


def test_the_table(tmp_path: Path) -> None:
    rows = [ScreenedSample(i, score, score, 0.0, f"text {i}") for i, score in enumerate([1.0, 3.0, float("nan"), 2.0])]
    table = ScreeningTable(rows).ranked()
    assert [row.sample for row in table] == [1, 3, 0, 2]
    assert repr(table) == "<4 samples: score 1 to 3, median 2; 1 without a score>"
    assert table.percentile(50) == 2.0 and len(table.above(1.5)) == 2
    assert list(table.to_pandas().columns) == ["sample", "score", "projection", "reference", "label", "prompt", "text"]
    assert "text 1" in table._repr_html_() and "text 1" in str(table)
    table.save(tmp_path / "a" / "scores.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "a" / "scores.jsonl").read_text("utf-8").splitlines()]
    assert [line["sample"] for line in lines] == [1, 3, 0, 2] and lines[-1]["score"] is None
    with pytest.raises(FileExistsError, match=r"scores\.jsonl' exists already: save\(\.\.\., mode='w'\)"):
        table.save(tmp_path / "a" / "scores.jsonl")
    table[:1].save(tmp_path / "a" / "scores.jsonl", "w")
    assert len((tmp_path / "a" / "scores.jsonl").read_text("utf-8").splitlines()) == 1
    for wrong in (101, "99", float("nan")):
        with pytest.raises(ValueError, match="percent="):
            table.percentile(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold="):
        table.above(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no length"):
        table.kept(iter("a"), 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none of the 4 samples has a label and a score"):
        table.auroc()
    with pytest.warns(UserWarning, match=r"1 of the dataset's 4 samples .* kept; 1 have no score, bec"):
        table.kept(range(4), 1.0)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"3 of the dataset's 6 .*; 2 were not screened: .*; 1 have no"):
        table.kept(range(6), 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="neutral="):
        table.against([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="these samples are completions"):
        ScreeningTable([ScreenedSample(0, 1.0, 1.0, 0.0, " A", "Q")]).against(table)


def test_two_ranks_have_the_whole_table(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.language_model.program_screening", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in range(2))
    assert one == other and len(TEXTS) % 2
    for drop_last, size in (("False", 5), ("True", 4)):
        alone = {row.sample: row for row in screen(screening(), TEXTS)}
        assert len(one[drop_last]) == size
        for sample, score, text in one[drop_last]:
            assert (close(score), text) == (alone[sample].score, TEXTS[sample])
