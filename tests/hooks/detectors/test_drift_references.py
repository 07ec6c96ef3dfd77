"""Drift from a saved reference, and from the start of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mi_crow_lightning import DriftDetector, DriftReference, HookCallback, HookError, Tokens, drift
from mi_crow_lightning.errors import HookStateError, NothingExtracted, ReferenceFileError, ReferenceMismatch
from mi_crow_lightning.references import DriftTable
from tests.callback.runs import told
from tests.hooks.detectors.drifting import adapted, hidden
from tests.hooks.detectors.test_drift_adapter import batch
from tests.metrics.test_drift import numpy_change, softmax
from tests.models import BLOCKS, WIDTH, Module, gpt2, llama, loader, token_data, trainer


def validate(model: nn.Module, detector: DriftDetector, size: int = 4, data: Any = None) -> DriftDetector:
    callback = HookCallback(detector)
    trainer(callback).validate(Module(model).eval(), loader(data or token_data(), size), verbose=False)
    return detector


def start(**options: Any) -> DriftDetector:
    return DriftDetector("block:*", "start", **{"sketch_size": WIDTH, "on_error": "raise", **options})


def against(reference: Any, **options: Any) -> DriftDetector:
    return DriftDetector("block:*", reference, **{"on_error": "raise", **options})


def test_a_saved_reference_of_the_base_model_equals_numpy_with_other_batches(tmp_path: Path) -> None:
    made = validate(llama().double(), start())
    with pytest.raises(NothingExtracted, match="first pass became the reference; the next pass of validate is"):
        made.table()
    made.reference().save(tmp_path / "base.safetensors")
    model, base = adapted().double().eval(), llama().double().eval()
    table = validate(model, against(str(tmp_path / "base.safetensors"), components=2), size=7).table()
    pairs = [hidden(model, batch(20)), hidden(base, batch(20))]
    for block, row in enumerate(table):
        x, y = (pair[0][block].numpy() for pair in pairs)
        for name, value in numpy_change(x, y, 2).items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-8, abs=1e-5 if name == "angle" else 0), name
    assert len(table) == BLOCKS and table[0].tokens == len(x)
    p, q = (softmax(pair[1].numpy()) for pair in pairs)
    assert table.logit_kl is not None  # the vocabulary is as large as what is kept of it
    assert table.logit_kl == pytest.approx((p * torch.tensor(p / q).log().numpy()).sum(1).mean(), rel=1e-4)
    most = table.drivers()[0]
    assert most.sample is not None and most.batch_idx == most.sample // 7 and most.row == most.sample % 7
    with pytest.raises(ValueError, match=r"layer='block:1' is not known: choose one of 'model\."):
        table.drivers("block:1")


def test_bounded_sketches_keep_the_same_tokens_whatever_the_batches_are() -> None:
    references = [validate(llama(), start(max_tokens=30, sketch_size=8), size).reference() for size in (2, 5)]
    table = drift(*references)
    assert all(
        len(sketches.keys) == 30 and sketches.values.shape == (30, 8) for sketches in references[0].layers.values()
    )
    assert all(row.cosine == pytest.approx(1, abs=1e-5) and row.tokens == 30 for row in table)
    twice = validate(llama(), start(max_tokens=30, sketch_size=8), data=token_data() * 3).reference()
    assert twice.nbytes == references[0].nbytes and twice.samples == 60
    assert table.logit_kl == pytest.approx(0, abs=1e-6)


def test_cosines_of_sketches_are_near_the_exact_ones() -> None:
    exact = validate(adapted(), against(validate(llama(), start()).reference())).table()
    rough = validate(adapted(), against(validate(llama(), start(sketch_size=24)).reference())).table()
    for one, other in zip(exact, rough, strict=True):
        assert other.cosine == pytest.approx(one.cosine, abs=0.15) and other.norm_ratio == pytest.approx(one.norm_ratio)


def test_drift_between_two_references_is_the_detectors() -> None:
    before, after = validate(llama(), start()).reference(), validate(adapted(), start()).reference()
    expected, table = validate(adapted(), against(before)).table(), drift(before, after)
    assert isinstance(table, DriftTable)
    for one, other in zip(expected, table, strict=True):
        assert other[:2] == one[:2] and other[2:] == pytest.approx(one[2:], rel=1e-5)
    assert table.logit_kl == pytest.approx(expected.logit_kl, rel=1e-4)
    assert [one.sample for one in table.drivers()] == [one.sample for one in expected.drivers()]
    with pytest.raises(TypeError, match="before="):
        drift({}, after)  # type: ignore[arg-type]


def test_the_start_of_a_run_is_the_validation_before_it() -> None:
    detector, module, data = start(), Module(adapted()), loader(token_data())
    callback = HookCallback(detector)
    trainer(callback).validate(module, data, verbose=False)
    trainer(callback, max_epochs=2).fit(module, data, data)
    rows = [row for row in callback.history() if row.name == "cosine" and row.block == 3]
    assert len(rows) == 2 and 1 > rows[0].value > rows[1].value
    detector.forget()
    trainer(callback).validate(module, data, verbose=False)
    trainer(callback).validate(module, data, verbose=False)
    assert detector.table().moved_most().cosine == pytest.approx(1, abs=1e-6)


def test_another_loader_model_or_layer_is_refused() -> None:
    reference = validate(llama(), start()).reference()
    other = token_data()
    other[9]["input_ids"][3] += 1
    shuffled = list(reversed(token_data()))
    for data, says in ((other, "sample 9 of dataloader 0 has other tokens"), (shuffled, "has other tokens")):
        with pytest.raises(HookError, match=says):
            validate(adapted(), against(reference), data=data)
    with pytest.raises(HookError, match=r"it was made with tokens=.*all.*, and tokens=.*last.* are read now"):
        validate(adapted(), against(reference, tokens="last"))
    with pytest.raises(HookError, match=r"the loader gave .* the loader that the reference was made with"):
        validate(adapted(), against(reference), data=token_data()[:12])
    with pytest.raises(ReferenceMismatch, match=r"0 layers of the name 'model\.transformer"):
        validate(gpt2(), against(reference))
    renamed = llama()
    renamed.config.name_or_path = "base"
    named = validate(renamed, start()).reference()
    assert named.model == "base"
    with pytest.raises(HookError, match="is of model 'base', and this one is"):
        validate(llama(), against(named))
    assert validate(llama(), against(named, any_model=True)).table()
    with pytest.raises(ReferenceMismatch, match="not sketched"):
        drift(
            validate(llama(), start(sketch_size=8)).reference(),
            validate(llama(), start(sketch_size=8, seed=1)).reference(),
        )
    with pytest.raises(HookError, match="wide"):
        validate(llama(hidden_size=16), against(reference))


def test_a_resumed_run_says_that_its_start_is_lost() -> None:
    first = validate(llama(), start(hook_id="drift"))
    state = first.state_dict()
    again = start(hook_id="drift")
    with pytest.warns(UserWarning, match="which a checkpoint does not hold"):
        again.load_state_dict(state)
    callback = HookCallback(again)
    with pytest.raises(HookError, match="the run was resumed"):
        trainer(callback).validate(Module(llama()), loader(token_data()), verbose=False)
    with pytest.raises(HookStateError):
        again.load_state_dict({**state, "started": 3})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors, facts: tensors.pop("0.norms"), "lacks tensors"),
        (lambda tensors, facts: tensors.update({"0.keys": tensors["0.keys"].flip(0)}), "rising order"),
        (lambda tensors, facts: tensors.update({"0.keys": tensors["0.keys"].float()}), "do not fit"),
        (lambda tensors, facts: tensors.update({"0.values": tensors["0.values"][:, :3].clone()}), "sizes"),
        (lambda tensors, facts: tensors.update({"signs.32": tensors["signs.32"].float()}), "signs.32"),
        (lambda tensors, facts: facts.update(format="steering vector"), "is not a drift reference"),
        (lambda tensors, facts: facts.update(version="9"), "version '9'"),
        (lambda tensors, facts: facts.update(facts="[]"), "not a JSON object"),
        (lambda tensors, facts: facts.update(facts="{}"), "KeyError"),
        (lambda tensors, facts: facts.update(layers="[1]"), "layer"),
    ],
)
def test_damaged_files(change: Any, says: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "base.safetensors"
    validate(llama(), start()).reference().save(path)
    assert repr(DriftReference.load(path)).startswith(
        "DriftReference(model='LlamaForCausalLM', 4 layers, 121 tokens of 20"
    )
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    change(tensors, facts)
    save_file(tensors, path, facts)
    with pytest.raises(ReferenceFileError, match=says) as caught:
        DriftReference.load(path)
    assert "base.safetensors" in str(caught.value)


def test_what_is_no_file_and_no_reference(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ReferenceFileError):
        DriftDetector("block:*", tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="no drift reference"):
        DriftDetector("block:*", "adapter_on")
    with pytest.raises(TypeError, match="reference=3"):
        DriftDetector("block:*", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stage='train'"):
        DriftDetector("block:*", "start", stage="train")


def test_a_misspelt_reference_is_answered_with_those_that_need_no_file() -> None:
    with pytest.raises(FileNotFoundError, match="at 'strat': there is no such file; references without"):
        DriftDetector("block:*", "strat")


def test_a_table_that_a_failure_left_out_says_why() -> None:
    """On a mismatch the run goes on with a warning: what is asked for afterwards must not be of before."""
    reference, model = validate(llama(), start()).reference(), adapted()
    detector = against(reference, on_error="disable")
    with told(r"has other tokens", RuntimeWarning):
        validate(model, detector, data=list(reversed(token_data())))
    with pytest.raises(NothingExtracted, match=r"has compared nothing yet: it failed in its last run \(.*other tokens"):
        detector.table()
    detector.enable()
    assert len(validate(model, detector).table()) == BLOCKS
    with told(r"the loader gave", RuntimeWarning):
        validate(model, detector, data=token_data()[:12])
    with pytest.raises(NothingExtracted, match=r"no table of the last pass: it failed .*the loader gave.*history\(\)"):
        detector.table()
    detector.enable()
    assert len(validate(model, detector).table()) == BLOCKS


def test_a_reference_that_a_failure_left_out_says_why() -> None:
    detector = start(on_error="disable", tokens=Tokens(where=lambda *facts: 1 / 0))
    with told("division by zero", RuntimeWarning):
        validate(llama(), detector)
    with pytest.raises(NothingExtracted, match=r"has no reference: it failed in its last run \(.*division by zero"):
        detector.reference()


def test_a_fit_that_begins_without_a_reference_says_what_its_start_will_be() -> None:
    detector, batches = start(), loader(token_data())
    with told(r"has no reference yet: the first validation of this fit.*becomes it"):
        trainer(HookCallback(detector), max_epochs=2).fit(Module(llama()), batches, batches)
    assert len(detector.table()) == BLOCKS
    trainer(HookCallback(detector)).fit(Module(llama()), batches, batches)  # which has one
    switched_off = start()
    switched_off.disable()
    trainer(HookCallback(switched_off)).fit(Module(llama()), batches, batches)


class Looped(nn.Module):
    """A model that runs one block several times in a pass."""

    def __init__(self, times: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block, self.times = nn.Embedding(64, 8), nn.Linear(8, 8), times

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> Any:
        x = self.embedding(input_ids)
        for _ in range(self.times):
            x = torch.tanh(self.block(x))
        return SimpleNamespace(loss=x.sum())


def test_samples_of_a_layer_that_runs_several_times_in_a_pass_are_counted_once() -> None:
    def looped(reference: Any, size: int, model: nn.Module) -> DriftDetector:
        return validate(model, DriftDetector("model.block", reference, on_error="raise"), size)

    reference = looped("start", 4, Looped()).reference()
    assert reference.samples == 20
    moved = Looped()
    moved.block.weight.data += 0.1
    tables = [looped(reference, size, moved).table() for size in (4, 7)]
    assert (
        tables[0][0].tokens == tables[1][0].tokens == 3 * sum(int(row["attention_mask"].sum()) for row in token_data())
    )
    for one, other in zip(tables[0].samples, tables[1].samples, strict=True):
        assert one.sample == other.sample is not None and one.sample < 20
        assert one.cosine == pytest.approx(other.cosine, abs=1e-6)
    with pytest.raises(HookError, match=r"'model.block' is called more than 32 times in a pass"):
        looped("start", 4, Looped(33))
