"""The statistics from their definitions, in float64 numpy: nothing here is shared with the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def numpys(x: np.ndarray) -> dict[str, float]:
    """All statistics of tokens ``(N, D)``, from their definitions."""
    rms = np.sqrt((x**2).mean(0))
    norms = np.linalg.norm(x, axis=1)
    return {
        "mean": x.mean(),
        "std": x.std(),
        "rms": np.sqrt((x**2).mean()),
        "min": x.min(),
        "max": x.max(),
        "abs_max": np.abs(x).max(),
        "token_norm_mean": norms.mean(),
        "token_norm_max": norms.max(),
        "zero_share": (x == 0).mean(),
        "dead_share": (np.abs(x).max(0) == 0).mean(),
        "kurtosis": ((x - x.mean()) ** 4).mean() / x.var() ** 2 - 3,
        "outlier_ratio": rms.max() / np.median(rms),
        "nonfinite_count": 0.0,
    }


class Recorder:
    """Plain forward hooks that keep copies of what modules return, at the tokens that count."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.seen: dict[str, list[np.ndarray]] = {name: [] for name in modules}
        self.mask: Tensor | None = None  # (B, T) bool of the running batch; None: every token counts
        self._handles = [
            module.register_forward_hook(lambda m, a, output, name=name: self._keep(name, output))
            for name, module in modules.items()
        ]

    def _keep(self, name: str, output: Any) -> None:
        x = (output if isinstance(output, Tensor) else output[0]).detach()
        x = x if self.mask is None else torch.stack([x[row, column] for row, column in self.mask.nonzero().tolist()])
        self.seen[name].append(x.double().numpy().reshape(-1, x.shape[-1]))

    def take(self) -> dict[str, dict[str, float]]:
        """The statistics of all that was seen since the last call, by module."""
        joined = {name: np.concatenate(parts) for name, parts in self.seen.items() if parts}
        # Most statistics are the same when everything is counted twice: only the count is not.
        found = {name: {**numpys(x), "count": x.size} for name, x in joined.items()}
        for parts in self.seen.values():
            parts.clear()
        return found

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def assert_readings(readings: list[Any], expected: dict[str, dict[str, float]], rel: float = 1e-11) -> None:
    """Readings (or rows of a history, which has no histograms) are the expected ones: all of them, and no others."""
    found: dict[str, dict[str, float]] = {}
    for reading in readings:
        if isinstance(reading.value, float):
            found.setdefault(reading.layer, {})[reading.name] = reading.value
        else:
            found[reading.layer]["count"] = reading.value.total
    assert found.keys() == expected.keys()
    for layer, values in expected.items():
        values = {name: value for name, value in values.items() if name != "count" or name in found[layer]}
        assert found[layer].keys() == values.keys()
        for name, value in values.items():
            np.testing.assert_allclose(found[layer][name], value, rtol=rel, atol=1e-14, err_msg=f"{name} of {layer}")
