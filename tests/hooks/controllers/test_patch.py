"""Patching: which stored activation goes where, in one pass, in decode steps and in beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import PatchMismatch, VectorMismatch
from mi_crow_lightning.hooks import FunctionController, LayerActivationDetector, Layers, PatchController
from tests.hooks.controllers.cases import BATCH, REAL, STORED, original, run
from tests.models import WIDTH, cnn, llama, mlp

OTHER = {"input_ids": BATCH["input_ids"].roll(1, 0).flip(1), "attention_mask": BATCH["attention_mask"]}
NEW = 4


def captured(signature: str, call: dict[str, Tensor], **options: Any) -> Any:
    model, detector = llama().eval(), LayerActivationDetector(signature, **options)
    Layers(model).register_hook(None, detector)
    with torch.no_grad():
        model(**call)
    return detector.get_captured()


@pytest.mark.filterwarnings("ignore:the token IDs .* look padded:UserWarning")
def test_a_run_patched_everywhere_is_the_other_run() -> None:
    call = {"input_ids": BATCH["input_ids"]}
    source = captured("block:*", {"input_ids": OTHER["input_ids"]})
    assert set(source) == {f"model.layers.{i}" for i in range(4)}
    seen = run(llama().eval(), "model.layers", call, PatchController("block:2-3", source))
    bare = run(llama().eval(), "model.layers", call)
    assert torch.equal(seen.passed_on[1], bare.passed_on[1])
    assert torch.equal(seen.passed_on[2], source["model.layers.2"])
    assert torch.equal(seen.passed_on[3], source["model.layers.3"])


@pytest.mark.parametrize("tokens", ["all", "last"])
@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (STORED[0, 0], STORED[0, 0].expand(3, 7, WIDTH)),
        (STORED[:, 0], STORED[:, :1].expand(3, 7, WIDTH)),
        (STORED[:1, 0], STORED[:1, :1].expand(3, 7, WIDTH)),
        (STORED, STORED),
        (STORED[:1], STORED[:1].expand(3, 7, WIDTH)),
        ([STORED], STORED),
    ],
    ids=["(D,)", "(B, D)", "(1, D)", "(B, T, D)", "(1, T, D)", "list"],
)
def test_the_shape_says_how_it_is_aligned(stored: Any, expected: Tensor, tokens: str) -> None:
    chosen = REAL.clone()
    if tokens == "last":
        chosen[:, :-1] = False
    seen = run(llama().eval(), "model.layers", BATCH, PatchController(1, stored, tokens=tokens))
    assert torch.equal(seen.passed_on[1][chosen], expected[chosen])
    assert torch.equal(seen.passed_on[1][~chosen], seen.made[1][~chosen])


def generate(controller: Any = None, **options: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What block 1 makes and passes on in each pass, and the text."""
    model, made, passed_on = llama().eval(), [], []
    model.generation_config.eos_token_id = None
    layers, block = Layers(model), model.model.layers[1]
    block.register_forward_hook(lambda module, args, output: made.append(output.clone()))
    if controller is not None:
        layers.register_hook(None, controller)
    block.register_forward_hook(lambda module, args, output: passed_on.append(output.clone()))
    ids = model.generate(**BATCH, max_new_tokens=NEW, **{"do_sample": False, **options})
    return made, passed_on, ids


def test_decode_steps_are_left_alone_by_a_stored_prompt() -> None:
    made, passed_on, _ = generate(PatchController(1, STORED))
    assert torch.equal(passed_on[0][REAL], STORED[REAL]) and torch.equal(passed_on[0][~REAL], made[0][~REAL])
    assert len(made) == NEW
    for one, other in zip(made[1:], passed_on[1:], strict=True):
        assert other.shape[1] == 1 and torch.equal(one, other)


@pytest.mark.parametrize("cached", [True, False])
def test_without_a_cache_the_stored_prompt_is_put_in_again_and_again(cached: bool) -> None:
    made, passed_on, ids = generate(PatchController(1, STORED), use_cache=cached)
    for step, (one, other) in enumerate(zip(made, passed_on, strict=True)):
        if not cached:
            assert one.shape[1] == 7 + step and torch.equal(other[:, 7:], one[:, 7:])
            assert torch.equal(other[:, :7][REAL], STORED[REAL])
    assert torch.equal(ids, generate(PatchController(1, STORED))[2])


@pytest.mark.parametrize("stored", [STORED[0, 0], STORED[:, 0]], ids=["(D,)", "(B, D)"])
def test_a_vector_goes_to_each_chosen_token_of_each_pass(stored: Tensor) -> None:
    _, passed_on, _ = generate(PatchController(1, stored, tokens="generated"))
    for other in passed_on:
        assert torch.equal(other[:, -1], stored.expand(3, WIDTH))


def test_the_passes_of_a_generate_are_put_in_pass_by_pass() -> None:
    """As far as there are any: one decode step fewer is stored than there are."""
    model, detector = llama().eval(), LayerActivationDetector("block:1", keep="all")
    model.generation_config.eos_token_id = None
    layers = Layers(model)
    layers.register_hook(None, detector)
    layers.register_hook(None, FunctionController("block:0", lambda x: x + 1))
    ids = model.generate(**BATCH, max_new_tokens=NEW - 1, do_sample=False)
    source = detector.get_captured()
    assert [one.shape[1] for one in source] == [7, 1, 1]
    made, passed_on, patched = generate(PatchController(1, source))
    for stored, one, other in zip(source, made, passed_on, strict=False):
        real = REAL if stored.shape[1] == 7 else torch.ones(3, 1, dtype=torch.bool)
        assert torch.equal(other[real], stored[real]) and not torch.equal(one[real], other[real])
    assert torch.equal(made[3], passed_on[3])
    assert ids.shape == (3, 7 + NEW - 1) and patched.shape == (3, 7 + NEW)


def test_the_beams_of_a_sample_share_its_activations() -> None:
    _, passed_on, _ = generate(PatchController(1, STORED), num_beams=3)
    assert passed_on[0].shape[0] == 9
    for row in range(9):
        assert torch.equal(passed_on[0][row][REAL[row // 3]], STORED[row // 3][REAL[row // 3]])


@pytest.mark.parametrize("make", [cnn, mlp])
def test_what_is_no_sequence_needs_its_own_shape(make: Any) -> None:
    model = make().eval()
    x = torch.randn(4, 3, 16, 16) if make is cnn else torch.randn(4, 8)
    with torch.no_grad():
        stored = model[0](x.flip(0))
        Layers(model).register_hook("0", PatchController(None, stored))
        assert torch.equal(model(x), model[1:](stored))


@pytest.mark.parametrize(
    ("stored", "error", "message"),
    [
        (
            STORED[:2],
            PatchMismatch,
            r"what is stored for 'model.layers.1' has shape \(2, 7, 32\), and the activation \(3, 7, 32\): the run "
            "must have as many rows, or a multiple of them",
        ),
        (STORED[:, :5], PatchMismatch, "the stored prompt has 5 columns, and that of the run 7"),
        ([STORED, STORED[:, :1]], None, ""),
        ([STORED[:, :6], STORED[:, :1]], PatchMismatch, "the stored prompt has 6 columns, and that of the run 7"),
        (STORED[:, None], PatchMismatch, "beyond the rows, both must have one shape"),
    ],
)
def test_what_is_not_aligned(stored: Any, error: type[Exception] | None, message: str) -> None:
    controller = PatchController(1, stored)
    if error is None:
        run(llama().eval(), "model.layers", BATCH, controller)
        return
    with original(error, message):
        run(llama().eval(), "model.layers", BATCH, controller)


def test_a_width_that_only_a_pass_shows() -> None:
    with original(VectorMismatch, "what is stored has 7 features, and the activation of 'model.layers.1.mlp' has 32"):
        run(llama().eval(), "model.layers", BATCH, PatchController("block:1.mlp", torch.ones(7)))


def test_rows_where_the_layer_has_no_tokens() -> None:
    with original(PatchMismatch, r"has shape \(4, 2, 32\), and the activation \(4, 32\): beyond the rows"):
        model = mlp().eval()
        Layers(model).register_hook("0", PatchController(None, torch.ones(4, 2, 32)))
        model(torch.ones(4, 8))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            None,
            TypeError,
            "source=None must be a tensor, a list of the tensors of one generate, or a mapping from layer",
        ),
        ([], TypeError, r"source=\[\] must be a tensor"),
        (LayerActivationDetector(1), TypeError, r"to these: give what it captured, \.get_captured\(\)"),
        (torch.arange(3), TypeError, "source must be a float tensor, not a torch.int64 tensor"),
        ([STORED, "x"], TypeError, r"source\[1\] must be a float tensor, not a str"),
        ({1: None}, TypeError, r"source\[1\]=None must be a tensor"),
        (torch.ones(()), ValueError, r"source has shape \(\): it must hold at least one activation"),
        (torch.ones(0, 3), ValueError, r"source has shape \(0, 3\)"),
        (
            [STORED, STORED],
            ValueError,
            r"source holds the shapes \[\(3, 7, 32\), \(3, 7, 32\)\]: a list is the passes of one generate",
        ),
        ([STORED[:, 0]], ValueError, r"source holds the shapes \[\(3, 32\)\]"),
    ],
)
def test_wrong_sources(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PatchController(1, source)


def test_the_source_is_copied_and_gets_no_gradient() -> None:
    source = torch.ones(WIDTH, requires_grad=True)
    model = nn.Sequential(nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1))
    controller = PatchController("0", source, when=lambda x, ctx: torch.tensor([True, False]))
    Layers(model).register_hook(None, controller)
    with torch.no_grad():
        source.zero_()
    x = torch.randn(2, 4)
    model(x).sum().backward()
    assert source.grad is None
    assert torch.allclose(model[1].weight.grad[0], 1 + model[0](x)[1])
    assert torch.allclose(model[0].weight.grad, torch.outer(model[1].weight[0], x[1]))
