"""Choices of tokens where several texts are packed in a row: each is counted by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mi_crow_lightning.hooks import Detector, Layers, Tokens
from tests.hooks.by_hand import CHOICES, Read, chosen, prompts
from tests.models import VOCABULARY, llama

LENGTHS = ((3, 4), (7,), (1, 2, 4))  # of the texts packed in each row


def packed() -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (len(LENGTHS), 7), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "position_ids": torch.tensor([[p for n in row for p in range(n)] for row in LENGTHS])}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("editing", [True, False])
def test_packed_texts_are_counted_each(name: str, editing: bool) -> None:
    """As if each text were a row of its own."""
    batch, model = packed(), llama().train()
    masks: list[Tensor] = []

    class Choose(Detector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            mask = CHOICES[name][0].mask(x, ctx, editing=editing)
            masks.append(torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask)

    Layers(model).register_hook("block:1", Choose())
    model(**batch)
    expected = [
        [
            flag
            for text in row_ids.split(list(lengths))
            for flag in chosen(name, torch.ones(1, len(text)), text[None], 0, editing)[0].tolist()
        ]
        for row_ids, lengths in zip(batch["input_ids"], LENGTHS, strict=True)
    ]
    assert masks[0].tolist() == expected


def test_position_ids_of_padded_rows_are_no_packing() -> None:
    batch = prompts()
    read = Read(Tokens(positions=[-1, 0]))
    model = llama().eval()
    Layers(model).register_hook(None, read)
    for fill in (0, 1):
        positions = (batch["attention_mask"].cumsum(1) - 1).masked_fill(batch["attention_mask"] == 0, fill)
        model(**batch, position_ids=positions)
        assert read.seen.pop().int().tolist() == [[1, 0, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1]]
