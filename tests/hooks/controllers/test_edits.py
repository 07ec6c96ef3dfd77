"""Each ready controller against numpy in float64, in every kind of transformer, and exactly where it was asked to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks import Layers
from tests.hooks.controllers.cases import BATCH, EDITS, MODELS, REAL, run, vectors
from tests.models import WIDTH, llama

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float64: 1e-12}


def close(found: Tensor, expected: np.ndarray, scale: np.ndarray) -> bool:
    """Within the rounding of a few operations on numbers as large as those of the token."""
    tolerance = TOLERANCE[found.dtype] * (
        np.abs(scale).max(-1, keepdims=True) + np.abs(expected).max(-1, keepdims=True)
    )
    return bool((np.abs(found.double().numpy() - expected) <= 4 * tolerance).all())


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", MODELS)
def test_an_edit_is_that_of_numpy_at_the_chosen_tokens_and_none_elsewhere(kind: str, edit: str) -> None:
    make, reference = EDITS[edit]
    model, at = MODELS[kind].make().eval(), f"{MODELS[kind].blocks}.1"
    bare = run(model, MODELS[kind].blocks, MODELS[kind].call)
    edited = run(model, MODELS[kind].blocks, MODELS[kind].call, make(at))
    assert torch.equal(edited.passed_on[0], bare.passed_on[0])
    made, passed_on = edited.made[1], edited.passed_on[1]
    assert torch.equal(made, bare.made[1]) and torch.equal(passed_on[~REAL], made[~REAL])
    assert close(passed_on[REAL], reference(made.double().numpy())[REAL], made[REAL].double().numpy())
    assert not torch.equal(edited.passed_on[2], bare.passed_on[2])
    again = run(model, MODELS[kind].blocks, MODELS[kind].call)
    assert all(torch.equal(a, b) for a, b in zip(bare.passed_on, again.passed_on, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("edit", EDITS)
def test_in_other_dtypes(edit: str, dtype: torch.dtype) -> None:
    make, reference = EDITS[edit]
    seen = run(llama().eval().to(dtype), "model.layers", BATCH, make(1, tokens="last"))
    made, passed_on = seen.made[1], seen.passed_on[1]
    last = torch.zeros_like(REAL)
    last[:, -1] = True
    assert passed_on.dtype is dtype and torch.equal(passed_on[~last], made[~last])
    assert close(passed_on[last], reference(made.double().numpy())[last], made[last].double().numpy())


@pytest.mark.parametrize("edit", EDITS)
def test_under_autocast_the_stream_is_not_halved(edit: str) -> None:
    """bf16-mixed leaves the stream in float32, and autocast would multiply matrices in bfloat16."""
    make, reference = EDITS[edit]
    with torch.autocast("cpu", torch.bfloat16):
        seen = run(llama().eval(), "model.layers", BATCH, make(1))
    made, passed_on = seen.made[1], seen.passed_on[1]
    assert passed_on.dtype is torch.float32
    assert close(passed_on[REAL], reference(made.double().numpy())[REAL], made[REAL].double().numpy())


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_may_be_kept(edit: str, dtype: torch.dtype) -> None:
    make, reference = EDITS[edit]
    seen = run(llama().eval().to(dtype), "model.layers", BATCH, make(1, preserve_norm=True))
    made, free = seen.made[1].double().numpy()[REAL], reference(seen.made[1].double().numpy())[REAL]
    was, now = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (made, free))
    assert close(seen.passed_on[1][REAL], free * was / now, made)
    assert torch.equal(seen.passed_on[1][~REAL], seen.made[1][~REAL])


@pytest.mark.parametrize("edit", EDITS)
def test_a_strength_of_zero_changes_no_number(edit: str) -> None:
    make, _ = EDITS[edit]
    controller = make(1)
    controller.strength = 0
    seen = run(llama().eval(), "model.layers", BATCH, controller)
    assert torch.equal(seen.made[1], seen.passed_on[1])


class Host(nn.Module):
    """A layer between two linear maps; the edit's parameters of a reference may be learned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.layer, self.after = nn.Linear(5, WIDTH), nn.Identity(), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x)).sin())


U = vectors(1)[0] / vectors(1)[0].norm()
Q = torch.linalg.qr(vectors(3, seed=6).T)[0]


def kept(x: Tensor, y: Tensor) -> Tensor:
    return y * x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)


BY_HAND: dict[str, tuple[dict[str, object], object]] = {
    "steer": ({}, lambda x: x - 1.5 * vectors(1)[0]),
    "ablate a share": ({}, lambda x: x - 0.25 * (x @ U)[..., None] * U),
    "ablate a subspace": ({}, lambda x: x - x @ Q @ Q.T),
    "clamp to a value": ({}, lambda x: x + (0.5 - x @ U)[..., None] * U),
    "clip": ({}, lambda x: x + ((x @ U).clamp(-0.005, 0.01) - x @ U)[..., None] * U),
    "scale": ({}, lambda x: -2.5 * x),
    "patch a mean": ({}, lambda x: 0 * x + vectors(1)[0]),
    "some of a function": ({}, lambda x: 0.7 * x + 0.3 * x.tanh()),
    "function": ({"preserve_norm": True}, lambda x: kept(x, x.tanh())),
}


@pytest.mark.parametrize("edit", BY_HAND)
def test_gradients_are_those_of_the_edited_computation(edit: str) -> None:
    class ByHand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return BY_HAND[edit][1](x)  # type: ignore[operator]

    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(2))
    gradients = []
    for model in (Host(), Host()):
        if gradients:
            model.layer = ByHand()
        else:
            Layers(model).register_hook("layer", EDITS[edit][0](None, **BY_HAND[edit][0]))
        model(x).square().sum().backward()
        gradients.append([p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()])
    for ours, by_hand in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-4)
    assert gradients[0][0].any() or edit == "patch a mean"  # what is replaced gets none


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("first", ["inference", "training"])
def test_one_controller_serves_inference_and_training(edit: str, first: str) -> None:
    model = llama(attention_dropout=0.0).train()
    with torch.inference_mode(first == "inference"):  # its tensors may be made there too
        controller = EDITS[edit][0]("block:1")
        controller.strength = torch.tensor([0.5, 1.0, 2.0])
    Layers(model).register_hook(None, controller)

    def predict() -> Tensor:
        with torch.inference_mode():
            return model(**BATCH).logits.clone()

    def train() -> Tensor:
        output = model(**BATCH, labels=BATCH["input_ids"])
        output.loss.backward()
        return output.logits.detach()

    one, other = (step() for step in ([predict, train] if first == "inference" else [train, predict]))
    torch.testing.assert_close(one, other)
