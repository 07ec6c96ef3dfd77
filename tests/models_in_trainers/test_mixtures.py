"""Mixtures of experts: what is in order keeps its mask, what is routed is never masked by mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from mi_crow_lightning import ActivationStatistics, FunctionController, HookCallback, Schedule, SteeringController
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Layers
from tests.callback.runs import told
from tests.models import VOCABULARY, WIDTH, llama, loader, token_data, trainer
from tests.models_in_trainers.harness import Runs, assert_steered, assert_watched, attention_mask, tells

SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts_per_tok=2,
    pad_token_id=0,
    use_cache=False,
)


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(num_local_experts=4, **SIZES))


def qwen() -> nn.Module:
    torch.manual_seed(0)
    sizes = dict(num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=16)
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, **SIZES))


def module_of(model: nn.Module) -> Runs:
    return Runs(model, lambda m, batch: m(**batch, labels=batch["input_ids"]).loss, lambda m, batch: m(**batch).logits)


def mlp_of(model: Any) -> str:
    """The name of the second block's mixture: it has changed between releases."""
    return "model.model.layers.1." + ("mlp" if hasattr(model.model.layers[1], "mlp") else "block_sparse_moe")


@pytest.mark.documents("compatibility/mixtures-of-experts/detectors")
@pytest.mark.parametrize("make", [mixtral, qwen])
def test_blocks_mixtures_and_routers_are_watched_without_padding(make: Any) -> None:
    mixture = mlp_of(make())
    in_order = ["model.model.layers.0", mixture, f"{mixture}.gate"]
    in_order += [f"{mixture}.shared_expert"] if make is qwen else []
    assert_watched(lambda: module_of(make()), token_data(10), in_order, attention_mask)


@pytest.mark.documents("compatibility/mixtures-of-experts/controllers")
@pytest.mark.parametrize("make", [mixtral, qwen])
def test_blocks_and_mixtures_are_steered_without_padding(make: Any) -> None:
    for layer in ("model.model.layers.0", mlp_of(make())):
        assert_steered(lambda: module_of(make()), token_data(10), layer, mask_of=attention_mask)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.up(x))


class Routed(nn.Module):
    """A mixture that calls each of its experts with the tokens it is chosen for, the second choices after the first.

    As transformers did until its fifth version. Every expert is chosen for every token, so a mask would fit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Expert(), Expert()])

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        first = rows[:, 0] > 0
        order = [torch.cat([chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]]) for chosen in (first, ~first)]
        out = sum(
            torch.zeros_like(rows).index_add(0, at, e(rows[at])) for e, at in zip(self.experts, order, strict=False)
        )
        return out.reshape(x.shape)  # type: ignore[union-attr,no-any-return]


def routed() -> Runs:
    model = llama(use_cache=False)
    for block in model.model.layers:
        block.mlp = Routed()
    return module_of(model)


EXPERT = "model.model.layers.1.mlp.experts.1"
TOLD = rf"'{EXPERT}(.up)?' gives the tokens routed to its experts, in one row and in another order"


@pytest.mark.parametrize("layer", [EXPERT, f"{EXPERT}.up"])
def test_an_expert_is_watched_whole_and_it_is_told(layer: str) -> None:
    with tells(TOLD + ", which an attention mask does not fit, so every element counts"):
        assert_watched(routed, token_data(10), [layer])
    with tells(TOLD):
        assert_steered(routed, token_data(10), layer)


@pytest.mark.documents("compatibility/mixtures-of-experts/controllers")
@pytest.mark.parametrize(
    "choice", [dict(tokens="last"), dict(strength=torch.ones(4)), dict(when=lambda x, ctx: torch.ones(4).bool())]
)
@pytest.mark.filterwarnings("ignore:.*which an attention mask does not fit")
def test_an_expert_has_no_samples_and_no_positions(choice: dict[str, Any]) -> None:
    steer = SteeringController(EXPERT, torch.ones(WIDTH), **choice)
    with pytest.raises(HookError, match=TOLD):
        trainer(HookCallback(controllers=steer)).predict(routed(), loader(token_data(4)))


@pytest.mark.filterwarnings("ignore:the token IDs .* look padded:UserWarning")
def test_an_expert_that_no_token_was_routed_to_is_told_of() -> None:
    module = routed()
    module.model.model.layers[1].mlp.experts.append(Expert())  # type: ignore[union-attr,index]
    watch = HookCallback(ActivationStatistics("*.1.mlp.experts.*", schedule=Schedule()))
    data = [{"input_ids": row["input_ids"]} for row in token_data(4)]
    with told("of its 3 layers never ran: model.model.layers.1.mlp.experts.2"):
        trainer(watch).predict(module, loader(data))
    assert {row.layer for row in watch.history()} == {f"model.model.layers.1.mlp.experts.{i}" for i in (0, 1)}


def test_experts_that_get_as_many_tokens_as_there_are_rows_are_not_taken_for_rows() -> None:
    """One vector a row, as a pooler gives, needs no mask; an expert with two tokens of two texts does."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Identity()])

        def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.experts[0](inputs_embeds[:, 0])
            return out

    model = Pair()
    Layers(model).register_hook("experts.0", FunctionController("experts.0", torch.tanh))
    with pytest.warns(UserWarning, match="in another order"):
        model(torch.ones(2, 3, 4), torch.ones(2, 3))
