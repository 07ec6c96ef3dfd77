"""TokenStatistics: numpy in float64 over exactly the tokens that count, merged over passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import HookCallback, TokenStatistics
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Layers
from tests.callback.runs import Trace, assert_bit_equal, data_of, fingerprint, fit, module_of
from tests.hooks.detectors.gradients import batch_of, by_layer
from tests.metrics.reference import normal
from tests.models import gpt2, llama


def by_numpy(tokens: np.ndarray) -> dict[str, float]:
    """From the definitions: all pairs, the singular values, the median of the norms."""
    norms = np.linalg.norm(tokens, axis=1)
    units = tokens[norms > 0] / norms[norms > 0, None]
    pairs = [units[i] @ units[j] for i in range(len(units)) for j in range(len(units)) if i != j]
    return {
        "abs_mean": np.abs(tokens).mean(),
        "median_norm": float(np.sort(norms)[(len(norms) - 1) // 2]),
        "max_channel": float(np.abs(tokens).argmax() % tokens.shape[1]),
        "cosine": float(np.mean(pairs)),
        "effective_rank": rank_by_numpy(tokens),
    }


def rank_by_numpy(tokens: np.ndarray) -> float:
    values = np.linalg.svd(tokens, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def assert_equal_to(expected: dict[str, float], found: dict[str, Any]) -> None:
    for name, value in expected.items():
        rel = {"median_norm": 0.0115, "effective_rank": 1e-5}.get(name, 1e-9)
        assert found[name] == pytest.approx(value, rel=rel, abs=1e-12), name


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_numpy_over_the_real_tokens_of_two_batches(make: Any, side: str) -> None:
    model, detector = make().eval(), TokenStatistics("block:*")
    layers = Layers(model)
    layers.register_hook(None, detector)
    name = layers.sites(detector)[2].match.name
    seen: list[Tensor] = []
    model.get_submodule(name).register_forward_hook(lambda m, a, out: seen.append(out))
    batches = [batch_of(), batch_of(4)]
    if side == "right":
        batches = [{key: value.flip(1) for key, value in batch.items()} for batch in batches]
    places: list[Any] = []
    for batch in batches:
        model(**batch)
        mask = batch["attention_mask"].bool()
        places += (mask.cumsum(1) - 1)[mask].tolist()
    outputs = [x if isinstance(x, Tensor) else x[0] for x in seen]
    tokens = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(outputs, batches, strict=True)])
    tokens = tokens.detach().double().numpy()
    found = by_layer(list(detector.readings()))[name]
    assert_equal_to(by_numpy(tokens), found)
    assert found["max_position"] == places[int(np.abs(tokens).max(1).argmax())]
    detector.reset()
    assert list(detector.readings()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_of_many_tokens_in_pieces(dtype: torch.dtype) -> None:
    x = normal(3, 5000, 6, dtype=dtype)
    x[1, 7, 2] = 99.0
    model, detector = nn.Sequential(nn.Identity()), TokenStatistics("0")
    Layers(model).register_hook("0", detector)
    for row in x:
        model(row[None])
    found, tokens = by_layer(list(detector.readings()))["0"], x.double().numpy().reshape(-1, 6)
    norms = np.linalg.norm(tokens, axis=1)
    summed = (tokens / norms[:, None]).sum(0)
    n = len(tokens)
    assert found["cosine"] == pytest.approx((summed @ summed - n) / (n * (n - 1)), rel=1e-9)
    assert found["max_channel"] == 2.0 and "max_position" not in found
    assert found["median_norm"] == pytest.approx(np.median(norms), rel=0.0115)
    assert found["effective_rank"] == pytest.approx(rank_by_numpy(tokens), rel=1e-9)


def test_collapse_is_seen_where_std_rises() -> None:
    rich, poor = normal(1, 64, 16), normal(1, 1, 16).repeat(1, 64, 1) * 4 + 0.01 * normal(1, 64, 16, seed=1)
    assert poor.std() > rich.std()
    found = []
    for x in (rich, poor):
        model, detector = nn.Sequential(nn.Identity()), TokenStatistics("0", statistics=["effective_rank", "cosine"])
        Layers(model).register_hook("0", detector)
        model(x)
        found.append(by_layer(list(detector.readings()))["0"])
    assert found[0]["cosine"] < 0.1 and found[1]["cosine"] > 0.99
    assert found[0]["effective_rank"] > 12 and found[1]["effective_rank"] < 1.5


def test_tokens_that_are_not_finite_or_zero() -> None:
    x = normal(1, 6, 4)
    x[0, 0, 1], x[0, 1] = float("nan"), 0.0
    model, detector = nn.Sequential(nn.Identity()), TokenStatistics("0")
    Layers(model).register_hook("0", detector)
    model(x)
    assert_equal_to(by_numpy(x[0, 1:].double().numpy()), by_layer(list(detector.readings()))["0"])


def test_a_layer_that_is_too_wide_is_refused() -> None:
    model = nn.Sequential(nn.Identity())
    layers = Layers(model)
    layers.register_hook("0", TokenStatistics("0", max_width=3))
    with pytest.raises(HookError, match="set max_width=4 to have it"):
        model(torch.ones(2, 4))
    layers.unregister_all_hooks()
    layers.register_hook("0", detector := TokenStatistics("0", max_width=3, statistics=["cosine"]))
    model(torch.ones(2, 4))
    assert [(r.name, r.value) for r in detector.readings()] == [("cosine", pytest.approx(1.0))]


def test_training_is_bit_identical() -> None:
    def trained(*callbacks: Any) -> dict[str, Any]:
        module, trace = module_of("llama"), Trace()
        torch.manual_seed(7)
        runner = fit(module, data_of("llama"), *callbacks, trace, precision="bf16-mixed")
        return {**fingerprint(module, runner), "losses": trace.losses, "states": trace.states}

    watch = HookCallback(TokenStatistics("block:*"))
    assert_bit_equal(trained(), trained(watch))
    assert {row.tag.split("/")[0].removeprefix("activations_") for row in watch.history()} >= {
        *("abs_mean", "median_norm", "max_channel", "max_position", "cosine", "effective_rank")
    }
