"""The warnings of massive tokens: planted ones are found with their numbers, and ordinary texts raise none."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import ContrastDetector, HookCallback
from mi_crow_lightning.vectors.extraction.massive import warn_of_one_channel
from tests.hooks.detectors.contrasts import Reader
from tests.models import trainer

WIDTH, TOKENS, TEXTS = 96, 7, 40


class Passes(nn.Module):
    """A model of two blocks that give what they get."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds)
        return inputs_embeds


class Runs(Reader):
    def predict_step(self, batch: Any, batch_idx: int) -> list[Any]:
        self.model(inputs_embeds=batch["x"], attention_mask=batch["attention_mask"])
        return []


def extracted(massive: int, tokens: str = "all", length: int = TOKENS, times: float = 300.0) -> list[str]:
    """The warnings of an extraction from texts of which some have a massive token at position 1, in channel 5."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(TEXTS, length, WIDTH, generator=rng)
    for text in range(massive):  # of one class
        x[2 * text, 1, 5] += times
    label = torch.arange(TEXTS) % 2 == 0
    rows = [{"x": one, "attention_mask": torch.ones(length), "label": int(c)} for one, c in zip(x, label, strict=True)]
    detector = ContrastDetector("*.layers.?", tokens=tokens)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(HookCallback(detector)).predict(Runs(Passes()), DataLoader(rows, batch_size=8))  # type: ignore[arg-type]
    return [str(one.message) for one in caught if "massive" in str(one.message)]


def test_a_massive_token_in_some_texts() -> None:
    tokens, channel = extracted(massive=8)
    assert tokens == (
        "in 8 of 40 texts one token has more than half of the sum of all norms at 'model.layers.0' (in some texts at 2 "
        "of 2 layers): a massive token, which dominates the text's mean and may make the direction. Give "
        "tokens='ordinary', or combine it: Tokens('ordinary') & Tokens('prompt')"
    )
    assert (
        channel.startswith("channel 5 holds 100% of")
        and "(at 2 of 2 layers one channel holds more than 30%)" in channel
    )


def test_without_massive_tokens_nothing_is_said() -> None:
    assert extracted(massive=0) == []
    assert extracted(massive=8, tokens="ordinary") == []


def test_one_text_in_twenty_is_said_and_fewer_are_not() -> None:
    assert len(extracted(massive=2, times=100.0)) >= 1
    assert not any("texts one token" in one for one in extracted(massive=1, times=100.0))


def test_a_text_of_few_tokens_is_not_dominated_by_one() -> None:
    assert not any("texts one token" in one for one in extracted(massive=8, length=3))


@pytest.mark.parametrize("width", [8, 63, 64, 4096])
def test_random_directions_raise_nothing(width: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20):
            direction = torch.randn(width, generator=torch.Generator().manual_seed(seed))
            warn_of_one_channel({"h": direction, "zero": torch.zeros(width), "nan": direction * float("nan")})


def test_the_share_of_a_channel() -> None:
    direction = torch.ones(64)
    direction[9] = (0.31 / 0.69 * 63) ** 0.5
    with pytest.warns(UserWarning, match=r"channel 9 holds 31% of the squared norm of the direction at 'h'"):
        warn_of_one_channel({"h": direction})
    direction[9] = (0.29 / 0.71 * 63) ** 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_one_channel({"h": direction})
