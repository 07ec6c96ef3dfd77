"""Controllers on the device, in a pass against numpy, and in `generate` against a plain torch hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning import HookCallback, SteeringController
from tests.callback.runs import run
from tests.hooks.controllers.cases import BATCH, EDITS, REAL
from tests.hooks.controllers.cases import run as one_pass
from tests.models import WIDTH, Module, llama, token_data, trainer

V = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2**-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_that_of_numpy_at_real_tokens(device: torch.device, edit: str, dtype: torch.dtype) -> None:
    make, reference = EDITS[edit]
    model = llama(attention_dropout=0.0).eval().to(device, dtype)
    call = {name: value.to(device) for name, value in BATCH.items()}
    seen = one_pass(model, "model.layers", call, make("model.layers.1"))
    assert seen.made[1].device == device
    made, passed_on = seen.made[1].cpu(), seen.passed_on[1].cpu()
    assert torch.equal(passed_on[~REAL], made[~REAL])
    expected = torch.from_numpy(reference(made.double().numpy()))[REAL]
    scale = made[REAL].double().abs().amax(-1, keepdim=True) + expected.abs().amax(-1, keepdim=True)
    assert ((passed_on[REAL].double() - expected).abs() <= TOLERANCE[dtype] * scale).all()


class Scored(Module):
    """Predicts new tokens and the scores that they were chosen by."""

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        options = dict(max_new_tokens=4, do_sample=False, output_scores=True, return_dict_in_generate=True)
        done = self.model.generate(**batch, **options)
        return done.sequences.cpu(), torch.stack(done.scores).float().cpu()


def predicted(options: dict[str, Any], *callbacks: Any, hook: Any = None, **changes: Any) -> tuple[Tensor, Tensor]:
    module = Scored(llama(attention_dropout=0.0))
    module.model.generation_config.eos_token_id = None
    if hook is not None:
        module.model.model.layers[1].register_forward_hook(hook)
    found = run("predict", trainer(*callbacks, **options, **changes), module, token_data(8))
    assert len(module.model.model.layers[1]._forward_hooks) == (hook is not None)
    return torch.cat([one for one, _ in found]), torch.cat([scores for _, scores in found], 1)


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
def test_generate_steered_is_generate_with_a_plain_hook(on_device: dict[str, Any], tokens: str) -> None:
    """Padding has no part in the attention of others, so the plain hook may add to it as well."""

    def plain(module: Any, args: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        if tokens == "prompt" and x.shape[1] == 1:
            return None
        chosen = torch.ones(x.shape[1], 1, device=x.device)
        if tokens == "generated":
            chosen[:-1] = 0  # what follows the prompt is made of its last token
        x = x + 2.0 * chosen * V.to(x.device, x.dtype)
        return x if isinstance(output, Tensor) else (x, *output[1:])

    steer = HookCallback(controllers=SteeringController("block:1", V, 2.0, tokens=tokens))
    found, scores = predicted(on_device, steer)
    expected, their_scores = predicted(on_device, hook=plain)
    torch.testing.assert_close(scores, their_scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(found, expected)
    (effect,) = steer.effects()
    padding = sum(int((row["attention_mask"] == 0).sum()) for row in token_data(8))
    prompt, later = 8 * 7 - padding, 8 * 3  # the last new token is not passed through the model
    assert effect.tokens == {"all": prompt + later, "prompt": prompt, "generated": 8 + later}[tokens]
    _, bare = predicted(on_device)
    assert not torch.allclose(scores, bare, rtol=1e-3)


def test_each_row_gets_its_strength(on_device: dict[str, Any]) -> None:
    class Given(Scored):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            inputs = dict(batch)
            batch["strength"] = torch.tensor([0.0, 3.0, -3.0, 1.0], device=self.device)
            return self.model.generate(**inputs, max_new_tokens=4, do_sample=False).cpu()

    def rows(strength: Any) -> Tensor:
        module = Given(llama(attention_dropout=0.0))
        module.model.generation_config.eos_token_id = None
        steer = HookCallback(controllers=SteeringController("block:1", V, strength, tokens="generated"))
        return run("predict", trainer(steer, **on_device), module, token_data(4))[0]

    together = rows("batch")
    for row, strength in enumerate([0.0, 3.0, -3.0, 1.0]):
        assert torch.equal(together[row], rows(strength)[row])


def test_in_bfloat16(on_device: dict[str, Any]) -> None:
    steer = HookCallback(controllers=SteeringController("block:1", V, 2.0))
    _, scores = predicted(on_device, steer, precision="bf16-true")
    _, wide = predicted(on_device, HookCallback(controllers=SteeringController("block:1", V, 2.0)))
    assert torch.allclose(scores[0], wide[0], rtol=0.1, atol=0.1)  # of the first new token
