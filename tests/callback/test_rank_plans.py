"""Plans of ranks that differ, in words."""

from __future__ import annotations

import pytest
import torch

from mi_crow_lightning import ActivationStatistics, FunctionController, ProjectionDetector, SteeringController
from mi_crow_lightning.hooks import Controller, Hook
from mi_crow_lightning.runs.rank_plans import Plan, differences


def test_differences_of_many_ranks_and_layers_stay_short() -> None:
    names = [f"blocks.{i}" for i in range(1000)]
    plans = [{"layers": names if rank else names[:990]} for rank in range(500)]
    (words,) = differences(plans)
    assert words == (
        "layers: 990 on rank 0; 1000, with blocks.990, blocks.991, blocks.992, blocks.993, blocks.994, blocks.995 and "
        "4 more on ranks 1, 2, 3, 4, 5, 6 and 493 more"
    )
    many = differences([{f"option {i}": f"{rank}" * 5000 for i in range(100)} for rank in range(10)])
    assert len(many) == 7 and many[-1] == "and 94 more" and max(map(len, many)) < 2000


class Custom(Controller):
    """Its rank is its own matter."""

    def __init__(self, rank: int) -> None:
        super().__init__("model.0")
        self.rank = rank


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Custom(0), Custom(1)),
        (FunctionController("model.0", lambda x: x), FunctionController("model.0", lambda x: x)),
        (ActivationStatistics("model.0"), ActivationStatistics("model.0")),
        (ProjectionDetector("model.0", torch.ones(3)), ProjectionDetector("model.0", torch.ones(3))),
        (
            SteeringController("model.0", {1: torch.ones(2)}, "batch"),
            SteeringController("model.0", {1: torch.ones(2)}, "batch"),
        ),
    ],
)
def test_hooks_made_by_the_same_line_have_the_same_plan(one: Hook, other: Hook) -> None:
    """They have other addresses and IDs, and a class that is not the package's may hold what is of its rank."""
    plans = [Plan.of({"name": None}, {"detectors": [hook]}, None) for hook in (one, other)]
    assert plans[0] == plans[1] and plans[0].digest() == plans[1].digest()
    assert Plan.of_text(plans[0].as_text()) == plans[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_vector_that_differs_in_its_last_bit_changes_the_plan(dtype: torch.dtype) -> None:
    vector = torch.ones(4, dtype=dtype)
    nearly = vector.clone()
    nearly[3] = torch.nextafter(vector[3], torch.tensor(2.0, dtype=dtype)) if dtype is torch.float32 else 1.01
    plans = [Plan.of({}, {"controllers": [SteeringController("model.0", one)]}, None) for one in (vector, nearly)]
    assert plans[0].fields == plans[1].fields and plans[0].values != plans[1].values
