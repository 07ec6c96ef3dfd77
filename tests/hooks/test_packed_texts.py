"""Choices of tokens where several texts are packed in a row: each is counted by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithFlattening

from mi_crow_lightning.hooks import Detector, Layers, SteeringController, Tokens, attached
from tests.hooks.by_hand import CHOICES, Read, chosen, prompts
from tests.hooks.positions.masks import mask_of
from tests.models import VOCABULARY, WIDTH, llama

LENGTHS = ((3, 4), (7,), (1, 2, 4))  # of the texts packed in each row


IDS = torch.randint(3, VOCABULARY, (len(LENGTHS), 7), generator=torch.Generator().manual_seed(3))
NUMBERS = torch.tensor([[number for number, n in enumerate(row, 1) for _ in range(n)] for row in LENGTHS])
PAIRS = (NUMBERS[:, :, None] == NUMBERS[:, None]) & torch.ones(7, 7).tril().bool()
ADDITIVE = torch.zeros(PAIRS.shape).masked_fill(~PAIRS, torch.finfo(torch.float32).min)
SHOWN: dict[str, dict[str, Tensor]] = {
    "position IDs": dict(position_ids=torch.tensor([[p for n in row for p in range(n)] for row in LENGTHS])),
    "numbers": dict(seq_idx=NUMBERS),
    "numbers in a mask": dict(attention_mask=NUMBERS * 40),
    "a mask of pairs": dict(attention_mask=PAIRS[:, None]),
    "an additive mask": dict(attention_mask=ADDITIVE[:, None]),
    "a mask of pairs, and positions of the row": dict(
        attention_mask=PAIRS[:, None], position_ids=torch.arange(7)[None]
    ),
}


@pytest.mark.filterwarnings("ignore:.* 1 tokens see only themselves:UserWarning")  # a text of one token
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("editing", [True, False])
@pytest.mark.parametrize("shown", SHOWN)
def test_packed_texts_are_counted_each(name: str, editing: bool, shown: str) -> None:
    """As if each text were a row of its own."""
    batch, model = dict(input_ids=IDS, **SHOWN[shown]), llama().train()
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


LAST = [[0, 0, 1, 0, 0, 0, 1]]  # of a text of three tokens and one of four


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seqlens_q", "cu_seqlens", "cu_seq_lens"])
@pytest.mark.parametrize("bounds", [[0, 3, 7], [0, 3, 7, 7], [0, 3], [0, 3, 9]])
def test_the_boundaries_of_flash_attention_are_read(name: str, bounds: list[int]) -> None:
    """Some pad them to a length of their own, and some leave out the end."""
    call = {name: torch.tensor(bounds, dtype=torch.int32)}
    assert mask_of(llama().eval(), "block:1", "last", input_ids=IDS[:1], **call) == LAST
    flat = torch.tensor([0, 3, 7, 14])  # of all rows, one after the other
    assert mask_of(llama().eval(), "block:1", "last", input_ids=IDS[:2], **{name: flat}) == [[0] * 6 + [1]] * 2


@pytest.mark.parametrize("flags", [{}, dict(return_flash_attn_kwargs=True, return_seq_idx=True)])
def test_a_collator_that_flattens(flags: dict[str, bool]) -> None:
    texts = [{"input_ids": IDS[0, :3].tolist()}, {"input_ids": IDS[0, 3:].tolist()}]
    batch = DataCollatorWithFlattening(return_tensors="pt", **flags)(texts)
    model, seen = llama().eval(), []
    alone = [llama().eval()(input_ids=torch.tensor([text["input_ids"]])).logits for text in texts]
    for hooks in ([], [SteeringController("block:1", torch.ones(WIDTH), 3.0, tokens="last")]):
        with torch.no_grad(), attached(model, hooks):
            seen.append(model(**batch, use_cache=False).logits)
    torch.testing.assert_close(seen[0], torch.cat(alone, 1), atol=1e-4, rtol=1e-4)
    assert (seen[0] != seen[1]).any(-1).int().tolist() == LAST


def test_numbers_of_texts_beside_padding() -> None:
    mask = torch.tensor([[0, 3, 3, 0, 3, 1, 0], [2, 2, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 0, 0]])
    found = {which: mask_of(llama().eval(), "block:1", which, input_ids=IDS, attention_mask=mask) for which in WHICH}
    assert found["all"] == (mask != 0).int().tolist()
    assert found["last"] == [[0, 0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0]]
    read = Read(Tokens(positions=[-3, 1]))
    Layers(model := llama().eval()).register_hook(None, read)
    model(input_ids=IDS, attention_mask=mask)
    assert read.seen.pop().int().tolist() == [[0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]


WHICH = ("all", "last")


@pytest.mark.parametrize("real", [torch.arange(7) < 4, torch.arange(7) > 2])
def test_a_mask_of_pairs_with_padding_or_a_window_holds_one_text(real: Tensor) -> None:
    window = torch.ones(7, 7).tril().triu(-1).bool()
    pairs = (window & real & real[:, None]).expand(3, 1, 7, 7)
    last = [[int(at == int(real.nonzero().max())) for at in range(7)]] * 3
    assert mask_of(llama().eval(), "block:1", "last", input_ids=IDS, attention_mask=pairs) == last
    longer = torch.nn.functional.pad(pairs, (0, 3))  # of a static cache
    assert mask_of(Takes(), "block", "last", input_ids=IDS, attention_mask=longer, past_key_values=()) == last


class Takes(nn.Module):
    """Takes a mask of any form."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Embedding(VOCABULARY, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any = None) -> Tensor:
        out: Tensor = self.block(input_ids)
        return out


def test_queries_for_keys_only_show_no_texts() -> None:
    keys = (torch.arange(7) < 5).expand(3, 1, 1, 7)
    assert mask_of(Takes(), "block", "last", input_ids=IDS, attention_mask=keys) == [[0, 0, 0, 0, 1, 0, 0]] * 3


@pytest.mark.filterwarnings("ignore:.* 21 tokens see only themselves:UserWarning")
def test_texts_of_one_token_each() -> None:
    alone = torch.eye(7).bool().expand(3, 1, 7, 7)
    assert mask_of(Takes(), "block", "last", input_ids=IDS, attention_mask=alone) == [[1] * 7] * 3
    one = torch.ones(3, 1, 1, 1, dtype=torch.bool)
    assert mask_of(Takes(), "block", "last", input_ids=IDS[:, :1], attention_mask=one) == [[1]] * 3


def test_a_mask_of_weights_holds_no_numbers() -> None:
    weights = torch.linspace(0.1, 1, 7).expand(3, 7)
    assert mask_of(Takes(), "block", "last", input_ids=IDS, attention_mask=weights) == [[0] * 6 + [1]] * 3
