"""The output of ``generate`` as records: the new tokens of each row, and their text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mi_crow_lightning.language_model.prompt_score import PromptScore

__all__ = ["GeneratedText", "by_strength", "by_vector", "decoded", "prompts_of", "records_in", "records_of"]


class GeneratedText(NamedTuple):
    """One continuation of one prompt.

    Attributes:
        prompt: the prompt's text, decoded without special tokens; ``None`` without a tokenizer.
        strength: the strength it was steered with; ``None`` if the batch named none.
        text: the continuation alone, so that ``prompt + text`` is the whole text; ``None`` without a tokenizer.
        token_ids: the new tokens, up to and including the end-of-text token if there is one.
        row: index of the prompt in its batch.
        sequence: index among the prompt's ``num_return_sequences``.
        vector: the name of the vector that it was steered along; ``None`` unless several were swept, or the batch
            names one.
        is_random: whether that is a random vector, to compare with.
    """

    prompt: str | None
    strength: float | None
    text: str | None
    token_ids: list[int]
    row: int
    sequence: int
    vector: str | None = None
    is_random: bool = False


def by_strength(predictions: Any) -> dict[float | None, list[Any]]:
    """Group texts or scores by the strength they were steered with, each list in the order of the prompts.

    Args:
        predictions: the result of ``trainer.predict``, or a part of it.

    Raises:
        TypeError: ``predictions`` holds anything but `GeneratedText` and `PromptScore`.
        ValueError: they were steered along several vectors: group them with `by_vector` first.

    Examples:
        >>> rain = [GeneratedText("Rain", strength, " fell", [7], row=0, sequence=0) for strength in (0.0, 4.0)]
        >>> {strength: len(texts) for strength, texts in by_strength([rain, rain]).items()}
        {0.0: 2, 4.0: 2}
    """
    found: dict[float | None, list[Any]] = {}
    vectors = set()
    for record in records_in(predictions):
        vectors.add(record.vector)
        found.setdefault(record.strength, []).append(record)
    if len(vectors) > 1:
        raise ValueError(
            f"the records were steered along {len(vectors)} vectors: group them with by_vector(predictions) first, or "
            "make a table with sweep_table(predictions)"
        )
    return found


def by_vector(predictions: Any) -> dict[str | None, list[Any]]:
    """Group texts or scores by the vector that they were steered along, each list in the order of the run.

    Args:
        predictions: the result of ``trainer.predict``, or a part of it.

    Raises:
        TypeError: ``predictions`` holds anything but `GeneratedText` and `PromptScore`.

    Examples:
        >>> rain = [GeneratedText("Rain", 4.0, " fell", [7], 0, 0, vector=name) for name in ("joy", "random 0")]
        >>> {vector: len(texts) for vector, texts in by_vector([rain, rain]).items()}
        {'joy': 2, 'random 0': 2}
    """
    found: dict[str | None, list[Any]] = {}
    for record in records_in(predictions):
        found.setdefault(record.vector, []).append(record)
    return found


def records_in(predictions: Any) -> Iterator[GeneratedText | PromptScore]:
    """Yield the records of nested lists.

    Raises:
        TypeError: there is something else in them.
    """
    if isinstance(predictions, (GeneratedText, PromptScore)):
        yield predictions
    elif isinstance(predictions, list):
        for part in predictions:
            yield from records_in(part)
    else:
        raise TypeError(
            "predictions must be lists of GeneratedText or PromptScore, as trainer.predict(CausalLMModule(...), ...) "
            f"returns them, but they hold a {type(predictions).__name__}"
        )


def records_of(
    sequences: Tensor,
    batch: Mapping[str, Any],
    tokenizer: Any,
    *,
    strengths: Sequence[float] | None = None,
    strengths_per_prompt: int = 1,
    cut: Any,
) -> list[GeneratedText]:
    """Turn the rows that ``generate`` returned into records, in the same order.

    Args:
        sequences: ``(R, T + new)``, each prompt with its new tokens.
        batch: the prompts: ``input_ids`` ``(B, T)`` and maybe ``attention_mask``. ``R`` is a multiple of ``B``; the
            rows of one prompt stand next to each other.
        tokenizer: decodes the texts; ``None`` leaves them out.
        strengths: one for each row of the batch.
        strengths_per_prompt: how many rows of the batch belong to one prompt.
        cut: a function that takes the new tokens of a row and returns those that count.
    """
    prompts = prompts_of(batch)
    width, repeats = batch["input_ids"].shape[1], len(sequences) // len(prompts)
    records = []
    for i, row in enumerate(sequences[:, width:].tolist()):
        place, sequence = divmod(i, repeats)
        new = cut(row)
        prompt, text = (None, None) if tokenizer is None else _texts(tokenizer, prompts[place], new)
        strength = None if strengths is None else strengths[place]
        records.append(GeneratedText(prompt, strength, text, new, place // strengths_per_prompt, sequence))
    return records


def prompts_of(batch: Mapping[str, Any]) -> list[list[int]]:
    """Return the tokens of each row, without padding."""
    ids: list[list[int]] = batch["input_ids"].tolist()
    if batch.get("attention_mask") is None:
        return ids
    masks = batch["attention_mask"].tolist()
    return [
        [token for token, real in zip(row, mask, strict=True) if real] for row, mask in zip(ids, masks, strict=True)
    ]


def _texts(tokenizer: Any, prompt_ids: list[int], new: list[int]) -> tuple[str, str]:
    """Return the prompt and its continuation, which may lose its first space if it is decoded alone."""
    prompt, whole = (decoded(tokenizer, ids) for ids in (prompt_ids, prompt_ids + new))
    return prompt, whole[len(prompt) :] if whole.startswith(prompt) else decoded(tokenizer, new)


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of some tokens, without special tokens."""
    # Without clean-up, which would remove spaces that the tokens have.
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
