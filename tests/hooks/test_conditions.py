"""``when=``: edits happen at the chosen tokens where the condition holds, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning.errors import ConditionMismatch
from mi_crow_lightning.hooks import Layers, SteeringController
from tests.hooks.controllers.cases import BATCH, EDITS, REAL, original, run
from tests.models import WIDTH, llama

LAST = torch.zeros_like(REAL)
LAST[:, -1] = True
ROWS = torch.tensor([True, False, True])
SOME = (torch.arange(21) % 3 != 1).reshape(3, 7)


def touched(when: Any, tokens: str = "all") -> Tensor:
    """The tokens that an edit of all of their features changed."""
    controller = SteeringController(1, torch.ones(WIDTH), tokens=tokens, when=when)
    seen = run(llama().eval(), "model.layers", BATCH, controller)
    changed = seen.passed_on[1] != seen.made[1]
    assert torch.equal(changed.any(-1), changed.all(-1))
    return changed.all(-1)


@pytest.mark.parametrize(("tokens", "chosen"), [("all", REAL), ("last", LAST)])
@pytest.mark.parametrize(
    ("holds", "mask"),
    [
        (True, torch.ones(3, 7, dtype=torch.bool)),
        (False, torch.zeros(3, 7, dtype=torch.bool)),
        (torch.tensor(True), torch.ones(3, 7, dtype=torch.bool)),
        (torch.tensor(False), torch.zeros(3, 7, dtype=torch.bool)),
        (ROWS, ROWS[:, None].expand(3, 7)),
        (ROWS[:1], torch.ones(3, 7, dtype=torch.bool)),
        (SOME, SOME),
        (SOME[:1], SOME[:1].expand(3, 7)),
    ],
    ids=["yes", "no", "0-d yes", "0-d no", "rows", "one row", "tokens", "tokens of one row"],
)
def test_both_must_choose_a_token(tokens: str, chosen: Tensor, holds: Any, mask: Tensor) -> None:
    assert torch.equal(touched(lambda x, ctx: holds, tokens), chosen & mask)


@pytest.mark.filterwarnings("ignore:the token IDs .* look padded:UserWarning")
def test_without_a_mask_the_condition_alone_decides() -> None:
    model = llama().eval()
    for call, holds, expected in (
        ({"input_ids": BATCH["input_ids"]}, SOME, SOME),
        ({"input_ids": BATCH["input_ids"]}, ROWS, ROWS[:, None].expand(3, 7)),
    ):
        controller = SteeringController(1, torch.ones(WIDTH), when=lambda x, ctx, holds=holds: holds)
        seen = run(model, "model.layers", call, controller)
        assert torch.equal((seen.passed_on[1] != seen.made[1]).all(-1), expected)


def test_it_sees_the_activation_and_the_context() -> None:
    given: list[Any] = []

    def positive(x: Tensor, ctx: Any) -> Tensor:
        given.append((x.shape, ctx.layer, ctx.index, torch.is_grad_enabled()))
        return x[..., 0] > 0

    controller = SteeringController("block:1-2", torch.ones(WIDTH), when=positive)
    seen = run(llama().eval(), "model.layers", BATCH, controller)
    for i in (1, 2):
        assert torch.equal((seen.passed_on[i] != seen.made[i]).any(-1), REAL & (seen.made[i][..., 0] > 0))
    assert given == [(torch.Size([3, 7, WIDTH]), f"model.layers.{i}", i, False) for i in (1, 2)]


@pytest.mark.parametrize("edit", EDITS)
def test_every_controller_takes_it(edit: str) -> None:
    seen = run(llama().eval(), "model.layers", BATCH, EDITS[edit][0](1, when=lambda x, ctx: ROWS))
    assert torch.equal(seen.passed_on[1][1], seen.made[1][1])
    assert not torch.equal(seen.passed_on[1][0], seen.made[1][0])


def test_the_rows_of_a_sample_share_its_answer() -> None:
    model, made, found = llama().eval(), [], []
    block = model.model.layers[1]
    block.register_forward_hook(lambda module, args, output: made.append(output.clone()))
    Layers(model).register_hook(None, SteeringController(1, torch.ones(WIDTH), when=lambda x, ctx: ROWS))
    block.register_forward_hook(lambda module, args, output: found.append((output != made.pop()).all(-1)[:, -1]))
    model.generate(**BATCH, num_beams=2, do_sample=False, max_new_tokens=3)
    assert len(found) == 3 and all(torch.equal(rows, ROWS.repeat_interleave(2)) for rows in found)


def test_gradients_do_not_flow_through_the_condition() -> None:
    model, recorded = llama(attention_dropout=0.0).train(), []

    def positive(x: Tensor, ctx: Any) -> Tensor:
        recorded.append((x * 2).requires_grad)
        return x[..., 0] > 0

    Layers(model).register_hook(None, SteeringController(1, torch.ones(WIDTH), when=positive))
    model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    assert recorded == [False] and model.model.layers[0].mlp.up_proj.weight.grad.any()


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        (
            None,
            r"when returned a NoneType for 'model.layers.1': it must return a bool, or a bool tensor \(B,\)",
        ),
        (1, "when returned a int for"),
        (SOME.long(), "when returned a torch.int64 tensor for"),
        (SOME.float(), "when returned a torch.float32 tensor for"),
        (
            SOME[:2],
            r"when returned a mask of shape \(2, 7\) for 'model.layers.1', whose activation has shape \(3, 7",
        ),
        (SOME[:, :5], r"mask of shape \(3, 5\) .* a bool, or a bool tensor \(B,\) or \(B, T\) = \(3, 7\)"),
        (SOME[..., None].expand(3, 7, 32), r"mask of shape \(3, 7, 32\)"),
        (torch.ones(0, dtype=torch.bool), r"mask of shape \(0,\)"),
    ],
)
def test_what_is_no_mask_of_the_activation(holds: Any, message: str) -> None:
    with original(ConditionMismatch, message):
        touched(lambda x, ctx: holds)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"when": ROWS}, "must be callable, as when\\(x, ctx\\)"),
        ({"when": True}, "when=True must be callable"),
        ({"preserve_norm": 1}, "preserve_norm=1 must be True or False"),
        ({"tokens": 3}, "tokens=3 must be a name such as 'generated', or Tokens"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SteeringController(1, torch.ones(WIDTH), **given)
