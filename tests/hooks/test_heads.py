"""Single attention heads: read and edited by every hook as slices of the output projection's input, taken by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    ClampController,
    ContrastDetector,
    Controller,
    DriftDetector,
    FunctionController,
    GradientStatistics,
    HookCallback,
    LayerActivationDetector,
    PatchController,
    ProjectionDetector,
    ScaleController,
    SteeringController,
    SteeringVector,
)
from mi_crow_lightning.errors import (
    HookConflict,
    HookError,
    LayerNotFound,
    RegistrationError,
    VectorMismatch,
    WrittenInPlace,
)
from mi_crow_lightning.hooks import Detector, Hook, Layers, attached
from mi_crow_lightning.hooks.detectors.weight_statistics import WeightStatistics
from mi_crow_lightning.vectors.formats.blocks import numbers_of
from tests.hooks.detectors.drifting import adapted
from tests.hooks.sliced_heads import BATCH, HEADS, MODELS, REAL, by_hand
from tests.models import Module, handles, llama, loader, token_data, trainer


def readings(layers: Layers) -> dict[tuple[str, str], float]:
    return {(row.layer.rpartition(".")[2], row.name): row.value for row in layers.take_readings()}  # type: ignore[misc]


@pytest.fixture(params=MODELS)
def case(request: Any) -> tuple[nn.Module, str, int]:
    make, projection, width = MODELS[request.param]
    return make().eval(), projection, width


@pytest.mark.documents("compatibility/single-attention-heads/detectors")
def test_statistics_are_those_of_the_slices_in_float64(case: tuple[nn.Module, str, int]) -> None:
    model, projection, width = case
    seen = by_hand(model, projection, width, None, 0)
    names = ("mean", "std", "rms", "min", "max")
    with attached(model, ActivationStatistics("block:1.attn.head:*", statistics=names, histogram=False)) as layers:
        model(**BATCH)
        found = readings(layers)
    assert len(found) == HEADS * len(names)
    for head in range(HEADS):
        x = seen[0].double().numpy()[:, :, head][REAL.numpy()]
        expected = [x.mean(), x.std(), np.sqrt((x**2).mean()), x.min(), x.max()]
        np.testing.assert_allclose([found[f"head:{head}", name] for name in names], expected, rtol=1e-5)


def test_captures_and_projections_are_those_of_the_slices(case: tuple[nn.Module, str, int]) -> None:
    model, projection, width = case
    seen = by_hand(model, projection, width, None, 0)
    vector = torch.randn(width, generator=torch.Generator().manual_seed(1))
    capture = LayerActivationDetector("block:1.attn.head:-2")
    onto = ProjectionDetector("block:1.attn.head:1-2", vector)
    with attached(model, [capture, onto]) as layers:
        model(**BATCH)
        found = readings(layers)
    assert torch.equal(capture.get_captured(), seen[0][:, :, 2])  # type: ignore[arg-type]
    for head in (1, 2):
        along = seen[0].double()[:, :, head][REAL] @ (vector / vector.norm()).double()
        assert found[f"head:{head}", "mean"] == pytest.approx(along.mean().item(), rel=1e-5)


def edits(width: int) -> dict[str, tuple[Callable[[], Controller], Callable[[Tensor], Tensor]]]:
    """Controllers on head 3, each with what it does to the head's slice."""
    generator = torch.Generator().manual_seed(1)
    vector, stored = torch.randn(width, generator=generator), torch.randn(3, 7, width, generator=generator)
    unit, at = vector / vector.norm(), "block:1.attn.head:3"
    return {
        "steering": (lambda: SteeringController(at, vector, strength=2.0), lambda x: x + 2.0 * vector),
        "scale": (lambda: ScaleController(at, 0.0), torch.zeros_like),
        "ablation": (lambda: AblationController(at, vector), lambda x: x - (x @ unit)[..., None] * unit),
        "clamp": (
            lambda: ClampController(at, vector, high=0.0),
            lambda x: x - (x @ unit).clamp_min(0.0)[..., None] * unit,
        ),
        "patch": (lambda: PatchController(at, stored), lambda x: stored.to(x)),
        "function": (lambda: FunctionController(at, lambda x: x.flip(-1)), lambda x: x.flip(-1)),
    }


@pytest.mark.documents("compatibility/single-attention-heads/controllers")
@pytest.mark.parametrize("name", edits(8))
def test_edits_are_those_of_the_slice(case: tuple[nn.Module, str, int], name: str) -> None:
    model, projection, width = case
    controller, edit = edits(width)[name]

    def where_real(x: Tensor) -> Tensor:
        return torch.where(REAL[..., None], edit(x), x)

    def logits_and_gradients() -> list[Tensor]:
        model.zero_grad()
        out = model(**BATCH).logits
        out.square().mean().backward()
        return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    bare = logits_and_gradients()
    with attached(model, controller()):
        found = logits_and_gradients()
    by_hand(model, projection, width, where_real, 3)
    exact = name not in ("ablation", "clamp")  # which multiply in another order
    for one, other in zip(found, logits_and_gradients(), strict=True):
        assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    assert not torch.equal(found[0], bare[0])


def test_only_the_chosen_heads_change() -> None:
    make, projection, width = MODELS["gemma"]
    model, change = make().eval(), torch.ones(width)
    bare = by_hand(model, projection, width, None, 0)
    model(**BATCH)
    with attached(model, SteeringController(["block:1.attn.head:0", "block:1.attn.head:2"], change)):
        steered = by_hand(model, projection, width, None, 0)  # behind ours
        model(**BATCH)
    for head in range(HEADS):
        expected = bare[0][:, :, head]
        if head in (0, 2):
            expected = torch.where(REAL[..., None], expected + change, expected)
        assert torch.equal(steered[0][:, :, head], expected)


def test_a_hook_takes_the_heads_of_a_layer_in_one_handle_and_leaves_none() -> None:
    model = llama()
    before = handles(model)
    with attached(model, [ActivationStatistics("block:*.attn.head:*"), ScaleController("block:0.attn.head:1", 2)]):
        model(**BATCH)
        counts = [len(block.self_attn.o_proj._forward_pre_hooks) for block in model.model.layers]
    assert counts == [2, 1, 1, 1]
    assert handles(model) == before


def test_gradients_are_the_slices_of_the_whole_gradient(case: tuple[nn.Module, str, int]) -> None:
    model, projection, width = case
    whole: list[Tensor] = []

    def wait(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].register_hook(lambda gradient: whole.append(gradient.double()))

    model.get_submodule(projection).register_forward_pre_hook(wait)
    detector = GradientStatistics("block:1.attn.head:*", statistics=["mean", "rms"], histogram=False)
    with attached(model, detector) as layers:
        model(**BATCH).logits.square().sum().backward()
        found = readings(layers)
    heads = whole[0].unflatten(-1, (HEADS, width))
    for head in range(HEADS):
        of_head = heads[:, :, head][REAL]
        assert found[f"head:{head}", "rms"] == pytest.approx(of_head.square().mean().sqrt().item(), rel=1e-5)
        assert found[f"head:{head}", "mean"] == pytest.approx(of_head.mean().item(), rel=1e-4, abs=1e-9)


def test_detectors_see_what_controllers_on_any_head_made() -> None:
    model, detector = llama().eval(), LayerActivationDetector("block:0.attn.head:*")
    bare = LayerActivationDetector("block:0.attn.head:*", before_edits=True)
    projection = FunctionController("block:0.attn.o_proj", lambda x: x * 2, hook_type="pre_forward")
    with attached(model, [detector, bare, ScaleController("block:0.attn.head:1", 0), projection]):
        model(**BATCH)
    found, was = (one.get_captured() for one in (detector, bare))
    for head in range(HEADS):
        name = f"model.layers.0.self_attn.head:{head}"
        expected = torch.where(REAL[..., None], was[name] * (0 if head == 1 else 2), was[name])  # type: ignore[index]
        assert torch.equal(found[name], expected)  # type: ignore[index]


def test_every_head_is_a_place_for_a_controller() -> None:
    layers = Layers(llama())
    layers.register_hook("block:0.attn.head:1", ScaleController(None, 0))
    layers.register_hook("block:0.attn.head:2", ScaleController(None, 0))
    with pytest.raises(HookConflict, match=r"layer 'model.layers.0.self_attn.head:1' already has a controller"):
        layers.register_hook("block:0.attn.head:0-1", ScaleController(None, 0))
    assert len(layers.get_hooks("block:0.attn.head:2")) == 1


class Heads(Detector):
    """Notes what a hook gets at a head."""

    def __init__(self, layer_signature: Any) -> None:
        super().__init__(layer_signature)
        self.calls: list[Any] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.calls.append((ctx.layer, ctx.index, ctx.head, tuple(x.shape), tuple(ctx.args[0].shape)))


def test_a_hook_knows_its_head() -> None:
    model, detector = llama(), Heads(["block:1", "block:1.attn.head:-1"])
    with attached(model, detector):
        model(**BATCH)
    name = "model.layers.1.self_attn.head:3"
    assert detector.calls == [
        (name, 1, 3, (3, 7, 8), (3, 7, 32)),
        ("model.layers.1", 1, None, (3, 7, 32), (3, 7, 32)),
    ]


class Raw(Hook):
    """Returns something from the most general method."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__("block:1.attn.head:0")
        self.make = make

    def _hook_fn(self, module: nn.Module, input: Any, output: Any = None) -> Any:
        return self.make(output)


def test_the_most_general_hook_may_replace_a_head() -> None:
    model = llama().eval()
    with attached(model, ScaleController("block:1.attn.head:0", 3.0, tokens="all")), torch.no_grad():
        expected = model(BATCH["input_ids"][:1]).logits
    with attached(model, Raw(lambda x: x * 3.0)), torch.no_grad():
        assert torch.equal(model(BATCH["input_ids"][:1]).logits, expected)
    for make in (lambda x: x[..., :1], lambda x: (x,), lambda x: x.double()):
        with pytest.raises(HookError, match="a controller must"), attached(model, Raw(make)):
            model(**BATCH)


def test_writing_to_a_head_in_place_is_noticed() -> None:
    class Writes(Detector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            x.mul_(2)

    model = llama().eval()
    with pytest.raises(HookError) as error, attached(model, Writes("block:1.attn.head:0")), torch.no_grad():
        model(**BATCH)
    assert isinstance(error.value.original_error, WrittenInPlace)


def test_what_heads_cannot_have_is_refused() -> None:
    layers = Layers(llama())
    with pytest.raises(VectorMismatch, match="has 32 features, and the layer's activations have 8"):
        layers.register_hook("block:1.attn.head:0", SteeringController(None, torch.ones(32)))
    with pytest.raises(RegistrationError, match="leave out hook_type='pre_forward'"):
        layers.register_hook("block:1.attn.head:0", ActivationStatistics(hook_type="pre_forward"))
    with pytest.raises(RegistrationError, match=r"reads weights, and 'model.layers.1.self_attn.head:0' is a head"):
        layers.register_hook("block:1.attn.head:0", WeightStatistics(), due=False)
    with pytest.raises(LayerNotFound, match="has 4 heads, 0 to 3"):
        layers.register_hook("block:1.attn.head:4", ActivationStatistics())
    assert not layers.get_hooks()


def test_drift_from_the_adapter_switched_off_is_that_of_the_slices() -> None:
    model, detector = adapted().eval(), DriftDetector("block:1.attn.head:*", sketch_size=8)
    seen = by_hand(model, "base_model.model.model.layers.1.self_attn.o_proj", 8, None, 0)
    with attached(model, detector) as layers, torch.no_grad():
        model(**BATCH)
        layers.take_readings()
    on, off = (x.double()[REAL] for x in seen)
    assert [row.layer for row in detector.table()] == [f"model.layers.1.self_attn.head:{head}" for head in range(HEADS)]
    for head, row in enumerate(detector.table()):
        cosines = torch.cosine_similarity(on[:, head], off[:, head])
        assert row.cosine == pytest.approx(cosines.mean().item(), rel=1e-5)
        assert row.cosine < 0.999


@pytest.mark.filterwarnings("ignore:at .* layers the direction is not better:UserWarning")
def test_a_vector_of_heads_is_extracted_saved_fitted_and_steers(tmp_path: Path) -> None:
    module = Module(llama().eval())
    contrast = ContrastDetector("block:*.attn.head:*", tokens="all")
    pairs = [{**row, "label": torch.tensor(i % 2)} for i, row in enumerate(token_data(8))]
    watch = HookCallback(contrast)
    module.predict_step = lambda batch, batch_idx: module.model(batch["input_ids"], batch["attention_mask"]).logits  # type: ignore[method-assign]
    trainer(watch).predict(module, loader(pairs))
    contrast.vectors().save(tmp_path / "heads.safetensors")
    vector = SteeringVector.load(tmp_path / "heads.safetensors")
    assert {tuple(one.shape) for one in vector.values()} == {(8,)} and len(vector) == 16
    assert "model.model.layers.3.self_attn.head:2" in vector
    bare = llama().eval()
    assert "model.layers.3.self_attn.head:2" in vector.fitted_to(bare, any_model=True)
    with attached(bare, SteeringController("block:1.attn.head:2", vector, strength=3.0)), torch.no_grad():
        steered = bare(**BATCH).logits
    by_hand(bare, "model.layers.1.self_attn.o_proj", 8, lambda x: torch.where(REAL[..., None], x + 3 * own, x), 2)
    own = vector["model.model.layers.1.self_attn.head:2"]
    with torch.no_grad():
        assert torch.equal(bare(**BATCH).logits, steered)
    with pytest.raises(ValueError, match=r"is a part of block 0, and this format holds directions of blocks"):
        numbers_of(vector)


class Half(nn.Linear):
    """A projection that is called with a part of its channels, as one that is split over processes."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight[:, : input.shape[-1]], self.bias)


class OfHalf(nn.Module):
    num_heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.o_proj = Half(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.o_proj(x[..., :8])
        return y


def test_a_projection_that_is_called_with_some_of_the_heads_is_refused() -> None:
    model = nn.Sequential(nn.Identity(), OfHalf())
    x = torch.randn(2, 3, 16)
    detector, expected = Heads("1.head:0"), model(x)
    message = r"'1\.o_proj' is called with 8 channels, and 4 heads of 4 are 16"
    with pytest.raises(HookError, match=message), attached(model, detector):
        model(x)
    assert not detector.calls and torch.equal(model(x), expected)


def test_heads_are_what_transformers_own_attention_returns(
    case: tuple[nn.Module, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, projection, _ = case
    own, returned = ALL_ATTENTION_FUNCTIONS["sdpa"], dict[nn.Module, Tensor]()

    def noted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = own(module, *args, **kwargs)
        returned[module] = result[0].detach().clone()  # (B, T, H, D_head)
        return result

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", noted)
    capture = LayerActivationDetector("block:1.attn.head:*")
    with attached(model, capture), torch.no_grad():
        model(**BATCH)
    expected = returned[model.get_submodule(projection.rpartition(".")[0])]
    assert torch.equal(torch.stack(list(capture.get_captured().values()), 2), expected)  # type: ignore[union-attr]
