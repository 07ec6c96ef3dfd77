"""The statistics from their definitions, in float64 numpy: nothing here is shared with the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def numpys(tokens: np.ndarray, dead_threshold: float = 0.0) -> dict[str, float]:
    """All statistics of tokens ``(N, D)``, from their definitions, over the finite elements."""
    finite = np.isfinite(tokens)
    x, clean = tokens[finite], np.where(finite, tokens, 0.0)
    rms, norms = channel_rms(tokens), np.linalg.norm(clean, axis=1)
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
        "dead_share": (np.abs(clean).max(0) <= dead_threshold).mean(),
        "kurtosis": ((x - x.mean()) ** 4).mean() / x.var() ** 2 - 3,
        "outlier_ratio": rms.max() / np.median(rms),
        "nonfinite_count": float((~finite).sum()),
    }


def channel_rms(tokens: np.ndarray) -> np.ndarray:
    """Of tokens ``(N, D)`` the root mean square of each channel, non-finite elements taken as zeros: ``(D,)``."""
    return np.sqrt((np.where(np.isfinite(tokens), tokens, 0.0) ** 2).mean(0))


def log2_counts(x: np.ndarray) -> list[int]:
    """How many finite elements lie between ``-2**14, ..., -2**-18, 2**-18, ..., 2**14``, or beyond the ends."""
    v = x[np.isfinite(x)]
    # np.histogram's bins are half-open upwards, ours are mirror images: count each side by magnitude.
    powers = np.array([2.0**e for e in range(-18, 14)] + [np.inf])
    positive, negative = (np.histogram(side, powers)[0] for side in (v[v > 0], -v[v < 0]))
    return [*negative[::-1], (np.abs(v) < 2.0**-18).sum(), *positive]


PICTURES = ("histogram", "channel_rms")


def readings_of(tokens: np.ndarray, dead_threshold: float = 0.0) -> dict[str, Any]:
    """All that is read of tokens ``(N, D)``; histograms as their counts."""
    # Most statistics are the same when everything is counted twice: only the counts are not.
    return {
        **numpys(tokens, dead_threshold),
        "histogram": log2_counts(tokens),
        "channel_rms": log2_counts(channel_rms(tokens)),
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

    def take(self) -> dict[str, dict[str, Any]]:
        """The statistics of all that was seen since the last call, by module."""
        found = {name: readings_of(np.concatenate(parts)) for name, parts in self.seen.items() if parts}
        for parts in self.seen.values():
            parts.clear()
        return found

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def assert_readings(
    readings: list[Any],
    expected: dict[str, dict[str, Any]],
    rel: float = 1e-11,
    histograms: tuple[str, ...] = ("histogram",),
) -> None:
    """Readings are the expected ones: all of them, and no others; a history has no ``histograms``."""
    found: dict[str, dict[str, Any]] = {}
    for reading in readings:
        number = isinstance(reading.value, float)
        found.setdefault(reading.layer, {})[reading.name] = reading.value if number else list(reading.value.counts)
    assert found.keys() == expected.keys()
    for layer, values in expected.items():
        wanted = {name: value for name, value in values.items() if name not in PICTURES or name in histograms}
        assert found[layer].keys() == wanted.keys(), layer
        for name, value in wanted.items():
            np.testing.assert_allclose(found[layer][name], value, rtol=rel, atol=1e-14, err_msg=f"{name} of {layer}")
