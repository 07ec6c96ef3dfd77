"""Gradients of activations by hand, and a detector's readings by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mi_crow_lightning.hooks import GradientStatistics
from tests.metrics.reference import readings_of
from tests.models import llama, token_data


def batch_of(first: int = 0, rows: int = 4) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = default_collate(token_data(first + rows)[first:])
    return batch


def steady() -> Any:
    """A Llama in training whose passes are all alike."""
    return llama(attention_dropout=0.0).train()


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = model(**batch, labels=batch["input_ids"], use_cache=False).loss
    return loss


def by_hand(model: nn.Module, names: list[str], loss: Callable[[], Tensor], mask: Tensor | None) -> dict[str, Any]:
    """The gradients of what layers return, by `torch.autograd.grad`, at the tokens that count: ``(N, D)`` each."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda module, args, out: outputs[name].append(out if isinstance(out, Tensor) else out[0])

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    kept = loss()
    gradients = torch.autograd.grad(kept, [x for name in names for x in outputs[name]], allow_unused=True)
    for handle in handles:
        handle.remove()
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    owners = [name for name in names for _ in outputs[name]]
    for name, gradient in zip(owners, gradients, strict=True):
        if gradient is not None:
            chosen = gradient if mask is None else gradient[mask.bool()]
            found[name].append(chosen.double().numpy().reshape(-1, gradient.shape[-1]))
    return {name: np.concatenate(parts) for name, parts in found.items() if parts}


def by_layer(readings: list[Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for reading in readings:
        value = [*reading.value.counts] if reading.name in ("histogram", "channel_rms") else reading.value
        found.setdefault(reading.layer, {})[reading.name] = value
    return found


def assert_equal_to(gradients: dict[str, np.ndarray], readings: list[Any], rel: float = 1e-9) -> None:
    """All that was read is what numpy makes of the gradients; the counts of the histogram are those of tokens."""
    found = by_layer(readings)
    assert found.keys() == gradients.keys()
    for layer, tokens in gradients.items():
        expected = readings_of(tokens)
        for name, value in found[layer].items():
            if name in ("histogram", "channel_rms"):
                assert value == expected[name], (layer, name)
            elif name != "nonfinite_batch":
                scale = float(np.abs(tokens).max())
                assert np.isclose(value, expected[name], rtol=rel, atol=rel * scale), (layer, name, value)


def all_of(signature: Any, **options: Any) -> GradientStatistics:
    return GradientStatistics(signature, per_channel=True, **options)
