"""What is said of adapted models. PEFT is no dependency: these tests run where it is installed."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from mi_crow_lightning import ActivationStatistics, HookCallback, LayerActivationDetector, SteeringController
from mi_crow_lightning.report import model_features as model
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, fit, run
from tests.models import WIDTH, Module, llama, trainer
from tests.report.reported import SUPPORTED, UNTESTED, watching

of_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def adapted(**changes: Any) -> Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False, **changes)
    return Module(peft.get_peft_model(llama(), config))


@of_peft
def test_adapted_layers_are_told_and_observed_bit_identical() -> None:
    def left(*callbacks: pl.Callback) -> dict[str, Any]:
        pl.seed_everything(7, verbose=False)
        module = adapted(lora_dropout=0.1)
        return fingerprint(module, fit(module, data_of("llama"), *callbacks))

    watch = watching(ActivationStatistics("block:*"), ActivationStatistics("*.q_proj", name="queries"))
    assert_bit_equal(left(), left(watch))
    assert {row.layer for row in watch.history()} >= {"model.model.layers.0", "model.model.layers.3.self_attn.q_proj"}
    feature = watch.report().feature("PEFT")
    assert (feature.value, feature.support) == ("8 lora layers", SUPPORTED)


@of_peft
def test_an_adapted_model_is_steered_as_by_hand() -> None:
    module, data = adapted(), data_of("llama")
    module.predict_step = lambda batch, batch_idx: module.model(**batch).logits  # type: ignore[method-assign]
    steer = SteeringController("block:2", vector=torch.ones(WIDTH), strength=2.0)
    steered = run("predict", trainer(HookCallback(controllers=[steer])), module, data)
    block: nn.Module = module.model.base_model.model.model.layers[2]  # type: ignore[union-attr,index,assignment]
    block.register_forward_hook(lambda _, args, output: added(output, 2.0))
    by_hand = run("predict", trainer(), module, data)
    for batch, (one, other) in enumerate(zip(steered, by_hand, strict=True)):
        real = torch.stack([row["attention_mask"] for row in data[4 * batch : 4 * batch + 4]]).bool()
        assert torch.equal(one[real], other[real])


def added(output: Any, number: float) -> Any:
    return (output[0] + number, *output[1:]) if isinstance(output, tuple) else output + number


@of_peft
def test_other_adapters_are_untested() -> None:
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    feature = model.adapters(Module(peft.get_peft_model(llama(), config)))
    assert (feature.value, feature.support) == ("4 ia3 layers", UNTESTED)


@of_peft
def test_what_is_said_of_base_layers_is_so() -> None:
    module = adapted()
    with_adapter, without = (
        LayerActivationDetector("layers.0.self_attn.q_proj"),
        LayerActivationDetector("layers.0.self_attn.q_proj.base_layer", name="base"),
    )
    watch = HookCallback([with_adapter, without])
    run("validate", trainer(watch, limit_val_batches=1), module, data_of("llama"))
    adapted_once = with_adapter.get_captured()
    with module.model.disable_adapter():  # type: ignore[union-attr,operator]
        run("validate", trainer(watch, limit_val_batches=1), module, data_of("llama"))
    assert torch.equal(without.get_captured(), with_adapter.get_captured())
    assert not torch.equal(adapted_once, with_adapter.get_captured())


CAUSAL = dict(task_type="CAUSAL_LM")


@of_peft
@pytest.mark.parametrize(
    ("kind", "options", "value"),
    [
        ("CPTConfig", dict(cpt_token_ids=[3, 4], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2], **CAUSAL), "CPT"),
        ("PromptTuningConfig", dict(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2), "PROMPT_TUNING"),
    ],
)
def test_learned_prompts_that_no_test_runs_are_untested(kind: str, options: dict[str, Any], value: str) -> None:
    peft = pytest.importorskip("peft")
    feature = model.adapters(Module(peft.get_peft_model(llama(), getattr(peft, kind)(**options))))
    assert (feature.value, feature.support) == (f"{value}, 2 learned tokens", UNTESTED)
