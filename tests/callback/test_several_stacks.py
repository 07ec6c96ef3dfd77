"""Hooks on several stacks, by a list of signatures: registration, Trainer, report, tags, checkpoints, configuration."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import JambaConfig, JambaForCausalLM, T5Config, T5ForConditionalGeneration

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.errors import LayerNotFound, RegistrationError
from mi_crow_lightning.hooks import Detector, Layers, Reading
from tests.callback.runs import Trace, assert_bit_equal, fingerprint, run
from tests.callback.runs import told as warned
from tests.models import VOCABULARY, WIDTH, Module, gpt2, handles, loader, trainer

LIST = ["encoder.block:*", "decoder.block:-1"]
NAMES = ["encoder.block.0", "encoder.block.1", "decoder.block.1"]
IN_MODULE = [f"model.{name}" for name in NAMES]


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = dict(d_model=WIDTH, d_kv=8, d_ff=16, num_layers=2, num_heads=4, dropout_rate=0.1)
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, use_cache=False, decoder_start_token_id=0, **sizes)
    )


def texts(count: int = 12) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(3, VOCABULARY, (5,), generator=generator)} for _ in range(count)]


class Layer(Detector):
    """Notes each layer and its index."""

    def __init__(self, *signature: Any, **options: Any) -> None:
        super().__init__(*signature, **options)
        self.seen: dict[str, int | None] = {}

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.seen[ctx.layer] = ctx.index


def one_pass(model: Any) -> Any:
    ids = torch.arange(10).view(2, 5) + 3
    return model(input_ids=ids, labels=ids)


def test_a_hook_is_on_the_layers_of_each_signature() -> None:
    model, several = t5().eval(), LayerActivationDetector(LIST)
    single = [LayerActivationDetector(name) for name in NAMES]
    layers = Layers(model, allow_stacking=True)
    layers.register_hook(None, several)
    for one in single:
        layers.register_hook(None, one)
    assert [site.match.name for site in layers.sites(several)] == NAMES
    with torch.no_grad():
        one_pass(model)
    for name, one in zip(NAMES, single, strict=True):
        assert torch.equal(several.get_captured()[name], one.get_captured())
    assert layers.get_hooks(["lm_head", "decoder.block:-1"]) == [several, single[2]]
    assert layers.get_hooks(["lm_head"]) == []
    layers.unregister_all_hooks()
    assert not handles(model)


def test_the_signature_stays_as_it_was_given() -> None:
    given = ["block:0", 1]
    hook, other = Layer(given), Layer()
    given.append("lm_head")
    assert hook.layer_signature == ["block:0", 1] and "layer_signature=['block:0', 1]" in repr(hook)
    layers = Layers(gpt2(), allow_stacking=True)
    layers.register_hook(("block:2", -1), other)
    assert other.layer_signature == ["block:2", -1]
    assert [site.match.name for site in layers.sites(other)] == ["transformer.h.2", "transformer.h.3"]
    for wrong in ([], ()):
        with pytest.raises(ValueError, match=r"layer_signature=.* names no layer: 'block:\*' means every block"):
            Layer(wrong)
    with pytest.raises(LayerNotFound, match="the model has no layer 'nowhere'"):
        layers.register_hook(["block:0", "nowhere"], Layer())


def test_a_direct_call_with_a_list_names_the_layers_class() -> None:
    hook, x = Layer(["block:0", "lm_head"]), torch.ones(2, 3)
    hook.process_activations(torch.nn.Identity(), (x,), x)
    assert hook.seen == {"Identity": None}


def test_a_layer_of_two_signatures_counts_once_and_a_warning_says_so() -> None:
    layers, hook = Layers(gpt2(), allow_stacking=True), Layer(["block:*", "h.1", "block:-1"])
    message = (
        r"layers \['block:\*', 'h.1', 'block:-1'\]: 2 of 4 layers fit several of these signatures and count once: "
        r"transformer.h.1, transformer.h.3"
    )
    with pytest.warns(UserWarning, match=message):
        layers.register_hook(None, hook)
    with warnings.catch_warnings():  # one warning for each signature is enough
        warnings.simplefilter("error")
        layers.register_hook(hook.layer_signature, Layer())
        assert hook in layers.get_hooks(hook.layer_signature)
    assert [site.match.name for site in layers.sites(hook)] == [f"transformer.h.{i}" for i in range(4)]
    detector = ActivationStatistics(["block:1", "h.1"], statistics=["mean"])
    with pytest.warns(UserWarning, match="1 of 1 layers"):
        layers.register_hook(None, detector)
    layers.root(input_ids=torch.ones(2, 5, dtype=torch.long))
    assert [r.value.total for r in detector.readings() if r.name == "histogram"] == [2 * 5 * WIDTH]


def test_layers_come_in_the_models_order() -> None:
    tree = ModuleTree(t5())
    assert [match.name for match in resolve(tree, [LIST[1], LIST[0]])] == NAMES


def test_an_index_is_that_of_one_stack() -> None:
    model, in_one, in_two = t5(), Layer(["decoder.block:1", "decoder.block:0.attn"]), Layer(LIST)
    layers = Layers(model, allow_stacking=True)
    layers.register_hook(None, in_one)
    layers.register_hook(None, in_two)
    one_pass(model)
    assert in_one.seen == {"decoder.block.1": 1, "decoder.block.0.layer.0.SelfAttention": 0}
    assert in_two.seen == dict.fromkeys(NAMES)


def test_vectors_by_layer_for_several_stacks() -> None:
    model = t5().eval()
    vectors = {name: torch.full((WIDTH,), float(i + 1)) for i, name in enumerate(NAMES)}
    layers, seen = Layers(model, allow_stacking=True), LayerActivationDetector(LIST)
    before = LayerActivationDetector(LIST, before_edits=True)
    layers.register_hook(None, SteeringController(LIST, vectors, strength=dict.fromkeys(NAMES, 2.0)))
    layers.register_hook(None, seen)
    layers.register_hook(None, before)
    with torch.no_grad():
        one_pass(model)
    for i, name in enumerate(NAMES):
        steered, plain = (hook.get_captured()[name] for hook in (seen, before))
        torch.testing.assert_close(steered, plain + 2.0 * (i + 1))
    numbers = {0: vectors[NAMES[0]], 1: vectors[NAMES[1]]}
    layers.register_hook(None, SteeringController("encoder.block:*", numbers))  # one stack: its blocks have numbers
    with pytest.raises(RegistrationError, match=r"nothing for layer 'encoder.block.0'; it has: 0, 1. Numbers mean the"):
        layers.register_hook(None, SteeringController(LIST, numbers))


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_a_run_that_is_watched_on_several_stacks_is_the_run_itself(stage: str) -> None:
    plain, watched, traces = Module(t5()), Module(t5()), [Trace(), Trace()]
    watch = HookCallback([ActivationStatistics(LIST, schedule=Schedule()), LayerActivationDetector(LIST, name="kept")])
    for module, callbacks in ((plain, [traces[0]]), (watched, [traces[1], watch])):
        torch.manual_seed(1)
        run(stage, trainer(*callbacks), module, texts())
    assert_bit_equal(fingerprint(plain), fingerprint(watched))
    assert all(map(torch.equal, traces[0].losses, traces[1].losses)) and not handles(watched)
    assert {row.layer for row in watch.history() if row.name == "mean"} == set(IN_MODULE)


def test_the_report_keeps_stacks_apart() -> None:
    watch = HookCallback([ActivationStatistics(["encoder.block:*", "decoder.block:*"])])
    run("validate", trainer(watch), Module(t5()), texts())
    text = str(watch.report())
    assert "['encoder.block:*', 'decoder.block:*']  4 layers" in text
    assert "\nmodel.encoder.block.0 to model.encoder.block.1 (2)  T5Block" in text
    assert "\nmodel.decoder.block.0 to model.decoder.block.1 (2)  T5Block" in text
    stacks = [layer.stack for layer in watch.report().layers]
    assert stacks == ["model.encoder.block"] * 2 + ["model.decoder.block"] * 2


@pytest.mark.parametrize(
    ("signature", "shown"),
    [
        ([0, "lm_head"], "[0, 'lm_head']  2 layers"),
        (["block:0", 1, 2, 3], "['block:0', 1, 2, 3]  4 layers"),
        (["block:0", 1, 2, 3, "lm_head", "ln_f"], "['block:0', 1, 2, 3, ... 2 more]  6 layers"),
    ],
)
def test_the_report_shows_the_beginning_of_a_list(signature: list[Any], shown: str) -> None:
    watch = HookCallback([ActivationStatistics(signature)])
    run("validate", trainer(watch, limit_val_batches=1), Module(gpt2()), texts())
    assert shown in str(watch.report())


@pytest.mark.parametrize("scalars", ["all", "summary"])
def test_stacks_have_tags_of_their_own(scalars: str, tmp_path: Path) -> None:
    signature = ["encoder.block:*", "decoder.block:-1", "decoder.block:0", "lm_head"]
    names = [*IN_MODULE, "model.decoder.block.0", "model.lm_head"]
    detectors = [
        ActivationStatistics(signature, statistics=["mean"], histogram=False),
        ActivationStatistics(["encoder.block:*"], statistics=["std"], histogram=False, name="encoder"),
    ]
    logger = TensorBoardLogger(tmp_path)
    run("fit", trainer(HookCallback(detectors, scalars=scalars), logger=logger), Module(t5()), texts())
    found = EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]
    of_means = {tag for tag in found if tag.startswith("activations_mean/") and "/val/" not in tag}
    if scalars == "all":
        assert of_means == {f"activations_mean/{name}" for name in names}
    else:
        assert of_means == {f"activations_mean/{','.join(signature)}/{word}" for word in ("min", "median", "max")}
    assert len(found) == len(set(found))


class Level(Layer):
    by_block = ("level",)

    def readings(self) -> list[Reading]:
        return [Reading(layer, "level", 1.0) for layer in self.seen]


def test_a_curve_over_the_blocks_is_that_of_one_stack(tmp_path: Path) -> None:
    for signature, drawn in ((["encoder.block:*"], True), (["encoder.block:*", "decoder.block:*"], False)):
        logger = TensorBoardLogger(tmp_path / str(drawn))
        run("validate", trainer(HookCallback(Level(signature)), logger=logger), Module(t5()), texts())
        tags = EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]
        assert any("by_block" in tag for tag in tags) is drawn and any("level" in tag for tag in tags)


def test_a_checkpoint_restores_a_hook_with_a_list(tmp_path: Path) -> None:
    def callback() -> HookCallback:
        return HookCallback(ActivationStatistics(LIST, statistics=["mean"], histogram=False, schedule=Schedule()))

    def fitted(watch: HookCallback, epochs: int, **options: Any) -> Any:
        runner = trainer(watch, max_epochs=epochs, limit_val_batches=0)
        runner.fit(Module(t5()), loader(texts()), loader(texts()), **options)
        return runner

    path, watch = tmp_path / "one.ckpt", callback()
    fitted(watch, 1).save_checkpoint(path)
    (key,) = (key for key in torch.load(path, weights_only=True)["callbacks"] if key.startswith("HookCallback"))
    assert key == "HookCallback[ActivationStatistics(['encoder.block:*', 'decoder.block:-1'])]"
    del watch
    resumed = callback()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="HookCallback")
        fitted(resumed, 2, ckpt_path=str(path))
    assert {row.layer for row in resumed.history()} == set(IN_MODULE)


def jamba() -> JambaForCausalLM:
    torch.manual_seed(0)
    attention = dict(attn_layer_period=2, attn_layer_offset=1, num_attention_heads=4, num_key_value_heads=2)
    sizes = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=4, num_experts=1)
    return JambaForCausalLM(JambaConfig(**sizes, **attention, mamba_dt_rank=4, use_mamba_kernels=False))


def test_blocks_without_the_part_are_named_once_in_a_run() -> None:
    hooks = [ActivationStatistics("block:*.attn", statistics=[name], name=name) for name in ("mean", "std")]
    edit = FunctionController("block:*.attn", lambda x: x, schedule=Schedule())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run("fit", trainer(HookCallback(hooks, edit), max_epochs=2), Module(jamba()), texts())
    said = [str(one.message) for one in caught if "have no 'attn'" in str(one.message)]
    blocks = "model.model.layers.0, model.model.layers.2"
    assert said == [f"layer 'block:*.attn': 2 of 4 blocks have no 'attn' and are left out: {blocks}"]


def test_a_dry_run_names_blocks_without_the_part() -> None:
    watch = HookCallback(ActivationStatistics("block:*.attn"), dry_run=True)
    with warned("2 of 4 blocks have no 'attn' and are left out", times=1):
        run("validate", trainer(watch), Module(jamba()), texts())
    assert [layer.name for layer in watch.report().layers] == [f"model.model.layers.{i}.self_attn" for i in (1, 3)]
