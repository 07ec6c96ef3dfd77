"""``HookCallback.effects()``: what controllers really changed, against hooks of the test's own around them."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from mi_crow_lightning import (
    ClampController,
    Controller,
    FunctionController,
    Hook,
    HookCallback,
    NeverFired,
    PatchController,
    ProjectionDetector,
    ScaleController,
    Schedule,
    SteeringController,
    Tokens,
)
from mi_crow_lightning.hooks.activations import put_output, take_input
from mi_crow_lightning.hooks.effects import Effect
from mi_crow_lightning.runs.names import readable_names
from tests.callback.runs import assert_bit_equal, checkpointed, data_of, fit, module_of, run, told
from tests.models import WIDTH, Module, llama, trainer

V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
EVERY = Schedule()
NAMES = ("tokens", "fired", "mean_ratio", "max_ratio")


class Around(pl.Callback):
    """Hooks before and after those of ours, while batches of a stage run; recomputes are left out."""

    def __init__(self, layer: str) -> None:
        self.layer, self.made, self.passed_on = layer, [], []  # type: ignore[var-annotated]
        self.on = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.module = pl_module.get_submodule(self.layer)
        self.module.register_forward_hook(self.note_before)

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.handle = self.module.register_forward_hook(self.note_after)
        self.on = True

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = on_predict_batch_start

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.handle.remove()
        self.on = False

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end

    def note_before(self, module: Any, args: Any, output: Any) -> None:
        self.note(self.made, output)

    def note_after(self, module: Any, args: Any, output: Any) -> None:
        self.note(self.passed_on, output)

    def note(self, into: list[Tensor], output: Any) -> None:
        if self.on and torch._C._current_graph_task_id() == -1:
            into.append((output if isinstance(output, Tensor) else output[0]).detach().double().clone())

    def expected(self, calls: slice = slice(None)) -> tuple[int, int, float, float]:
        ratios, fired, pairs = [], 0, list(zip(self.made, self.passed_on, strict=True))[calls]
        for made, passed_on in pairs:
            changed = (made != passed_on).any(-1)
            fired += int(changed.any())
            ratios += ((passed_on - made).norm(dim=-1) / made.norm(dim=-1))[changed].tolist()
        return len(ratios), fired, sum(ratios) / len(ratios), max(ratios)


def values(effect: Effect) -> tuple[int, int, float, float]:
    return effect.tokens, effect.fired, effect.mean_ratio, effect.max_ratio


def assert_values(effect: Effect, expected: tuple[int, int, float, float]) -> None:
    assert values(effect)[:2] == expected[:2] and values(effect)[2:] == pytest.approx(expected[2:], rel=1e-5)


def near(kind: str = "llama") -> list[dict[str, Tensor]]:
    return data_of(kind)[:10]


@pytest.mark.documents("compatibility/generate-with-its-caches-beams-and-samples/logging")
@pytest.mark.parametrize("tokens", ["all", "generated", Tokens(positions=[0, -1])])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_predict_run_with_generate(kind: str, tokens: Any) -> None:
    layer = "model.model.layers.1" if kind == "llama" else "model.transformer.h.1"
    around, steer = Around(layer), SteeringController(layer, 0.1 * V, 2.0, tokens, hook_id="steer")
    watch = HookCallback(controllers=[steer, ScaleController("block:2", 1.5, hook_id="scale")])
    run("predict", trainer(watch, around), module_of(kind), near(kind))
    first, second = watch.effects()
    assert first[:3] == ("steer", layer, "predict") and second.hook == "scale"
    assert_values(first, around.expected())
    calls = 3 if isinstance(tokens, Tokens) else 3 * 5  # positions of the prompt: not in the steps of decoding
    assert first.fired == calls and second.mean_ratio == pytest.approx(0.5) == second.max_ratio
    with_padding = sum(int(row["attention_mask"].numel()) for row in near(kind)) + 10 * 4
    assert 0 < first.tokens < with_padding


@pytest.mark.documents("compatibility/tensorboard-csv-none/controllers")
def test_numbers_go_to_the_loggers_and_to_callback_metrics(tmp_path: Path) -> None:
    csv, tensorboard = CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")
    watch = HookCallback(controllers=[SteeringController("block:1-2", V, hook_id="steer"), ScaleController(1, 2.0)])
    runner = trainer(watch, logger=[csv, tensorboard])
    run("predict", runner, module_of("llama"), near())
    rows = {
        f"steering_{name}/predict/{effect.hook}/{effect.layer}": getattr(effect, name)
        for effect in watch.effects()
        for name in NAMES
    }
    assert len(rows) == 12 and "steering_tokens/predict/ScaleController/model.model.layers.1" in rows
    assert {tag: value.item() for tag, value in runner.callback_metrics.items()} == pytest.approx(rows)
    assert {row.tag: row.value for row in watch.history()} == pytest.approx(rows)
    places = {f"{hook}/model.model.layers.{i}" for hook in ("steer", "ScaleController") for i in (1, 2)}
    assert {row.layer for row in watch.history()} <= places
    assert {row.step for row in watch.history()} == {3}
    tensorboard.experiment.flush()
    events = EventAccumulator(tensorboard.log_dir).Reload()
    assert {
        tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"] if "steering" in tag
    } == pytest.approx(rows)
    assert "steering" in str(events.Tags()["tensors"]) or events.Tags()["scalars"]
    csv.save()
    header = (Path(csv.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(rows) <= set(header)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_tells_at_logged_steps_and_the_rest_at_the_end(checkpointing: bool) -> None:
    """Recomputes do not count; the layer's MLP is what checkpointing runs twice."""
    module = module_of("llama")
    module = checkpointed(module) if checkpointing else module
    runs: list[int] = []
    module.model.model.layers[1].mlp.register_forward_pre_hook(lambda *args: runs.append(1))
    around = Around("model.model.layers.1.mlp")
    steer = SteeringController("block:1.mlp", 0.1 * V, hook_id="steer", schedule=Schedule(stages="train"))
    watch = HookCallback(controllers=steer)
    fit(module, data_of("llama"), watch, around, accumulate_grad_batches=2, log_every_n_steps=2)
    assert len(runs) == (10 if checkpointing else 5)
    (effect,) = watch.effects()
    assert effect.stage == "train" and effect.fired == 5
    assert_values(effect, around.expected())
    logged = {row.name: row.value for row in watch.history()}
    assert {row.step for row in watch.history()} == {1}  # the second of three steps, after four micro-batches
    assert [logged[name] for name in NAMES] == pytest.approx(list(around.expected(slice(4))), rel=1e-5)
    assert watch.history()[0].tag == "steering_tokens/steer/model.model.layers.1.mlp"


def test_stages_of_a_fit_are_apart_and_add_up_over_epochs() -> None:
    steer = SteeringController("block:1", 0.1 * V, hook_id="steer", schedule=Schedule(stages=["train", "validate"]))
    watch = HookCallback(controllers=steer)
    run("fit", trainer(watch, max_epochs=2), module_of("llama"), data_of("llama"))
    train, validate = watch.effects()
    assert (train.stage, train.fired, validate.stage, validate.fired) == ("train", 10, "validate", 6)
    real = [int(row["attention_mask"].sum()) for row in data_of("llama")]
    assert (train.tokens, validate.tokens) == (2 * sum(real), 2 * sum(real[:10]))
    per_epoch = [row.value for row in watch.history() if row.tag == "steering_fired/val/steer/model.model.layers.1"]
    assert per_epoch == [3, 3]


def test_what_is_told_is_of_the_last_run() -> None:
    watch = HookCallback(controllers=SteeringController("block:1", V))
    assert watch.effects() == []
    for rows in (8, 4):
        run("predict", trainer(watch), module_of("llama"), data_of("llama")[:rows])
        (effect,) = watch.effects()
        assert effect.fired == 5 * rows // 4
    for twin in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert twin.effects() == watch.effects()
        assert len(pickle.dumps(twin)) < 100_000  # the model did not come along


class Doubles(Hook):
    """A plain hook, which returns whatever it likes."""

    def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
        return put_output(output, 2 * (output if isinstance(output, Tensor) else output[0]))


class Skips(Hook):
    def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
        return put_output(output, take_input(input, self.context.kwargs))  # type: ignore[union-attr]


class Before(Controller):
    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        return torch.where(torch.arange(x.shape[1])[:, None] == 0, 3 * x, x)


class Narrows(Hook):
    def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
        return output[:, :3]


def test_any_hook_that_edits_is_counted() -> None:
    hooks = [
        Doubles("block:0", hook_id="doubles"),
        Before("block:1", hook_type="pre_forward", hook_id="before"),
        Skips("block:2", hook_id="skips"),
        FunctionController("block:3.attn", lambda x: -x, hook_id="negates"),
    ]
    watch = HookCallback(controllers=hooks)
    data = [{"input_ids": row["input_ids"].clamp(min=1)} for row in near()[:4]]  # no padding: its activations are zeros
    run("predict", trainer(watch), _Forward(llama()), data)
    found = {effect.hook: effect for effect in watch.effects()}
    assert values(found["doubles"]) == (28, 1, pytest.approx(1.0), pytest.approx(1.0))
    assert values(found["before"]) == (4, 1, pytest.approx(2.0), pytest.approx(2.0))
    assert found["skips"].tokens == 28 and found["negates"].mean_ratio == pytest.approx(2.0)


class _Forward(Module):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(**batch) if isinstance(batch, dict) else self.model(batch[0])


def test_what_cannot_be_compared_is_not_counted_nor_called_nothing() -> None:
    watch = HookCallback(controllers=Narrows("5", hook_id="narrows"))
    run("predict", trainer(watch), _Forward(module_of().model), data_of())
    assert watch.effects() == []


def test_readable_names() -> None:
    given = [None, None, "FunctionController", "mine", "mine", None]
    hooks = [FunctionController(0, abs, hook_id=hook_id) for hook_id in given]
    assert readable_names([ScaleController(0, 1), *hooks]) == [
        "ScaleController",
        "FunctionController-2",
        "FunctionController-3",
        "FunctionController",
        "mine",
        "mine-2",
        "FunctionController-4",
    ]


@pytest.mark.parametrize("hook_id", [None, "mine"])
def test_names_differ_between_the_callbacks_of_a_trainer(hook_id: str | None) -> None:
    steers = [SteeringController("block:1", factor * V, hook_id=hook_id) for factor in (0.1, 0.2)]
    callbacks = [HookCallback(controllers=steer, name=str(i)) for i, steer in enumerate(steers)]
    runner = trainer(*callbacks)
    run("predict", runner, module_of("llama"), near())
    base = hook_id or "SteeringController"
    assert [effect.hook for one in callbacks for effect in one.effects()] == [base, f"{base}-2"]
    assert len([tag for tag in runner.callback_metrics if tag.startswith("steering_tokens/")]) == 2


@pytest.mark.parametrize(
    ("make", "times"),
    [
        (lambda: SteeringController(1, V, tokens=Tokens(ids={63}) & Tokens(ids={62})), 1),
        (lambda: FunctionController(1, lambda x: x + 0), 1),
        (lambda: PatchController(1, V, tokens=Tokens(positions=[5000])), 1),
        (lambda: SteeringController(1, V, 0), 0),
        (lambda: ClampController(1, V, low=-1e6), 0),
        (lambda: SteeringController(1, V, lambda ctx: 0), 0),
        (lambda: SteeringController(1, V, when=lambda x, ctx: False), 0),
        (lambda: SteeringController(1, V, when=lambda x, ctx: torch.tensor(False)), 0),
    ],
)
def test_a_controller_that_changed_nothing_is_told_unless_that_is_no_surprise(make: Any, times: int) -> None:
    watch = HookCallback(controllers=make())
    with told("ran in stage 'predict' and changed nothing: either its tokens chose none, or", times=times):
        run("predict", trainer(watch), module_of("llama"), near())
    assert all(effect.tokens == effect.fired == 0 and math.isnan(effect.mean_ratio) for effect in watch.effects())
    assert not any("ratio" in row.name for row in watch.history())


def test_a_controller_that_never_ran_is_an_error_also_beside_one_that_did() -> None:
    module = module_of("llama")
    module.spare = nn.Linear(2, 2)
    spare = FunctionController("spare", lambda x: x, may_skip=True)
    watch = HookCallback(controllers=[SteeringController("block:1", V), spare])
    with pytest.raises(NeverFired, match="never ran: spare"):
        run("predict", trainer(watch), module, near())
    assert [effect.hook for effect in watch.effects()] == ["SteeringController"]


def test_edits_under_a_condition_count_where_it_holds() -> None:
    along = ProjectionDetector("block:0", V)
    around = Around("model.model.layers.1")
    watch = HookCallback(along, SteeringController("block:1", 0.1 * V, when=along.above(0.0)))
    run("predict", trainer(watch, around), module_of("llama"), near())
    (effect,) = watch.effects()
    assert_values(effect, around.expected())
    whole = HookCallback(controllers=SteeringController("block:1", 0.1 * V))
    run("predict", trainer(whole), module_of("llama"), near())
    assert effect.tokens < whole.effects()[0].tokens and effect.fired <= whole.effects()[0].fired


@pytest.mark.filterwarnings("ignore:the token IDs .* look padded:UserWarning")
def test_counting_leaves_the_run_as_it_is() -> None:
    """Weights after a steered fit are those of the same edits by a plain torch hook."""
    ours, by_hand = Module(llama(attention_dropout=0.0)), Module(llama(attention_dropout=0.0))
    change = FunctionController("block:1", lambda x: x * 1.25, tokens="all", schedule=EVERY)
    fit(ours, [{"input_ids": row["input_ids"]} for row in data_of("llama")], HookCallback(controllers=change))
    by_hand.model.model.layers[1].register_forward_hook(lambda module, args, output: output * 1.25)
    fit(by_hand, [{"input_ids": row["input_ids"]} for row in data_of("llama")])
    assert_bit_equal(ours.state_dict(), by_hand.state_dict())
