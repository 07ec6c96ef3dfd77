"""WeightStatistics: norms around optimizer steps, as a loop without Lightning and numpy give them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from mi_crow_lightning import HookCallback, Layers, Schedule, WeightStatistics
from mi_crow_lightning.errors import RegistrationError
from tests.callback.runs import Trace, assert_bit_equal, data_of, fingerprint, fit, module_of, told
from tests.callback.test_resume import long_fit, saver
from tests.models import Module, loader, mlp, vector_data

EVERY = Schedule(stages="train")
LAYERS = ("model.0", "model.3", "model.5")


class Quiet(Module):
    """An MLP without dropout, whose optimizers a function makes."""

    def __init__(self, made: Any = None, dtype: torch.dtype = torch.float32) -> None:
        model = mlp()
        model[2].p = 0.0
        super().__init__(model.to(dtype))
        self.made = made or (lambda module: torch.optim.AdamW(module.parameters(), lr=1e-2))

    def configure_optimizers(self) -> Any:
        return self.made(self)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        weight = next(self.model.parameters())
        return nn.functional.cross_entropy(self.model(x.to(weight.dtype)).float(), y)


def flat(parameters: list[Any]) -> np.ndarray:
    return np.concatenate([p.detach().double().numpy().ravel() for p in parameters])


def by_hand(module: Quiet, steps: int, batches: int = 1, clip: float | None = None) -> list[dict[str, Any]]:
    """For each step the readings of each layer, in a loop without Lightning."""
    module = copy.deepcopy(module)
    optimizer = module.configure_optimizers()
    data = iter(loader(vector_data()))
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(batches):
            (module.loss(next(data)) / batches).backward()
        layers = {name: [*module.get_submodule(name).parameters()] for name in LAYERS}
        before = {name: flat(parameters) for name, parameters in layers.items()}
        gradients = {name: flat([p.grad for p in parameters]) for name, parameters in layers.items()}
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        of_step = {}
        for name, parameters in layers.items():
            norm, update = np.linalg.norm(before[name]), np.linalg.norm(flat(parameters) - before[name])
            of_step[name] = {
                **{"norm": norm, "gradient_norm": np.linalg.norm(gradients[name]), "update_norm": update},
                **{"update_ratio": update / norm, "skipped_steps": 0.0},
            }
        found.append(of_step)
    return found


def readings(watch: HookCallback, step: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in watch.history():
        quantity, layer = row.tag.removeprefix("weights_").split("/", 1)
        if row.step == step and layer in LAYERS:
            found.setdefault(layer, {})[quantity] = row.value
    return found


def fitted(module: Quiet, steps: int = 3, detector: Any = None, **changes: Any) -> HookCallback:
    watch = HookCallback(detector or WeightStatistics(list(LAYERS)), scalars="all")
    fit(module, vector_data(), watch, max_steps=steps, **changes)
    return watch


def assert_close(found: dict[str, Any], expected: dict[str, Any], rel: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for layer, values in expected.items():
        assert found[layer] == pytest.approx(values, rel=rel, abs=1e-12), layer


@pytest.mark.parametrize("changes", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}])
def test_each_step_is_that_of_a_plain_loop(changes: dict[str, Any]) -> None:
    module, steps = Quiet(), 2
    expected = by_hand(module, steps, changes.get("accumulate_grad_batches", 1), changes.get("gradient_clip_val"))
    watch = fitted(module, steps, **changes)
    rows = sorted({row.step for row in watch.history()})
    assert len(rows) == steps
    for step, of_step in zip(rows, expected, strict=True):
        assert_close(readings(watch, step), of_step)


def test_sgd_moves_by_the_learning_rate() -> None:
    module = Quiet(lambda one: torch.optim.SGD(one.parameters(), lr=0.5))
    for values in readings(fitted(module, 1), 0).values():
        assert values["update_norm"] == pytest.approx(0.5 * values["gradient_norm"], rel=1e-5)


def test_half_precision_weights() -> None:
    module = Quiet(lambda one: torch.optim.SGD(one.parameters(), lr=0.5), torch.bfloat16)
    expected = by_hand(module, 1)[0]
    assert_close(readings(fitted(module, 1), 0), expected)


def test_several_steps_in_one_reading_give_the_root_mean_square() -> None:
    module = Quiet()
    expected = by_hand(module, 3)
    watch = HookCallback(WeightStatistics(list(LAYERS), schedule=EVERY), scalars="all")
    fit(module, vector_data(), watch, max_steps=3, log_every_n_steps=3)
    found = readings(watch, 2)
    for layer in LAYERS:
        for name in ("norm", "gradient_norm", "update_norm"):
            squares = [of_step[layer][name] ** 2 for of_step in expected]
            assert found[layer][name] == pytest.approx(np.mean(squares) ** 0.5, rel=1e-6)


class TwoOptimizers(Quiet):
    """Two optimizers share out the parameters of each layer, and step by turns."""

    def __init__(self) -> None:
        super().__init__(self._made)
        self.automatic_optimization = False

    @staticmethod
    def _made(module: Any) -> Any:
        weights = [p for p in module.parameters() if p.dim() == 2]
        biases = [p for p in module.parameters() if p.dim() == 1]
        return [torch.optim.SGD(weights, lr=0.1), torch.optim.SGD(biases, lr=0.2)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()


def test_two_optimizers_on_one_layer_make_one_step() -> None:
    module = TwoOptimizers()
    single = Quiet(
        lambda one: torch.optim.SGD(
            [{"params": [p for p in one.parameters() if p.dim() == dim], "lr": lr} for dim, lr in ((2, 0.1), (1, 0.2))],
            lr=0.1,
        )
    )
    single.load_state_dict(module.state_dict())
    assert_close(readings(fitted(module, 2), 0), by_hand(single, 1)[0])


def test_lbfgs_runs_backward_several_times_and_makes_one_step() -> None:
    module = Quiet(lambda one: torch.optim.LBFGS(one.parameters(), max_iter=4))
    before = {name: flat([*module.get_submodule(name).parameters()]) for name in LAYERS}
    found = readings(fitted(module, 1), 0)
    for name in LAYERS:
        update = np.linalg.norm(flat([*module.get_submodule(name).parameters()]) - before[name])
        assert found[name]["update_norm"] == pytest.approx(update, rel=1e-5)
        assert found[name]["norm"] == pytest.approx(np.linalg.norm(before[name]), rel=1e-6)


def float16(scale: float) -> dict[str, Any]:
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))]}


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled(fused: bool) -> None:
    def made(one: Any) -> Any:
        return torch.optim.AdamW(one.parameters(), lr=1e-2, fused=fused)

    small = readings(fitted(Quiet(made), 1, **float16(8.0)), 0)
    large = readings(fitted(Quiet(made), 1, **float16(1024.0)), 0)
    plain = by_hand(Quiet(made), 1)[0]
    for layer in LAYERS:
        assert small[layer] == pytest.approx(large[layer], rel=1e-2)
        assert small[layer]["gradient_norm"] == pytest.approx(plain[layer]["gradient_norm"], rel=1e-2)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_counted_and_not_read(fused: bool) -> None:
    module = Quiet(lambda one: torch.optim.AdamW(one.parameters(), lr=1e-2, fused=fused))
    watch = fitted(module, 1, **float16(2.0**40))
    assert readings(watch, 0) == {layer: {"skipped_steps": 1.0} for layer in LAYERS}


class Twice(Quiet):
    """Steps twice in a batch; the loss of the first step overflows when it is scaled."""

    def __init__(self) -> None:
        super().__init__(lambda one: torch.optim.SGD(one.parameters(), lr=0.5))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        for factor in (float("inf"), 1.0):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch) * factor)
            optimizer.step()


def test_a_skipped_step_and_one_that_is_taken_in_the_same_batch() -> None:
    plain = by_hand(Quiet(lambda one: torch.optim.SGD(one.parameters(), lr=0.5)), 1)[0]
    read = readings(fitted(Twice(), 1, **float16(8.0)), 0)
    for layer, values in plain.items():
        assert read[layer] == pytest.approx({**values, "skipped_steps": 1.0}, rel=1e-2)


class Skipping(Quiet):
    """Leaves its first batch out."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_is_left_out_has_no_reading() -> None:
    watch = fitted(Skipping(), 2)
    assert {row.step for row in watch.history()} == {1}


@pytest.mark.parametrize("changes", [{}, {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}])
def test_training_is_bit_identical_and_nothing_stays(changes: dict[str, Any]) -> None:
    def trained(*callbacks: Any) -> dict[str, Any]:
        module, trace = module_of("llama"), Trace()
        torch.manual_seed(7)
        runner = fit(module, data_of("llama"), *callbacks, trace, **changes)
        assert not any(one._optimizer_step_post_hooks for one in runner.optimizers)
        return {**fingerprint(module, runner), "losses": trace.losses, "states": trace.states}

    detector = WeightStatistics("block:*", schedule=EVERY)
    watch = HookCallback(detector)
    assert_bit_equal(trained(), trained(watch))
    assert watch.history() and not detector._before


def test_a_run_that_fails_amid_a_step_leaves_nothing() -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise ArithmeticError("amid a step")

    made = []
    module = Quiet(lambda one: made.append(Fails(one.parameters(), lr=0.1)) or made[-1])
    with pytest.raises(ArithmeticError):
        fitted(module, 1)
    assert not made[-1]._optimizer_step_post_hooks


def test_no_copy_is_made_unless_updates_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Any] = []
    path = "mi_crow_lightning.hooks.detectors.weight_statistics._copy"
    monkeypatch.setattr(path, lambda weight: copies.append(weight) or weight.clone())
    watch = fitted(Quiet(), 1, WeightStatistics("model.0", statistics=["norm", "gradient_norm"]))
    assert not copies and set(readings(watch, 0)["model.0"]) == {"norm", "gradient_norm"}
    fitted(Quiet(), 3, WeightStatistics("model.0"), log_every_n_steps=3)
    assert len(copies) == 2  # the weight and the bias, in the one step of three that is logged


def test_layers_without_a_trained_parameter_are_named() -> None:
    module = Quiet(lambda one: torch.optim.SGD(one.model[3].parameters(), lr=0.1))
    with told("no optimizer has a parameter of 2 of its 3 layers, which have no reading: model.0, model.5"):
        watch = fitted(module, 2)
    assert {row.tag.split("/")[1] for row in watch.history()} >= {"model.3"}
    assert readings(watch, 0).keys() == {"model.3"}


def test_it_reads_weights_of_compiled_models() -> None:
    module = Quiet()
    expected = by_hand(module, 1)[0]
    module.model.compile(backend="eager")
    assert_close(readings(fitted(module, 1), 0), expected)


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create:UserWarning")
@pytest.mark.filterwarnings("ignore:`weights_only` was not set:UserWarning")
def test_it_resumes_to_the_bit(tmp_path: Path) -> None:
    def watching() -> HookCallback:
        return HookCallback(WeightStatistics("model.0", hook_id="weights", schedule=EVERY), scalars="all")

    straight, resumed = watching(), watching()
    long_fit(straight, saver(tmp_path))
    long_fit(resumed, ckpt_path=tmp_path / "step=6.ckpt")  # amid the steps 4 to 7, which are read together
    expected = [(row.step, row.tag, row.value) for row in straight.history() if row.step >= 7]
    assert [(row.step, row.tag, row.value) for row in resumed.history()] == expected
    assert {step for step, _, _ in expected} == {7, 11, 15, 19}


def test_it_is_for_a_callback_alone_and_takes_no_tokens() -> None:
    with pytest.raises(RegistrationError, match="which only a HookCallback follows"):
        Layers(mlp()).register_hook("0", WeightStatistics("0"))
    with pytest.raises(TypeError, match="takes no tokens="):
        WeightStatistics("0", tokens="all")
    with pytest.raises(ValueError, match="norm"):
        WeightStatistics("0", statistics=["norms"])
    assert pickle.loads(pickle.dumps(WeightStatistics("0"))).statistics == WeightStatistics("0").statistics


def test_a_step_in_which_it_is_switched_off_leaves_nothing_for_a_later_one() -> None:
    """Its weights of before the step would otherwise be those of before the next one that is read."""

    class Off(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == 1:
                watch.detectors[0].disable()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            held.append(bool(watch.detectors[0]._before))  # type: ignore[attr-defined]
            watch.detectors[0].enable()

    held: list[bool] = []
    module = Quiet()
    expected = by_hand(module, 3)
    watch = HookCallback(WeightStatistics("model.0", schedule=EVERY))
    fit(module, vector_data(), watch, Off(), limit_train_batches=3)
    found = {row.step: row.value for row in watch.history() if row.name == "update_norm"}
    assert held == [False] * 3 and found.keys() == {0, 2}
    for step, value in found.items():
        assert value == pytest.approx(expected[step]["model.0"]["update_norm"], rel=1e-6)
