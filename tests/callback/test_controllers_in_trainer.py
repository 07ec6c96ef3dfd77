"""Controllers in a real Trainer: strengths from the batch, while training, in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning import FunctionController, HookCallback, HookError, Schedule, SteeringController
from tests.callback.runs import assert_bit_equal, data_of, fit, module_of, run
from tests.models import WIDTH, Module, llama, trainer

V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
EVERY = Schedule()


class Sweeping(Module):
    """Generates each row with a strength of its own, put into the batch while it runs."""

    strengths: Any = None

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = dict(batch)
        if self.strengths is not None:
            batch["strength"] = self.strengths
        new: Tensor = self.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        return new


def predicted(strength: Any, strengths: Any = None) -> list[Tensor]:
    module = Sweeping(llama())
    module.model.generation_config.eos_token_id = None
    module.strengths = strengths
    steer = HookCallback(controllers=SteeringController("block:1", 0.01 * V, strength, tokens="generated"))
    return run("predict", trainer(steer), module, data_of("llama")[:4])


def test_a_predict_step_gives_each_row_its_strength() -> None:
    each = [0.0, 3.0, -3.0, 1.0]
    (together,) = predicted("batch", torch.tensor(each))
    for row, strength in enumerate(each):
        (alone,) = predicted(strength)
        assert torch.equal(together[row], alone[row])
    assert not torch.equal(together, predicted(0.0)[0])
    assert torch.equal(predicted("batch", 3)[0], predicted(3.0)[0])


def test_without_strengths_in_the_batch_no_prediction_goes_out() -> None:
    with pytest.raises(HookError, match=r"and the batch has only: 'input_ids', 'attention_mask'\. Put"):
        predicted("batch")


def test_a_strength_may_warm_up_over_steps() -> None:
    seen: list[tuple[int, float]] = []

    def warm_up(ctx: Any) -> float:
        strength = min(1.0, ctx.step / 3)
        seen.append((ctx.step, strength))
        return strength

    fit(
        module_of("llama"),
        data_of("llama"),
        HookCallback(controllers=SteeringController(1, V, warm_up, schedule=EVERY)),
    )
    assert seen == [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 1.0)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_steered_is_training_the_edited_module(precision: Any) -> None:
    class ByHand(Module):
        def __init__(self) -> None:
            super().__init__(llama(attention_dropout=0.0))
            self.model.model.layers[1].register_forward_hook(self.steer)

        def steer(self, module: Any, args: Any, output: Tensor) -> Tensor:
            steered = output + (0.5 * V).to(output.dtype)
            return torch.where(self.mask[..., None], steered, output)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.mask = batch["attention_mask"].bool()
            return super().training_step(batch, batch_idx)

    ours, by_hand = Module(llama(attention_dropout=0.0)), ByHand()
    steer = HookCallback(controllers=SteeringController(1, V, 0.5, schedule=EVERY))
    fit(ours, data_of("llama"), steer, precision=precision)
    fit(by_hand, data_of("llama"), precision=precision)
    assert_bit_equal(ours.state_dict(), by_hand.state_dict())


def test_strengths_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    def callback(strength: Any) -> HookCallback:
        return HookCallback(
            controllers=[
                SteeringController(1, V, strength, hook_id="steer"),
                FunctionController(2, torch.tanh, strength="batch", hook_id="function"),
            ]
        )

    first = callback(1.0)
    runner = fit(module_of("llama"), data_of("llama"), first, max_steps=1)
    first.controllers[0].strength = 2.5
    first.controllers[1].disable()
    runner.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    again = callback(1.0)
    run("fit", trainer(again, max_epochs=2), module_of("llama"), data_of("llama"), ckpt_path=tmp_path / "a.ckpt")
    assert again.controllers[0].strength == 2.5 and again.controllers[1].strength == "batch"
    assert again.controllers[0].enabled and not again.controllers[1].enabled
