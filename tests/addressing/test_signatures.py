"""Layer signatures: each form of the table in ``addressing/signatures.py``, and what is said when none fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.vit.modeling_vit import ViTLayer

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import Match, resolve
from mi_crow_lightning.errors import LayerNotFound
from mi_crow_lightning.hooks import ActivationStatistics, HookType, Layers
from tests.models import BLOCKS, bert, gpt2, llama, mlp, vit

# "vit.layers" in transformers 5, "vit.encoder.layer" in 4.57, where the MLP is two children of a block, as in BERT.
VIT_BLOCKS = [name for name, module in vit().named_modules() if isinstance(module, ViTLayer)]

STACKS = {
    # model: the names of its blocks, the attention and the MLP in each
    "llama": (llama, "model.layers", "self_attn", "mlp"),
    "gpt2": (gpt2, "transformer.h", "attn", "mlp"),
    "bert": (bert, "bert.encoder.layer", "attention", "output"),
    "vit": (vit, VIT_BLOCKS[0].rpartition(".")[0], "attention", "mlp"),
}


def names(model: nn.Module, signature: Any) -> list[str]:
    return [match.name for match in resolve(ModuleTree(model), signature)]


@pytest.mark.parametrize("kind", STACKS)
def test_blocks_by_role_and_by_index(kind: str) -> None:
    make, stack, attention, _ = STACKS[kind]
    model = make()
    blocks = [f"{stack}.{i}" for i in range(BLOCKS)]
    assert [name for name, _ in model.named_modules() if name in blocks] == blocks  # they are real names
    assert names(model, "block:*") == blocks
    for i in range(-BLOCKS, BLOCKS):
        for signature in (f"block:{i}", i, str(i), f"layer_{i}"):
            assert names(model, signature) == [blocks[i]], signature
    assert names(model, "block:1-2") == blocks[1:3]
    assert names(model, "block:2-2") == [blocks[2]]
    assert names(model, f"block:0-{BLOCKS - 1}") == blocks
    assert names(model, "block:*.attn") == [f"{block}.{attention}" for block in blocks]
    assert names(model, "block:-1.attn") == [f"{blocks[-1]}.{attention}"]
    assert names(model, f"{stack}.*") == blocks  # and not all that is below them


@pytest.mark.parametrize("kind", STACKS)
def test_every_name_means_its_module(kind: str) -> None:
    model = STACKS[kind][0]()
    tree = ModuleTree(model)
    for name, module in model.named_modules():
        if name:
            assert resolve(tree, name)[0].module is module
    assert Layers(model).list_layers() == [name for name, _ in model.named_modules() if name]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
def test_the_mlp_of_blocks(kind: str) -> None:
    make, stack, _, mlp_name = STACKS[kind]
    model = make()
    if kind == "vit" and hasattr(model.get_submodule(f"{stack}.0"), "intermediate"):  # see VIT_BLOCKS
        mlp_name = "output.dense"
    assert names(model, "block:1-2.mlp") == [f"{stack}.{i}.{mlp_name}" for i in (1, 2)]


def test_a_child_that_no_role_names_lists_the_children() -> None:
    with pytest.raises(LayerNotFound, match=r"'bert.encoder.layer.0' has no child 'router'; its children are: "):
        names(bert(), "block:*.router")
    with pytest.raises(LayerNotFound, match="children are: self_attn, mlp, input_layernorm, post_attention_layernorm"):
        names(llama(), "block:0.cross_attn")


def test_children_of_blocks_by_name_and_glob() -> None:
    assert names(gpt2(), "block:0.ln_1") == ["transformer.h.0.ln_1"]
    assert names(gpt2(), "block:*.attn.c_attn") == [f"transformer.h.{i}.attn.c_attn" for i in range(BLOCKS)]
    assert names(llama(), "block:0.self_attn.?_proj") == [f"model.layers.0.self_attn.{p}_proj" for p in "qkvo"]


@pytest.mark.parametrize(
    ("kind", "signature", "found"),
    [
        ("llama", "block:1.attn.q_proj", "1.self_attn.q_proj"),
        ("llama", "block:*.mlp.down_proj", "*.mlp.down_proj"),
        (
            "llama",
            "block:2-3.attn.[qk]_proj",
            "2.self_attn.q_proj 2.self_attn.k_proj 3.self_attn.q_proj 3.self_attn.k_proj",
        ),
        ("gpt2", "block:-1.attn.c_proj", "3.attn.c_proj"),
        ("bert", "block:0.attn.output.dense", "0.attention.output.dense"),
        ("bert", "block:0.attn.*.d*", "0.attention.self.dropout 0.attention.output.dense 0.attention.output.dropout"),
    ],
)
def test_what_lies_in_a_role_by_name_and_glob(kind: str, signature: str, found: str) -> None:
    make, stack, *_ = STACKS[kind]
    expected = [name.replace("*", str(i)) for name in found.split() for i in range(BLOCKS if "*" in name else 1)]
    assert sorted(names(make(), signature)) == sorted(f"{stack}.{name}" for name in expected)


def test_what_a_role_does_not_hold_is_refused_with_what_it_holds() -> None:
    with pytest.raises(LayerNotFound) as caught:
        names(llama(), "block:1.attn.k")
    assert str(caught.value) == (
        "layer 'block:1.attn.k': 'model.layers.1.self_attn' has no child 'k'; its children are: q_proj, "
        "k_proj, v_proj, o_proj"
    )


def test_a_unique_suffix_by_whole_segments() -> None:
    model = gpt2()
    assert names(model, "h.0.attn.c_attn") == ["transformer.h.0.attn.c_attn"]
    assert names(model, "lm_head") == ["lm_head"]
    assert names(model, "ln_f") == ["transformer.ln_f"]
    with pytest.raises(LayerNotFound, match="no layer 'n_f'"):
        names(model, "n_f")  # not a whole segment


def test_an_ambiguous_suffix_lists_what_it_could_mean() -> None:
    message = (
        r"layer 'c_attn' is ambiguous: 4 names end like this: 'transformer.h.0.attn.c_attn', .* or '\*.c_attn' for all"
    )
    with pytest.raises(LayerNotFound, match=message):
        names(gpt2(), "c_attn")
    assert names(gpt2(), "*.c_attn") == [f"transformer.h.{i}.attn.c_attn" for i in range(BLOCKS)]


def test_globs_stay_within_a_segment() -> None:
    model = gpt2()
    assert names(model, "*.mlp") == [f"transformer.h.{i}.mlp" for i in range(BLOCKS)]
    assert names(model, "h.[0-1]") == ["transformer.h.0", "transformer.h.1"]
    assert names(model, "h.?.ln_*") == [f"transformer.h.{i}.ln_{n}" for i in range(BLOCKS) for n in (1, 2)]
    with pytest.raises(
        LayerNotFound, match=r"no layer that matches 'transformer\*c_attn' \('\*' stays within one dotted"
    ):
        names(model, "transformer*c_attn")


@pytest.mark.parametrize(
    ("wrong", "closest"),
    [
        ("transformer.h.0.atn", "closest: .*'transformer.h.0.attn'"),
        ("transformer.g.0", "closest: .*'transformer.h.0'"),
        ("lmhead", "closest: 'lm_head'"),
        ("c_atn", "closest: .*c_attn"),
        ("h.*.mpl", "closest: "),
        ("☃", "it has 5. layers, among them 'transformer', 'transformer.wte'"),
    ],
)
def test_a_wrong_name_gives_the_closest(wrong: str, closest: str) -> None:
    with pytest.raises(LayerNotFound, match=f"no layer .*{closest}"):
        names(gpt2(), wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (4, r"layer 4: the model has 4 blocks, 0 to 3 \(or -1 to -4\)"),
        (-5, "layer -5: the model has 4 blocks"),
        ("layer_9", "layer 'layer_9': the model has 4 blocks"),
        ("block:9", "layer 'block:9': the model has 4 blocks"),
        ("block:2-9", "layer 'block:2-9': the model has 4 blocks"),
        ("block:3-1", "layer 'block:3-1': the range is empty, 3 comes after 1"),
        ("block:", "write 'block:3', 'block:-1', "),
        ("block:one", r"layer 'block:one': write 'block:3'"),
        ("block:1.", r"layer 'block:1.': write 'block:3'"),
    ],
)
def test_blocks_that_do_not_exist(wrong: Any, message: str) -> None:
    with pytest.raises(LayerNotFound, match=message):
        names(llama(), wrong)


@pytest.mark.parametrize("wrong", [True, 1.0, None, ["block:0", 1.0], [["block:0"]], {"block:0"}, b"block:0"])
def test_only_names_and_whole_numbers_are_signatures(wrong: Any) -> None:
    with pytest.raises(
        TypeError, match=r"layer_signature=.* must be a name such as 'block:\*' or 'block:4-8', or the index of a block"
    ):
        resolve(ModuleTree(llama()), wrong)
    if wrong is not None:  # left out, for a hook
        with pytest.raises(TypeError, match="layer_signature="):
            ActivationStatistics(wrong)


def test_a_hook_type_in_the_place_of_a_layer_is_told_as_one() -> None:
    message = "layer_signature=.* is a hook type: give it by name, hook_type='pre_forward'"
    with pytest.raises(TypeError, match=message):
        ActivationStatistics(HookType.PRE_FORWARD)  # type: ignore[arg-type]


def test_the_index_of_a_block_and_of_what_is_in_it() -> None:
    def index(signature: Any) -> list[int | None]:
        return [match.index for match in resolve(ModuleTree(gpt2()), signature)]

    assert index("block:*") == [0, 1, 2, 3]
    assert index("block:-1") == [3]
    assert index("h.2.attn.c_attn") == [2]
    assert index("*.mlp") == [0, 1, 2, 3]
    assert index("lm_head") == index("transformer") == [None]


def test_the_block_after_the_ninth_is_not_in_the_first() -> None:
    model = nn.ModuleDict({"h": nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(12))})
    assert [match.index for match in resolve(ModuleTree(model), "h.*.0")] == list(range(12))
    assert names(model, "block:10-11") == ["h.10", "h.11"]


def test_a_plain_sequential_counts_its_children() -> None:
    model = mlp()
    assert names(model, "block:*") == [str(i) for i in range(6)]
    assert names(model, -1) == ["5"] and names(model, 0) == ["0"]
    wrapped = nn.ModuleDict({"model": model})
    assert names(wrapped, "block:*") == names(wrapped, "model.*") == [f"model.{i}" for i in range(6)]
    assert resolve(ModuleTree(wrapped), "model.3") == [Match("model.3", model[3], 3)]


def test_a_name_of_digits_is_a_name_first() -> None:
    model = nn.ModuleDict({"1": nn.Identity(), "h": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})
    assert names(model, "1") == ["1"]
    assert names(model, 1) == ["h.1"]


class Shared(nn.Module):
    """One layer under two names, as tied embeddings are, beside a separate one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleDict({"proj": nn.Sequential(nn.Linear(4, 4))})
        self.second = nn.ModuleDict({"proj": self.first["proj"]})
        self.third = nn.ModuleDict({"proj": nn.Sequential(nn.Linear(4, 4))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (self.first, self.second, self.third):
            x = part["proj"](x)
        return x


def test_a_module_used_twice_is_one_layer() -> None:
    model = Shared()
    assert Layers(model).list_layers() == [name for name, _ in model.named_modules() if name]
    assert names(model, "*.proj") == ["first.proj", "third.proj"]
    assert names(model, "second.proj") == ["first.proj"]  # the name that it also has
    assert names(model, "second.proj.0") == ["first.proj.0"]


def test_a_module_called_twice_is_seen_twice() -> None:
    model = Shared()
    detector = ActivationStatistics("*.proj", statistics=["mean"])
    Layers(model).register_hook(None, detector)
    model(torch.ones(2, 4))
    totals = {r.layer: r.value.total for r in detector.readings() if r.name == "histogram"}
    assert totals == {"first.proj": 16, "third.proj": 8}


def test_layers_by_class() -> None:
    model = llama()
    assert names(model, "type:Linear") == [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert names(model, "type:*RMSNorm") == [
        n for n, m in model.named_modules() if type(m).__name__.endswith("RMSNorm")
    ]
    with pytest.raises(LayerNotFound, match="no layer of class 'Conv2d'; its classes are: LlamaModel, Embedding, "):
        names(model, "type:Conv2d")
    derived = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))  # of a class ParametrizedLinear
    assert names(nn.ModuleDict({"a": derived, "b": nn.ReLU()}), "type:Linear") == ["a"]
