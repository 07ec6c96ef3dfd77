"""The hooks guide of mi-crow: what it shows works here, with only the name of the package changed in the imports.

The lines of the guide stand as they are; what it leaves open (a model called "gpt2", ``SomeHook``, ``detector1``,
``some_condition``) is filled in, and beside the lines stand the numbers that a model without hooks gives.
"""

# ruff: noqa: RUF059 (the lines of the guide stand as they are)

from pathlib import Path
from uuid import UUID

import pytest
import torch
from transformers import GPT2LMHeadModel

from mi_crow_lightning.errors import HookConflict
from mi_crow_lightning.hooks import Detector, LayerActivationDetector
from mi_crow_lightning.hooks.hook import Hook, HookError, HookType
from mi_crow_lightning.language_model import LanguageModel
from mi_crow_lightning.store import LocalStore
from tests.models import assert_same_handles, handles
from tests.tiny_gpt2 import BLOCKS, WIDTH, save_gpt2

C_ATTN = "transformer.h.0.attn.c_attn"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which "gpt2" is a model, as it is a name on the hub."""
    folder = tmp_path_factory.mktemp("guide")
    save_gpt2(folder / "gpt2")
    return folder


@pytest.fixture
def lm(folder, tmp_path, monkeypatch) -> LanguageModel:
    monkeypatch.chdir(folder)
    return LanguageModel.from_huggingface("gpt2", store=LocalStore(base_path=tmp_path / "store"))


@pytest.fixture(scope="module")
def plain(folder) -> GPT2LMHeadModel:
    """The same weights in a model that this package never touched."""
    return GPT2LMHeadModel.from_pretrained(folder / "gpt2")


@torch.no_grad()
def reference(plain: GPT2LMHeadModel, encodings):
    return plain(**encodings, output_hidden_states=True)


@torch.no_grad()
def c_attn_of(plain: GPT2LMHeadModel, encodings) -> torch.Tensor:
    """The first block's queries, keys and values: a matrix product on its normalised input."""
    block = plain.transformer.h[0]
    x = block.ln_1(reference(plain, encodings).hidden_states[0])
    return x @ block.attn.c_attn.weight + block.attn.c_attn.bias


# Hook initialization, hook ID, hook types.


def test_hook_initialization():
    class SomeHook(Hook):
        pass

    hook = SomeHook(
        layer_signature="transformer.h.0.attn.c_attn",  # Optional: layer name
        hook_type=HookType.FORWARD,  # FORWARD or PRE_FORWARD
        hook_id="my-custom-id",  # Optional: custom ID
    )
    assert (hook.layer_signature, hook.hook_type, hook.id) == (C_ATTN, HookType.FORWARD, "my-custom-id")
    assert UUID(SomeHook().id) != UUID(SomeHook().id)
    assert SomeHook(hook_type="pre_forward").hook_type is HookType.PRE_FORWARD


def test_a_forward_hook_receives_the_output_and_returns_a_new_one(lm, plain):
    seen = {}

    class Doubling(Hook):
        def _hook_fn(self, module, input, output):
            seen.update(module=module, input=input, output=output)
            modified_output = output * 2
            return modified_output

    lm.layers.register_hook(C_ATTN, Doubling())
    following = LayerActivationDetector("transformer.h.0.attn")
    lm.layers.register_hook(None, following)
    outputs, encodings = lm.inference.execute_inference(["Hello, world!"])
    assert seen["module"] is lm.model.transformer.h[0].attn.c_attn
    torch.testing.assert_close(seen["output"], c_attn_of(plain, encodings))
    # The reference: a model whose weights of this layer are doubled.
    doubled = GPT2LMHeadModel(plain.config).eval()
    doubled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        doubled.transformer.h[0].attn.c_attn.weight *= 2
        doubled.transformer.h[0].attn.c_attn.bias *= 2
    torch.testing.assert_close(outputs.logits, reference(doubled, encodings).logits)


def test_a_pre_forward_hook_receives_the_input_and_returns_a_new_one(lm, plain):
    class Halving(Hook):
        def _hook_fn(self, module, input, output=None):
            assert output is None and isinstance(input, tuple)
            modified_input = (input[0] / 2, *input[1:])
            return modified_input

    class AsTheGuideWritesIt(Hook):
        def _hook_fn(self, module, input, output):
            return input[0] * 2  # undoes the other

    before = LayerActivationDetector("layer_1")
    lm.layers.register_hook(None, before)
    lm.layers.register_hook("layer_2", Halving(hook_type=HookType.PRE_FORWARD))
    after = LayerActivationDetector("layer_2", hook_type="pre_forward")
    lm.layers.register_hook(None, after)
    _, encodings = lm.inference.execute_inference(["Hello, world!"])
    assert torch.equal(before.get_captured(), reference(plain, encodings).hidden_states[2])
    assert torch.equal(after.get_captured(), before.get_captured() / 2)

    lm.layers.allow_stacking = True
    lm.layers.register_hook("layer_2", AsTheGuideWritesIt(hook_type="pre_forward"))
    outputs, _ = lm.inference.execute_inference(["Hello, world!"])
    torch.testing.assert_close(outputs.logits, reference(plain, encodings).logits)


# The lifecycle: creation, registration, execution, enable and disable, cleanup.


def test_lifecycle(lm, plain):
    before = handles(lm.model)
    detector = LayerActivationDetector(layer_signature="transformer.h.0.attn.c_attn")
    assert not detector.registered and detector.context is None

    hook_id = lm.layers.register_hook(layer_signature="transformer.h.0.attn.c_attn", hook=detector)
    assert hook_id == detector.id and lm.layers.get_hooks() == [detector]

    outputs, encodings = lm.inference.execute_inference(["Hello, world!"])
    activations = detector.tensor_metadata["activations"]
    torch.testing.assert_close(activations, c_attn_of(plain, encodings))
    assert detector.metadata["activations_shape"] == (*encodings["input_ids"].shape, 3 * WIDTH)
    assert torch.equal(outputs.logits, reference(plain, encodings).logits)

    detector.disable()
    assert not detector.is_enabled() and not detector.enabled
    detector.clear_captured()
    outputs, encodings = lm.inference.execute_inference(["Hello, world!"])
    assert detector.tensor_metadata.get("activations") is None
    assert_same_handles(before, lm.model)  # off, it costs nothing

    detector.enable()
    assert detector.is_enabled()
    outputs, encodings = lm.inference.execute_inference(["Hello, world!"])
    assert torch.equal(detector.tensor_metadata["activations"], activations)

    assert lm.layers.unregister_hook(hook_id)
    assert_same_handles(before, lm.model)
    assert lm.layers.get_hooks() == [] and not lm.layers.unregister_hook(hook_id)


def test_basic_usage_pattern(folder, monkeypatch, plain):
    monkeypatch.chdir(folder)
    # 1. Setup
    store = LocalStore(base_path="./store")
    lm = LanguageModel.from_huggingface("gpt2", store=store)

    # 2. Create hook
    detector = LayerActivationDetector(layer_signature="transformer.h.0.attn.c_attn")

    # 3. Register hook
    hook_id = lm.layers.register_hook("transformer.h.0.attn.c_attn", detector)

    try:
        # 4. Use hook (runs automatically)
        outputs, encodings = lm.inference.execute_inference(["Hello, world!"])

        # 5. Access hook data
        activations = detector.tensor_metadata.get("activations")
    finally:
        # 6. Always cleanup
        lm.layers.unregister_hook(hook_id)
    torch.testing.assert_close(activations, c_attn_of(plain, encodings))
    assert torch.equal(outputs.logits, reference(plain, encodings).logits)


# Layer signatures and the context.


def test_layer_signatures(lm, plain):
    layer_names = lm.layers.list_layers()
    assert layer_names == [name for name, _ in plain.named_modules() if name]

    hook = LayerActivationDetector()
    layer_signature = "transformer.h.0.attn.c_attn"
    hook_id = lm.layers.register_hook(layer_signature, hook)
    assert [site.match.name for site in lm.layers.sites(hook_id)] == [layer_signature]
    lm.layers.unregister_hook(hook_id)

    layer_signature = 0  # First layer
    hook_id = lm.layers.register_hook(layer_signature, hook)
    _, encodings = lm.inference.execute_inference(["Hello, world!"])
    assert torch.equal(hook.get_captured(), reference(plain, encodings).hidden_states[1])
    assert hook.layer_signature == 0
    lm.layers.unregister_hook(hook_id)


def test_hook_context(lm, plain):
    seen = {}

    class MyHook(Hook):
        def _hook_fn(self, module, input, output):
            # Access context
            context = self._context
            model = context.language_model
            seen.update(model=model, layers=context.layers, store=context.store, hooks=context.hooks)
            seen["hidden"] = output
            return torch.zeros_like(output)

    hook, other = MyHook(), LayerActivationDetector(1)
    lm.layers.register_hook("transformer.ln_f", hook)
    lm.layers.register_hook("transformer.h.1", other)
    assert hook.context.language_model is lm  # set by the registration
    outputs, encodings = lm.inference.execute_inference(["Hello, world!"])
    assert seen["model"] is lm and seen["layers"] is lm.layers and seen["store"] is lm.store
    assert seen["hooks"] == [hook, other]
    # What it returned took effect: with zeros from the last layer norm, every logit is zero.
    assert seen["hidden"].shape == (*outputs.logits.shape[:2], WIDTH)
    assert torch.equal(seen["hidden"], reference(plain, encodings).hidden_states[-1])
    assert not outputs.logits.any()
    lm.layers.unregister_hook(hook.id)
    assert hook.context is None


def test_enabling_and_disabling(lm):
    hook = LayerActivationDetector(0)
    lm.layers.register_hook(None, hook)
    hook.disable()
    assert not hook.is_enabled()
    hook.enable()
    active = []
    if hook.is_enabled():
        active.append("Hook is active")
    assert active == ["Hook is active"]
    assert lm.layers.disable_hook(hook.id) and not hook.is_enabled()
    assert lm.layers.enable_hook(hook.id) and hook.is_enabled()
    lm.layers.disable_all_hooks()
    assert not hook.is_enabled()


# Errors.


def test_hook_errors(lm, plain, capsys):
    class Failing(Hook):
        def _hook_fn(self, module, input, output):
            raise RuntimeError("no such concept")

    detector = LayerActivationDetector("layer_11")
    lm.layers.register_hook(None, detector)
    lm.layers.register_hook("layer_0", Failing(hook_id="failing"))
    try:
        outputs, encodings = lm.inference.execute_inference(["Hello, world!"])
    except HookError as e:
        error = e
        print(f"Hook {e.hook_id} failed: {e.original_error}")
    assert capsys.readouterr().out == "Hook failing failed: no such concept\n"
    assert isinstance(error.original_error, RuntimeError)
    # The pass went on: hooks on later layers ran, and the result is there.
    expected = reference(plain, lm.tokenize(["Hello, world!"]))
    assert torch.equal(plain.transformer.ln_f(detector.get_captured()), expected.hidden_states[-1])
    assert torch.equal(error.outputs.logits, expected.logits)


# Common patterns.


def test_multiple_hooks_on_different_layers(lm, plain):
    assert BLOCKS > 10
    detector1, detector2 = LayerActivationDetector(), LayerActivationDetector()
    # Register hooks on multiple layers
    hook1_id = lm.layers.register_hook("layer_0", detector1)
    hook2_id = lm.layers.register_hook("layer_10", detector2)

    # All hooks execute during forward pass
    outputs, encodings = lm.inference.execute_inference(["Hello, world!"])
    expected = reference(plain, encodings).hidden_states
    assert torch.equal(detector1.get_captured(), expected[1])
    assert torch.equal(detector2.get_captured(), expected[11])

    # Cleanup all
    assert lm.layers.unregister_hook(hook1_id)
    assert lm.layers.unregister_hook(hook2_id)


def test_conditional_hook_execution(lm, plain):
    some_condition = False

    class ConditionalHook(Detector):
        seen = None

        def observe(self, x, ctx):
            self.seen = x.clone()

        def _hook_fn(self, module, input, output):
            if some_condition:
                # Only process when condition is met
                self.process_activation(output)

    class Keeping(LayerActivationDetector):
        def _hook_fn(self, module, input, output):
            if some_condition:
                self.process_activation(output)

    hook, keeping = ConditionalHook(), Keeping()
    lm.layers.register_hook("layer_3", hook)
    lm.layers.register_hook("layer_4", keeping)
    lm.inference.execute_inference(["Hello, world!"])
    assert hook.seen is None and keeping.get_captured() is None

    some_condition = True
    _, encodings = lm.inference.execute_inference(["Hello, world!"])
    expected = reference(plain, encodings).hidden_states
    assert torch.equal(hook.seen, expected[4])
    assert torch.equal(keeping.get_captured(), expected[5])


def test_hook_composition(lm):
    detector = LayerActivationDetector(hook_id="first")
    detector_id = lm.layers.register_hook("layer_0", detector)

    # Can't register another detector on same layer
    with pytest.raises(HookConflict) as caught:
        lm.layers.register_hook("layer_0", LayerActivationDetector(hook_id="second"))
    assert "first" in str(caught.value) and "allow_stacking=True" in str(caught.value)
    assert [hook.id for hook in lm.layers.get_hooks()] == [detector_id]

    # But can register a controller if needed
    class Zero(Hook):
        def _hook_fn(self, module, input, output):
            if isinstance(output, tuple):  # a block of GPT-2 in transformers 4.57; in 5 it returns the tensor alone
                return (torch.zeros_like(output[0]), *output[1:])
            return torch.zeros_like(output)

    lm.layers.register_hook("layer_0", Zero())
    lm.inference.execute_inference(["Hello, world!"])
    assert not detector.get_captured().any()  # detectors see what the next layer sees
    assert [len(lm.layers.get_detectors()), len(lm.layers.get_controllers())] == [1, 1]


def test_an_id_is_used_once(lm):
    lm.layers.register_hook("layer_0", LayerActivationDetector(hook_id="mine"))
    with pytest.raises(HookConflict, match="mine"):
        lm.layers.register_hook("layer_1", LayerActivationDetector(hook_id="mine"))
