"""The controllers: exactly the edit that was asked for, everywhere else to the bit what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mi_crow_lightning.errors import EditMismatch, HookError, TokensUnknown, VectorMismatch
from mi_crow_lightning.hooks import Controller, FunctionController, Layers, SteeringController
from tests.models import BLOCKS, WIDTH, llama, token_data

VECTOR = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4))
BATCH = default_collate(token_data(3))
REAL = BATCH["attention_mask"].bool()


def states(model: nn.Module, **call: Any) -> list[Tensor]:
    """What each block gives to the next, by hooks of the test's own that come after ours."""
    found: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, args, output: found.append(output.detach().clone()))
        for block in model.get_submodule("model.layers")
    ]
    model(**call)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steering_is_the_original_plus_strength_times_vector(dtype: torch.dtype) -> None:
    model = llama().eval().to(dtype)
    before = states(model, **BATCH)
    layers = Layers(model)
    layers.register_hook(None, SteeringController("block:2", VECTOR, strength=-1.5))
    after = states(model, **BATCH)
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert torch.equal(after[2][REAL], before[2][REAL] + (-1.5 * VECTOR).to(dtype))
    assert torch.equal(after[2][~REAL], before[2][~REAL])
    assert not torch.equal(after[3], before[3]) and after[2].dtype is dtype
    layers.unregister_all_hooks()
    assert all(torch.equal(a, b) for a, b in zip(before, states(model, **BATCH), strict=True))


def test_a_function_is_applied_where_it_was_asked_for() -> None:
    model = llama().eval()
    before = states(model, **BATCH)
    Layers(model).register_hook(None, FunctionController("block:1", torch.tanh, tokens="last"))
    after = states(model, **BATCH)
    last = torch.zeros_like(REAL)
    last[:, -1] = True
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][last], before[1][last].tanh()) and torch.equal(after[1][~last], before[1][~last])


@pytest.mark.parametrize(
    "make", [lambda: SteeringController(None, torch.ones(4)), lambda: FunctionController(None, lambda x: x + 1)]
)
def test_untouched_positions_keep_their_bits(make: Any) -> None:
    """Negative zeros, infinities and nan among them: adding ``mask * delta`` would change these."""

    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.layer(x)

    model = Host()
    Layers(model).register_hook("layer", make())
    x = torch.tensor([-0.0, float("inf"), float("-inf"), float("nan")]).repeat(1, 2, 1)
    y = model(x, torch.tensor([[0, 1]]))
    assert torch.equal(y[0, 0].view(torch.int32), x[0, 0].view(torch.int32))
    assert y[0, 1, 0] == 1 and torch.equal(x[0, 1].view(torch.int32), x[0, 0].view(torch.int32))


@pytest.mark.parametrize(
    ("controller", "error", "message"),
    [
        (
            SteeringController("block:1.mlp", torch.ones(7)),
            VectorMismatch,
            r"vector has 7 features, and the activation of 'model.layers.1.mlp' has 32 \(shape \(3, 7, 32\)\): use",
        ),
        (FunctionController(1, lambda x: x[..., :5]), EditMismatch, r"keep the shape: it was given \(3, 7, 32\) and"),
        (FunctionController(1, lambda x: x.mean(0)), EditMismatch, r"keep the shape: .* returned \(7, 32\)"),
        (FunctionController(1, lambda x: None), EditMismatch, "returned a NoneType: it must return the edited tensor"),
        (FunctionController(1, torch.Tensor.half), EditMismatch, "keep the dtype: .* returned torch.float16"),
        (FunctionController(1, lambda x: x @ torch.ones(2, 2)), RuntimeError, "mat1 and mat2 shapes|size mismatch"),
    ],
)
def test_what_does_not_fit_is_said_and_not_done(controller: Controller, error: type[Exception], message: str) -> None:
    model = llama().eval()
    bare = model(**BATCH).logits
    layers = Layers(model)
    layers.register_hook(None, controller)
    with pytest.raises(HookError, match=r"failed at layer 'model\.layers\.1(\.mlp)?'") as caught:
        model(**BATCH)
    with pytest.raises(error, match=message):
        raise caught.value.original_error
    assert torch.equal(caught.value.outputs.logits, bare)
    layers.unregister_all_hooks()


@pytest.mark.parametrize("first", ["inference", "training"])
def test_one_controller_serves_inference_and_training(first: str) -> None:
    model = llama().eval()
    controller = SteeringController("block:1", VECTOR.clone(), 2.0)
    Layers(model).register_hook(None, controller)

    def predict() -> Tensor:
        with torch.inference_mode():
            return model(**BATCH).logits.clone()

    def train() -> Tensor:
        model.zero_grad()
        output = model(**BATCH, labels=BATCH["input_ids"])
        output.loss.backward()
        return output.logits.detach()

    runs = [predict, train] if first == "inference" else [train, predict]
    one, other = (run() for run in runs)
    torch.testing.assert_close(one, other)
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()


def test_a_vector_made_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        controller = SteeringController("block:1", VECTOR * 2)
    model = llama().train()
    Layers(model).register_hook(None, controller)
    model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    assert not controller.vector.is_inference()
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()  # below the steered block


def test_strength_and_vector_may_change_between_batches() -> None:
    model = llama().eval()
    original = states(model, **BATCH)[1][REAL]
    controller = SteeringController("block:1", VECTOR, 1.0)
    Layers(model).register_hook(None, controller)
    for strength in (1.0, 3, -2.0, 0.0):
        controller.strength = strength
        assert torch.equal(states(model, **BATCH)[1][REAL], original + strength * VECTOR)
    controller.strength = 1.0
    model(**BATCH)
    controller.vector = torch.ones(WIDTH)
    assert torch.equal(states(model, **BATCH)[1][REAL], original + 1.0)
    with pytest.raises(ValueError, match="vector must be a float tensor"):
        controller.vector = torch.arange(3)
    model.bfloat16()
    assert states(model, **BATCH)[1].dtype is torch.bfloat16


def test_the_given_vector_is_copied() -> None:
    vector = torch.ones(WIDTH, requires_grad=True)
    controller = SteeringController(0, vector)
    with torch.no_grad():
        vector.zero_()
    assert controller.vector.sum() == WIDTH and not controller.vector.requires_grad


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"vector": [1.0, 2.0]}, TypeError, r"vector must be a tensor \(D,\), not a list"),
        ({"vector": torch.ones(2, 3)}, ValueError, r"float tensor \(D,\), not torch.float32 of shape \(2, 3\)"),
        ({"vector": torch.ones(0)}, ValueError, r"not torch.float32 of shape \(0,\)"),
        ({"vector": torch.arange(3)}, ValueError, r"not torch.int64 of shape \(3,\)"),
        ({"vector": torch.tensor([1.0, float("nan"), float("inf")])}, ValueError, "vector holds 2 values that are not"),
        ({"strength": float("inf")}, ValueError, "strength=inf must be a finite number"),
        ({"strength": True}, ValueError, "strength=True must be a finite number"),
        ({"strength": "4"}, ValueError, "strength='4' must be a finite number"),
        ({"tokens": "some"}, ValueError, "tokens='some' is not known"),
        ({"hook_type": "around"}, ValueError, "hook_type='around' is not known"),
    ],
)
def test_wrong_arguments_of_steering(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SteeringController(0, **{"vector": VECTOR, **given})


def test_a_function_must_be_callable() -> None:
    with pytest.raises(TypeError, match="function=3 must be callable: from an activation to the edited one"):
        FunctionController(0, 3)  # type: ignore[arg-type]


def controllers() -> list[Controller]:
    return [
        SteeringController("block:1", VECTOR, 2.0, tokens="last"),
        SteeringController("block:0-1.mlp", VECTOR, 2.0, tokens="last"),
        FunctionController("block:*.mlp", lambda x: torch.sin(x) * 3),
        FunctionController("block:2.attn", torch.tanh, hook_type="pre_forward"),
    ]


def checkpoint_blocks(model: Any, reentrant: bool) -> None:
    # The name in transformers 5, else that in 4.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()


def gradients(reentrant: bool | None, passes: int = 1) -> list[Tensor]:
    model = llama(attention_dropout=0.0).train()
    if reentrant is not None:
        checkpoint_blocks(model, reentrant)
    runs: list[int] = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    layers = Layers(model, allow_stacking=True)
    for controller in controllers():
        layers.register_hook(None, controller)
    flipped = {name: tensor.flip(1) for name, tensor in BATCH.items()}
    losses = [model(**batch, labels=batch["input_ids"]).loss for batch in (BATCH, flipped)[:passes]]
    sum(losses).backward()  # type: ignore[union-attr]
    assert len(runs) == passes * (1 if reentrant is None else 2)
    return [parameter.grad for parameter in model.parameters()]  # type: ignore[misc]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recompute_is_edited_as_its_pass_was(reentrant: bool) -> None:
    pairs = zip(gradients(reentrant), gradients(None), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_each_of_two_passes_before_one_backward_is_recomputed_with_its_own_tokens(reentrant: bool) -> None:
    """As in DPO; the passes are padded on different sides, so their last tokens differ."""
    pairs = zip(gradients(reentrant, passes=2), gradients(None, passes=2), strict=True)
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in pairs)


def test_more_passes_before_one_backward_than_are_remembered_are_refused() -> None:
    model = llama(attention_dropout=0.0).train()
    checkpoint_blocks(model, reentrant=False)
    Layers(model).register_hook("block:1.mlp", SteeringController(None, VECTOR, 0.5, tokens="last"))
    losses = [model(**BATCH, labels=BATCH["input_ids"]).loss for _ in range(40)]
    with pytest.raises(TokensUnknown, match=r"runs 'model.layers.1.mlp' again, and it is not known which earlier pass"):
        sum(losses).backward()  # type: ignore[union-attr]


def test_two_passes_before_one_backward_without_checkpointing() -> None:
    model = llama(attention_dropout=0.0).train()
    layers = Layers(model)
    layers.register_hook("block:1.mlp", SteeringController(None, VECTOR, 0.5, tokens="last"))
    flipped = {name: tensor.flip(1) for name, tensor in BATCH.items()}
    for batches in ((BATCH, flipped), (flipped, BATCH)):
        model.zero_grad()
        sum(model(**batch, labels=batch["input_ids"]).loss for batch in batches).backward()
        together = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        for batch in batches:
            model(**batch, labels=batch["input_ids"]).loss.backward()
        apart = [parameter.grad for parameter in model.parameters()]
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(together, apart, strict=True))


class FailsInOnePass(Controller):
    """Doubles the second block's MLP, but fails at the third's in the forward pass."""

    def edit(self, x: torch.Tensor, ctx: Any) -> torch.Tensor:
        if ctx.index == 2 and not ctx.recomputing:
            raise ValueError("broke")
        return x * 2


@pytest.mark.parametrize("policy", ["warn", "disable"])
def test_a_recompute_repeats_what_was_skipped_too(policy: str) -> None:
    """With a failure on the way: edited layers are edited again, and the others are left alone again."""

    def train(checkpointed: bool) -> list[torch.Tensor]:
        model = llama(attention_dropout=0.0).train()
        if checkpointed:
            checkpoint_blocks(model, False)
        Layers(model).register_hook("block:*.self_attn", FailsInOnePass(on_error=policy))
        with pytest.warns(RuntimeWarning, match="broke"):
            loss = model(**BATCH, labels=BATCH["input_ids"]).loss
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(True), train(False), strict=True))


def test_every_block_may_be_steered_at_once() -> None:
    model, made = llama().eval(), []
    for block in model.model.layers:
        block.register_forward_hook(lambda module, args, output: made.append(output.detach().clone()))
    Layers(model).register_hook(None, SteeringController("block:*", VECTOR, 0.5))
    passed_on = states(model, **BATCH)
    assert len(made) == len(passed_on) == BLOCKS
    for before, after in zip(made, passed_on, strict=True):
        assert torch.equal(after[REAL], before[REAL] + 0.5 * VECTOR) and torch.equal(after[~REAL], before[~REAL])
