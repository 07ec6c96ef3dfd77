"""What a run uses: each fact found in a real run, and what is said of it true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from mi_crow_lightning import ActivationStatistics, HookCallback, LayerActivationDetector, SteeringController
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.report import Feature, RunReport, Support, trainer_features
from mi_crow_lightning.report import model_features as model
from tests.callback.runs import assert_bit_equal, checkpointed, data_of, fingerprint, fit, module_of, run
from tests.models import WIDTH, Module, gpt2, llama, mlp, trainer

SUPPORTED, DEGRADED, UNTESTED = Support.SUPPORTED, Support.DEGRADED, Support.UNTESTED


def watching(*detectors: Any, **options: Any) -> HookCallback:
    return HookCallback([*detectors] or [ActivationStatistics("block:*")], **options)


def report_of(stage: str, kind: str = "mlp", module: Module | None = None, **changes: Any) -> RunReport:
    """The report of a run of one batch."""
    watch, limits = watching(), {f"limit_{name}_batches": 1 for name in ("train", "val", "test", "predict")}
    run(
        stage,
        trainer(watch, **{**limits, "num_sanity_val_steps": 0, **changes}),
        module or module_of(kind),
        data_of(kind),
    )
    return watch.report()


def not_used(report: RunReport) -> set[str]:
    return {feature.name for feature in report.features if feature.support is Support.NOT_USED}


def test_a_plain_run_uses_nothing_special() -> None:
    report = report_of("fit")
    assert not_used(report) == {
        "torch.compile",
        "gradient accumulation",
        "gradient checkpointing",
        "PEFT",
        "quantisation",
        "attention kernel",
        "logger",
    }
    assert report.feature("strategy") == Feature("strategy", "SingleDeviceStrategy, 1 process", SUPPORTED)
    assert report.feature("precision") == Feature("precision", "32-true", SUPPORTED)
    with pytest.raises(KeyError, match=r"'speed' is no feature of the report; it has: torch\.compile, strategy"):
        report.feature("speed")


# Compiling: what is told is what happens.


def compiled_whole() -> pl.LightningModule:
    return torch.compile(module_of(), backend="eager")  # type: ignore[return-value]


def compiled_model() -> pl.LightningModule:
    return Module(torch.compile(mlp(), backend="eager"))  # type: ignore[arg-type]


def compiled_in_place() -> pl.LightningModule:
    module = module_of()
    module.compile(backend="eager")
    return module


def compiled_layer(index: int) -> pl.LightningModule:
    module = module_of()
    module.model[index].compile(backend="eager")  # type: ignore[index]
    return module


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (compiled_whole, "the LightningModule"),
        (compiled_model, "model"),
        (compiled_in_place, "the LightningModule"),
    ],
)
def test_a_run_that_is_refused_for_what_is_compiled_says_so(make: Callable[[], pl.LightningModule], what: str) -> None:
    watch = watching(LayerActivationDetector("model.3"))
    with pytest.raises(RegistrationError, match=r"'model\.3' lies in .*, which is compiled") as caught:
        fit(make(), data_of(), watch)
    assert watch.report().feature("torch.compile") == Feature("torch.compile", what, Support.REFUSED, str(caught.value))
    assert watch.report().refusals == (str(caught.value),)


@pytest.mark.parametrize("make", [compiled_model, compiled_in_place])
def test_hooks_that_can_be_traced_are_supported(make: Callable[[], pl.LightningModule]) -> None:
    watch = watching(ActivationStatistics("model.3"))
    fit(make(), data_of(), watch)
    feature = watch.report().feature("torch.compile")
    assert feature.support is SUPPORTED and feature.note.startswith("hooks on layers inside are traced")
    assert watch.report().refusals == () and watch.history()


def test_a_compiled_layer_without_a_hook_is_no_obstacle() -> None:
    watch = watching(LayerActivationDetector("model.0"))
    fit(compiled_layer(3), data_of(), watch)
    assert watch.report().feature("torch.compile") == Feature(
        "torch.compile", "model.3", SUPPORTED, "no hooked layer lies inside"
    )
    assert watch.report().refusals == ()


# The Trainer.


def sharded() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)


@pytest.mark.parametrize(
    ("strategy", "value", "support"),
    [
        ("auto", "SingleDeviceStrategy, 1 process", SUPPORTED),
        ("ddp", "DDPStrategy, 2 processes", SUPPORTED),
        ("ddp_spawn", "DDPStrategy, 2 processes", DEGRADED),
        ("ddp_fork", "DDPStrategy, 2 processes", DEGRADED),
        ("ddp_notebook", "DDPStrategy, 2 processes", DEGRADED),
        (sharded, "ModelParallelStrategy, 2 processes", SUPPORTED),
    ],
)
def test_strategies(strategy: Any, value: str, support: Support) -> None:
    made = strategy() if callable(strategy) else strategy
    feature = trainer_features.strategy(trainer(strategy=made, devices=1 if strategy == "auto" else 2))
    assert (feature.value, feature.support) == (value, support)
    assert bool(feature.note) == (strategy != "auto")


class OwnStrategy(SingleDeviceStrategy):
    pass


def test_a_strategy_that_no_test_runs_is_untested() -> None:
    feature = trainer_features.strategy(trainer(strategy=OwnStrategy("cpu")))
    assert feature == Feature("strategy", "OwnStrategy, 1 process", UNTESTED)


def half_amp() -> dict[str, Any]:
    """Lightning makes "16-mixed" bfloat16 on a CPU, unless it is given the plugin itself."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**8))]}


PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    **{name: lambda name=name: {"precision": name} for name in trainer_features._PRECISIONS},  # type: ignore[misc]
    "16-mixed": half_amp,
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_supported_precision_is_told_and_kept_bit_identical(precision: str) -> None:
    def left(*callbacks: pl.Callback) -> dict[str, Any]:
        pl.seed_everything(7, verbose=False)
        module = module_of()
        return fingerprint(module, fit(module, data_of(), *callbacks, **PRECISIONS[precision]()))

    watch = watching()
    assert_bit_equal(left(), left(watch))
    assert len({row.step for row in watch.history()}) == 5
    told = watch.report().feature("precision")
    assert (told.value, told.support) == (precision, SUPPORTED)
    assert bool(told.note) == (precision not in ("32-true", "64-true"))


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_gradient_accumulation_is_told_where_there_are_gradients(stage: str) -> None:
    feature = report_of(stage, accumulate_grad_batches=3).feature("gradient accumulation")
    if stage == "fit":
        assert (feature.value, feature.support) == ("3 batches a step", SUPPORTED)
    else:
        assert feature == Feature.unused("gradient accumulation")


@pytest.mark.parametrize(
    ("scalars", "tensorboard", "csv"),
    [
        ("all", "all numbers, and histograms", "all numbers, and no histograms"),
        (
            "summary",
            "min, median and max over the layers; each number is in the event file",
            "min, median and max over the layers, and no histograms",
        ),
        ("none", "no numbers; each number is in the event file", "no numbers, and no histograms"),
    ],
)
def test_each_logger_is_told_with_what_it_shows(tmp_path: Any, scalars: Any, tensorboard: str, csv: str) -> None:
    loggers = [TensorBoardLogger(tmp_path / "board"), CSVLogger(tmp_path / "csv")]
    watch = watching(ActivationStatistics("model.*", statistics=["mean"]), scalars=scalars)
    run("validate", trainer(watch, logger=loggers), module_of(), data_of())
    assert [feature for feature in watch.report().features if feature.name == "logger"] == [
        Feature("logger", "TensorBoardLogger", SUPPORTED, tensorboard),
        Feature("logger", "CSVLogger", DEGRADED, csv),
    ]
    written = (tmp_path / "csv/lightning_logs/version_0/metrics.csv").read_text().partition("\n")[0]
    found = {tag.rpartition("/")[2] for tag in written.split(",") if tag.startswith("activations")}
    assert (
        found
        == {
            "all": {f"model.{i}" for i in range(6)},
            "summary": {"min", "median", "max"},
            "none": set(),
        }[scalars]
    )


def test_a_logger_that_keeps_nothing_is_told() -> None:
    feature = report_of("validate", logger=True, fast_dev_run=True).feature("logger")
    assert (feature.value, feature.support) == ("DummyLogger", DEGRADED)


# The model.


def asleep(module: Module) -> Module:
    module.eval()
    return module


def wrapped_blocks(module: Module) -> Module:
    layers = module.model.model.layers  # type: ignore[union-attr]
    for i, block in enumerate(layers):  # type: ignore[arg-type]
        layers[i] = checkpoint_wrapper(block)  # type: ignore[index,operator]
    module.model.config.use_cache = False  # type: ignore[union-attr]
    return module


@pytest.mark.parametrize(
    ("change", "stage", "support", "note"),
    [
        (lambda module: module, "fit", Support.NOT_USED, ""),
        (checkpointed, "fit", SUPPORTED, "a layer's second run is not observed; edits are repeated in it"),
        (wrapped_blocks, "fit", SUPPORTED, "a layer's second run is not observed; edits are repeated in it"),
        (checkpointed, "predict", SUPPORTED, "without effect outside of fit"),
        (
            lambda module: asleep(checkpointed(module)),
            "fit",
            DEGRADED,
            "does nothing in modules that are in evaluation mode: call .train() before fit",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.* hooked layers are in evaluation mode:UserWarning")
@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode:UserWarning")
def test_gradient_checkpointing(change: Any, stage: str, support: Support, note: str) -> None:
    feature = report_of(stage, "llama", change(module_of("llama"))).feature("gradient checkpointing")
    assert (feature.support, feature.note) == (support, note)


def test_gradient_checkpointing_that_was_switched_off_again_is_not_used() -> None:
    module = checkpointed(module_of("gpt2"))
    assert model.checkpointing(module, fitting=True).support is SUPPORTED
    getattr(module.model, "activation_checkpointing_disable", module.model.gradient_checkpointing_disable)()
    assert model.checkpointing(module, fitting=True).support is Support.NOT_USED


@pytest.mark.parametrize(("kernel", "support"), [("eager", SUPPORTED), ("sdpa", SUPPORTED)])
def test_a_supported_attention_kernel_is_told_and_kept_bit_identical(kernel: str, support: Support) -> None:
    def left(*callbacks: pl.Callback) -> dict[str, Any]:
        pl.seed_everything(7, verbose=False)
        module = module_of("llama")
        module.model.set_attn_implementation(kernel)
        return fingerprint(module, fit(module, data_of("llama"), *callbacks))

    watch = watching()
    assert_bit_equal(left(), left(watch))
    assert watch.report().feature("attention kernel") == Feature("attention kernel", kernel, support)


def test_attention_kernels_that_no_test_runs_are_untested() -> None:
    both = Module(nn.ModuleList([llama(), gpt2()]))
    both.model[0].set_attn_implementation("flex_attention")  # type: ignore[index,operator]
    assert model.attention_kernels(both) == Feature("attention kernel", "flex_attention, sdpa", UNTESTED)


class Int8Linear(nn.Module):
    """Weights in eight bits, as quantisation libraries keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)


def test_weights_in_whole_numbers_are_told_as_quantised() -> None:
    module = Module(nn.Sequential(Int8Linear(), nn.Linear(4, 4), Int8Linear()))
    assert model.quantisation(module) == Feature("quantisation", "2 Int8Linear", UNTESTED)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.* are deprecated:UserWarning")
def test_torchs_own_quantised_layers_are_told() -> None:
    module = Module(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    module.model = torch.ao.quantization.quantize_dynamic(module.model, {nn.Linear}, torch.qint8)
    assert model.quantisation(module) == Feature("quantisation", "1 Linear, 1 LinearPackedParams", UNTESTED)


# Adapters. PEFT is no dependency: these tests run where it is installed.

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
