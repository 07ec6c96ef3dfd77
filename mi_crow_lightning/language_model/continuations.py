"""Given continuations of prompts, as tokens, and their log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mi_crow_lightning._arguments import listed
from mi_crow_lightning._shown import shown
from mi_crow_lightning.language_model.positions import positions_of, takes_positions

__all__ = ["Continuation", "Continuations", "log_probabilities"]


class Continuation(NamedTuple):
    """One continuation.

    Attributes:
        group: the name of its group.
        given: the text or the token IDs that the user gave.
        ids: its tokens.
    """

    group: str
    given: Any
    ids: tuple[int, ...]


class Continuations:
    """Groups of continuations, as tokens.

    Args:
        groups: texts, or lists of token IDs, by the name of their group.
        tokenizer: turns texts into tokens, without special tokens.

    Attributes:
        all: the continuations in the order of the groups.
        several: those among them that have several tokens.

    Raises:
        TypeError, ValueError: there is no group, a group is empty or holds something else, or the same tokens twice.

    Examples:
        >>> found = Continuations({"glad": [[5], [7, 2]], "sad": [[6]]}, None)
        >>> [one.ids for one in found.all], len(found.several)
        ([(5,), (7, 2), (6,)], 1)
    """

    def __init__(self, groups: Mapping[str, Sequence[Any]], tokenizer: Any) -> None:
        if not isinstance(groups, Mapping) or not groups or not all(isinstance(name, str) for name in groups):
            raise TypeError(
                f"continuations={shown(groups)} must be a dict of lists by name, as in "
                "{'glad': [' happy', ' joyful'], 'sad': [' gloomy']}"
            )
        self.all = [
            Continuation(name, one, _tokens_of(one, name, tokenizer))
            for name, of_group in groups.items()
            for one in _of_group(name, of_group)
        ]
        for name in groups:
            _refuse_repeated([one for one in self.all if one.group == name])
        self.names = list(groups)
        self.several = [one for one in self.all if len(one.ids) > 1]

    @property
    def copies(self) -> int:
        """The rows that each prompt needs: one for each continuation of several tokens, at least one."""
        return max(1, len(self.several))


def log_probabilities(model: nn.Module, batch: Mapping[str, Any], continuations: Continuations) -> Tensor:
    """Return the log-probability of each continuation after each prompt.

    The prompts run first, and then, on top of their key-value cache, the continuations of several tokens. So hooks see
    them as prompt and generated tokens, as in ``generate``.

    Args:
        model: a causal language model of transformers.
        batch: ``input_ids`` and maybe ``attention_mask``, each ``(R, T)``, padded on the left; ``R`` is ``B`` prompts
            times ``continuations.copies``, the rows of one prompt next to each other.
        continuations: ``K`` continuations.

    Returns:
        ``(B, K)`` float32: sums over the tokens of a continuation, in nats.

    Raises:
        TypeError: the model returns no logits.
        ValueError: a continuation has several tokens, and the model has no key-value cache.
    """
    copies = continuations.copies
    inputs, mask = dict(batch), batch.get("attention_mask")
    ids: Tensor = batch["input_ids"]
    mask = torch.ones_like(ids) if mask is None else mask
    needs_positions = takes_positions(model) and "position_ids" not in inputs
    if needs_positions:
        inputs["position_ids"] = positions_of(mask)
    if continuations.several:
        inputs["use_cache"] = True
    output = model(**inputs)
    first = _log_p(model, output)[:, -1]  # (R, V)
    of_prompts = first[::copies]  # (B, V)
    found = of_prompts[:, [one.ids[0] for one in continuations.all]]  # (B, K)
    if not continuations.several:
        return found
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        longest = max(continuations.several, key=lambda one: len(one.ids))
        raise ValueError(
            f"{type(model).__name__} has no key-value cache, which continuations of several tokens need: "
            f"{shown(longest.given)} has {len(longest.ids)} tokens. Give continuations of one token"
        )
    rest = _rest(model, cache, mask, continuations.several, needs_positions)  # (B, several)
    places = [place for place, one in enumerate(continuations.all) if len(one.ids) > 1]
    found = found.clone()
    found[:, places] += rest
    return found


def _rest(model: nn.Module, cache: Any, mask: Tensor, several: Sequence[Continuation], needs_positions: bool) -> Tensor:
    """Return the log-probability of what follows the first token of each continuation, ``(B, len(several))``."""
    width = max(len(one.ids) for one in several) - 1
    given = mask.new_zeros(len(several), width)
    wanted, real = torch.zeros_like(given), torch.zeros_like(given)
    for row, one in enumerate(several):
        length = len(one.ids) - 1
        given[row, :length] = torch.tensor(one.ids[:-1])
        wanted[row, :length] = torch.tensor(one.ids[1:])
        real[row, :length] = 1
    prompts = len(mask) // len(several)
    given, wanted, real = (part.repeat(prompts, 1) for part in (given, wanted, real))  # (R, width)
    inputs = {"input_ids": given, "attention_mask": torch.cat([mask, real], 1), "past_key_values": cache}
    if needs_positions:
        inputs["position_ids"] = positions_of(inputs["attention_mask"])[:, mask.shape[1] :]
    log_p = _log_p(model, model(**inputs, use_cache=True))  # (R, width, V)
    chosen = log_p.gather(2, wanted[..., None])[..., 0].masked_fill(real == 0, 0.0)
    return chosen.sum(1).view(prompts, len(several))


def _log_p(model: nn.Module, output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise TypeError(f"{type(model).__name__} returned no logits: use a causal model of transformers")
    return logits.float().log_softmax(-1)


def _of_group(name: str, of_group: Any) -> list[Any]:
    if isinstance(of_group, (str, bytes)):
        raise TypeError(f"continuations[{shown(name)}]={shown(of_group)} must be a list, as in [{shown(of_group)}]")
    found = listed(f"continuations[{shown(name)}]", of_group, "texts or lists of token IDs", "[' happy', ' joyful']")
    if not found:
        raise ValueError(f"continuations[{shown(name)}] is empty: give at least one text")
    return list(found)


def _tokens_of(one: Any, group: str, tokenizer: Any) -> tuple[int, ...]:
    if isinstance(one, str):
        if tokenizer is None:
            raise ValueError(
                f"continuations[{shown(group)}] holds texts, which need a tokenizer: give one, or token IDs"
            )
        ids = tokenizer(one, add_special_tokens=False)["input_ids"]
    elif isinstance(one, (list, tuple)) and all(type(token) is int and token >= 0 for token in one):
        ids = one
    else:
        raise TypeError(f"continuations[{shown(group)}] holds {shown(one)}: give texts, or lists of token IDs")
    if not ids:
        raise ValueError(f"continuations[{shown(group)}] holds {shown(one)}, which has no tokens: leave it out")
    return tuple(ids)


def _refuse_repeated(of_group: Sequence[Continuation]) -> None:
    seen: dict[tuple[int, ...], Any] = {}
    for one in of_group:
        if one.ids in seen:
            same = f"{shown(seen[one.ids])} and {shown(one.given)}"
            raise ValueError(f"continuations[{shown(one.group)}] holds the same tokens twice: {same}. Leave one out")
        seen[one.ids] = one.given
