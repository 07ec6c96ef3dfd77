"""`ProjectionDetector`: readings in every stage."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning import HookCallback, Schedule
from mi_crow_lightning.errors import RegistrationError, TagConflict, VectorMismatch
from mi_crow_lightning.hooks import ProjectionDetector
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, fit, module_of
from tests.callback.runs import run as run_stage
from tests.hooks.controllers.cases import BATCH, REAL, original, run
from tests.hooks.detectors.projections import U, V, assert_read, numpys, registered
from tests.models import llama, trainer


def test_each_layer_and_direction_against_numpy() -> None:
    bare = run(llama().eval(), "model.layers", BATCH).passed_on
    per_layer = {i: V[i % 3] for i in range(4)}
    detector = ProjectionDetector("block:1-2", vectors={"joy": V[0], "own": per_layer, "sad": 7 * V[2]})
    model, _ = registered(detector)
    for _ in range(2):  # twice the same tokens have the same mean
        model(**BATCH)
    expected = {}
    for i in (1, 2):
        tokens = bare[i][REAL].double().numpy()
        for name, unit in (("joy", U[0]), ("own", U[i]), ("sad", U[2])):
            expected |= {(f"model.layers.{i}", f"{name}_{k}"): v for k, v in numpys(tokens, unit).items()}
    assert_read(detector.readings(), expected)
    assert detector.vector_names == ("joy", "own", "sad")
    assert {name for _, name in expected} == set(detector.reading_names())
    detector.reset()
    assert list(detector.readings()) == []


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated", "last"])
def test_tokens_in_generate(tokens: str) -> None:
    model, seen = llama().eval(), []
    model.generation_config.eos_token_id = None
    model.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    detector = ProjectionDetector("block:1", V[0], tokens=tokens)
    registered(detector, model=model)
    model.generate(**BATCH, max_new_tokens=4, do_sample=False)
    prompt, new = seen[0][REAL], torch.cat([one[:, 0] for one in seen[1:]])
    chosen = {
        "all": [prompt, new],
        "prompt": [prompt],
        "generated": [new],
        "last": [seen[0][:, -1], new],
    }[tokens]
    expected = numpys(torch.cat(chosen).double().numpy(), U[0])
    assert_read(detector.readings(), {("model.layers.1", name): value for name, value in expected.items()})


def test_it_changes_nothing_and_keeps_no_activation() -> None:
    def trained(*callbacks: Any) -> dict[str, Any]:
        module = module_of("llama")
        torch.manual_seed(3)
        return fingerprint(module, fit(module, data_of("llama"), *callbacks, accumulate_grad_batches=2))

    detector = ProjectionDetector("block:*", V[0], schedule=Schedule())
    assert_bit_equal(trained(), trained(HookCallback(detectors=detector)))
    assert all(
        one.numel() <= 4 * 7 for seen in detector._last._seen.values() for _, values in seen.passes for one in values
    )


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_readings_of_a_trainer_are_those_of_numpy(stage: str) -> None:
    module, data = module_of("llama"), data_of("llama")
    seen: list[Tensor] = []
    module.model.model.layers[2].register_forward_hook(lambda _, args, output: seen.append(output.detach().double()))
    watch = HookCallback(detectors=ProjectionDetector(2, V[1], name="persona"))
    runner = trainer(watch, accumulate_grad_batches=2, log_every_n_steps=2, limit_val_batches=2, num_sanity_val_steps=0)
    run_stage(stage, runner, module, data)
    masks = [torch.stack([row["attention_mask"] for row in data[i : i + 4]]).bool() for i in range(0, 20, 4)]
    chosen = {"fit": [2, 3], "validate": [0, 1], "test": range(5)}[stage]  # the second step's micro-batches
    tokens = torch.cat([seen[i][masks[i]] for i in chosen]).numpy()
    kind = {"fit": "train", "validate": "validate", "test": "test"}[stage]
    rows = [row for row in watch.history() if row.stage == kind]
    assert_read(rows, {("model.model.layers.2", name): value for name, value in numpys(tokens, U[1]).items()})
    segment = {"fit": "", "validate": "val/", "test": "test/"}[stage]
    assert rows[0].tag == f"persona_mean/{segment}model.model.layers.2"
    assert float(runner.callback_metrics[rows[0].tag]) == pytest.approx(rows[0].value)


def test_predict_is_read_too() -> None:
    watch = HookCallback(detectors=ProjectionDetector("block:*", V[0]))
    run_stage("predict", trainer(watch), module_of("llama"), data_of("llama"))
    rows = [row for row in watch.history() if row.name == "mean"]
    assert [row.tag for row in rows] == [f"projection_mean/predict/model.model.layers.{i}" for i in range(4)]


def test_two_on_one_layer_need_names() -> None:
    one, other = ProjectionDetector(1, V[0]), ProjectionDetector(1, V[1])
    with pytest.raises(TagConflict, match=r"would both write the mean of .* under 'projection'"):
        run_stage("validate", trainer(HookCallback([one, other])), module_of("llama"), data_of("llama"))


def test_state_goes_on_in_the_middle_of_a_reading() -> None:
    detector = ProjectionDetector("block:1", V[0], hook_id="p")
    model, _ = registered(detector)
    model(**BATCH)
    state = pickle.loads(pickle.dumps(detector.state_dict()))
    model(**{name: tensor.flip(0)[:2] for name, tensor in BATCH.items()})
    for early in (True, False):
        twin = ProjectionDetector("block:1", V[0])
        if early:
            twin.load_state_dict(state)
        other, _ = registered(twin)
        if not early:
            twin.load_state_dict(state)
        other(**{name: tensor.flip(0)[:2] for name, tensor in BATCH.items()})
        assert list(twin.readings()) == list(detector.readings())
    for wrong, message in (
        (ProjectionDetector("block:2", V[0]), r"are of the layers \['model.layers.1'\], and the detector has"),
        (
            ProjectionDetector("block:1", vectors={"a": V[0]}),
            r"are of the vectors \[''\], and the detector has \['a'\]",
        ),
    ):
        wrong.load_state_dict(state)
        with pytest.raises(ValueError, match=message):
            registered(wrong)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "give vector=, a direction, or vectors=, several of them by name; one of the two"),
        ({"vector": V[0], "vectors": {"a": V[0]}}, ValueError, "one of the two"),
        ({"vector": V}, ValueError, r"vector must be a float tensor \(D,\), not torch.float32 of shape \(3, 32\)"),
        ({"vectors": V}, TypeError, "must be a mapping from name to vector"),
        ({"vectors": {}}, TypeError, r"vectors=\{\} must be a mapping"),
        ({"vectors": {"a/b": V[0]}}, ValueError, "name='a/b' must be a non-empty string without '/'"),
        ({"vectors": {1: V[0]}}, ValueError, "vectors: name=1 must be"),
        ({"vectors": {"a": torch.zeros(3)}}, ValueError, r"vectors\['a'\] has length 0"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ProjectionDetector(0, **given)


def test_what_does_not_fit_the_layers() -> None:
    with pytest.raises(RegistrationError, match=r"vectors\['a'\] has nothing for layer 'model.layers.2'"):
        registered(ProjectionDetector("block:2", vectors={"a": {1: V[0]}}))
    with pytest.raises(
        RegistrationError, match=r"for layer 'model.layers.2' the vectors have different widths, \[32, 7\]"
    ):
        registered(ProjectionDetector("block:2", vectors={"a": V[0], "b": torch.ones(7)}))
    model, _ = registered(ProjectionDetector("block:2.mlp", torch.ones(7)))
    with original(VectorMismatch, "the direction has 7 features, and the activation of 'model.layers.2.mlp' has 32"):
        model(**BATCH)
