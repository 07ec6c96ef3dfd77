"""Sweeps: each row of the one batched `generate` is the text of its prompt steered by hand, on its own."""

from __future__ import annotations

from collections import UserDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BatchEncoding

from mi_crow_lightning import (
    CausalLMModule,
    Controller,
    Detector,
    FunctionController,
    HookCallback,
    HookError,
    Schedule,
    SteeringController,
    by_strength,
)
from mi_crow_lightning.language_model import GeneratedText, TextCollator
from tests.language_model.tiny import KINDS, TEXTS, WIDTH, block_of, model_of, texts_loader, tokens
from tests.models import assert_same_handles, handles, trainer

NEW = 5
SWEEP = [0, 2, -2, 0.5]
GREEDY = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None}
VECTOR = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5)) * 0.12


def steer(**options: Any) -> SteeringController:
    return SteeringController("block:1", VECTOR, **{"strength": "batch", "tokens": "generated", **options})


def steered_by_hand(model: Any, text: str, strength: float, **options: Any) -> list[list[int]]:
    """One prompt, unpadded, with a hook of the test's own: at the prompt's last token and all after it."""
    ids = torch.tensor([tokens()(text)["input_ids"]])
    prompt = ids.shape[1]

    def add(module: Any, args: Any, output: Any) -> Any:
        x = output if isinstance(output, Tensor) else output[0]
        first = prompt - 1 if x.shape[1] >= prompt else 0  # the whole prompt, or one token after it
        x = torch.cat([x[:, :first], x[:, first:] + strength * VECTOR], 1)
        return x if isinstance(output, Tensor) else (x, *output[1:])

    handle = block_of(model, 1).register_forward_hook(add)
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=303, **options)
    handle.remove()
    return [row[prompt:] for row in made.tolist()]


def module_of(model: Any, sweep: Any = tuple(SWEEP), **generation: Any) -> CausalLMModule:
    return CausalLMModule(model, tokens(), generation={**GREEDY, **generation}, sweep=sweep)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
    ids=["greedy", "no cache", "beams", "several of the beams"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_each_text_is_that_of_its_prompt_and_strength_alone(kind: str, options: dict[str, Any]) -> None:
    model = model_of(kind)
    before = handles(model)
    batches = trainer(HookCallback(controllers=steer())).predict(module_of(model, **options), texts_loader())
    assert_same_handles(before, model)
    found = [text for batch in batches for text in batch]
    sequences = options.get("num_return_sequences", 1)
    expected = [
        (text, float(strength), sequence, new)
        for text in TEXTS
        for strength in SWEEP
        for sequence, new in enumerate(steered_by_hand(model, text, strength, **{**GREEDY, **options}))
    ]
    assert [(text.prompt, text.strength, text.sequence, text.token_ids) for text in found] == expected
    assert [text.row for text in found] == [
        row for rows in (2, 2, 1) for row in range(rows) for _ in range(len(SWEEP) * sequences)
    ]
    for text in TEXTS:
        assert len({tuple(new) for prompt, _, _, new in expected if prompt == text}) > sequences + 1


class LastLogits(Detector):
    """The logits that each next token is chosen from; it is on the head, so it needs no block."""

    def __init__(self) -> None:
        super().__init__("lm_head", schedule=Schedule(stages="predict"))
        self.seen: list[Tensor] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.seen.append(x[:, -1].clone())


@pytest.mark.parametrize("kind", KINDS)
def test_the_row_of_strength_0_has_the_tokens_and_logits_of_a_run_without_controllers(kind: str) -> None:
    model, data = model_of(kind), texts_loader(batch_size=len(TEXTS))
    plain_logits, logits = LastLogits(), LastLogits()
    (plain,) = trainer(HookCallback(plain_logits)).predict(module_of(model, sweep=None), data)
    (swept,) = trainer(HookCallback(logits, steer())).predict(module_of(model), data)
    unsteered = by_strength(swept)[0]
    assert [text.token_ids for text in unsteered] == [text.token_ids for text in plain]
    assert [text.text for text in unsteered] == [text.text for text in plain]
    assert len(logits.seen) == len(plain_logits.seen) == NEW
    for found, wanted in zip(logits.seen, plain_logits.seen, strict=True):
        torch.testing.assert_close(found[:: len(SWEEP)], wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found[3 :: len(SWEEP)], wanted, rtol=1e-4, atol=1e-4)


def test_results_come_back_by_strength_in_the_order_of_the_prompts() -> None:
    data = [texts_loader(TEXTS[:3]), texts_loader(TEXTS[3:])]
    predictions = trainer(HookCallback(controllers=steer())).predict(module_of(model_of("llama")), data)
    found = by_strength(predictions)
    assert list(found) == SWEEP
    assert all([text.prompt for text in texts] == TEXTS for texts in found.values())
    assert by_strength(predictions[0][0])[2] == [text for text in predictions[0][0] if text.strength == 2]
    with pytest.raises(TypeError, match="hold a Tensor"):
        by_strength([torch.ones(1)])


def test_a_negative_strength_and_one_alone() -> None:
    model = model_of("llama")
    (batch,) = trainer(HookCallback(controllers=steer())).predict(module_of(model, [-4]), texts_loader(TEXTS[:1]))
    assert [(text.strength, text.token_ids) for text in batch] == [
        (-4.0, steered_by_hand(model, TEXTS[0], -4, **GREEDY)[0])
    ]


@pytest.mark.parametrize(
    "sweep",
    [
        range(3),
        np.arange(3),
        np.linspace(0, 2, 3, dtype=np.float32),
        (0, 1, 2.0),
        torch.linspace(0, 2, 3),
        [torch.tensor(0.0), torch.tensor(1), np.float16(2)],
    ],
)
def test_strengths_of_any_kind_of_number(sweep: Any) -> None:
    assert module_of(model_of("llama"), sweep).sweep == [0.0, 1.0, 2.0]


class Watches(Detector):
    """What the batch holds while the model runs."""

    def __init__(self) -> None:
        super().__init__("block:0", schedule=Schedule(stages="predict"))
        self.seen: list[dict[str, Any]] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.seen.append(dict(ctx.batch))


@pytest.mark.parametrize("kind", [dict, UserDict, BatchEncoding])
def test_the_batch_is_expanded_while_the_model_runs_and_as_it_was_afterwards(kind: type[Any]) -> None:
    encoded = TextCollator(tokens())(TEXTS[:3])
    given = kind({**encoded, "persona": ["a", "b", "c"], "weight": torch.tensor([1.0, 2.0, 3.0]), "note": "kept"})
    given_step: list[Any] = []

    class Takes(CausalLMModule):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedText]:
            given_step.append(batch)
            return super().predict_step(batch, batch_idx, dataloader_idx)

        def _generate(self, batch: Any, *rest: Any) -> list[GeneratedText]:
            of_model = ("input_ids", "attention_mask")
            return super()._generate({name: batch[name] for name in of_model}, *rest)

    watches, module = Watches(), Takes(model_of("llama"), tokens(), generation=GREEDY, sweep=[0, 2])
    trainer(HookCallback(watches, steer())).predict(module, DataLoader([given], batch_size=None))
    for seen in watches.seen:
        assert seen["strength"].tolist() == [0.0, 2.0] * 3
        assert seen["persona"] == ["a", "a", "b", "b", "c", "c"] and seen["note"] == "kept"
        assert seen["weight"].tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(seen[name], encoded[name].repeat_interleave(2, 0))
    (after,) = given_step
    assert set(after) == {*encoded, "persona", "weight", "note"}
    assert after["persona"] == ["a", "b", "c"] and torch.equal(after["input_ids"], encoded["input_ids"])


def test_the_batch_is_as_it_was_when_generate_fails() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("broken on purpose")

    given: list[Any] = []

    class Notes(CausalLMModule):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedText]:
            given.append(batch)
            return super().predict_step(batch, batch_idx, dataloader_idx)

    callback = HookCallback(controllers=[steer(), FunctionController("block:2", fail)])
    module = Notes(model_of("llama"), tokens(), generation=GREEDY, sweep=[0, 2])
    with pytest.raises(HookError, match="broken on purpose"):
        trainer(callback).predict(module, texts_loader(TEXTS[:2]))
    assert set(given[0]) == {"input_ids", "attention_mask"} and len(given[0]["input_ids"]) == 2


def test_a_controller_of_the_user_s_own_reads_the_strengths() -> None:
    class Add(Controller):
        strength = "batch"

        def edit(self, x: Tensor, ctx: Any) -> Tensor:
            return x + ctx.batch["strength"][:, None, None] * VECTOR

    model, data = model_of("llama"), texts_loader()
    own = trainer(HookCallback(controllers=Add("block:1"))).predict(module_of(model), data)
    ours = trainer(HookCallback(controllers=steer(tokens="all"))).predict(module_of(model), data)
    assert own == ours


def test_a_controller_of_a_fixed_strength_steers_every_row() -> None:
    """Of two controllers one reads the batch: the sweep shows in its texts, and the other acts on top."""
    model = model_of("llama")
    fixed = FunctionController("block:2", lambda x: -x)
    data = texts_loader(TEXTS[:2])
    (both,) = trainer(HookCallback(controllers=[steer(), fixed])).predict(module_of(model), data)
    (alone,) = trainer(HookCallback(controllers=fixed)).predict(module_of(model, sweep=None), data)
    assert [text.token_ids for text in by_strength(both)[0]] == [text.token_ids for text in alone]


# Refused.


def refused(module: CausalLMModule, *callbacks: Any, data: Any = None) -> str:
    with pytest.raises(ValueError) as caught:
        trainer(*callbacks).predict(module, texts_loader() if data is None else data)
    return str(caught.value)


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [],
        lambda: [HookCallback(Watches())],
        lambda: [HookCallback(controllers=[steer(strength=2.0), FunctionController("block:2", lambda x: x * 2)])],
    ],
    ids=["no callback", "no controller", "none reads"],
)
def test_a_sweep_that_no_controller_reads_is_refused_before_anything_runs(callbacks: Any) -> None:
    ran: list[int] = []

    class Runs(CausalLMModule):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedText]:
            ran.append(batch_idx)
            return []

    assert refused(Runs(model_of("llama"), tokens(), sweep=[0, 2]), *callbacks()) == (
        "Runs(sweep=[0.0, 2.0]) runs each prompt once per strength, and no controller of this Trainer takes "
        'its strength from the batch: give a controller strength="batch", e.g. SteeringController("block:12", vector, '
        'strength="batch"), in Trainer(callbacks=[HookCallback(controllers=[...])])'
    )
    assert not ran


def test_a_sweep_whose_controller_is_off_is_refused() -> None:
    off = steer(hook_id="steer")
    off.disable()
    start, message = (
        "none of SteeringController(layer_signature='block:1', id='steer', ",
        " is on in this batch: enable one",
    )
    assert start in (said := refused(module_of(model_of("llama")), HookCallback(controllers=off))) and message in said
    only_first = steer(hook_id="steer", schedule=Schedule(stages="predict", batches=0))
    assert message in refused(module_of(model_of("llama")), HookCallback(controllers=only_first))


def test_a_batch_with_strengths_of_its_own_is_refused() -> None:
    data = DataLoader([{**TextCollator(tokens())(TEXTS[:2]), "strength": 2.0}], batch_size=None)
    assert refused(module_of(model_of("llama"), [0, 2]), HookCallback(controllers=steer()), data=data) == (
        "the batch has its own 'strength', and the module has sweep=[0.0, 2.0]: leave one out"
    )


def test_a_copy_of_the_batch_is_refused() -> None:
    """Hooks would not see the strengths that are set in it."""

    class Copies(CausalLMModule):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedText]:
            return super().predict_step(dict(batch), batch_idx, dataloader_idx)

    module = Copies(model_of("llama"), tokens(), generation=GREEDY, sweep=[0, 2])
    message = refused(module, HookCallback(controllers=steer()))
    assert message.endswith(
        "sees another batch than the one passed to predict_step: pass it the batch of the dataloader, not a copy"
    )


def test_a_batch_that_cannot_be_written_to_is_refused() -> None:
    class Frozen(CausalLMModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return MappingProxyType(batch)

    module = Frozen(model_of("llama"), tokens(), generation=GREEDY, sweep=[0, 2])
    with pytest.raises(
        TypeError, match=r"sweep needs a batch that can be written to, e\.g\. a dict, not a mappingproxy"
    ):
        trainer(HookCallback(controllers=steer())).predict(module, texts_loader())
