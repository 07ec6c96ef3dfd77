"""A callback with the hooks whose states a checkpoint keeps, and ways to damage these states."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    ActivationStatistics,
    ContrastDetector,
    FunctionController,
    HookCallback,
    ProjectionDetector,
    ScaleController,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.hooks import Layers
from tests.callback.runs import data_of, fit, module_of
from tests.hooks.summing import Spread
from tests.models import WIDTH

Path = tuple[Any, ...]
EVERY = Schedule()
V = torch.linspace(-1, 1, WIDTH)


class _Missing:
    def __repr__(self) -> str:  # the IDs of tests are made of it, and must be those of every process
        return "missing"


MISSING = _Missing()


def hooks() -> HookCallback:
    """One hook of each class that keeps more than its switch, for the layers 0 and 3 of the MLP."""
    both = ["model.0", "model.3"]
    observing = [
        ActivationStatistics(both, per_channel=True, schedule=EVERY, hook_id="seen"),
        ProjectionDetector(both, vectors={"a": V, "b": V.flip(0)}, schedule=EVERY, hook_id="along"),
        Spread(both, schedule=EVERY, hook_id="spread"),
        ContrastDetector(both, covariance=["difference"], keep_samples=True, hook_id="contrast"),
    ]
    editing = [
        SteeringController(both, V, 0.1, schedule=EVERY, hook_id="steered"),
        SteeringController(both, {"model.0": V, "model.3": -V}, {"model.0": 0.1, "model.3": 0.0}, hook_id="by layer"),
        ScaleController(both, 0.5, strength=torch.tensor([0.5, 1.0]), hook_id="each"),
        FunctionController(both, torch.abs, strength="batch", hook_id="batch"),
    ]
    return HookCallback(observing, editing, name="all", log_every_n_steps=3)


def saved() -> dict[str, Any]:
    """The state of these hooks in the middle of a fit, after an extraction."""
    watch = hooks()
    contrast = watch.detectors[-1]
    assert isinstance(contrast, ContrastDetector)
    extract(contrast)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"ContrastDetector\(.*reads in validation")
        fit(module_of(), data_of(), watch)
    return watch.state_dict()


def extract(contrast: ContrastDetector) -> None:
    model = nn.ModuleDict({"model": nn.Sequential(*[nn.Identity() for _ in range(4)])})
    layers = Layers(model)
    layers.register_hook(None, contrast)
    layers.begin_batch(None, {"label": [1, 0, 1, 0], "pair": torch.tensor([0, 0, 1, 1])})
    model["model"](torch.arange(12.0).reshape(4, 3) ** 2)
    contrast.vectors()
    layers.unregister_all_hooks()
    contrast.load_state_dict({**contrast.state_dict(), "scores": [["model.0", 0.9, 8, 1.5]]})


def paths(state: Any, path: Path = ()) -> Iterator[Path]:
    """The place of each value in a state, from the outermost on."""
    if path:
        yield path
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for key, value in items:
        yield from paths(value, (*path, key))


def at(state: Any, path: Path) -> Any:
    for key in path:
        state = state[key]
    return state


def with_value(state: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of a state with another value in one place, or without it."""
    damaged = copy.deepcopy(state)
    inner = at(damaged, path[:-1])
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return damaged


def deep(levels: int = 3000) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


def endless() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    inner["train"] = inner
    return inner


def huge() -> Tensor:
    """A tensor that claims a million times a million numbers, and holds one."""
    return torch.zeros(1).expand(10**6, 10**6)


STRANGE = {
    "missing": MISSING,
    "none": None,
    "a number": 5,
    "nan": float("nan"),
    "huge number": 10**400,
    "bool": True,
    "text": "x",
    "path": "/etc/hostname",
    "long text": "x" * 100_000,
    "line breaks": "a\nb",
    "empty list": [],
    "empty dict": {},
    "list": [1, "x", None],
    "dict": {"train": 5, 3: torch.ones(2)},
    "many": {str(i): i for i in range(3000)},
    "deep": deep(),
    "endless": endless(),
    "huge tensor": huge(),
    "tensor": torch.ones(2),
    "scalar tensor": torch.tensor(3.0),
    "empty tensor": torch.zeros(0),
    "nan tensor": torch.full((2, 2), float("nan")),
    "integers": torch.ones(2, 2, dtype=torch.long),
    "complex": torch.ones(2, dtype=torch.complex64),
    "meta": torch.ones(2, device="meta"),
    "sparse": torch.eye(2).to_sparse(),
    "array": np.ones(2),
    "function": print,
    "bytes": b"x",
}


def changed_tensors(value: Tensor) -> dict[str, Tensor]:
    """What damages a tensor most treacherously: almost itself."""
    return {
        "nan inside": value.clone().fill_(float("nan")),
        "infinite": value.clone().fill_(float("inf")),
        "negative": value - 1e6,
        "large": value + 1e300,
        "one dimension more": value[None],
        "integers": value.nan_to_num(0, 0, 0).long(),
        "half": value.half(),
        "twice as long": torch.cat([value, value]) if value.dim() else value,
        "transposed": value.mT if value.dim() > 1 else value,
    }
