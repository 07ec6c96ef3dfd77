"""Ordinary tokens: those whose norm is below a multiple of the pass's median, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mi_crow_lightning import CausalLMModule, FunctionController, HookCallback, SteeringController, Tokens, attached
from tests.language_model.tiny import TEXTS, model_of, texts_loader, tokens
from tests.models import trainer


def chosen(x: Tensor, mask: Tensor | None, choice: Tokens) -> Tensor:
    """The tokens that an edit by this choice changes, in a model that passes its input on."""

    class Passes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.inner(inputs_embeds)

    model = Passes()
    with attached(model, FunctionController("inner", lambda x: x + 999.0, tokens=choice)):
        return (model(x, attention_mask=mask) != x).flatten(2).any(2)


def by_numpy(x: Tensor, mask: Tensor | None, times: float) -> Any:
    real = np.ones(x.shape[:2], bool) if mask is None else mask.numpy().astype(bool)
    norms = np.linalg.norm(x.double().numpy(), axis=2)
    median = np.sort(norms[real])[(real.sum() - 1) // 2]  # the lower of two
    return real & (norms < times * median)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 9), st.sampled_from([1.5, 4.0, 20.0]), st.booleans())
def test_against_numpy(seed: int, rows: int, width: int, times: float, padded: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, 6, generator=rng)
    x *= 10 ** (2.0 * torch.rand(rows, width, 1, generator=rng))
    mask = torch.ones(rows, width, dtype=torch.long)
    if padded:
        for row in range(1, rows):
            mask[row, : int(torch.randint(0, width, (), generator=rng))] = 0
    np.testing.assert_array_equal(chosen(x, mask, Tokens(ordinary=times)).numpy(), by_numpy(x, mask, times))


@pytest.mark.parametrize("massive", [0, 1, 4])
def test_a_massive_token_may_stand_anywhere(massive: int) -> None:
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    x[1, massive] *= 100
    expected = torch.ones(2, 6, dtype=torch.bool)
    expected[1, massive] = False
    assert torch.equal(chosen(x, None, Tokens("ordinary")), expected)
    assert chosen(x, None, Tokens(ordinary=1000.0)).all()
    both = Tokens("ordinary") & ~Tokens(positions=[5])
    assert torch.equal(chosen(x, None, both), expected & (torch.arange(6) != 5))
    assert torch.equal(chosen(x, None, ~Tokens("ordinary")), ~expected)


def test_padding_does_not_move_the_median() -> None:
    """With its many zeros the median would be 0, and no token below it."""
    x = torch.ones(2, 9, 4)
    mask = torch.ones(2, 9, dtype=torch.long)
    x[0, :8], mask[0, :8] = 0.0, 0
    x[1, :8], mask[1, :8] = 0.0, 0
    assert torch.equal(chosen(x, mask, Tokens("ordinary")), mask.bool())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_norms_do_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((1, 4, 64), 60.0, dtype=dtype)
    x[0, 2] = 60000.0  # its norm, 480,000, is beyond float16
    found = chosen(x, None, Tokens("ordinary"))
    assert found.tolist() == [[True, True, False, True]]


def test_what_is_not_finite_is_not_ordinary() -> None:
    x = torch.ones(1, 5, 4)
    x[0, 1, 0], x[0, 3, 0] = float("nan"), float("inf")
    masks: list[Tensor] = []

    def note(x: Tensor, ctx: Any) -> Tensor:
        masks.append(Tokens("ordinary").mask(x, ctx))  # type: ignore[arg-type]
        return masks[-1]

    chosen(x, None, Tokens(where=note))
    assert masks[0].tolist() == [[True, False, True, False, True]]


def test_the_streams_of_a_token_count_together() -> None:
    """A token of two streams, neither of which is large enough alone."""
    x = torch.ones(3, 5, 2, 4)
    x[1, 2] = 3.5
    x[1, 3, 0] = 6.5
    found = chosen(x, torch.ones(3, 5), Tokens("ordinary"))
    norms = np.linalg.norm(x.numpy().reshape(3, 5, 8), axis=2)
    np.testing.assert_array_equal(found.numpy(), norms < 4 * np.median(norms))
    assert not found[1, 3] and found[1, 2]


def test_generated_tokens_are_steered_and_the_rest_is_as_before() -> None:
    """In a tiny model no token is massive, so all are ordinary."""
    vector = torch.randn(model_of("llama").config.hidden_size, generator=torch.Generator().manual_seed(1))
    texts = []
    for choice in ("ordinary", "all"):
        module = CausalLMModule(model_of("llama"), tokens(), generation={"max_new_tokens": 4, "do_sample": False})
        steer = HookCallback(controllers=SteeringController("block:1", vector, tokens=choice))
        texts.append([t.token_ids for batch in trainer(steer).predict(module, texts_loader(TEXTS[:1])) for t in batch])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("wrong", [1, 0.5, float("nan"), float("inf"), "4", True])
def test_wrong_multiples(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be a number above 1, a multiple of the median norm"):
        Tokens(ordinary=wrong)
