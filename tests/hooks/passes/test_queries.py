"""Learned queries that a layer may be of, by the names of parameters and by the call of an attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.queries import Queries, queries_of


def holds(name: str, *shape: int) -> nn.Module:
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    return module


def has_table(name: str) -> nn.Module:
    module = nn.Module()
    module.add_module(name, nn.Embedding(5, 3))
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (holds("latents", 5, 3), {5: "latents"}),
        (holds("latent_array", 1, 5, 3), {5: "latent_array"}),
        (holds("query_tokens", 1, 5, 3), {5: "query_tokens"}),
        (has_table("query_embed"), {5: "query_embed"}),
        (holds("bos_latent", 1, 3), {}),  # one vector is no sequence
        (holds("latent_scale", 5), {}),
        (holds("latents", 2, 5, 3), {}),
        (holds("query_weight", 5, 3), {}),  # of a projection
        (holds("positions", 5, 3), {}),
        (has_table("embed"), {}),
    ],
)
def test_queries_are_known_by_the_names_of_parameters(module: nn.Module, expected: dict[int, str]) -> None:
    found = queries_of([nn.Module(), module, nn.Linear(3, 3)], None)
    assert (found.learned if found else {}) == expected


def test_those_of_modules_around_the_model_of_the_text_do_not_matter() -> None:
    path = [holds("latents", 5, 3), nn.Module(), nn.Linear(3, 3)]
    assert queries_of(path, path[1]) is None and queries_of(path, path[0]) == Queries({5: "latents"}, False)


PARAMETER, ROW = nn.Parameter(torch.randn(5, 4)), torch.randn(1, 5, 4)
CALLS: dict[str, tuple[Tensor, bool]] = {
    "a parameter": (nn.Parameter(torch.randn(1, 5, 4)), True),
    "a view of a parameter": (PARAMETER[None], True),
    "a parameter for each row": (PARAMETER.expand(2, -1, -1), True),
    "a row that was computed once": ((ROW * 2).expand(2, -1, -1), True),
    "values for each token": (torch.randn(2, 5, 4), False),
    "values of one text": (torch.randn(1, 5, 4), False),
    "one text in a view with a step of 0": (torch.randn(5, 4).as_strided((1, 5, 4), (0, 4, 1)), False),
}


@pytest.mark.parametrize("case", CALLS)
def test_the_call_of_an_attention_shows_its_queries(case: str) -> None:
    query, learned = CALLS[case]
    found: Any = queries_of([nn.MultiheadAttention(4, 2)], None)
    keys = torch.randn(len(query), 5, 4)
    for args, kwargs in (((query, keys, keys), {}), ((), dict(query=query, key=keys, value=keys))):
        assert (found.instead_of(5, args, kwargs) is not None) == learned
