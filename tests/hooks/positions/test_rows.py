"""Values of samples where the rows are not samples: refused, unless `generate` made the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LongformerConfig, LongformerModel

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Controller, SteeringController, attached
from tests.models import WIDTH, llama

CHOSEN, REJECTED = torch.randint(3, 64, (2, 2, 5), generator=torch.Generator().manual_seed(1))
BOTH = torch.cat([CHOSEN, REJECTED])
TWO = torch.tensor([0.0, 5.0])
IDS = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(1))


def rows_changed(hook: Controller) -> list[int]:
    """Which rows of [chosen, rejected] are not as without the hook."""
    model = llama().eval().model
    with torch.no_grad():
        plain = model(BOTH).last_hidden_state
        with attached(model, hook) as layers:
            layers.begin_batch(None, {"chosen": CHOSEN, "rejected": REJECTED, "strength": TWO})
            steered = model(BOTH).last_hidden_state
    return (steered != plain).flatten(1).any(1).int().tolist()


@pytest.mark.parametrize("strength", [TWO, "batch", lambda ctx: TWO])
def test_two_strengths_are_not_laid_on_four_rows(strength: Any) -> None:
    with pytest.raises(HookError, match=r"has 2 values, one for each sample.* has 4 rows"):
        rows_changed(SteeringController("block:1", torch.ones(WIDTH), strength=strength))


def test_nor_is_a_condition_of_two_samples() -> None:
    with pytest.raises(HookError, match=r"with one value for each row"):
        rows_changed(SteeringController("block:1", torch.ones(WIDTH), when=lambda x, ctx: torch.tensor([False, True])))


def test_one_value_for_each_row_is_taken() -> None:
    strength = torch.tensor([0.0, 1.0, 0.0, 2.0])
    assert rows_changed(SteeringController("block:1", torch.ones(WIDTH), strength=strength)) == [0, 1, 0, 1]
    assert rows_changed(SteeringController("block:1", torch.ones(WIDTH), strength=torch.ones(1))) == [1, 1, 1, 1]


def test_tokens_in_one_row_belong_to_their_samples() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(0, 1), torch.nn.Identity())

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs_embeds: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
            out: torch.Tensor = self.inner(inputs_embeds)
            return out

    with attached(net := Model(), SteeringController("inner.1", torch.ones(4), strength=TWO)):
        assert net(inputs_embeds=torch.zeros(2, 3, 4)).sum(1).tolist() == [0.0] * 3 + [20.0] * 3


def test_padding_of_the_models_own_is_refused_and_does_not_count_in_silence() -> None:
    """Longformer pads 6 tokens to its window of 8."""
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=64)
    model = LongformerModel(LongformerConfig(attention_window=8, max_position_embeddings=64, **sizes)).eval()
    hook = SteeringController("encoder.layer.1", torch.ones(32), strength=TWO, tokens="last")
    with (
        torch.no_grad(),
        attached(model, hook),
        pytest.raises(HookError, match=r"gives \(2, 8, 32\) and the model was called .* = \(2, 6\)"),
    ):
        model(input_ids=IDS)
