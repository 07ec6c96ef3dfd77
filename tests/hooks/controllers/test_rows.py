"""Vectors, layers and strengths by row: each row has the bits of a run with its own; what does not fit is said."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from mi_crow_lightning import HookCallback, SteeringVector
from mi_crow_lightning.errors import HookStateError, LayerNotFound, RegistrationError, VectorMismatch
from mi_crow_lightning.hooks import Layers, SteeringController
from mi_crow_lightning.report.hook_settings import settings_of
from mi_crow_lightning.runs.rank_plans import _values
from tests.hooks.controllers.cases import BATCH, MODELS, original, run, vectors
from tests.models import WIDTH, Module, llama, trainer

THREE = vectors(3, seed=11)
TABLE = {"joy": THREE[0], "calm": THREE[1], "awe": THREE[2]}
NAMES = ["calm", "joy", "calm"]
STRENGTHS = torch.tensor([0.5, -1.25, 3.0])
BLOCKS = [1, [0, 1, 3], []]
CALLS: dict[str, Any] = {"input_ids": BATCH["input_ids"], "attention_mask": BATCH["attention_mask"]}


def passed_on(controller: SteeringController, batch: Any = None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """What each block passes on in one pass, with rows of the batch beside the tokens."""
    return blocks_of(llama().eval().to(dtype), controller, batch)


def blocks_of(model: Any, controller: SteeringController, batch: Any = None) -> list[Tensor]:
    found: list[Tensor] = []
    layers = Layers(model)
    layers.register_hook(None, controller)
    layers.begin_batch(None, {**BATCH, **(batch or {})} if batch is None or isinstance(batch, dict) else batch)
    handles = [
        block.register_forward_hook(lambda module, args, output: found.append(output.clone()))
        for block in model.model.layers
    ]
    try:
        with torch.no_grad():
            model(**CALLS)
    finally:
        layers.unregister_all_hooks()
        for handle in handles:
            handle.remove()
    return found


def assert_bits(found: Tensor, wanted: Tensor) -> None:
    """Equal to the bit: -0.0 is not 0.0."""
    assert found.dtype is wanted.dtype
    assert torch.equal(found.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8))


FORMS: dict[str, tuple[dict[str, Any], Any, list[Tensor]]] = {
    "tensor": ({}, THREE, list(THREE)),
    "doubles": ({}, THREE.double() + 1e-12, list((THREE.double() + 1e-12).float())),
    "one tensor": ({}, THREE[1], [THREE[1]] * 3),
    "names": ({"vectors": TABLE}, NAMES, [TABLE[name] for name in NAMES]),
    "a tuple": ({"vectors": TABLE}, tuple(NAMES), [TABLE[name] for name in NAMES]),
    "one name": ({"vectors": TABLE}, "awe", [THREE[2]] * 3),
}


@pytest.mark.parametrize("tokens", ["all", "generated"])
@pytest.mark.parametrize("form", FORMS)
def test_each_row_has_the_bits_of_a_run_with_its_own_vector(form: str, tokens: str) -> None:
    options, entry, alone = FORMS[form]
    steer = SteeringController(1, "batch", "batch", tokens, **options)
    together = passed_on(steer, {"vector": entry, "strength": STRENGTHS})[1]
    for row, (vector, strength) in enumerate(zip(alone, STRENGTHS.tolist(), strict=True)):
        assert_bits(together[row], passed_on(SteeringController(1, vector, strength, tokens))[1][row])


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    tokens=st.sampled_from(["all", "prompt", "generated", "last"]),
    norms=st.booleans(),
    blocks=st.lists(st.lists(st.integers(0, 3), max_size=4, unique=True), min_size=3, max_size=3),
    names=st.lists(st.sampled_from(list(TABLE)), min_size=3, max_size=3),
    strengths=st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_edit_of_a_row_does_not_depend_on_the_others(
    dtype: torch.dtype, tokens: str, norms: bool, blocks: Any, names: Any, strengths: Any
) -> None:
    """The other rows of a run alone are not steered; before its layer, and after, all is as if they were."""
    model, options = llama().eval().to(dtype), {"tokens": tokens, "preserve_norm": norms}
    of_rows = dict(vector="batch", vectors=TABLE, strength="batch", layers="batch")
    batch = {"vector": names, "layers": blocks, "strength": torch.tensor(strengths)}
    together = blocks_of(model, SteeringController("block:*", **of_rows, **options), batch)
    plain = blocks_of(model, SteeringController("block:0", THREE[0], 0.0, when=lambda x, ctx: False))
    for row in range(3):
        if not blocks[row]:
            assert_bits(torch.stack(together)[:, row], torch.stack(plain)[:, row])
            continue
        strength = float(torch.tensor(strengths[row]))
        signature = [f"model.layers.{block}" for block in blocks[row]]
        alone = blocks_of(model, SteeringController(signature, TABLE[names[row]], strength, **options))
        assert_bits(torch.stack(together)[:, row], torch.stack(alone)[:, row])


@pytest.mark.parametrize(
    "entry",
    [BLOCKS, [["model.layers.1"], ["layers.0", 1, "layers.3"], ()], [1, (0, 1, 3), []]],
    ids=["blocks", "names", "tuples"],
)
def test_layers_by_row_with_one_vector(entry: Any) -> None:
    steer = SteeringController("block:*", THREE[0], STRENGTHS, layers="batch")
    found = passed_on(steer, {"layers": entry})
    for row, blocks in enumerate([[1], [0, 1, 3]]):
        alone = SteeringController([f"model.layers.{at}" for at in blocks], THREE[0], STRENGTHS[row].item())
        for at, wanted in enumerate(passed_on(alone)):
            assert_bits(found[at][row], wanted[row])


@pytest.mark.parametrize("entry", [torch.tensor([2, 0, 1]), torch.tensor([[2, 3], [0, 0], [1, 1]])])
def test_blocks_in_a_tensor(entry: Tensor) -> None:
    with torch.inference_mode():
        given = entry.clone()  # as the batches of a predict are
    steer = SteeringController("block:*", THREE[0], layers="batch")
    rows = entry.reshape(3, -1).tolist()
    assert_bits(passed_on(steer, {"layers": given})[3], passed_on(steer, {"layers": rows})[3])
    with torch.inference_mode():
        given.copy_(given.flip(0))
    assert_bits(passed_on(steer, {"layers": given})[3], passed_on(steer, {"layers": rows[::-1]})[3])


def test_what_is_written_into_the_batch_counts_from_the_next_pass_on() -> None:
    model, seen = llama().eval(), []
    layers = Layers(model)
    layers.register_hook(None, SteeringController("block:*", "batch", vectors=TABLE, layers="batch"))
    batch: dict[str, Any] = {"vector": list(NAMES), "layers": [[0], [0], [0]]}
    layers.begin_batch(None, batch)
    model.model.layers[3].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    with torch.no_grad():
        model(**CALLS)
        batch["vector"][0], batch["layers"][1][0] = "awe", 2
        model(**CALLS)
    expected = passed_on(
        SteeringController("block:*", "batch", vectors=TABLE, layers="batch"),
        {"vector": ["awe", *NAMES[1:]], "layers": [0, 2, 0]},
    )
    assert_bits(seen[1], expected[3])
    assert not torch.equal(seen[0], seen[1])


def test_rows_that_are_not_edited_keep_their_bits_whatever_they_hold() -> None:
    """Scaling a row back to its norm would turn an infinity into NaN."""
    x = torch.randn(3, 4, WIDTH)
    x[1, 2, 0], x[1, 3, 1], x[2, 0, :2] = float("inf"), float("nan"), torch.tensor([-0.0, 0.0])
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    layers = Layers(model)
    layers.register_hook("0", SteeringController(None, "batch", preserve_norm=True, layers="batch"))
    layers.begin_batch(None, {"vector": THREE, "layers": ["0", [], []]})
    found = model(x)
    assert_bits(found[1:], x[1:])
    torch.testing.assert_close(found[0].norm(dim=-1), x[0].norm(dim=-1))
    assert not torch.equal(found[0], x[0])


def test_vectors_count_in_float32_as_a_controller_keeps_them() -> None:
    precise = THREE.double() + 1e-12
    found = passed_on(SteeringController(1, "batch"), {"vector": precise}, torch.float64)[1]
    for row in range(3):
        assert_bits(found[row], passed_on(SteeringController(1, precise[row]), dtype=torch.float64)[1][row])


def test_rows_multiply_between_two_passes_of_a_batch() -> None:
    """A plain pass has a row for each sample, and the beams after it have three."""
    model, made = llama().eval(), []
    layers, block = Layers(model), model.model.layers[2]
    block.register_forward_hook(lambda module, args, output: made.append(output.clone()))
    layers.register_hook("block:*", SteeringController(None, "batch", vectors=TABLE, layers="batch"))
    block.register_forward_hook(lambda module, args, output: made.append((output - made.pop()).abs().amax((1, 2)) > 0))
    layers.begin_batch(None, {"vector": NAMES, "layers": [1, 2, [0, 2]]})
    with torch.no_grad():
        model(**CALLS)
        model.generate(**CALLS, num_beams=3, do_sample=False, max_new_tokens=2)
    assert made[0].tolist() == [False, True, True]
    assert len(made) > 2 and all(one.tolist() == [False] * 3 + [True] * 6 for one in made[1:])


def test_vectors_by_layer_in_the_table() -> None:
    """A vector that lacks a layer may be named where the batch does not edit there."""
    by_layer = {"joy": SteeringVector({"layers.0": THREE[0], "layers.1": THREE[1]}), "calm": {1: THREE[2]}}
    batch = {"vector": ["joy", "calm", "joy"], "layers": [[0, 1], 1, 0]}
    found = passed_on(SteeringController("block:0-1", "batch", vectors=by_layer, layers="batch"), batch)
    alone = passed_on(SteeringController("block:0-1", {0: THREE[0], 1: THREE[1]}))
    assert_bits(found[1][0], alone[1][0])
    assert_bits(found[1][1], passed_on(SteeringController(1, THREE[2]))[1][1])
    with original(VectorMismatch, r"steers a row along 'calm' at 'model.layers.0', and vectors\['calm'\] lacks it"):
        passed_on(
            SteeringController("block:0-1", "batch", vectors=by_layer, layers="batch"), {**batch, "layers": [0, 0, 0]}
        )
    with pytest.raises(RegistrationError, match=r"vectors\['calm'\] has nothing for layer 'model.layers.0'"):
        Layers(llama()).register_hook("block:0-1", SteeringController(None, "batch", vectors=by_layer))


@pytest.mark.parametrize("name", ["gpt2", "mistral", "bert", "t5 encoder", "t5 decoder"])
def test_other_models(name: str) -> None:
    case = MODELS[name]
    model = case.make().eval()
    found = run(model, case.blocks, case.call, SteeringController(f"{case.blocks}.1", THREE[0], STRENGTHS))
    layers = Layers(model)
    steer = SteeringController(f"{case.blocks}.1", "batch", "batch")
    layers.register_hook(None, steer)
    layers.begin_batch(None, {"vector": THREE[0].expand(3, -1), "strength": STRENGTHS})
    seen: list[Tensor] = []
    model.get_submodule(case.blocks)[1].register_forward_hook(
        lambda module, args, output: seen.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        model(**case.call)
    assert_bits(seen[0], found.passed_on[1])


DECODING = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "no cache": {"do_sample": False, "use_cache": False},
}


class Generates(Module):
    """Greedy texts, of which the batch says how each row is steered."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(llama())
        self.options = options

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        prompts = {name: batch[name] for name in CALLS}
        return self.model.generate(**prompts, **self.options, max_new_tokens=5, min_new_tokens=5)


def items(**rows: Any) -> DataLoader:
    """Batches of two rows and of one, collated by torch."""
    tokens = [{name: BATCH[name][row] for name in CALLS} for row in range(3)]
    return DataLoader([{**one, **{k: v[row] for k, v in rows.items()}} for row, one in enumerate(tokens)], batch_size=2)


@pytest.mark.parametrize("how", DECODING)
@pytest.mark.parametrize("form", ["tensor", "names"])
def test_a_trainer_predicts_along_each_row_s_vector(form: str, how: str) -> None:
    options, entry, alone = FORMS[form]
    steer = SteeringController("block:*", "batch", "batch", "generated", layers="batch", **options)
    blocks, strengths = torch.tensor([1, 3, 0]), 4 * STRENGTHS
    data = items(vector=entry, strength=strengths, layers=blocks)
    watch = HookCallback(controllers=steer)
    module = Generates(DECODING[how])
    found = trainer(watch).predict(module, data)
    each = len(found[1])
    rows = torch.cat(found).split(each)
    for row in range(3):
        single = SteeringController(f"block:{int(blocks[row])}", alone[row], strengths[row].item(), "generated")
        wanted = torch.cat(trainer(HookCallback(controllers=single)).predict(module, items())).split(each)
        assert torch.equal(rows[row], wanted[row])
    plain = torch.cat(trainer().predict(module, items()))
    assert not torch.equal(plain, torch.cat(found))
    effects = {effect.layer[-1]: effect.tokens for effect in watch.effects()}
    assert sorted(effects) == ["0", "1", "3"] and min(effects.values()) > 0


def test_a_dry_run_says_what_does_not_fit() -> None:
    data = items(vector=NAMES, layers=torch.tensor([1, 3, 0]))
    for wide, refused in ((0, False), (1, True)):
        table = {"calm": torch.ones(WIDTH + wide), "joy": torch.ones(WIDTH + wide)}
        watch = HookCallback(controllers=SteeringController("block:*", "batch", vectors=table), dry_run=True)
        trainer(watch).predict(Generates({"do_sample": False}), data)
        assert (f"has {WIDTH + 1} features" in str(watch.report())) == refused


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_under_amp(precision: str) -> None:
    steer = SteeringController("block:1", "batch", 2.0, vectors=TABLE)
    module = Generates({"do_sample": False})
    found = trainer(HookCallback(controllers=steer), precision=precision).predict(module, items(vector=["joy"] * 3))
    alone = SteeringController("block:1", THREE[0], 2.0)
    module = Generates({"do_sample": False})
    wanted = trainer(HookCallback(controllers=alone), precision=precision).predict(module, items())
    assert torch.equal(torch.cat(found), torch.cat(wanted))


def test_gradients_reach_the_vectors_of_the_batch() -> None:
    model, given = llama(), THREE.clone().requires_grad_()
    layers = Layers(model)
    layers.register_hook("block:*", SteeringController(None, "batch", STRENGTHS, layers="batch"))
    layers.begin_batch(None, {"vector": given, "layers": [1, 2, []]})
    model(**CALLS).logits.square().mean().backward()
    assert given.grad is not None
    assert given.grad[:2].abs().sum(1).min() > 0 and not given.grad[2].any()


# What does not fit.


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({}, {}, r"vector='batch' reads batch\['vector'\], and the batch has only: 'input_ids', 'attention_mask'. Put"),
        ({}, [1], r"vector='batch' reads batch\['vector'\], and the batch is a list: it must be a mapping"),
        ({}, {"vector": THREE[:2]}, r"has 2 entries, .* 'model.layers.1' has 3 rows \(shape \(3, 7, "),
        ({}, {"vector": THREE[:, :5]}, "the steering vector has 5 features, and the activation of 'model.layers.1'"),
        ({}, {"vector": THREE[None]}, r"is a torch.float32 tensor of shape \(1, 3, 32\): it must be a float tensor"),
        ({}, {"vector": THREE.long()}, "is a torch.int64 tensor of shape"),
        ({}, {"vector": NAMES}, "names 'calm', and the controller has no vectors by name: give it vectors={name"),
        ({}, {"vector": 3}, r"batch\['vector'\] is 3: it must be a float tensor \(B, D\)"),
        ({"vectors": TABLE}, {"vector": [*NAMES[:2], None]}, r"is \['calm', 'joy', None\]: it must be"),
        ({"vectors": TABLE}, {"vector": NAMES[:2]}, "has 2 entries, one for each sample"),
        (
            {"vectors": TABLE},
            {"vector": ["joy", "clam", "joy"]},
            r"the name 'clam' is not known: choose one of 'joy', 'calm', 'awe'. Did you mean 'calm'\?",
        ),
        ({"vectors": TABLE}, {"vector": "sad"}, "the name 'sad' is not known: choose one of 'joy', 'calm', 'awe'"),
        ({"layers": "batch"}, {"vector": THREE}, r"layers='batch' reads batch\['layers'\], and the batch has only"),
        ({"layers": "batch"}, {"vector": THREE, "layers": [1, 1]}, r"batch\['layers'\] has 2 entries"),
        ({"layers": "batch"}, {"vector": THREE, "layers": 1}, r"batch\['layers'\] is 1: it must be a list of B"),
        ({"layers": "batch"}, {"vector": THREE, "layers": [1.5, 1, 1]}, r"batch\['layers'\] holds 1.5: it must be"),
        ({"layers": "batch"}, {"vector": THREE, "layers": torch.ones(3)}, "is a torch.float32 tensor of shape"),
        (
            {"layers": "batch"},
            {"vector": THREE, "layers": [torch.tensor([1, 2, 3])] * 3},
            "a list with tensors, as torch's default_collate makes them of lists, column by column",
        ),
    ],
)
def test_batches_that_do_not_fit(options: Any, batch: Any, message: str) -> None:
    with original(VectorMismatch, message):
        passed_on(SteeringController(1, "batch", **options), batch)


def test_layers_that_the_controller_is_not_at() -> None:
    for name, what in ((2, "none"), ("layers.7", "none"), ("attn", "none")):
        steer = SteeringController("block:0-1", THREE[0], layers="batch")
        with original(LayerNotFound, rf"names {name!r}, which is {what} of .*: 'model.layers.0' \(block 0\), 'model"):
            passed_on(steer, {"layers": [0, 1, name]})


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="layers='block:1' must be 'batch' or None"):
        SteeringController(0, THREE[0], layers="block:1")
    with pytest.raises(ValueError, match="vectors= is a table for vector='batch'"):
        SteeringController(0, THREE[0], vectors=TABLE)
    with pytest.raises(ValueError, match="set vector to 'batch' first"):
        SteeringController(0, THREE[0]).vectors = TABLE
    for table in ({}, [THREE[0]], {1: THREE[0]}):
        with pytest.raises((TypeError, ValueError), match="vectors"):
            SteeringController(0, "batch", vectors=table)
    with pytest.raises(ValueError, match=r"vectors\['joy'\] holds 1 values that are not finite"):
        SteeringController(0, "batch", vectors={"joy": torch.tensor([float("nan")])})
    several = SteeringController(None, "batch", vectors={**TABLE, "wide": torch.ones(WIDTH + 1)})
    with pytest.raises(RegistrationError, match=r"vectors has several widths at layer 'model.layers.1'"):
        Layers(llama()).register_hook(1, several)
    with pytest.raises(VectorMismatch, match=f"has {WIDTH + 1} features"):
        Layers(llama()).register_hook(1, SteeringController(None, "batch", vectors={"wide": torch.ones(WIDTH + 1)}))


# Kept.


@pytest.mark.parametrize("table", [TABLE, {"joy": {1: THREE[0], "layers.0": THREE[1]}}, None])
@pytest.mark.parametrize("own", [{"vector": THREE[1]}, {"vector": "batch", "vectors": {"other": THREE[0]}}])
def test_the_state_keeps_the_table(table: Any, own: Any) -> None:
    file = io.BytesIO()
    torch.save(SteeringController(0, "batch", vectors=table).state_dict(), file)
    file.seek(0)
    twin = SteeringController(0, **own)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert twin.vector == "batch"
    assert list(twin.vectors) == list(table or {})
    for name, one in (table or {}).items():
        kept = twin.vectors[name]
        pairs = [(one, kept)] if isinstance(one, Tensor) else [(one[layer], kept[layer]) for layer in one]
        assert all(torch.equal(*pair) for pair in pairs)
    back = SteeringController(0, "batch", vectors=TABLE)
    back.load_state_dict(SteeringController(0, THREE[2]).state_dict())
    assert torch.equal(back.vector, THREE[2]) and back.vectors == {}


def test_copies_and_changes_between_batches() -> None:
    steer = SteeringController(1, "batch", vectors=TABLE, layers="batch", hook_id="rows")
    batch = {"vector": NAMES, "layers": [1, 1, 1]}
    first = passed_on(steer, batch)[1]
    for twin in (copy.deepcopy(steer), pickle.loads(pickle.dumps(steer))):
        assert_bits(passed_on(twin, batch)[1], first)
    assert repr(steer) == (
        "SteeringController(layer_signature=1, id='rows', vector='batch', vectors=<3 named>, strength=1.0, "
        "layers='batch')"
    )
    steer.vectors["joy"].zero_()  # a copy
    assert_bits(passed_on(steer, batch)[1], first)
    steer.vectors = {**TABLE, "joy": THREE[2]}
    assert_bits(passed_on(steer, batch)[1], passed_on(steer, {**batch, "vector": ["calm", "awe", "calm"]})[1])
    with steer.along(THREE[0]):
        assert_bits(passed_on(steer, batch)[1], passed_on(SteeringController(1, THREE[0]))[1])
    assert steer.vector == "batch" and list(steer.vectors) == list(TABLE)
    steer.vector = THREE[0]
    assert_bits(passed_on(steer, batch)[1], passed_on(SteeringController(1, THREE[0]))[1])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"vectors": 3}, "vectors"),
        ({"vectors": {"joy": "batch"}}, "must hold tensors"),
        ({"vectors": {"joy": torch.tensor([float("inf")])}}, "not finite"),
        ({"vector": "loud"}, "must be a tensor"),
    ],
)
def test_a_damaged_state_changes_nothing(state: Any, message: str) -> None:
    steer = SteeringController(0, "batch", vectors=TABLE)
    with pytest.raises(HookStateError, match=message):
        steer.load_state_dict({**steer.state_dict(), **state})
    assert list(steer.vectors) == list(TABLE)


def test_loggers_get_the_table_and_ranks_compare_it() -> None:
    steer = SteeringController("block:*", "batch", vectors={"joy": THREE[0]}, layers="batch")
    found = settings_of([steer])
    assert found["hooks/0/vector"] == "batch" and found["hooks/0/layers_of_rows"] == "batch"
    assert found["hooks/0/vectors/joy/norm"] == pytest.approx(THREE[0].norm().item())
    mine, other = (dict(_values(one))["vector"] for one in (steer, SteeringController(0, "batch", vectors=TABLE)))
    assert mine != other
