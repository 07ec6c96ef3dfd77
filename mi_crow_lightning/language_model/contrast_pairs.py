"""Pairs of texts to make a vector of: the forms that they come in, checks, and the share that is held out."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from mi_crow_lightning._arguments import is_finite, whole_number
from mi_crow_lightning._foreign_files import Damaged, from_json, named, one_error
from mi_crow_lightning._shown import shown

__all__ = ["Pair", "contrast_pairs", "split"]

Pair = tuple[str, str]

_SIDES = ("positive", "negative")
_LONGEST_FILE = 2**28  # bytes
_FORMS = "(positive, negative), two texts, or a dict with 'positive' and 'negative'"


def contrast_pairs(argument: str, pairs: Any) -> list[Pair]:
    """Return pairs of texts, whichever form they come in.

    Args:
        argument: the name of the argument, for errors.
        pairs: an iterable of ``(positive, negative)`` or of dicts with ``positive`` and ``negative``; a dict with two
            such lists of equal length; or a file of JSON that holds one of these, or of JSON lines.

    Raises:
        TypeError: it is of another form.
        ValueError: there are no pairs; a text is empty; both texts of a pair are the same; the file holds something
            else.
        FileNotFoundError: there is no such file.

    Examples:
        >>> contrast_pairs("pairs", {"positive": ["Joy!"], "negative": ["Grief!"]})
        [('Joy!', 'Grief!')]
    """
    if isinstance(pairs, (str, PathLike)):
        return _in_file(argument, Path(pairs))
    if isinstance(pairs, Mapping):
        pairs = _columns(argument, pairs)
    if not isinstance(pairs, Iterable):
        raise TypeError(f"{argument}={shown(pairs)} must be a list of pairs, {_FORMS}, or the file of one")
    found = [_pair(f"{argument}[{place}]", one) for place, one in enumerate(pairs)]
    if not found:
        raise ValueError(f"{argument} is empty: give at least one pair, {_FORMS}")
    return found


def _columns(argument: str, columns: Mapping[str, Any]) -> Iterable[Any]:
    sides: list[Any] = [columns.get(side) for side in _SIDES]
    if not all(isinstance(texts, Sequence) and not isinstance(texts, str) for texts in sides):
        raise TypeError(f"{argument}={shown(columns)} must have two lists of texts, 'positive' and 'negative'")
    positive, negative = sides
    if len(positive) != len(negative):
        raise ValueError(f"{argument} has {len(positive)} positive texts and {len(negative)} negative ones: pair them")
    return zip(positive, negative, strict=True)


def _pair(name: str, one: Any) -> Pair:
    texts: Any = [one.get(side) for side in _SIDES] if isinstance(one, Mapping) else one
    is_two = isinstance(texts, Sequence) and not isinstance(texts, str) and len(texts) == 2
    if not is_two or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name}={shown(one)} must be a pair: {_FORMS}")
    for side, text in zip(_SIDES, texts, strict=True):
        if not text.strip():
            raise ValueError(f"{name}: its {side} text {shown(text)} is empty: leave the pair out, or give it a word")
    if texts[0] == texts[1]:
        raise ValueError(f"{name}: both texts are {shown(texts[0])}: leave the pair out, or give two different ones")
    return texts[0], texts[1]


def _in_file(argument: str, path: Path) -> list[Pair]:
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: there is no file of pairs at {named(path)}")
    with one_error(path, ValueError):
        if (size := path.stat().st_size) > _LONGEST_FILE:
            raise Damaged(f"has {size} bytes, and of pairs at most {_LONGEST_FILE} are read")
        data = path.read_bytes()
        if path.suffix == ".jsonl":
            return contrast_pairs(argument, [from_json(line) for line in data.splitlines() if line.strip()])
        read = from_json(data)
        if not isinstance(read, (list, dict)):
            raise Damaged("holds neither a list of pairs nor an object with 'positive' and 'negative'")
        return contrast_pairs(argument, read)


def split(pairs: Sequence[Pair], held_out: Any, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to make a vector of, and those that it is scored on.

    Equal pairs come to the same side. The random numbers of the run do not change.

    Args:
        pairs: all of them.
        held_out: the share to hold out, from 0 to below 1: at least one pair if it is not 0, and never all; or other
            pairs, in the forms of `contrast_pairs`.
        seed: which pairs are drawn.

    Raises:
        TypeError, ValueError: ``held_out`` is neither, or holds a pair that is among ``pairs``.

    Examples:
        >>> made, scored = split([(f"joy {i}", f"grief {i}") for i in range(8)], 0.25, seed=0)
        >>> len(made), len(scored)
        (6, 2)
    """
    seed = whole_number("seed", seed, 0)
    if not is_finite(held_out):
        if isinstance(held_out, bool) or held_out is None:
            raise TypeError(f"held_out={shown(held_out)} must be a share of the pairs, or other pairs")
        scored = contrast_pairs("held_out", held_out)
        if both := set(pairs) & set(scored):
            raise ValueError(
                f"held_out has {len(both)} of the pairs as well, such as {shown(min(both))}: leave them out"
            )
        return list(pairs), scored
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out={shown(held_out)} must be a share of the pairs, from 0 to below 1, or other pairs")
    different = list(dict.fromkeys(pairs))
    wanted = max(1, round(held_out * len(different))) if held_out else 0
    drawn = set(random.Random(seed).sample(different, min(wanted, len(different) - 1)))
    return [pair for pair in pairs if pair not in drawn], [pair for pair in different if pair in drawn]
