"""What a screening should find, by hand: plain passes of a tiny model, projections in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mi_crow_lightning import DataScreening
from tests.language_model.tiny import block_of, model_of, tokens
from tests.models import WIDTH

V = torch.arange(WIDTH).float().sin()
UNIT = (V / V.norm()).double().numpy()
PROMPTS = ["Hello", "The quick", "Hi there, dog", "The lazy"]
COMPLETIONS = [" world!", " brown fox jumps", " over", " dog, hello"]
PAIRS = [{"prompt": one, "completion": other} for one, other in zip(PROMPTS, COMPLETIONS, strict=True)]


def screening(**options: Any) -> DataScreening:
    given: dict[str, Any] = {"tokens": "all", "layer": "block:2", "vector": V, **options}
    return DataScreening(model_of("llama"), tokenizer=tokens(), **given)


def projections(model: Any, ids: list[int]) -> np.ndarray:
    """The projection of each token of one row that runs alone."""
    seen: list[Tensor] = []
    handle = block_of(model, 2).register_forward_hook(lambda _, args, output: seen.append(output))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return seen[0][0].double().numpy() @ UNIT


def of_completion(model: Any, prompt: str, completion: str) -> float:
    first, rest = tokens()(prompt)["input_ids"], tokens()(completion, add_special_tokens=False)["input_ids"]
    return float(projections(model, [*first, *rest])[len(first) :].mean())


def greedy(model: Any, ids: list[int], new: int, end: int = 0) -> list[int]:
    """The tokens with the greedy answer behind them, token by token, up to the end token."""
    ids = list(ids)
    for _ in range(new):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids


def of_own_answer(model: Any, prompt: str, new: int, end: int = 0) -> float:
    """The projection of the greedy answer without the end token, unless it is the only one."""
    ids = tokens()(prompt)["input_ids"]
    whole = greedy(model, ids, new, end)
    answer = whole[:-1] if whole[-1] == end and len(whole) > len(ids) + 1 else whole
    return float(projections(model, answer)[len(ids) :].mean())
