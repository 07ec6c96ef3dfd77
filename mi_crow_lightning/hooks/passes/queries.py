"""Learned queries (latents) that stand beside a text, with as many of them as it may have tokens.

A layer that gives one vector for each learned query gives none for a token, and where their number is the same, the
shape does not show it. A cross-attention's call does, and so do the names that models give such parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Queries", "learned_queries", "queries_of"]

_NAMES = ("latent", "quer")  # latents, latent_array, query_tokens, query_embeds, queries
_OTHER_NAMES = ("weight", "bias")  # of a projection, such as query_weight


@dataclass(frozen=True)
class Queries:
    """The learned queries that a layer may give a vector for each of, in the place of tokens.

    Attributes:
        learned: the numbers of learned queries of the modules that hold the layer, each with its parameter's name.
        attends: whether the layer is an attention of torch, whose call shows its queries.
    """

    learned: Mapping[int, str]
    attends: bool

    def instead_of(self, tokens: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Return why a layer that gives ``tokens`` vectors in each row may not give those of tokens.

        Args:
            tokens: the number of vectors in each row, which is that of the pass's tokens.
            args: positional inputs of the layer.
            kwargs: keyword inputs of the layer.

        Returns:
            The reason; ``None`` if nothing speaks against tokens.
        """
        if self.attends and _is_learned(query := kwargs.get("query", args[0] if args else None)):
            return f"its queries {tuple(query.shape)} are learned, and not the model's tokens"
        name = self.learned.get(tokens)
        return name and f"a module around it has as many learned queries ({name!r}) as the text has tokens: {tokens}"


def learned_queries(module: nn.Module) -> dict[int, str]:
    """Return the numbers of learned queries, ``(N, D)`` or ``(1, N, D)``, that a module itself holds, with names."""
    found: dict[int, str] = {}
    for name, value in module._parameters.items():
        if value is not None and _are_queries(name, value):
            found[value.shape[-2]] = name
    for name, child in module._modules.items():
        if isinstance(child, nn.Embedding) and _are_queries(name, child.weight):
            found[child.weight.shape[-2]] = name
    return found


def _are_queries(name: str, value: Tensor) -> bool:
    if not any(part in name.lower() for part in _NAMES) or name.endswith(_OTHER_NAMES):
        return False
    return value.shape[:-2] in ((), (1,)) and value.dim() > 1 and value.shape[-2] > 1


def queries_of(
    path: Sequence[nn.Module],
    source: nn.Module | None,
    learned_in: Callable[[nn.Module], Mapping[int, str]] = learned_queries,
) -> Queries | None:
    """Return the learned queries that a layer may be of; ``None`` for most layers, which are of none.

    Args:
        path: the modules from the model to the layer.
        source: the module among them whose call says which tokens the layer has: modules around it do not matter.
        learned_in: `learned_queries`, or what keeps its results for the layers of one model.
    """
    inside = path[path.index(source) :] if source in path else path
    learned = {count: name for module in inside for count, name in learned_in(module).items()}
    attends = isinstance(path[-1], nn.MultiheadAttention)
    return Queries(learned, attends) if learned or attends else None


def _is_learned(query: Any) -> bool:
    """Return whether queries are a parameter, or one row of queries that was expanded over the batch."""
    if not isinstance(query, Tensor):
        return False
    is_parameter = isinstance(query, nn.Parameter) or isinstance(query._base, nn.Parameter)
    return is_parameter or any(step == 0 and size > 1 for step, size in zip(query.stride(), query.shape, strict=True))
