"""Values of samples where the rows are not samples: refused, unless `generate` made the rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LongformerConfig, LongformerModel

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Controller, SteeringController, attached
from tests.models import WIDTH, llama

CHOSEN, REJECTED = torch.randint(3, 64, (2, 2, 5), generator=torch.Generator().manual_seed(1))
BOTH = torch.cat([CHOSEN, REJECTED])
TWO = torch.tensor([0.0, 5.0])
IDS = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(1))


def rows_changed(hook: Controller) -> list[int]:
    """Which rows of [chosen, rejected] are not as without the hook."""
    model = llama().eval().model
    with torch.no_grad():
        plain = model(BOTH).last_hidden_state
        with attached(model, hook) as layers:
            layers.begin_batch(None, {"chosen": CHOSEN, "rejected": REJECTED, "strength": TWO})
            steered = model(BOTH).last_hidden_state
    return (steered != plain).flatten(1).any(1).int().tolist()


@pytest.mark.parametrize("strength", [TWO, "batch", lambda ctx: TWO])
def test_two_strengths_are_not_laid_on_four_rows(strength: Any) -> None:
    with pytest.raises(HookError, match=r"has 2 values, one for each sample.* has 4 rows"):
        rows_changed(SteeringController("block:1", torch.ones(WIDTH), strength=strength))


def test_nor_is_a_condition_of_two_samples() -> None:
    with pytest.raises(HookError, match=r"with one value for each row"):
        rows_changed(SteeringController("block:1", torch.ones(WIDTH), when=lambda x, ctx: torch.tensor([False, True])))


def test_one_value_for_each_row_is_taken() -> None:
    strength = torch.tensor([0.0, 1.0, 0.0, 2.0])
    assert rows_changed(SteeringController("block:1", torch.ones(WIDTH), strength=strength)) == [0, 1, 0, 1]
    assert rows_changed(SteeringController("block:1", torch.ones(WIDTH), strength=torch.ones(1))) == [1, 1, 1, 1]


def test_tokens_in_one_row_belong_to_their_samples() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Identity())

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs_embeds: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
            out: torch.Tensor = self.inner(inputs_embeds)
            return out

    with attached(net := Model(), SteeringController("inner.1", torch.ones(4), strength=TWO)):
        assert net(inputs_embeds=torch.zeros(2, 3, 4)).sum(1).tolist() == [0.0] * 3 + [20.0] * 3


def test_padding_of_the_models_own_is_refused_and_does_not_count_in_silence() -> None:
    """Longformer pads 6 tokens to its window of 8."""
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, vocab_size=64)
    model = LongformerModel(LongformerConfig(attention_window=8, max_position_embeddings=64, **sizes)).eval()
    hook = SteeringController("encoder.layer.1", torch.ones(32), strength=TWO, tokens="last")
    with (
        torch.no_grad(),
        attached(model, hook),
        pytest.raises(HookError, match=r"gives \(2, 8, 32\) and the model was called .* = \(2, 6\)"),
    ):
        model(input_ids=IDS)


def strengths_at(batch: Any, layer: nn.Module, x: torch.Tensor, **choice: Any) -> list[float]:
    """How far each row was moved."""
    with torch.no_grad(), attached(nn.Sequential(layer), SteeringController("0", torch.ones(4), **choice)) as layers:
        layers.begin_batch(None, batch)
        steered: torch.Tensor = layers.root(x)
    return (steered - layer(x)).flatten(1).mean(1).round(decimals=4).tolist()


ROWS = torch.tensor([0, 1, 0, 1])
X = torch.randn(4, 3, 4)


@pytest.mark.parametrize("strength", [TWO, "batch", lambda ctx: TWO])
def test_the_batch_names_the_sample_of_each_row(strength: Any) -> None:
    batch = {"sample_of_row": ROWS, "strength": TWO}
    assert strengths_at(batch, nn.Identity(), X, strength=strength) == [0, 5, 0, 5]
    condition = dict(strength=2.0, when=lambda x, ctx: torch.tensor([True, False]))
    assert strengths_at(batch, nn.Identity(), X, **condition) == [2, 0, 2, 0]


def test_the_batch_may_name_samples_in_another_order() -> None:
    batch = {"sample_of_row": torch.tensor([3, 0, 0, 1])}
    four = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert strengths_at(batch, nn.Identity(), X, strength=four) == [4, 1, 1, 2]
    rows = torch.tensor([True, False, False, True])  # one for each row, as it was computed from the activation
    assert strengths_at(batch, nn.Identity(), X, strength=2.0, when=lambda x, ctx: rows) == [2, 0, 0, 2]


@pytest.mark.parametrize("named", [ROWS[:3], ROWS.float(), ROWS[:, None], [0, 1, 0, 1]])
def test_names_that_fit_no_row_do_not_count(named: Any) -> None:
    with pytest.raises(HookError, match=r"or name the sample of each row in batch\['sample_of_row'\]"):
        strengths_at({"sample_of_row": named}, nn.Identity(), X, strength=TWO)


@pytest.mark.parametrize("named", [torch.tensor([0, 1, 2, 1]), torch.tensor([0, -1, 0, 1])])
def test_a_sample_without_a_value_is_refused(named: torch.Tensor) -> None:
    with pytest.raises(HookError, match=r"names samples -?\d to \d for its rows, and there are 2 values"):
        strengths_at({"sample_of_row": named}, nn.Identity(), X, strength=TWO)


def test_the_rows_that_generate_makes_are_not_those_of_the_batch() -> None:
    model, batch = llama(eos_token_id=None).eval(), {"sample_of_row": torch.tensor([1, 0])}
    found = []
    for strength in (TWO, TWO.flip(0)):
        with attached(model, SteeringController("block:1", torch.ones(WIDTH), strength)) as layers:
            layers.begin_batch(None, batch)
            found.append(model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0))
    assert torch.equal(found[0][0], model.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)[0])
    assert not torch.equal(found[0], found[1])


def test_under_guidance_rows_of_a_sample_may_not_be_adjacent() -> None:
    model = llama(eos_token_id=None).eval()
    options = dict(max_new_tokens=2, pad_token_id=0, guidance_scale=1.5, do_sample=True)
    with attached(model, SteeringController("block:1", torch.ones(WIDTH), TWO)):
        assert model.generate(IDS, **options).shape == (2, 8)
        with pytest.raises(HookError, match=r"has 2 values, one for each sample.* has 4 rows"):
            model.generate(IDS, **options, num_return_sequences=2)


class Graphs:
    """The batch of PyTorch Geometric: nodes of all graphs in one row, and the graph of each."""

    def __init__(self, batch: torch.Tensor, edges: int) -> None:
        self.batch, self.edge_index = batch, torch.zeros(2, edges, dtype=torch.long)


NODES = torch.tensor([0, 0, 0, 1, 2, 2])
THREE = torch.tensor([1.0, 0.0, 3.0])


def test_the_nodes_of_a_graph_have_the_value_of_their_graph() -> None:
    graphs, linear = Graphs(NODES, 9), nn.Linear(5, 4)
    assert strengths_at(graphs, linear, torch.randn(6, 5), strength=THREE) == [1, 1, 1, 0, 3, 3]
    assert strengths_at(graphs, linear, torch.randn(3, 5), strength=THREE) == [1, 0, 3]  # pooled
    condition = dict(strength=2.0, when=lambda x, ctx: THREE > 0)
    assert strengths_at(graphs, linear, torch.randn(6, 5), **condition) == [2, 2, 2, 0, 2, 2]


@pytest.mark.parametrize(("rows", "edges"), [(9, 9), (6, 6)])
def test_edges_of_graphs_are_refused(rows: int, edges: int) -> None:
    """Also where there are as many as nodes: nothing shows which of both a layer gives."""
    with pytest.raises(HookError, match=f"3 values, one for each sample, and the activation of '0' has {rows} rows"):
        strengths_at(Graphs(NODES, edges), nn.Linear(5, 4), torch.randn(rows, 5), strength=THREE)
