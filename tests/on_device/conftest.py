"""The device of these tests: a CPU in `make test`, and the GPU in `make gpu`, which sets the variable.

The tests must not need what a machine with a GPU may lack: hypothesis, pytest-timeout, a network.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from mi_crow_lightning.metrics.one_pass.on_cuda import choice

VARIABLE = "MI_CROW_LIGHTNING_TEST_DEVICE"


@pytest.fixture(scope="session")
def device() -> torch.device:
    name = os.environ.get(VARIABLE, "cpu")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


@pytest.fixture(scope="session")
def on_device(device: torch.device) -> dict[str, Any]:
    """The Trainer's options."""
    return {"accelerator": "gpu" if device.type == "cuda" else device.type}


@pytest.fixture(autouse=True)
def kernels_ran(device: torch.device) -> Any:
    """On a GPU the kernels measure; they are not given up in silence."""
    yield
    assert device.type != "cuda" or choice.kernels_run_on(device)
