"""`LinearProbe`: trained while the model trains, against numpy in float64; the run stays as it is."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from mi_crow_lightning import HookCallback, LinearProbe, Schedule, SteeringVector
from mi_crow_lightning.errors import HookStateError, NothingExtracted
from mi_crow_lightning.hooks import Layers, Moment, Stage
from mi_crow_lightning.warnings import FailureWarning, NothingSeenWarning
from tests.callback.runs import Trace, assert_bit_equal, fingerprint
from tests.callback.test_resume import Resumable
from tests.hooks.detectors.probing import LAYERS, ByNumpy, Capture, Labelled, auroc, labelled_data, rows_of
from tests.hooks.detectors.test_gradient_statistics import checkpoint_blocks
from tests.models import Module, llama, loader, mlp, trainer, vector_data

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create:UserWarning"),
]

TASKS = [("sample", 2), ("sample", 3), ("token", 2), ("token", 5)]


def probe(per: str = "sample", classes: int = 2, **options: Any) -> LinearProbe:
    labels = options.pop("labels", "label" if per == "sample" else "token_label")
    signature = options.pop("layer_signature", "block:*")
    return LinearProbe(signature, labels=labels, classes=classes, per=per, **{"lr": 0.01, "hook_id": "p", **options})


def fit(*callbacks: Any, data: list[Any] | None = None, module: Any = None, **changes: Any) -> Any:
    data = data if data is not None else labelled_data()
    module = module if module is not None else Labelled(llama())
    path = changes.pop("ckpt_path", None)
    runner = trainer(*callbacks, **{"num_sanity_val_steps": 0, **changes})
    runner.fit(module, Resumable(data, batch_size=4), loader(data[:8]), ckpt_path=path)
    return runner


def read(watch: HookCallback, stage: str, step: int | None = None) -> dict[tuple[str, str], float]:
    rows = [row for row in watch.history() if row.stage == stage and step in (None, row.step)]
    return {(row.layer, row.name): row.value for row in rows}


@pytest.mark.parametrize(("per", "classes"), TASKS)
def test_training_and_readings_are_those_of_numpy(per: str, classes: int) -> None:
    one, seen = probe(per, classes), Capture()
    watch = HookCallback(one)
    fit(watch, seen, data=labelled_data(24, classes), max_epochs=3, log_every_n_steps=18)
    read_in = {stage: read(watch, stage) for stage in ("train", "validate")}
    for layer in LAYERS:
        by_hand, before, scored = ByNumpy(classes, 0.01), [], []
        for i, (batch, activations) in enumerate(seen.batches["train"]):
            x, y = rows_of(batch, activations[layer], per)
            before.append((by_hand.logits(x), y))
            by_hand.learn(x, y)
            if (i + 1) % 6 == 0:
                scored = [
                    rows_of(batch, acts[layer], per) for batch, acts in seen.batches["validate"][i // 6 * 2 :][:2]
                ]
                scored = [(by_hand.logits(x), y) for x, y in scored]
        index = LAYERS.index(layer)
        state = one._probes.state()
        assert state["weight"][index, :, 1:].numpy() == pytest.approx(by_hand.w, rel=2e-3, abs=1e-4)
        assert state["weight"][index, :, 0].numpy() == pytest.approx(by_hand.b, rel=2e-3, abs=1e-5)
        for stage, rows in (("train", before), ("validate", scored)):
            logits, y = (np.concatenate(part) for part in zip(*rows, strict=True))
            found = {name: value for (at, name), value in read_in[stage].items() if at == layer}
            assert found["accuracy"] == pytest.approx((logits.argmax(1) == y).mean(), abs=1e-9), stage
            assert found["majority"] == pytest.approx(np.bincount(y).max() / len(y))
            loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
            assert found["cross_entropy"] == pytest.approx(loss.mean(), rel=1e-4)
            if stage == "validate":
                assert found["auroc"] == pytest.approx(auroc(logits, y, by_hand.b))


def test_run_is_bit_identical() -> None:
    runs = []
    for callbacks in ([], [HookCallback([probe(), probe("token", 5, hook_id="t", name="t")])]):
        torch.manual_seed(7)
        trace, module = Trace(), Labelled(llama())
        runner = fit(trace, *callbacks, module=module, max_epochs=2)
        runs.append((fingerprint(module, runner), trace.losses, trace.states))
    assert_bit_equal(*runs)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, part, rest = probe(), probe(), probe()
    watches = [HookCallback(one) for one in (whole, part, rest)]
    options: dict[str, Any] = dict(max_epochs=2, log_every_n_steps=4, val_check_interval=2)
    uninterrupted = Labelled(llama(attention_dropout=0.0))
    fit(watches[0], module=uninterrupted, **options)
    keeper = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    fit(watches[1], keeper, module=Labelled(llama(attention_dropout=0.0)), enable_checkpointing=True, **options)
    assert_bit_equal(whole.state_dict(), part.state_dict())
    resumed = Labelled(llama(attention_dropout=0.0))
    fit(watches[2], module=resumed, ckpt_path=str(tmp_path / "step=7.ckpt"), **options)
    assert_bit_equal(whole.state_dict(), rest.state_dict())
    assert_bit_equal(dict(uninterrupted.state_dict()), dict(resumed.state_dict()))
    assert read(watches[0], "train", 7) == read(watches[2], "train", 7) != {}


def test_a_validate_run_reads_the_probes_of_a_fit_or_a_checkpoint(tmp_path: Path) -> None:
    one, module = probe(), Labelled(llama())
    watch = HookCallback(one)
    runner = fit(watch, ModelCheckpoint(tmp_path, filename="last"), module=module, enable_checkpointing=True)
    at_end = read(watch, "validate")
    runner.validate(module, loader(labelled_data()[:8]), verbose=False)
    assert {key: row.value for row in watch.history()[-16:] for key in [(row.layer, row.name)]} == at_end
    other = HookCallback(probe())
    trainer(other).validate(Labelled(llama()), loader(labelled_data()[:8]), str(tmp_path / "last.ckpt"), verbose=False)
    assert read(other, "validate") == at_end


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_is_learned_from_once(reentrant: bool) -> None:
    probes = []
    for checkpointing in (False, True):
        module = Labelled(llama(attention_dropout=0.0))
        if checkpointing:
            checkpoint_blocks(module.model, reentrant)
        probes.append(probe())
        fit(HookCallback(probes[-1]), module=module)
    states = [one._probes.state() for one in probes]
    assert torch.equal(states[0]["moments"][..., 0], states[1]["moments"][..., 0])
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], rtol=1e-4, atol=1e-6), name


def test_each_micro_batch_is_a_step_and_a_schedule_leaves_some_out() -> None:
    steps = {}
    for name, options, changes in (
        ("accumulated", {}, {"accumulate_grad_batches": 2}),
        ("scheduled", {"schedule": Schedule(every_n_batches=2)}, {}),
        ("off", {}, {}),
    ):
        one = probe(**options)
        if name == "off":
            one.disable()
        fit(HookCallback(one), **changes)
        steps[name] = one._probes.steps.tolist()
    assert steps == {"accumulated": [5.0] * 4, "scheduled": [2.0] * 4, "off": [0.0] * 4}


def test_half_precision_is_learned_from_in_single() -> None:
    one = probe("token", 5)
    watch = HookCallback(one)
    fit(watch, precision="bf16-mixed", max_epochs=2)
    assert all(torch.isfinite(value).all() for value in one._probes.state().values())
    assert read(watch, "train")[LAYERS[0], "cross_entropy"] < np.log(5)


def test_gradients_and_other_inputs_of_the_model_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    one, layers = LinearProbe("0"), Layers(model)
    layers.register_hook(None, one)
    layers.begin_batch(None, {"label": torch.tensor([0, 1])})
    model(torch.randn(2, 4)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    one.step()
    assert_bit_equal(before, [parameter.grad for parameter in model.parameters()])
    assert not one._probes.weight.requires_grad and one._probes.steps.tolist() == [1.0]


def moments(x: torch.Tensor, batch: Any, **options: Any) -> torch.Tensor:
    """What a probe saw of one layer's activation: how many rows of each class, and their sums."""
    one, model = LinearProbe("0", **options), nn.Sequential(nn.Identity())
    layers = Layers(model)
    layers.register_hook(None, one)
    layers.begin_batch(Moment(Stage.TRAIN), batch)
    model(x)
    one.step()
    return one._probes.moments[0]


def test_rows_of_other_shapes() -> None:
    images = torch.arange(24.0).reshape(2, 3, 2, 2)  # (B, C, H, W)
    label = torch.tensor([1, 0])
    by_hand = images.mean((2, 3)).double()
    seen = moments(images, {"label": label}, channels=1)
    assert seen[:, 0].tolist() == [1.0, 1.0] and torch.allclose(seen[:, 1:], by_hand.flip(0))
    maps = torch.tensor([[[0, 1], [1, -100]], [[1, 1], [1, 1]]])
    seen = moments(images, {"label": maps}, channels=1, per="token")
    assert seen[:, 0].tolist() == [1.0, 6.0]
    assert torch.allclose(seen[0, 1:], images[0, :, 0, 0].double())
    vectors = torch.randn(3, 5)
    seen = moments(vectors, [vectors, ["b", "a", "b"]], classes=["a", "b"], labels=lambda batch: batch[1])
    assert torch.allclose(seen[:, 1:], torch.stack([vectors[1], vectors[0] + vectors[2]]).double())
    spoiled = vectors.clone()
    spoiled[1, 2] = float("nan")
    seen = moments(spoiled, {"label": torch.tensor([0.0, 1.0, 1.0])})
    assert torch.allclose(seen[:, 1:], vectors[[0, 2]].double()) and seen[:, 0].tolist() == [1.0, 1.0]


def failing(x: Any, batch: Any, **options: Any) -> str:
    with pytest.raises(Exception, match=r".") as caught:
        moments(x, batch, **options)
    return str(caught.value)


def test_wrong_labels_are_refused_by_a_sentence() -> None:
    x = torch.randn(2, 3, 4)
    assert "under 'label', and it has the keys ['text', 'y']" in failing(x, {"text": 0, "y": 1})
    assert "it is a Tensor" in failing(x, x)
    assert "label 2 is of no class: the classes are [0, 1]" in failing(x, {"label": torch.tensor([0, 2])})
    assert "label 'c' (and 1 more labels)" in failing(x, {"label": ["c", "d"]}, classes=["a", "b"])
    assert "the classes ['a', 'b'] are names" in failing(x, {"label": torch.tensor([0, 1])}, classes=["a", "b"])
    assert "use per='token'" in failing(x, {"label": torch.zeros(2, 3).long()})
    assert "give labels (B, T) = (2, 3)" in failing(x, {"label": torch.zeros(2, 4).long()}, per="token")
    assert "the batch has 5 labels" in failing(x, {"label": torch.zeros(5).long()})
    with pytest.raises(ValueError, match="must be how many there are"):
        LinearProbe("0", classes=["a", "a"])
    with pytest.raises(ValueError, match="from 2 to 10,000"):
        LinearProbe("0", classes=1)
    with pytest.raises(ValueError, match="must be a whole number, not one of the classes"):
        LinearProbe("0", ignore_index=1)
    with pytest.raises(ValueError, match="lr=0 must be a positive number"):
        LinearProbe("0", lr=0)
    with pytest.raises(ValueError, match="per='row'"):
        LinearProbe("0", per="row")
    with pytest.raises(TypeError, match="labels=3"):
        LinearProbe("0", labels=3)


def test_a_probe_with_missing_labels_goes_off_and_the_run_goes_on() -> None:
    one = probe(labels="lable")
    with pytest.warns(FailureWarning, match="under 'lable', and it has the keys"):
        fit(HookCallback(one))
    assert not one.enabled


def test_constant_labels_and_untrained_probes_are_warned_of() -> None:
    data = labelled_data()
    for row in data:
        row["label"] = torch.tensor(1)
    watch = HookCallback(probe())
    with pytest.warns(NothingSeenWarning, match="all labels of a reading are of one class"):
        fit(watch, data=data)
    found = read(watch, "validate")
    assert found[LAYERS[0], "majority"] == 1.0 and (LAYERS[0], "auroc") not in found
    with pytest.warns(NothingSeenWarning, match="has not been trained"):
        trainer(HookCallback(probe())).validate(Labelled(llama()), loader(labelled_data()[:8]), verbose=False)
    for row in data:
        row["label"] = torch.tensor(-100)
    watch = HookCallback(probe())
    with pytest.warns(NothingSeenWarning, match="no label that counts"):
        fit(watch, data=data)
    assert not watch.history()


def test_vectors_lead_from_the_mean_of_the_other_classes_to_that_of_one() -> None:
    torch.manual_seed(0)
    model, one = nn.Sequential(nn.Identity()), LinearProbe("0", classes=["sad", "glad"], lr=0.05)
    with pytest.raises(NothingExtracted, match="a fit must train the probes first"):
        one.vectors()
    layers = Layers(model)
    layers.register_hook(None, one)
    apart = torch.tensor([0.0, 3.0, 0.0, 0.0])
    for _ in range(60):
        x = torch.randn(16, 4) * torch.tensor([1.0, 1.0, 10.0, 0.0])  # the last feature is constant
        layers.begin_batch(None, {"label": ["glad"] * 8 + ["sad"] * 8})
        model(x + torch.cat([apart.expand(8, 4), torch.zeros(8, 4)]))
        one.step()
    vector = one.vectors()
    assert isinstance(vector, SteeringVector) and vector.method == "linear_probe"
    assert torch.allclose(vector["0"], apart, atol=0.5) and vector["0"][3] == 0
    assert torch.allclose(one.vectors(positive="sad")["0"], -vector["0"], atol=1e-5)
    with pytest.raises(ValueError, match="positive='gald'"):
        one.vectors("gald")
    one.forget()
    with pytest.raises(NothingExtracted):
        one.vectors()


def test_copies_and_wrong_states() -> None:
    one = probe()
    fit(HookCallback(one))
    for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert_bit_equal(one.state_dict(), other.state_dict())
    state = one.state_dict()
    with pytest.raises(HookStateError, match="probes are of"):
        probe(classes=3).load_state_dict({**state, "rows": {}})
    damaged = {**state, "probes": {**state["probes"], "steps": torch.tensor([-1.0] * 4)}}
    with pytest.raises(HookStateError, match="counts that are not finite, or below 0"):
        probe().load_state_dict(damaged)
    with pytest.raises(HookStateError, match="must have weight"):
        probe().load_state_dict({**state, "probes": {"weight": torch.zeros(4, 2, 3)}})
    other = HookCallback(probe(layer_signature="block:0-1"))
    other.detectors[0].load_state_dict(state)
    with pytest.raises(HookStateError, match="of the layers"):
        fit(other)


def test_layers_of_different_widths_learn_together() -> None:
    one = LinearProbe("model.*", labels=lambda batch: batch[1], classes=5, lr=0.01)
    watch = HookCallback(one)
    fit(watch, data=vector_data(), module=Module(mlp()), max_epochs=4)
    assert one._probes.widths.tolist() == [32.0, 32.0, 32.0, 32.0, 32.0, 5.0]
    assert read(watch, "train", 19)["model.5", "cross_entropy"] < np.log(5)
    assert len(one.vectors()["model.5"]) == 5
