"""Texts through a language model while hooks watch and steer."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import Detector, FunctionController, LayerActivationDetector
from mi_crow_lightning.language_model import LanguageModel, with_positions
from mi_crow_lightning.store import LocalStore
from tests.models import assert_same_handles, handles
from tests.tiny_gpt2 import BLOCKS, TEXTS, WIDTH, save_gpt2, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="module")
def loaded(folder) -> LanguageModel:
    return LanguageModel.from_huggingface(folder)


@pytest.fixture
def lm(loaded) -> LanguageModel:
    return LanguageModel(*deepcopy((loaded.model, loaded.tokenizer)))


@pytest.fixture(scope="module")
def unhooked(folder) -> GPT2LMHeadModel:
    """The same weights in a model that this package never touched."""
    return GPT2LMHeadModel.from_pretrained(folder)


def reference(model: GPT2LMHeadModel, encodings):
    with torch.no_grad():
        return model(**with_positions(model, encodings), output_hidden_states=True)


class Broken(Detector):
    def observe(self, x, ctx):
        raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("side", ["left", "right"])
def test_outputs_and_encodings_are_those_of_the_plain_model(lm, unhooked, side):
    lm.tokenizer.padding_side = side
    outputs, encodings = lm.inference.execute_inference(TEXTS)
    lengths = [len(lm.tokenizer(text)["input_ids"]) for text in TEXTS]
    width = max(lengths)
    assert len(set(lengths)) > 1, "the texts need padding"
    assert encodings["input_ids"].shape == (len(TEXTS), width)
    for row, text, length in zip(encodings["attention_mask"].tolist(), TEXTS, lengths, strict=True):
        padding = [0] * (width - length)
        assert row == ([*padding, *[1] * length] if side == "left" else [*[1] * length, *padding]), text
    assert torch.equal(outputs.logits, reference(unhooked, encodings).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_activations_are_the_hidden_states_of_a_run_without_hooks(lm, unhooked, side):
    lm.tokenizer.padding_side = side
    detector = LayerActivationDetector("block:*")
    lm.layers.register_hook("block:*", detector)
    _, encodings = lm.inference.execute_inference(TEXTS)
    expected = reference(unhooked, encodings).hidden_states  # the embeddings, each block's output, the last normalised
    captured = detector.tensor_metadata["activations"]
    assert list(captured) == [f"transformer.h.{i}" for i in range(BLOCKS)]
    for i in range(BLOCKS - 1):
        assert torch.equal(captured[f"transformer.h.{i}"], expected[i + 1])
    last = unhooked.transformer.ln_f(captured[f"transformer.h.{BLOCKS - 1}"])
    assert torch.equal(last, expected[-1])


def test_a_captured_activation_can_enter_autograd(lm):
    detector = LayerActivationDetector(0)
    lm.layers.register_hook(0, detector)
    lm.inference.execute_inference(TEXTS)
    captured = detector.get_captured()
    assert not captured.is_inference() and not captured.requires_grad
    probe = torch.nn.Linear(WIDTH, 1)
    probe(captured).sum().backward()
    torch.testing.assert_close(probe.weight.grad[0], captured.sum((0, 1)))


def test_evaluation_mode_during_the_run_and_each_module_s_mode_afterwards(lm):
    lm.model.train()
    lm.model.transformer.h[3].eval()
    lm.model.transformer.h[5].attn.eval()
    before = [module.training for module in lm.model.modules()]
    during = []

    class Mode(Detector):
        def observe(self, x, ctx):
            during.extend([any(module.training for module in ctx.model.modules()), x.is_inference()])

    lm.layers.register_hook(0, Mode())
    lm.inference.execute_inference(TEXTS)
    assert during == [False, True]
    assert [module.training for module in lm.model.modules()] == before


def test_modes_come_back_after_an_error(lm):
    lm.model.train()
    lm.layers.register_hook(0, Broken())
    with pytest.raises(HookError):
        lm.inference.execute_inference(TEXTS)
    assert all(module.training for module in lm.model.modules())


def test_without_controllers_detectors_still_watch(lm, unhooked):
    detector = LayerActivationDetector(1)
    on = FunctionController(0, torch.zeros_like, hook_id="on")
    off = FunctionController(2, torch.zeros_like, hook_id="off")
    for hook in (detector, on, off):
        lm.layers.register_hook(None, hook)
    off.disable()
    steered, encodings = lm.inference.execute_inference(TEXTS)
    outputs, _ = lm.inference.execute_inference(TEXTS, with_controllers=False)
    expected = reference(unhooked, encodings)
    assert not torch.equal(steered.logits, expected.logits)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(detector.get_captured(), expected.hidden_states[2])
    assert on.is_enabled() and not off.is_enabled()


def test_controllers_are_back_on_after_an_error(lm):
    controller = FunctionController(0, torch.zeros_like)
    lm.layers.register_hook(0, controller)
    lm.layers.register_hook(1, Broken())
    with pytest.raises(HookError):
        lm.inference.execute_inference(TEXTS, with_controllers=False)
    assert controller.is_enabled()


def test_a_failing_hook_lets_the_pass_go_on(lm, unhooked):
    before = handles(lm.model)
    hook_id = lm.layers.register_hook("transformer.h.4.mlp", Broken(hook_id="broken"))
    with pytest.raises(HookError) as caught:
        lm.inference.execute_inference(TEXTS)
    error = caught.value
    assert (error.hook_id, error.hook_type, error.layer) == ("broken", "forward", "transformer.h.4.mlp")
    assert isinstance(error.original_error, RuntimeError) and error.__cause__ is error.original_error
    assert (error.stage, error.batch_idx, error.shape) == (None, None, (len(TEXTS), 10, WIDTH))
    encodings = lm.tokenize(TEXTS)
    assert torch.equal(error.outputs.logits, reference(unhooked, encodings).logits)
    assert lm.layers.unregister_hook(hook_id)
    assert_same_handles(before, lm.model)


def test_hooks_reach_the_model_and_the_store_through_their_context(lm, tmp_path):
    lm.store = LocalStore(base_path=tmp_path)

    class Keeper(Detector):
        def observe(self, x, ctx):
            assert ctx.language_model is lm and ctx.layers is lm.layers and ctx.hooks == [self]
            ctx.store.put("run", 0, ctx.layer, "activations", x)

    detector = Keeper()
    lm.layers.register_hook("block:0", detector)
    _, encodings = lm.inference.execute_inference(TEXTS)
    assert lm.store.get("run", 0, "transformer.h.0", "activations").shape == (*encodings["input_ids"].shape, WIDTH)


def test_computing_in_another_dtype_is_asked_for(lm):
    outputs, _ = lm.inference.execute_inference(TEXTS)
    assert outputs.logits.dtype == torch.float32
    outputs, _ = lm.inference.execute_inference(TEXTS, autocast=True, autocast_dtype=torch.bfloat16)
    assert outputs.logits.dtype == torch.bfloat16


def test_the_tokenizer_s_arguments(lm):
    _, encodings = lm.inference.execute_inference(TEXTS, tok_kwargs={"max_length": 3})
    assert encodings["input_ids"].shape == (len(TEXTS), 3)


@pytest.mark.parametrize("texts", ["Hello, world!", ["Hello", 3], [None]])
def test_texts_must_be_a_list_of_strings(lm, texts):
    with pytest.raises(TypeError) as caught:
        lm.inference.execute_inference(texts)
    assert str(caught.value) == f"texts must be a list of strings, not {texts!r}"


def test_texts_must_not_be_empty(lm):
    with pytest.raises(ValueError, match="texts is empty"):
        lm.inference.execute_inference([])


def test_a_tuple_of_texts(lm):
    _, encodings = lm.inference.execute_inference(tuple(TEXTS))
    assert len(encodings["input_ids"]) == len(TEXTS)


def test_texts_need_a_tokenizer(lm):
    without = LanguageModel(lm.model, None)
    message = r"this LanguageModel has no tokenizer: pass one, LanguageModel\(model, tokenizer\)"
    for read in (without.tokenize, without.inference.execute_inference):
        with pytest.raises(ValueError, match=message):
            read(TEXTS)


def test_padding_without_a_padding_token_is_refused(lm):
    without = LanguageModel(lm.model, tokenizer(unk_token="<|endoftext|>"))
    with pytest.raises(ValueError, match=r"no padding token: set tokenizer\.pad_token, or pass padding=False"):
        without.inference.execute_inference(TEXTS)
    outputs, _ = without.inference.execute_inference(TEXTS[:1], tok_kwargs={"padding": False})
    assert torch.isfinite(outputs.logits).all()
