"""Positions under ``generate``: which are touched, in every way of decoding, against columns counted by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks import (
    ActivationStatistics,
    Detector,
    FunctionController,
    Layers,
    SteeringController,
    Tokens,
)
from tests.models import WIDTH, gpt2, llama

PROMPT, NEW = 6, 4
LENGTHS = (6, 3, 5)
WHICH = ("all", "prompt", "generated", "last")
MODELS: dict[str, Callable[[], nn.Module]] = {"llama": llama, "gpt2": gpt2}


def model_of(kind: str) -> Any:
    model = MODELS[kind]().eval()
    model.generation_config.eos_token_id = None  # so that every row goes on to the end
    return model


def prompts(side: str = "left", lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, place] = torch.randint(3, 64, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def columns(which: str, mask: Tensor, start: int, end: int, editing: bool) -> Tensor:
    """The chosen positions of columns ``start`` to ``end``, one at a time; ``mask`` is the prompt's."""
    chosen = torch.zeros(len(mask), end - start, dtype=torch.bool)
    width = mask.shape[1]
    for row, real in enumerate(mask.tolist()):
        last_of_prompt = max(column for column in range(width) if real[column])
        is_real = [*real, *[1] * (end - width)]
        last = max(column for column in range(end) if is_real[column])
        for column in range(start, end):
            chosen[row, column - start] = (
                bool(is_real[column])
                and {
                    "all": True,
                    "prompt": column < width,
                    "generated": column >= width or (editing and column == last_of_prompt),
                    "last": column >= width or column == last_of_prompt if editing else column == last,
                }[which]
            )
    return chosen


class Record:
    """Hooks of the test's own around ours: what the block made, and what goes on to the next."""

    def __init__(self, block: nn.Module, layers: Layers, controller: Any) -> None:
        self.made: list[Tensor] = []
        self.passed_on: list[Tensor] = []
        block.register_forward_hook(lambda module, args, output: self.made.append(first(output).clone()))
        layers.register_hook(None, controller)
        block.register_forward_hook(lambda module, args, output: self.passed_on.append(first(output).clone()))

    def touched(self) -> list[Tensor]:
        pairs = zip(self.made, self.passed_on, strict=True)
        return [(~torch.eq(made, passed_on)).any(-1) for made, passed_on in pairs]


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


class Masks(Detector):
    """What each choice of positions is for a detector."""

    def __init__(self) -> None:
        super().__init__(layer_signature="block:2")
        self.seen: dict[str, list[Tensor]] = {which: [] for which in WHICH}

    def observe(self, x: Tensor, ctx: Any) -> None:
        for which in WHICH:
            mask = Tokens(which).mask(x, ctx)
            self.seen[which].append(torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask)


DECODING: dict[str, tuple[dict[str, Any], int]] = {
    # name: how, and how many rows each prompt becomes
    "greedy": ({"do_sample": False}, 1),
    "greedy without a cache": ({"do_sample": False, "use_cache": False}, 1),
    "beams": ({"do_sample": False, "num_beams": 3}, 3),
    "beams without a cache": ({"do_sample": False, "num_beams": 2, "use_cache": False}, 2),
    "samples": ({"do_sample": True, "num_return_sequences": 2}, 2),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", DECODING)
@pytest.mark.parametrize("kind", MODELS)
def test_the_touched_positions_are_those_counted_by_hand(kind: str, how: str, side: str) -> None:
    """Each block edits at its own choice of positions."""
    options, rows = DECODING[how]
    batch = prompts(side)
    mask = batch["attention_mask"].repeat_interleave(rows, 0)
    model, masks = model_of(kind), Masks()
    layers = Layers(model)
    layers.register_hook(None, masks)
    blocks = model.get_submodule("transformer.h" if kind == "gpt2" else "model.layers")
    records = {which: Record(blocks[i], layers, plus(i, which)) for i, which in enumerate(WHICH)}
    torch.manual_seed(0)
    model.generate(**batch, **options, max_new_tokens=NEW)
    for which, record in records.items():
        assert len(record.made) == NEW
        for step, touched in enumerate(record.touched()):
            end = PROMPT + step
            start = 0 if step == 0 or "without" in how else end - 1
            assert touched.tolist() == columns(which, mask, start, end, editing=True).tolist(), (which, step)
            expected = columns(which, mask, start, end, editing=False)
            assert masks.seen[which][step].tolist() == expected.tolist(), (which, step)


def plus(block: int, which: str) -> FunctionController:
    return FunctionController(block, lambda x: x + 1, tokens=which)


def steered_by_hand(model: Any, batch: dict[str, Tensor], which: str, change: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy decoding that computes the whole sequence anew for each token, steered by a hook of the test's own.

    In a whole sequence the end of the prompt and each later token are steered for "last", as each was once.
    """
    ids, prompt = batch["input_ids"], batch["attention_mask"]
    block = model.get_submodule("model.layers.1" if hasattr(model, "model") else "transformer.h.1")
    logits = []
    for _ in range(NEW):
        end = ids.shape[1]
        chosen = columns("generated" if which == "last" else which, prompt, 0, end, editing=True)

        def steer(module: nn.Module, args: Any, output: Any, chosen: Tensor = chosen) -> Any:
            x = first(output) + chosen[..., None] * change
            return x if isinstance(output, Tensor) else (x, *output[1:])

        mask = torch.cat([prompt, torch.ones(len(ids), end - PROMPT, dtype=torch.long)], 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        handle = block.register_forward_hook(steer)
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        handle.remove()
        logits.append(output.logits[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    return ids, torch.stack(logits)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("which", WHICH)
def test_steered_text_is_that_of_an_edit_by_hand(kind: str, which: str) -> None:
    model, batch = model_of(kind), prompts()
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
    expected_ids, expected = steered_by_hand(model, batch, which, 2.0 * vector)
    plain = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    layers = Layers(model)
    layers.register_hook(None, SteeringController("block:1", vector, 2.0, tokens=which))
    for _ in range(2):  # the second text of a model is like its first
        result = model.generate(
            **batch, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        assert torch.equal(result.sequences, expected_ids)
        torch.testing.assert_close(torch.stack(result.logits), expected, rtol=1e-4, atol=1e-4)
    layers.unregister_all_hooks()
    assert torch.equal(model.generate(**batch, max_new_tokens=NEW, do_sample=False), plain)


def test_prompts_of_other_lengths_on_the_same_model() -> None:
    model, masks = model_of("llama"), Masks()
    Layers(model).register_hook(None, masks)
    for lengths in ((3, 2), (7,), (2, 2, 1)):
        batch = prompts(lengths=lengths)
        model.generate(**batch, max_new_tokens=3, do_sample=False)
        width = max(lengths)
        for step in range(3):
            start, end = (0, width) if step == 0 else (width + step - 1, width + step)
            for which in WHICH:
                expected = columns(which, batch["attention_mask"], start, end, editing=False)
                assert masks.seen[which].pop(0).tolist() == expected.tolist()


def test_a_prompt_without_a_mask_or_of_one_token() -> None:
    model = model_of("llama")
    statistics = {which: ActivationStatistics("block:1", tokens=which, statistics=["mean"]) for which in WHICH}
    layers = Layers(model, allow_stacking=True)
    for detector in statistics.values():
        layers.register_hook(None, detector)
    model.generate(torch.tensor([[7]]), max_new_tokens=NEW, do_sample=False)
    assert {which: tokens_seen(detector) for which, detector in statistics.items()} == {
        "all": NEW,
        "prompt": 1,
        "generated": NEW - 1,
        "last": NEW,
    }


def tokens_seen(detector: ActivationStatistics) -> float:
    return sum(r.value.total for r in detector.readings() if r.name == "histogram") / WIDTH  # type: ignore[union-attr]


def test_two_registries_on_one_model_both_follow_generate() -> None:
    """Also when the one that came first goes first."""
    model = model_of("llama")
    one, other = (ActivationStatistics("block:1", tokens="generated", statistics=["mean"]) for _ in range(2))
    first_layers, second_layers = Layers(model), Layers(model)
    options = dict(max_new_tokens=NEW, do_sample=False, use_cache=False)
    seen = NEW * (NEW - 1) / 2  # without a cache the generated tokens are seen again and again
    first_layers.register_hook(None, one)
    second_layers.register_hook(None, other)
    model.generate(**prompts(lengths=(5,)), **options)
    assert tokens_seen(one) == tokens_seen(other) == seen
    first_layers.unregister_all_hooks()
    model.generate(**prompts(lengths=(5,)), **options)
    assert tokens_seen(one) == seen and tokens_seen(other) == 2 * seen
    second_layers.unregister_all_hooks()
    assert "generate" not in model.__dict__


def test_a_generate_of_the_users_own_comes_back() -> None:
    model = model_of("llama")
    bound = model.generate
    model.generate = lambda *args, **kwargs: bound(*args, **kwargs, max_new_tokens=2)
    mine = model.generate
    layers, detector = Layers(model), ActivationStatistics("block:1", tokens="generated", statistics=["mean"])
    layers.register_hook(None, detector)
    assert model.generate(**prompts()).shape == (3, PROMPT + 2)
    assert tokens_seen(detector) == 3
    layers.unregister_all_hooks()
    assert model.generate is mine


@pytest.mark.parametrize("which", ["generated", "last", "all"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_head_that_sees_one_token_is_edited_from_the_first_on(which: str, cached: bool) -> None:
    """``generate`` calls the head for the last token of the prompt alone."""
    model = llama().eval()

    def force(logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -100.0)
        forced[..., 42] = 100.0
        return forced

    Layers(model).register_hook("lm_head", FunctionController(None, force, tokens=which))
    ids, mask = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, use_cache=cached)
    assert (new[:, 4:] == 42).all()
