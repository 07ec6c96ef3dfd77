"""Activations of many texts, saved by batches, and what detectors hold, saved after each batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mi_crow_lightning.errors import HookConflict, HookError, StoreKeyError
from mi_crow_lightning.hooks import Detector, FunctionController, LayerActivationDetector, Tokens
from mi_crow_lightning.language_model import LanguageModel, with_positions
from mi_crow_lightning.store import LocalStore
from tests.language_model.tiny import TEXTS, model_of, tokens
from tests.models import WIDTH, assert_same_handles, handles

LAYERS = ["transformer.h.1", "transformer.h.2"]


@pytest.fixture(scope="module")
def plain() -> Any:
    """The model that no hook touches."""
    return model_of("gpt2")


@pytest.fixture
def lm(tmp_path: Path) -> LanguageModel:
    return LanguageModel(model_of("gpt2"), tokens(), LocalStore(tmp_path))


def expected(model: Any, lm: LanguageModel, texts: list[str]) -> dict[str, torch.Tensor]:
    encodings = lm.tokenize(texts)
    with torch.no_grad():
        states = model(**with_positions(model, encodings), output_hidden_states=True).hidden_states
    return {"transformer.h.1": states[2], "transformer.h.2": states[3], "mask": encodings["attention_mask"].bool()}


def test_each_batch_holds_the_hidden_states_of_its_texts(lm, plain):
    before = handles(lm.model)
    run = lm.activations.save_activations(iter(TEXTS), LAYERS, "run", batch_size=2, save_attention_mask=True)
    assert run == "run" and lm.store.list_run_batches(run) == [0, 1, 2]
    for batch in range(3):
        states = expected(plain, lm, TEXTS[2 * batch : 2 * batch + 2])
        for layer in LAYERS:
            assert torch.equal(lm.store.get(run, batch, layer, "activations"), states[layer])
        assert torch.equal(lm.store.get(run, batch, "attention_masks", "attention_mask"), states["mask"])
        shape = lm.store.get_detector_metadata(run, batch)[0][LAYERS[0]]["activations_shape"]
        assert shape == [*states[LAYERS[0]].shape]
    assert lm.store.get_run_metadata(run)["options"]["batch_size"] == 2
    assert_same_handles(before, lm.model)
    assert not lm.layers.get_hooks()


def test_chosen_tokens_are_kept_without_padding(lm, plain):
    run = lm.activations.save_activations(TEXTS, 1, batch_size=3, tokens=Tokens("all"), dtype="float16")
    assert run.startswith("run_") and lm.store.get_run_metadata(run)["options"]["tokens"] == "Tokens('all')"
    for batch in range(2):
        states = expected(plain, lm, TEXTS[3 * batch : 3 * batch + 3])
        kept = lm.store.get(run, batch, LAYERS[0], "activations")
        assert torch.equal(kept, states[LAYERS[0]][states["mask"]].half())
        counts = lm.store.get_detector_metadata(run, batch)[0][LAYERS[0]]["tokens_per_row"]
        assert counts == states["mask"].sum(1).tolist()


def test_the_mask_leaves_out_special_tokens_and_max_length_cuts(lm):
    text = "<|endoftext|>Hello, world!<|endoftext|>"
    lm.activations.save_activations([text, "Hi"], 1, "run", max_length=6, save_attention_mask=True)
    mask = lm.store.get("run", 0, "attention_masks", "attention_mask")
    ids = lm.tokenize([text, "Hi"], max_length=6)["input_ids"]
    assert ids.shape[1] == 6 and torch.equal(mask, (ids != 0) & (ids != lm.tokenizer.pad_token_id))
    assert lm.store.get_run_metadata("run")["options"]["max_length"] == 6


def test_an_edited_activation_is_kept_as_it_was_edited(lm, plain):
    lm.layers.register_hook(1, FunctionController(1, lambda x: 2 * x))
    lm.activations.save_activations(TEXTS, 1, "edited")
    lm.activations.save_activations(TEXTS, 1, "plain", with_controllers=False)
    states = expected(plain, lm, TEXTS)
    state, mask = states[LAYERS[0]], states["mask"]
    edited = lm.store.get("edited", 0, LAYERS[0], "activations")
    assert torch.equal(edited[mask], 2 * state[mask]) and torch.equal(edited[~mask], state[~mask])
    assert torch.equal(lm.store.get("plain", 0, LAYERS[0], "activations"), state)


def test_what_cannot_be_saved_is_refused_before_anything_runs(lm):
    with pytest.raises(TypeError, match="texts='Hello' must be strings"):
        lm.activations.save_activations("Hello", 1)
    with pytest.raises(ValueError, match="texts is empty"):
        lm.activations.save_activations(iter([]), 1)
    with pytest.raises(ValueError, match="batch_size=0 must be"):
        lm.activations.save_activations(TEXTS, 1, batch_size=0)
    with pytest.raises(StoreKeyError):
        lm.activations.save_activations(TEXTS, 1, "../run")
    lm.layers.register_hook(1, LayerActivationDetector(hook_id="mine"))
    with pytest.raises(HookConflict, match="mine"):
        lm.activations.save_activations(TEXTS, 1)
    assert not lm.store.list_runs() and len(lm.layers.get_hooks()) == 1
    lm.store.put_run_metadata("taken", {})
    with pytest.raises(ValueError, match=r"has a run 'taken' already: .* store\.delete_run\('taken'\)"):
        lm.activations.save_activations(TEXTS, 2, "taken")
    lm.store = None
    with pytest.raises(ValueError, match="there is no store for the run 'run'"):
        lm.activations.save_activations(TEXTS, 2, "run")
    assert len(lm.layers.get_hooks()) == 1


def test_a_failure_takes_the_detector_off_and_leaves_the_batches_before_it(lm):
    def texts():
        yield from TEXTS[:2]
        raise OSError("the file of texts is gone")

    with pytest.raises(OSError, match="gone"):
        lm.activations.save_activations(texts(), 1, "run", batch_size=2)
    assert lm.store.list_run_batches("run") == [0] and not lm.layers.get_hooks()


class Counting(Detector):
    """An own detector that keeps a number and a tensor of all its layers together."""

    def observe(self, x, ctx):
        self.metadata["calls"] = self.metadata.get("calls", 0) + 1
        self.tensor_metadata["largest"] = x.amax()


def test_infer_texts_keeps_what_every_detector_holds_by_batch(lm, plain):
    lm.layers.register_hook(None, LayerActivationDetector(LAYERS))
    lm.layers.register_hook(None, Counting("lm_head", hook_id="counting"))
    outputs, encodings = lm.inference.infer_texts(TEXTS, "run", batch_size=2)
    for batch in range(3):
        texts = TEXTS[2 * batch : 2 * batch + 2]
        metadata, tensors = lm.store.get_detector_metadata("run", batch)
        assert torch.equal(tensors[LAYERS[1]]["activations"], expected(plain, lm, texts)[LAYERS[1]])
        assert metadata["lm_head"] == {"calls": 1}
        assert torch.equal(tensors["lm_head"]["largest"], outputs[batch].logits.amax())
        assert torch.equal(encodings[batch]["input_ids"], lm.tokenize(texts)["input_ids"])
    assert not any(hook.metadata or hook.tensor_metadata for hook in lm.layers.get_detectors())


def test_infer_texts_without_a_run_or_batches_is_one_pass(lm, plain):
    detector = LayerActivationDetector(LAYERS[0])
    lm.layers.register_hook(None, detector)
    output, encodings = lm.inference.infer_texts(TEXTS, tok_kwargs={"max_length": 4})
    assert encodings["input_ids"].shape == (5, 4) and output.logits.shape[:2] == (5, 4)
    assert detector.get_captured().shape == (5, 4, WIDTH) and not lm.store.list_runs()
    with pytest.raises(ValueError, match="texts is empty"):
        lm.inference.infer_texts([])
    detector.metadata["old"] = 1
    lm.inference.infer_texts(TEXTS, "run", clear_detectors_before=True, save_in_batches=False)
    ((metadata, tensors),) = lm.store.get_run_detector_metadata("run")
    assert "old" not in metadata[LAYERS[0]] and tensors[LAYERS[0]]["activations"].shape[0] == 5


def test_lists_have_numbered_keys_and_several_layers_the_hook_s_id(lm):
    lm.layers.register_hook(None, LayerActivationDetector(LAYERS, keep="all"))
    lm.layers.register_hook(None, Counting(["h.0", "h.3"], hook_id="counting"))
    for _ in range(2):
        lm.inference.execute_inference(TEXTS)
    metadata, tensors = lm.get_all_detector_metadata()
    assert set(tensors) == {*LAYERS, "counting"} and set(tensors[LAYERS[0]]) == {"activations_0", "activations_1"}
    assert metadata["counting"] == {"calls": 4}
    lm.save_detector_metadata("run", 7, clear_after_save=False)
    assert lm.get_all_detector_metadata()[0] == metadata
    lm.clear_detectors()
    assert lm.get_all_detector_metadata() == ({}, {})
    lm.inference.execute_inference(TEXTS)  # counts from the start: the budget is free again
    assert set(lm.get_all_detector_metadata()[1][LAYERS[0]]) == {"activations_0"}


def test_two_detectors_with_one_key_of_one_layer_are_refused(lm):
    lm.layers.allow_stacking = True
    for name in ("first", "second"):
        lm.layers.register_hook(None, LayerActivationDetector(1, name))
    lm.inference.execute_inference(TEXTS)
    with pytest.raises(ValueError, match=r"two detectors hold 'activations_shape' of 'transformer\.h\.1'.*second"):
        lm.save_detector_metadata("run", 0)
    assert not lm.store.list_runs()
    lm.store = None
    with pytest.raises(ValueError, match="no store"):
        lm.save_detector_metadata("run", 0)


def test_an_activation_that_cannot_be_kept_says_which_layer(lm):
    class Gone(Detector):
        def observe(self, x, ctx):
            raise RuntimeError("broken on purpose")

    lm.layers.register_hook(None, Gone("h.2"))
    with pytest.raises(HookError, match=r"transformer\.h\.2"):
        lm.activations.save_activations(TEXTS, 1, "run")
    assert lm.store.list_run_batches("run") == []
