"""The columns of a pass: where its tokens lie in the sequence, and what the model's attention mask says of them."""

from __future__ import annotations

from torch import Tensor, nn

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.token_call import of_beams

__all__ = [
    "columns_of",
    "first_column",
    "first_seen",
    "mask_of_pass",
    "only_themselves",
    "real_so_far",
    "tokens_of_pass",
]


def tokens_of_pass(x: Tensor, facts: PassFacts) -> int:
    """Return the number of tokens per row in the running pass: of the model's call if known, otherwise of ``x``."""
    return facts.tokens if facts.tokens is not None else x.shape[1]


def first_column(x: Tensor, facts: PassFacts) -> int:
    """Return the column, in the padded sequence, of the first token of ``x`` (B, T, D).

    A head that is called only for the last token, as ``generate`` does, sees one token of a longer pass.
    """
    skipped = tokens_of_pass(x, facts) - 1 if x.shape[1] == 1 else 0
    return (facts.past or 0) + skipped


def mask_of_pass(x: Tensor, facts: PassFacts) -> Tensor:
    """Return the attention mask, in any of the usual forms, cut to the columns of this pass: (B, T) bool.

    If its columns are not those of the cache and the pass, or its queries not those of the pass, it is returned whole
    and will not fit: the second dimension of the activation then is not a sequence of these tokens (but of latents, or
    of queries that attend to them).
    """
    mask = facts.mask
    assert mask is not None
    if mask.dim() > 2 and facts.past is not None and facts.tokens is not None:
        grown = _grown_prompt(facts, facts.past + facts.tokens)
        if grown is not None:
            return grown[:, facts.past :]
    real = columns_of(mask, facts.mask_is_padding)
    if facts.tokens is None and mask.dim() > 2:  # nothing but their number shows that they are the same tokens
        return real
    tokens = tokens_of_pass(x, facts) if facts.tokens is not None or x.dim() >= 3 else mask.shape[-1]
    if mask.dim() > 2 and mask.shape[-2] not in (1, tokens):
        return real
    if mask.dim() == 2 and not facts.past_unknown and real.shape[1] != (facts.past or 0) + tokens:
        return real
    return real[:, -tokens:] if facts.past is None else real[:, facts.past : facts.past + tokens]


def real_so_far(shape: tuple[int, int], first: int, real: Tensor, facts: PassFacts) -> Tensor:
    """Return the real tokens of the whole sequence up to the end of this pass, including those in the cache.

    Args:
        shape: rows and tokens of the pass at a layer, ``(B, T)``.
        first: the column of the first token.
        real: the real tokens of this pass, ``(B, T)`` bool.
        facts: the facts of the pass.

    Returns:
        ``(B, past + T)`` bool.

    Raises:
        TokensUnknown: the model was called with a mask of this pass only.
    """
    rows, tokens = shape
    if first == 0:
        return real
    if facts.mask is None:
        return real.new_ones(rows, first + tokens)
    grown = _grown_prompt(facts, first + tokens) if facts.mask.dim() > 2 else None
    known = columns_of(facts.mask, facts.mask_is_padding) if grown is None else grown
    so_far = known.to(real.device)[:, : first + tokens]
    if so_far.shape[1] != first + tokens:
        raise TokensUnknown(
            f"the attention mask {tuple(facts.mask.shape)} does not cover the {first} tokens before this "
            "pass, so positions cannot be counted: pass the mask of the whole sequence"
        )
    return so_far.expand(rows, -1)


def _grown_prompt(facts: PassFacts, columns: int) -> Tensor | None:
    """Return the real columns of the sequence so far, ``(rows, columns)``, from the mask of the prompt of ``generate``.

    A mask of pairs does not show them all: a window hides earlier tokens, and a static cache of a window writes new
    tokens over old ones, so that its columns are not those of the sequence. What is generated is real.
    """
    prompt, rows = facts.prompt_mask, facts.rows
    if prompt is None or rows is None or prompt.shape[1] > columns or len(prompt) > rows:
        return None
    return nn.functional.pad(of_beams(prompt, rows) != 0, (0, columns - prompt.shape[1]), value=True)


def columns_of(mask: Tensor, is_padding: bool = False) -> Tensor:
    """Return the columns that an attention mask shows to be real, ``(B, columns)`` bool.

    A mask ``(B, T)`` says so itself. In a mask of pairs, ``(B, Tq, Tk)`` or ``(B, H, Tq, Tk)``, a column is real if any
    query sees it: the last query alone does not show it where texts are packed, attention has a window, or the last
    token is padding.

    Args:
        mask: the mask; an additive one holds 0, or a small bias, where a query sees a key, and a very negative number
            elsewhere.
        is_padding: whether True is padding, as in torch's key padding masks.

    Examples:
        >>> import torch
        >>> packed = torch.block_diag(torch.ones(1, 1), torch.ones(2, 2).tril())
        >>> columns_of(packed[None, None].bool())
        tensor([[True, True, True]])
    """
    if mask.dim() == 2:
        if mask.is_floating_point() and is_padding:
            return _sees(mask)
        return (mask == 0) if is_padding else (mask != 0)
    return _sees(_pairs(mask)).any(1)


def only_themselves(mask: Tensor, past: int) -> Tensor | None:
    """Return the tokens that see nobody else and that nobody else sees, ``(B, Tq)`` bool; ``None`` if none can be so.

    Such a token is a text of one token, or padding that sees itself as a guard against NaN: a mask of pairs does not
    show which.

    Args:
        mask: a mask of pairs, ``(B, Tq, Tk)`` or ``(B, H, Tq, Tk)``.
        past: the columns before the first query's.
    """
    queries = mask.shape[-2]
    if queries < 2 or mask.shape[-1] < past + queries:
        return None
    sees = _sees(_pairs(mask))  # (B, Tq, Tk)
    keys = sees[:, :, past : past + queries]  # (B, Tq, Tq)
    return keys.diagonal(dim1=1, dim2=2) & (sees.sum(2) == 1) & (keys.sum(1) == 1)


def first_seen(mask: Tensor, tokens: int) -> Tensor | None:
    """Return which tokens see none before them, ``(B, tokens)`` bool: each begins a text.

    Args:
        mask: a mask of pairs, ``(B, Tq, Tk)`` or ``(B, H, Tq, Tk)``, of a pass that begins the sequence.
        tokens: the tokens of the pass; ``None`` is returned if the mask does not have a query for each.
    """
    if mask.shape[-2] != tokens or mask.shape[-1] < tokens:
        return None
    return ~_sees(_pairs(mask))[:, :, :tokens].tril(-1).any(2)


def _pairs(mask: Tensor) -> Tensor:
    """Return a mask of pairs as ``(B, Tq, Tk)``; all heads see alike."""
    return mask.reshape(mask.shape[0], -1, *mask.shape[-2:])[:, 0]


def _sees(mask: Tensor) -> Tensor:
    return mask > -1000.0 if mask.is_floating_point() else mask != 0
