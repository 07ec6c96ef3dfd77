"""The samples of a batch that is screened: texts, or prompts with completions, as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._arguments import whole
from mi_crow_lightning._shown import shown
from mi_crow_lightning.language_model.generated import decoded, prompts_of
from mi_crow_lightning.language_model.texts import are_texts

__all__ = ["SampleFacts", "columns_of", "facts_of", "padded", "pairs_of", "tokens_of"]

_FORMS = (
    "a screened sample is a text, a dict with 'text', or a dict with 'prompt' and 'completion' (and perhaps "
    "'reference', another completion), each a string; or a dict with 'input_ids' and 'attention_mask'"
)


class SampleFacts(NamedTuple):
    """The facts of a sample that the table has beside its score.

    Attributes:
        place: its place in the dataset, if the sample says so.
        text: the text, or the completion.
        prompt: the prompt.
        label: 1 or 0.
    """

    place: int | None
    text: str | None
    prompt: str | None
    label: int | None


def columns_of(batch: Any) -> dict[str, Any]:
    """Return a batch as columns, whichever way it was collated.

    Raises:
        TypeError, ValueError: it holds no samples of a known form.

    Examples:
        >>> columns_of([{"prompt": "Q", "completion": " A"}, {"prompt": "R", "completion": " B"}])
        {'prompt': ['Q', 'R'], 'completion': [' A', ' B']}
    """
    if are_texts(batch):
        return {"text": list(batch)}
    if isinstance(batch, (list, tuple)) and batch and all(isinstance(one, Mapping) for one in batch):
        names = {name: None for one in batch for name in one}
        batch = {name: [one.get(name) for one in batch] for name in names}
    if not isinstance(batch, Mapping):
        raise TypeError(f"the batch is a {type(batch).__name__}: {_FORMS}")
    for wanted in (("text",), ("prompt", "completion")):
        if all(name in batch for name in wanted):
            for name in (*wanted, *(("reference",) if "reference" in batch else ())):
                if not are_texts(batch[name]):
                    raise TypeError(f"the batch's {name!r}={shown(batch[name])} must be strings: {_FORMS}")
            return dict(batch)
    if not isinstance(batch.get("input_ids"), Tensor):
        raise ValueError(f"the batch holds {shown(sorted(map(str, batch)))}: {_FORMS}")
    return dict(batch)


def facts_of(columns: Mapping[str, Any], tokenizer: Any) -> list[SampleFacts]:
    """Return what is known of each sample."""
    texts = columns.get("completion", columns.get("text"))
    if texts is None and tokenizer is not None:
        texts = [decoded(tokenizer, ids) for ids in prompts_of(columns)]
    rows = len(texts) if texts is not None else len(columns["input_ids"])
    nothing = [None] * rows
    indices = _whole_numbers("index", columns.get("index"), nothing)
    labels = _whole_numbers("label", columns.get("label"), nothing)
    if not {0, 1, None} >= set(labels):
        raise ValueError(f"the batch's 'label'={shown(labels)} must be 1, of a sample with the trait, or 0")
    return [
        SampleFacts(*of_row)
        for of_row in zip(indices, texts or nothing, columns.get("prompt", nothing), labels, strict=True)
    ]


def tokens_of(texts: Sequence[str], tokenizer: Any, max_length: int | None) -> list[list[int]]:
    """Return the tokens of texts that a model sees alone, with the tokenizer's special tokens."""
    return [
        list(tokenizer(text, truncation=max_length is not None, max_length=max_length)["input_ids"]) for text in texts
    ]


def pairs_of(
    prompts: Sequence[Sequence[int]], completions: Sequence[str], tokenizer: Any, max_length: int | None
) -> dict[str, Tensor]:
    """Return prompts with completions behind them, padded; only the completions are chosen.

    A completion gets its tokens alone, so it begins with a space where the prompt does not end with one.
    """
    given = [list(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in completions]
    rows = [[*prompt, *one][:max_length] for prompt, one in zip(prompts, given, strict=True)]
    return padded(rows, [len(prompt) for prompt in prompts], tokenizer)


def padded(rows: Sequence[Sequence[int]], starts: Sequence[int], tokenizer: Any) -> dict[str, Tensor]:
    """Return rows of tokens in one batch, padded on the left.

    Args:
        rows: the tokens of each row.
        starts: the first token of each row that is chosen.
        tokenizer: names the padding token; any will do, because the mask leaves it out.

    Returns:
        ``input_ids``, ``attention_mask`` and ``chosen``, each ``(B, T)``.
    """
    width = max(1, *map(len, rows))
    pad = getattr(tokenizer, "pad_token_id", None)
    ids = torch.full((len(rows), width), 0 if pad is None else pad)
    mask, chosen = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        first = width - len(row)
        ids[i, first:] = torch.tensor(row, dtype=torch.long)
        mask[i, first:], chosen[i, first + start :] = 1, True
    return {"input_ids": ids, "attention_mask": mask, "chosen": chosen}


def _whole_numbers(name: str, values: Any, nothing: list[None]) -> Sequence[int | None]:
    if values is None:
        return nothing
    given = values.tolist() if isinstance(values, Tensor) else list(values)
    numbers = [int(one) if isinstance(one, bool) else whole(one) for one in given]
    if len(numbers) != len(nothing) or any(
        own is None and one is not None for own, one in zip(numbers, given, strict=True)
    ):
        raise ValueError(
            f"the batch's {name!r}={shown(values)} must be a whole number for each of {len(nothing)} samples"
        )
    return numbers
