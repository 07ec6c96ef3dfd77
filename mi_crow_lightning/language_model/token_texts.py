"""The text of each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mi_crow_lightning.language_model.generated import decoded

__all__ = ["TokenTexts", "token_texts"]

_LONGEST = 200  # characters of one token


class TokenTexts(NamedTuple):
    """The texts of tokens.

    Attributes:
        texts: one for each token.
        special: places of the tokens that the text leaves out, such as the one that ends it.
        joined: whether the other ones are the text, one after the other.
    """

    texts: list[str]
    special: list[int]
    joined: bool


def token_texts(tokenizer: Any, ids: Sequence[int]) -> TokenTexts:
    """Return the text of each token, so that they are the whole text one after the other, if they can be.

    Where a token ends in the middle of a character, the character belongs to the token that ends it. Where tokens do
    not follow one another in the text, they are the pieces that the tokenizer has.

    Args:
        tokenizer: a tokenizer of transformers; ``None`` for the numbers of the tokens.
        ids: the tokens.
    """
    if tokenizer is None:
        return TokenTexts([str(token) for token in ids], [], False)
    of_each = {token: decoded(tokenizer, [token]) for token in set(ids)}
    special = [at for at, token in enumerate(ids) if not of_each[token] and _is_special(tokenizer, token)]
    left_out = set(special)
    plain = [at for at in range(len(ids)) if at not in left_out]
    names = [str(name)[:_LONGEST] for name in tokenizer.convert_ids_to_tokens(list(ids))]
    whole = decoded(tokenizer, ids)
    for texts in ([of_each[ids[at]] for at in plain], _followed(tokenizer, [ids[at] for at in plain])):
        if "".join(texts) == whole and all(len(text) <= _LONGEST for text in texts):
            by_place = dict(zip(plain, texts, strict=True))
            return TokenTexts([by_place.get(at, name) for at, name in enumerate(names)], special, True)
    return TokenTexts(names, special, False)


def _is_special(tokenizer: Any, token: int) -> bool:
    return bool(tokenizer.decode([token], skip_special_tokens=False))


def _followed(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return what each token adds to the text of the few tokens before it."""
    texts: list[str] = []
    begin = read = 0  # decoded from, and up to where its text was given away
    for end in range(1, len(ids) + 1):
        before, now = (decoded(tokenizer, ids[begin:to]) for to in (read, end))
        if now.endswith("\ufffd") and end < len(ids):  # in the middle of a character
            texts.append("")
            continue
        texts.append(now[len(before) :])
        begin, read = read, end
    return texts
