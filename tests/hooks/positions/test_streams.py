"""Activations of four dimensions: tokens with several streams each, or in parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, Qwen3Config, Qwen3ForCausalLM

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import ActivationStatistics, SteeringController, Tokens, attached
from mi_crow_lightning.hooks.passes.axes import Axes
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.positions.streams import place_of_tokens
from tests.hooks.positions.masks import first_of, mask_of

SIZES = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0)
needs_deepseek = pytest.mark.skipif(not hasattr(transformers, "DeepseekV4Config"), reason="no DeepSeek-V4")
needs_hunyuan = pytest.mark.skipif(not hasattr(transformers, "HYV4Config"), reason="no Hunyuan V4")


def gemma3n() -> nn.Module:
    """Its blocks give (4, batch, tokens, features)."""
    sizes = dict(vocab_size_per_layer_input=64, hidden_size_per_layer_input=8, laurel_rank=4, altup_num_inputs=4)
    sizes |= dict(intermediate_size=48, num_key_value_heads=2, head_dim=8, num_kv_shared_layers=0)
    kinds: dict[str, Any] = dict(layer_types=["full_attention"] * 2, activation_sparsity_pattern=[0.0, 0.0])
    return Gemma3nForCausalLM(Gemma3nTextConfig(**SIZES, **sizes, **kinds))


def deepseek(streams: int = 3) -> nn.Module:
    """Its blocks give (batch, tokens, streams, features)."""
    sizes = dict(head_dim=16, index_head_dim=8, index_n_heads=2, index_topk=4, moe_intermediate_size=16, o_groups=2)
    sizes |= dict(n_routed_experts=4, num_experts_per_tok=2, o_lora_rank=8, q_lora_rank=16, qk_rope_head_dim=4)
    kinds: dict[str, Any] = dict(layer_types=["sliding_attention"] * 2, partial_rotary_factor=0.25)
    config = transformers.DeepseekV4Config(**SIZES, **sizes, **kinds, hc_mult=streams, bos_token_id=1, eos_token_id=2)
    return transformers.DeepseekV4ForCausalLM(config)


def six_streams() -> nn.Module:
    """As many streams as tokens: the class shows which of both come first."""
    return deepseek(6)


def hunyuan() -> nn.Module:
    """Its blocks give (batch, tokens, streams, features), as DeepSeek's."""
    sizes = dict(intermediate_size=48, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, hc_mult=6)
    sizes |= dict(head_dim=16, kv_lora_rank=8, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
    sizes |= dict(index_head_dim=16, index_n_heads=2, index_topk=4, num_key_value_heads=4, n_group=1, topk_group=1)
    kinds: dict[str, Any] = dict(layer_types=["indexed_attention"] * 2, indexer_types=["full"] * 2)
    return transformers.HYV4ForCausalLM(
        transformers.HYV4Config(**SIZES, **sizes, **kinds, bos_token_id=1, eos_token_id=2)
    )


def qwen3() -> nn.Module:
    """The norm of its queries gives (batch, tokens, heads, features)."""
    config = Qwen3Config(**SIZES, intermediate_size=48, num_key_value_heads=2, head_dim=8)
    return Qwen3ForCausalLM(config)


BLOCK, NORM = "model.layers.1", "model.layers.1.self_attn.q_norm"
MODELS: list[Any] = [
    (gemma3n, BLOCK),
    (gemma3n, NORM),
    (qwen3, NORM),
    pytest.param(deepseek, BLOCK, marks=needs_deepseek),
    pytest.param(six_streams, BLOCK, marks=needs_deepseek),
    pytest.param(hunyuan, BLOCK, marks=needs_hunyuan),
]


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def call_of(rows: int) -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (rows, 6), generator=torch.Generator().manual_seed(1))
    real = torch.arange(6) < torch.arange(3, 3 + rows)[:, None]
    return dict(input_ids=ids.masked_fill(~real, 0), attention_mask=real.long())


def laid(mask: Tensor, x: Tensor, streams_first: bool) -> Tensor:
    """A mask (B, T) on (S, B, T, D) or (B, T, S, D), as a plain broadcast."""
    return (mask[None] if streams_first else mask[..., None]).expand(x.shape[:-1])


# Gemma 3n has four streams: with four rows, the shape does not show which are which.
@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize(("make", "layer"), MODELS)
def test_padding_is_left_out_in_every_stream(make: Any, layer: str, rows: int) -> None:
    model, seen, call = made(make), [], call_of(rows)
    model.get_submodule(layer).register_forward_hook(lambda module, args, out: seen.append(first_of(out).double()))
    hook = ActivationStatistics(layer, statistics=["mean"], histogram=False)
    with warnings.catch_warnings(), torch.no_grad(), attached(model, hook) as layers:
        warnings.simplefilter("error")
        model(**call)
        (reading,) = layers.take_readings()
    expected = seen[0][laid(call["attention_mask"].bool(), seen[0], (make, layer) == (gemma3n, BLOCK))].mean().item()
    assert reading.value == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    "tokens",
    ["all", "last", Tokens(positions=[1]), Tokens(where=lambda x, ctx: ctx.batch if x.dim() == 4 else ~ctx.batch)],
)
@pytest.mark.parametrize(("make", "layer"), MODELS)
def test_chosen_tokens_are_edited_in_every_stream(make: Any, layer: str, tokens: Any) -> None:
    model, seen, call = made(make), [], call_of(2)
    real = call["attention_mask"].bool()
    second = torch.zeros_like(real)
    second[:, 1] = True
    chosen = {"all": real, "last": torch.arange(6) == torch.tensor([[2], [3]])}.get(str(tokens), second)
    width = model.get_submodule(layer).weight.numel() if layer == NORM else 32
    for hooks in ([], [SteeringController(layer, torch.ones(width), 3.0, tokens=tokens)]):
        with torch.no_grad(), attached(model, hooks) as layers:
            layers.begin_batch(None, second)
            handle = model.get_submodule(layer).register_forward_hook(
                lambda module, args, out: seen.append(first_of(out))
            )
            model(**call)
            handle.remove()
    assert torch.equal((seen[0] != seen[1]).any(-1), laid(chosen, seen[0], (make, layer) == (gemma3n, BLOCK)))


def test_values_of_samples_are_laid_on_samples_or_refused() -> None:
    strength = torch.tensor([0.0, 3.0])
    with attached(model := made(qwen3), SteeringController(NORM, torch.ones(8), strength)), torch.no_grad():
        changed = (model(**call_of(2)).logits != made(qwen3)(**call_of(2)).logits).flatten(1).any(1)
    assert changed.tolist() == [False, True]
    for rows in (2, 4):
        hook = SteeringController(BLOCK, torch.ones(32), torch.ones(rows))
        with attached(model := made(gemma3n), hook), pytest.raises(HookError, match="its rows are streams and not"):
            model(**call_of(rows))


@needs_deepseek
def test_values_of_samples_where_a_sample_has_as_many_tokens_and_streams() -> None:
    call = {name: torch.cat([ids, ids, ids])[:6] for name, ids in call_of(2).items()}
    strength = torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    found = []
    for hooks in ([], [SteeringController(BLOCK, torch.ones(32), strength)]):
        with torch.no_grad(), attached(model := made(six_streams), hooks):
            found.append(model(**call).logits)
    assert (found[0] != found[1]).flatten(1).any(1).tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((2, 6, 3, 8), 0),
        ((3, 2, 6, 8), 1),
        ((2, 6, 3, 4, 8), 0),
        ((2, 3, 6, 8), None),  # heads stand between
        ((2, 6, 6, 8), None),  # as many streams as tokens
        ((2, 2, 6, 8), None),  # as many streams as samples
        ((3, 4, 2, 6, 8), None),  # too far behind
        ((6, 2, 3, 8), None),
        ((2, 3, 3, 6), None),  # six channels
        ((2, 6, 3, 6), 0),
    ],
)
def test_the_place_of_tokens_is_what_the_shape_shows(shape: tuple[int, ...], place: int | None) -> None:
    facts = PassFacts(input_ids=torch.zeros(2, 6, dtype=torch.long))
    assert place_of_tokens(torch.zeros(shape), facts) == place
    assert place_of_tokens(torch.zeros(shape), PassFacts()) is None


def test_what_is_known_of_the_class_decides() -> None:
    square = PassFacts(input_ids=torch.zeros(6, 6, dtype=torch.long))
    x = torch.zeros(6, 6, 6, 8)
    assert place_of_tokens(x, square) is None
    parts = torch.zeros(6, 6, 3, 8)
    assert place_of_tokens(parts, square) == 0 and place_of_tokens(parts, square, Axes.TOKENS_FIRST) is None
    assert Axes.STREAMS_FIRST.of(x) is Axes.STREAMS_FIRST and Axes.STREAMS_FIRST.of(x[0]) is Axes.USUAL
    assert place_of_tokens(x, square, Axes.STREAMS_FIRST) == 1 and place_of_tokens(x, square, Axes.STREAMS_LATER) == 0
    assert place_of_tokens(torch.zeros(6, 5, 6, 8), square, Axes.STREAMS_FIRST) is None


def test_tokens_between_heads_are_not_found() -> None:
    """Its mask would fit no dimension in order: all is counted, and a warning says so."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.Identity()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.heads(torch.randn(len(input_ids), 4, input_ids.shape[1], 8))
            return out

    with pytest.warns(UserWarning, match=r"does not fit the activation \(2, 4, 6, 8\), so every element counts"):
        mask_of(Heads(), "heads", **call_of(2))
    with pytest.raises(HookError, match=r"tokens='last' needs an activation \(batch, tokens, features\)"):
        mask_of(Heads(), "heads", "last", **call_of(2))
