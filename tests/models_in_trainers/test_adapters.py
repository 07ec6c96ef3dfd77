"""PEFT: LoRA switched on, off and merged, and learned prompts, whose tokens come before the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    Schedule,
    SteeringController,
    Tokens,
)
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Detector, Layers
from tests.callback.runs import assert_bit_equal
from tests.models import WIDTH, Module, llama, loader, token_data, trainer
from tests.models_in_trainers.harness import Runs, assert_steered, assert_watched, attention_mask, edit

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning"),
]

BASE = "model.base_model.model.model.layers"


def lora() -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, lora_dropout=0.1, init_lora_weights=False)
    return peft.get_peft_model(llama(use_cache=False), config)


def module_of(model: nn.Module) -> Runs:
    return Runs(model, lambda m, batch: m(**batch, labels=batch["input_ids"]).loss, lambda m, batch: m(**batch).logits)


PARTS = ["", ".self_attn", ".self_attn.q_proj", ".self_attn.q_proj.base_layer", ".self_attn.q_proj.lora_A.default"]


@pytest.mark.documents("compatibility/lora-on/detectors")
def test_names_are_those_of_the_bare_model_and_what_lies_in_it_is_watched_exactly() -> None:
    layers = {f"model.model.layers.1{part}": f"{BASE}.1{part}" for part in PARTS}
    assert_watched(lambda: module_of(lora()), token_data(10), layers, attention_mask)


@pytest.mark.documents("compatibility/lora-on/controllers")
@pytest.mark.parametrize("part", PARTS)
def test_blocks_adapted_layers_and_base_layers_are_steered_exactly(part: str) -> None:
    layer, real = f"model.model.layers.1{part}", f"{BASE}.1{part}"
    assert_steered(lambda: module_of(lora()), token_data(8), layer, real, attention_mask)


def captured(module: Runs, signature: str, *controllers: Any) -> Tensor:
    held = LayerActivationDetector(signature)
    trainer(HookCallback(held, controllers)).predict(module, loader(token_data(4)))
    seen: Tensor = held.get_captured()
    return seen


@pytest.mark.documents("compatibility/lora-off-or-merged/detectors")
def test_with_the_adapter_off_an_adapted_layer_is_the_bare_one() -> None:
    bare, module = module_of(llama(use_cache=False)), module_of(lora())
    on = captured(module, "block:2")
    with module.model.disable_adapter():
        off = captured(module, "block:2")
        steered = captured(module, "block:2", FunctionController("layers.1.self_attn.q_proj", edit))
    assert torch.equal(off, captured(bare, "block:2")) and not torch.equal(on, off)
    assert torch.equal(steered, captured(bare, "block:2", FunctionController("layers.1.self_attn.q_proj", edit)))
    assert torch.equal(on, captured(module, "block:2"))


@pytest.mark.documents("compatibility/lora-off-or-merged/controllers")
def test_a_merged_adapter_is_watched_and_steered() -> None:
    module = module_of(lora())
    adapted = captured(module, "block:2")
    module.model.merge_adapter()
    merged = captured(module, "block:2")
    torch.testing.assert_close(merged, adapted)
    edited = captured(module, "block:2", FunctionController("layers.1.self_attn.q_proj", edit))
    module.model.unmerge_adapter()
    torch.testing.assert_close(edited, captured(module, "block:2", FunctionController("*.1.self_attn.q_proj", edit)))
    unloaded = module_of(lora().merge_and_unload())
    assert torch.equal(captured(unloaded, "block:2"), merged)
    assert_steered(lambda: module_of(lora().merge_and_unload()), token_data(4), "model.model.layers.1.self_attn.q_proj")


@pytest.mark.documents("compatibility/lora-on/controllers")
def test_steering_while_the_adapters_are_trained_trains_them_as_by_hand() -> None:
    def trained(by_hand: bool) -> dict[str, Tensor]:
        module = module_of(lora())
        steer = SteeringController("block:2", torch.ones(WIDTH), strength=2.0, schedule=Schedule())
        callback = HookCallback(controllers=[] if by_hand else [steer])
        if by_hand:
            block = module.get_submodule(f"{BASE}.2")
            block.register_forward_hook(lambda m, a, y: y + 2.0 if isinstance(y, Tensor) else (y[0] + 2.0, *y[1:]))
        data = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in token_data(8)]
        torch.manual_seed(5)
        trainer(callback, limit_val_batches=0).fit(module, loader(data), loader(data))
        return dict(module.state_dict())

    assert_bit_equal(trained(True), trained(False))


# Learned prompts.

LEARNED = 3
IDS = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
MASK = (IDS != 0).long()
CONFIGS: dict[str, Callable[[], Any]] = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LEARNED),
    "encoded": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LEARNED, encoder_hidden_size=8
    ),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LEARNED),
}


def prompted(kind: str) -> Any:
    torch.manual_seed(1)
    model = llama()
    model.generation_config.eos_token_id = None
    return peft.get_peft_model(model, CONFIGS[kind]())


class Mask(Detector):
    def __init__(self, which: Any) -> None:
        super().__init__("block:1", on_error="raise")
        self.tokens, self.calls = Tokens.of(which), list[list[list[int]]]()

    def observe(self, x: Tensor, ctx: Any) -> None:
        mask = self.tokens.mask(x, ctx)
        assert mask is not None
        self.calls.append(mask.int().tolist())


CHOICES = ("all", "prompt", "generated", "last", Tokens(positions=[0, 3]), Tokens(window=(-2, None)), ~Tokens("prompt"))


def counted_by_hand(kind: str, which: Any, new: int) -> list[list[list[int]]]:
    """The learned tokens are the first of the prompt; with a prefix they lie in the cache and are never seen."""
    width = LEARNED + IDS.shape[1]
    real = [[1] * LEARNED + row + [1] * new for row in MASK.tolist()]
    rows = []
    for row in real:
        length, position, chosen = sum(row[:width]), -1, []
        ends = {width - 1} | set(range(width, width + new))
        for column, is_real in enumerate(row):
            position += is_real
            holds = {
                "'all'": True,
                "'prompt'": column < width,
                "'generated'": column >= width,
                "'last'": column in ends,
                "positions=[0, 3]": position in (0, 3),
                "window=(-2, None)": position >= length - 2,
                "~Tokens('prompt')": column >= width,
            }
            key = next(key for key in holds if key in (repr(which) if isinstance(which, Tokens) else repr(str(which))))
            key = "~Tokens('prompt')" if repr(which).startswith("~") else key
            chosen.append(int(bool(is_real and holds[key])))
        rows.append(chosen)
    first = slice(LEARNED, width) if kind == "prefix" else slice(0, width)
    steps = [slice(width + i, width + i + 1) for i in range(new)]
    return [[row[columns] for row in rows] for columns in (first, *steps)]


@pytest.mark.documents("compatibility/learned-prompts-prompt-p-and-prefix-tuning-decoders/detectors")
@pytest.mark.parametrize("which", CHOICES, ids=repr)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_learned_tokens_are_the_first_of_the_prompt(kind: str, which: Any) -> None:
    model, mask = prompted(kind).eval(), Mask(which)
    Layers(model).register_hook(None, mask)
    model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=3, do_sample=False)
    assert mask.calls == counted_by_hand(kind, which, new=2)


@pytest.mark.parametrize("kind", CONFIGS)
def test_also_for_who_hooks_the_model_inside(kind: str) -> None:
    model, mask = prompted(kind).eval(), Mask("generated")
    Layers(model.base_model).register_hook(None, mask)
    model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=3, do_sample=False)
    assert mask.calls == counted_by_hand(kind, "generated", new=2)


@pytest.mark.parametrize("which", ["prompt", "last", "generated"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_in_training_all_is_prompt_also_after_a_pass_without_the_learned_tokens(kind: str, which: str) -> None:
    model, mask = prompted(kind).train(), Mask(which)
    model.config.use_cache = False
    Layers(model).register_hook(None, mask)
    with model.disable_adapter():
        model(input_ids=IDS, attention_mask=MASK, use_cache=False)
    model(input_ids=IDS, attention_mask=MASK)
    by_hand = counted_by_hand(kind, which, new=0)[0]
    assert mask.calls == [[row[-IDS.shape[1] :] for row in by_hand], by_hand]


def test_with_the_prompt_off_a_cache_as_long_as_it_is_no_prefix() -> None:
    model, mask = prompted("prefix").eval(), Mask("generated")
    Layers(model).register_hook(None, mask)
    with model.disable_adapter(), torch.no_grad():
        cache = model(input_ids=IDS[1:, :LEARNED], use_cache=True).past_key_values
        model(input_ids=IDS[1:, LEARNED : LEARNED + 1], past_key_values=cache, use_cache=True)
    assert mask.calls == [[[0] * LEARNED], [[1]]]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_prompt_is_learned_bit_identically(kind: str) -> None:
    def with_learned(batch: Any) -> Tensor:
        mask = attention_mask(batch)
        return mask if kind == "prefix" else torch.cat([mask.new_ones(len(mask), LEARNED), mask], 1)

    layers = {"model.model.layers.1": "model.base_model.model.layers.1"}
    assert_watched(lambda: module_of(prompted(kind)), token_data(10), layers, with_learned)
    (layer,) = layers
    assert_steered(lambda: module_of(prompted(kind)), token_data(8), layer, layers[layer], with_learned)


@pytest.mark.documents("compatibility/learned-prompts-prompt-p-and-prefix-tuning-decoders/controllers")
@pytest.mark.parametrize("kind", CONFIGS)
def test_generated_tokens_are_steered_as_without_a_cache(kind: str) -> None:
    steer = SteeringController("block:1", torch.ones(WIDTH), strength=3.0, tokens="generated")
    model = prompted(kind)
    runs = [
        trainer(*callbacks).predict(Module(model), loader(token_data(4)))
        for callbacks in ([], [HookCallback(controllers=steer)])
    ]
    assert not torch.equal(runs[0][0], runs[1][0])
    text, width = runs[1][0], 7
    mask = torch.cat([torch.stack([row["attention_mask"] for row in token_data(4)]), torch.ones(4, 5)], 1).long()
    start = (0 if kind == "prefix" else LEARNED) + width - 1

    def by_hand(m: nn.Module, args: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        new = torch.cat([x[:, :start], x[:, start:] + 3.0], 1)
        return new if isinstance(output, Tensor) else (new, *output[1:])

    model.eval().base_model.model.layers[1].register_forward_hook(by_hand)
    with torch.no_grad():
        logits = model(input_ids=text[:, :-1], attention_mask=mask[:, :-1]).logits
    assert torch.equal(logits[:, -5:].argmax(-1), text[:, -5:])


@pytest.mark.documents("compatibility/learned-prompts-prompt-p-and-prefix-tuning-decoders/controllers")
def test_ids_of_learned_tokens_are_not_known() -> None:
    model = prompted("prompt").eval()
    Layers(model).register_hook(None, FunctionController("block:1", torch.tanh, tokens=Tokens(ids={5})))
    with pytest.raises(
        HookError,
        match=r"need the layer's token IDs .*, and the model was called with no token IDs: choose by position",
    ):
        model(input_ids=IDS, attention_mask=MASK)


@pytest.mark.parametrize(
    ("kind", "value"), [("prompt", "PROMPT_TUNING"), ("encoded", "P_TUNING"), ("prefix", "PREFIX_TUNING")]
)
def test_the_report_tells_of_them(kind: str, value: str) -> None:
    watch = HookCallback(ActivationStatistics("block:*"))
    trainer(watch).predict(module_of(prompted(kind)), loader(token_data(4)))
    feature = watch.report().feature("PEFT")
    assert (feature.value, feature.support.value) == (f"{value}, 3 learned tokens", "supported")
    assert feature.note == "the learned tokens are the first positions of the prompt"
