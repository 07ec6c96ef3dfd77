"""The main stack: recognised where there is one, and asked for where there are several or none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    JambaConfig,
    JambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from mi_crow_lightning.addressing.main_stack import find_blocks
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.errors import LayerNotFound
from mi_crow_lightning.hooks import ActivationStatistics, Layers
from tests.addressing.tiny import tree_of
from tests.models import BLOCKS, cnn, gpt2, llama


def t5() -> T5ForConditionalGeneration:
    sizes = dict(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, vocab_size=40)
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))


def blocks(model: nn.Module) -> list[str]:
    return find_blocks(ModuleTree(model))


def test_an_encoder_and_a_decoder_are_ambiguous() -> None:
    model = t5()
    with pytest.raises(LayerNotFound) as caught:
        blocks(model)
    message = str(caught.value)
    assert "the model has 2 stacks of blocks, so a block's index is ambiguous" in message
    assert "'encoder.block:*' for 'encoder.block': 2 x T5Block" in message
    assert "'decoder.block:*' for 'decoder.block': 2 x T5Block" in message
    assert "Or choose one of the models with root=..." in message
    # All ways out work.
    tree = ModuleTree(model)
    for signature in ("encoder.block:*", "encoder.block.*"):
        found = [(match.name, match.index, match.stack) for match in resolve(tree, signature)]
        assert found == [("encoder.block.0", 0, "encoder.block"), ("encoder.block.1", 1, "encoder.block")]
    assert blocks(model.decoder) == ["block.0", "block.1"]
    roles = {role: [m.name for m in resolve(ModuleTree(model.decoder), f"block:*.{role}")] for role in ("attn", "mlp")}
    assert roles == {
        "attn": ["block.0.layer.0.SelfAttention", "block.1.layer.0.SelfAttention"],
        "mlp": ["block.0.layer.2.DenseReluDense", "block.1.layer.2.DenseReluDense"],
    }
    assert [m.name for m in resolve(ModuleTree(model.encoder), "block:0.mlp")] == ["block.0.layer.1.DenseReluDense"]


def test_a_teacher_beside_a_student_is_ambiguous() -> None:
    both = nn.ModuleDict({"teacher": gpt2(), "student": llama()})
    message = (
        r"2 stacks(.|\n)*'teacher.transformer.h': 4 x GPT2Block(.|\n)*'student.model.layers': 4 x LlamaDecoderLayer"
    )
    with pytest.raises(LayerNotFound, match=message):
        resolve(ModuleTree(both), "block:0")
    assert blocks(both["student"]) == [f"model.layers.{i}" for i in range(BLOCKS)]


def test_experts_do_not_win() -> None:
    sizes = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=40)
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=8))
    assert blocks(model) == ["model.layers.0", "model.layers.1"]
    experts = [name for name, module in model.named_modules() if isinstance(module, MixtralSparseMoeBlock)]
    assert [name.rpartition(".")[0] for name in experts] == blocks(model)
    assert [match.name for match in resolve(ModuleTree(model), "block:*.mlp")] == experts


class Experts(nn.Module):
    """A block whose list of experts is longer than the stack, and holds nearly all parameters."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1)
        self.experts = nn.ModuleList(nn.Linear(4, 64) for _ in range(experts))


def test_a_list_within_a_block_does_not_win() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([Experts(8), Experts(1)])})
    assert blocks(model) == ["layers.0", "layers.1"]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(x).relu()


class ResNet(nn.Module):
    """Stages of residual blocks; the last stage holds most of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Residual(4), Residual(4))
        self.widen = nn.Conv2d(4, 16, 1)
        self.layer2 = nn.Sequential(Residual(16), Residual(16), Residual(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.widen(self.layer1(self.stem(x))))
        return self.head(x.mean((2, 3)))


def test_the_last_stage_of_a_resnet_is_not_its_stack() -> None:
    model = ResNet()
    with pytest.raises(LayerNotFound, match=r"2 stacks(.|\n)*'layer1': 2 x Residual(.|\n)*'layer2': 3 x Residual"):
        resolve(ModuleTree(model), "block:*")
    detector = ActivationStatistics("layer?.*", statistics=["mean"], histogram=False)
    Layers(model).register_hook(None, detector)
    model(torch.ones(2, 3, 8, 8))
    assert [reading.layer for reading in detector.readings()] == [
        *("layer1.0", "layer1.1"),
        *("layer2.0", "layer2.1", "layer2.2"),
    ]


def test_a_sequential_network_counts_its_children() -> None:
    assert blocks(cnn()) == [str(i) for i in range(6)]


def test_blocks_without_attention_are_known_by_their_parameters() -> None:
    model = nn.ModuleDict({"stem": nn.Linear(4, 4), "body": nn.ModuleList(Residual(4) for _ in range(3))})
    assert blocks(model) == ["body.0", "body.1", "body.2"]
    small = nn.ModuleDict({"stem": nn.Linear(400, 400), "body": nn.ModuleList(Residual(4) for _ in range(3))})
    with pytest.raises(LayerNotFound, match=r"no stack of blocks .* its children are: stem, body"):
        blocks(small)


def test_a_model_without_a_stack_says_what_it_has() -> None:
    albert = AlbertModel(
        AlbertConfig(
            vocab_size=40,
            embedding_size=8,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=8,
        )
    )
    with pytest.raises(LayerNotFound, match=r"no stack of blocks \(a ModuleList .*children are: embeddings, encoder"):
        resolve(ModuleTree(albert), "block:*")
    with pytest.raises(LayerNotFound, match="its children are: none"):
        blocks(nn.Linear(2, 2))
    # One layer that is called three times is counted three times.
    detector = ActivationStatistics("*.ffn_output", statistics=["mean"])
    Layers(albert).register_hook(None, detector)
    albert(input_ids=torch.ones(2, 5, dtype=torch.long))
    (values,) = [reading.value for reading in detector.readings() if reading.name == "histogram"]
    assert values.total == 3 * 2 * 5 * 16


class Normed(nn.Module):
    """Norms in a container, some of them left out."""

    def __init__(self, container: nn.Module) -> None:
        super().__init__()
        self.norms, self.head = container, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


def container_with_none(kind: str) -> nn.Module:
    if kind == "ModuleDict":
        return nn.ModuleDict({"0": nn.LayerNorm(4), "1": None})  # type: ignore[dict-item]
    container = nn.ModuleList([nn.LayerNorm(4)]) if kind == "ModuleList" else nn.Sequential(nn.LayerNorm(4))
    container.register_module("1", None)
    return container


@pytest.mark.parametrize("kind", ["ModuleList", "ModuleDict", "Sequential"])
def test_none_among_the_children_is_skipped(kind: str) -> None:
    model, x = Normed(container_with_none(kind)), torch.randn(3, 4)
    detector = ActivationStatistics("head", statistics=["mean"], histogram=False)
    Layers(model).register_hook(None, detector)
    with torch.no_grad():
        output = model(x)
    (reading,) = detector.readings()
    assert reading.value == pytest.approx(output.mean().item(), rel=1e-5)


def test_blocks_keep_their_places_beside_none() -> None:
    stack = nn.ModuleList([Residual(4), Residual(4), Residual(4)])
    stack[1] = None  # type: ignore[assignment]
    assert blocks(nn.ModuleDict({"body": stack})) == ["body.0", "body.2"]


def jamba() -> JambaForCausalLM:
    attention = dict(attn_layer_period=2, attn_layer_offset=1, num_attention_heads=4, num_key_value_heads=2)
    experts = dict(expert_layer_period=2, expert_layer_offset=1, num_experts=2)
    mamba = dict(mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4)
    with torch.device("meta"):
        return JambaForCausalLM(JambaConfig(**sizes, **attention, **experts, **mamba))


def test_a_stack_of_blocks_of_two_classes() -> None:
    tree = ModuleTree(jamba())
    assert find_blocks(tree) == [f"model.layers.{i}" for i in range(4)]
    assert [match.index for match in resolve(tree, "block:-1")] == [3]


class AttentionBlock(nn.Sequential):
    pass


class StateSpaceBlock(nn.Sequential):
    pass


class Mixing(nn.Module):
    """A base of a user's own."""


class Convolving(Mixing):
    pass


class Attending(Mixing):
    pass


def test_kin_have_a_base_or_names_in_common() -> None:
    named = nn.ModuleList([AttentionBlock(nn.Linear(4, 4)), StateSpaceBlock(nn.Linear(4, 4))])
    assert blocks(nn.ModuleDict({"body": named})) == ["body.0", "body.1"]
    based: list[nn.Module] = [Convolving(), Attending()]
    for block in based:
        block.register_module("linear", nn.Linear(4, 4))
    assert blocks(nn.ModuleDict({"body": nn.ModuleList(based)})) == ["body.0", "body.1"]
    # torch's own bases make no kin, and neither do two whole models.
    for strangers in ([nn.Conv1d(4, 4, 1), nn.ConvTranspose1d(4, 4, 1)], [nn.Linear(4, 4), nn.Bilinear(4, 4, 4)]):
        with pytest.raises(LayerNotFound, match="no stack of blocks"):
            blocks(nn.ModuleDict({"body": nn.ModuleList(strangers)}))
    with pytest.raises(LayerNotFound, match="the model has 2 stacks of blocks"):
        blocks(nn.ModuleDict({"both": nn.ModuleList([gpt2(), llama()])}))


class Called(nn.ModuleList):
    """A list that is called itself."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


def test_lists_that_nothing_calls_are_not_blocks() -> None:
    def stages(kind: type[nn.ModuleList]) -> nn.Module:
        return nn.ModuleDict({"stages": nn.ModuleList(kind(Residual(4) for _ in range(n)) for n in (2, 2))})

    assert blocks(stages(Called)) == ["stages.0", "stages.1"]
    with pytest.raises(LayerNotFound, match=r"2 stacks(.|\n)*'stages.0.block:\*' for 'stages.0': 2 x Residual"):
        blocks(stages(nn.ModuleList))
    for family in ("pvt", "poolformer"):
        with pytest.raises(LayerNotFound, match=r"4 stacks(.|\n)*'block.3.block:\*' for 'encoder.block.3': "):
            resolve(tree_of(family), "block:0")
        (first,) = resolve(tree_of(family), "block.3.block:0")
        assert (first.name, first.index) == ("encoder.block.3.0", 0)
    assert [match.name for match in resolve(ModuleTree(stages(nn.ModuleList)), "stages.1.block:0")] == ["stages.1.0"]
    parts = nn.ModuleDict({"h": nn.ModuleList(nn.ModuleDict({"attn": nn.Linear(4, 4)}) for _ in range(2))})
    assert [match.name for match in resolve(ModuleTree(parts), "block:*.attn")] == ["h.0.attn", "h.1.attn"]
