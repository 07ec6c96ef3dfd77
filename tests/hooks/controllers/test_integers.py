"""Activations of integers or bools: edits by whole numbers are exact, and what they cannot hold is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import EditMismatch, HookError
from mi_crow_lightning.hooks import (
    AblationController,
    ClampController,
    Controller,
    FunctionController,
    PatchController,
    ScaleController,
    SteeringController,
    attached,
)
from mi_crow_lightning.hooks.edits import added

UNIT = torch.eye(4)[0]
X = torch.arange(24).reshape(2, 3, 4)
INTEGERS = [torch.int64, torch.int32, torch.int8, torch.uint8]


def edited(hook: Controller, x: Tensor) -> Tensor:
    net = nn.Sequential(nn.Identity(), nn.Identity())
    with attached(net, hook):
        result: Tensor = net(x)
    return result


FRACTIONS: dict[str, Callable[[], Controller]] = {
    "strength": lambda: SteeringController("0", torch.ones(4), strength=0.5),
    "strength above one": lambda: SteeringController("0", torch.ones(4), strength=1.7),
    "strengths by sample": lambda: SteeringController("0", torch.ones(4), strength=torch.tensor([1.0, 0.5])),
    "steering vector": lambda: SteeringController("0", torch.full((4,), 0.5)),
    "bound": lambda: ClampController("0", UNIT, high=2.5),
    "value": lambda: ClampController("0", UNIT, 2.5),
    "clamped direction": lambda: ClampController("0", torch.ones(4), 1.0),
    "ablated direction": lambda: AblationController("0", torch.ones(4)),
    "share of an ablation": lambda: AblationController("0", UNIT, strength=0.3),
    "stored activations": lambda: PatchController("0", torch.full((4,), 0.5)),
    "share of a patch": lambda: PatchController("0", torch.full((4,), 90.0), strength=0.3),
    "share of a function": lambda: FunctionController("0", lambda x: x + 1, strength=0.5),
    "factor": lambda: ScaleController("0", 0.5),
    "norm": lambda: SteeringController("0", torch.ones(4), preserve_norm=True),
}


@pytest.mark.documents("reliability/an-edit-of-integers-by-a-fraction")
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("case", FRACTIONS)
def test_a_fraction_is_refused(case: str, dtype: torch.dtype) -> None:
    with pytest.raises(HookError, match=r"int(8|32|64)") as raised:
        edited(FRACTIONS[case](), X.to(dtype))
    assert isinstance(raised.value.original_error, EditMismatch)


WHOLE: dict[str, tuple[Callable[[], Controller], Callable[[Tensor], Tensor]]] = {
    "steering": (lambda: SteeringController("0", torch.tensor([1.0, 0, 2, 3]), 2.0), lambda x: x + X.new([2, 0, 4, 6])),
    "halves that add up": (lambda: SteeringController("0", torch.full((4,), 2.0), 0.5), lambda x: x + 1),
    "by sample": (
        lambda: SteeringController("0", torch.ones(4), strength=torch.tensor([1.0, 3.0])),
        lambda x: x + X.new([1, 3])[:, None, None],
    ),
    "ablation": (lambda: AblationController("0", UNIT), lambda x: x * X.new([0, 1, 1, 1])),
    "clamp": (lambda: ClampController("0", UNIT, 7.0), lambda x: torch.where(UNIT == 1, 7, x)),
    "patch": (lambda: PatchController("0", torch.full((4,), 5.0)), lambda x: torch.full_like(x, 5)),
    "function": (lambda: FunctionController("0", lambda x: x + 1), lambda x: x + 1),
}


@pytest.mark.documents("reliability/an-edit-of-integers-by-a-fraction")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("case", WHOLE)
def test_whole_numbers_are_exact(case: str, dtype: torch.dtype) -> None:
    make, expected = WHOLE[case]
    result = edited(make(), X.to(dtype))
    assert result.dtype == dtype and torch.equal(result, expected(X).to(dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_a_number_that_is_too_large_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(HookError, match="cannot take 300: it would be cut off"):
        edited(SteeringController("0", torch.full((4,), 300.0)), X.to(dtype))


def test_bools_are_not_steered_but_a_function_may_replace_them() -> None:
    with pytest.raises(HookError, match=r"holds bools \(torch\.bool\), which cannot take 1"):
        edited(SteeringController("0", torch.ones(4)), X > 3)
    assert torch.equal(edited(FunctionController("0", lambda x: ~x), X > 3), X <= 3)


def test_a_compiled_graph_refuses_integers() -> None:
    compiled = torch.compile(lambda x: added(x, torch.ones(4), 2.0), backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(4)), torch.full((4,), 3.0))
    with pytest.raises(Exception, match="holds integers"):  # dynamo wraps the error again
        compiled(X[0])
