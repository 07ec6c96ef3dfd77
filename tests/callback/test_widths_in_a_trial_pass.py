"""Vectors for layers that declare no width are refused when a run starts, where a trial pass shows the width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
from torch import Tensor, nn

from mi_crow_lightning import (
    AblationController,
    HookCallback,
    PatchController,
    ProjectionDetector,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import HookError, VectorMismatch
from tests.callback.runs import STAGES, OnEvent, Trace, assert_bit_equal, data_of, fingerprint, module_of, run
from tests.models import WIDTH, Module, assert_same_handles, handles, mlp, trainer

WRONG = torch.ones(64)
NEEDS_V5 = pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4 asks for numbers; there the first activation shows the width"
)


class Mixer(nn.Module):
    """A block that declares nothing: tokens (B, T, 8) in, (B, T, 12) out, with scores (B, T, T) on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.out = nn.Softmax(-1), nn.Parameter(torch.randn(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x @ x.mT) @ x @ self.out


class Example(Module):
    """A module that says what its input is like."""

    def __init__(self, model: nn.Module | None = None, example: Any = None) -> None:
        super().__init__(model if model is not None else nn.Sequential(mlp(), nn.Sequential(nn.ReLU())))
        self.example_input_array = torch.zeros(3, 8) if example is None else example

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


HOOKS: dict[str, tuple[str, int, Callable[[], Any]]] = {  # with the model, and the width of the layer
    "attention": ("llama", WIDTH, lambda: SteeringController("block:1.attn", WRONG)),
    "an MLP": ("llama", WIDTH, lambda: AblationController("block:1.mlp", WRONG)),
    "the input of an MLP": ("llama", WIDTH, lambda: SteeringController("block:1.mlp", WRONG, hook_type="pre_forward")),
    "an activation function": ("llama", 48, lambda: SteeringController("block:1.mlp.act_fn", WRONG)),
    "the whole body": ("llama", WIDTH, lambda: SteeringController("model.model", WRONG)),
    "projections": ("llama", WIDTH, lambda: ProjectionDetector("block:*.mlp", WRONG)),
    "stored activations": ("llama", WIDTH, lambda: PatchController("block:1.mlp", torch.zeros(1, 9, 64))),
    "GPT-2's attention": ("gpt2", WIDTH, lambda: SteeringController("block:1.attn", WRONG)),
    "BERT's attention": ("bert", WIDTH, lambda: SteeringController("block:1.attn", WRONG)),
    "a vision transformer's MLP": ("vit", WIDTH, lambda: SteeringController("block:1.mlp", WRONG)),
}


def watching(hook: Any, **options: Any) -> HookCallback:
    return HookCallback(**{"controllers" if hook.edits else "detectors": hook}, **options)


def refused(module: pl.LightningModule, hook: Any, stage: str, data: list[Any], words: str) -> None:
    """Assert that a run is refused before its first batch, and leaves no handle."""
    batches: list[int] = []
    before = handles(module)
    seen = [
        OnEvent(f"on_{name}_batch_start", lambda *_: batches.append(1))
        for name in ("train", "validation", "test", "predict")
    ]
    with pytest.raises(VectorMismatch, match=words):
        run(stage, trainer(watching(hook), *seen), module, data)
    assert not batches
    assert_same_handles(before, module)


@NEEDS_V5
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", HOOKS)
def test_a_run_is_refused_before_its_first_batch(case: str, stage: str) -> None:
    kind, width, make = HOOKS[case]
    words = rf"has 64 features, and the layer's activations have {width} \(shape \(2, \d+, {width}\) in a trial pass\)"
    refused(module_of(kind), make(), stage, data_of(kind), words)


@NEEDS_V5
@pytest.mark.parametrize("case", HOOKS)
def test_a_dry_run_reports_it_and_goes_on(case: str) -> None:
    kind, width, make = HOOKS[case]
    watch = watching(make(), dry_run=True)
    assert len(run("predict", trainer(watch), module_of(kind), data_of(kind))) == 5
    (refusal,) = watch.report().refusals
    assert f"the layer's activations have {width} (shape" in refusal


@NEEDS_V5
def test_every_hook_that_does_not_fit_is_in_the_report_of_a_dry_run() -> None:
    hooks = [SteeringController(f"block:*.{role}", WRONG, hook_id=role) for role in ("attn", "mlp")]
    watch = HookCallback(controllers=hooks, dry_run=True)
    run("predict", trainer(watch), module_of("llama"), data_of("llama"))
    attention, feed_forward = watch.report().refusals
    assert "'attn'" in attention and "'mlp'" in feed_forward


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("layer", "options", "width"),
    [("model.1", {}, 5), ("model.0.1", {}, WIDTH), ("model.1.0", {"hook_type": "pre_forward"}, 5)],
)
def test_an_example_input_shows_it(layer: str, options: dict[str, Any], width: int, stage: str) -> None:
    words = rf"the layer's activations have {width} \(shape \(3, {width}\) in a trial pass\)"
    refused(Example(), SteeringController(layer, WRONG, **options), stage, data_of(), words)


def test_an_input_may_have_another_width_than_the_output() -> None:
    module = Example(nn.Sequential(nn.Linear(5, 8), Mixer()), torch.zeros(2, 7, 5))
    hook = SteeringController("model.1", torch.ones(12), hook_type="pre_forward")  # as wide as the output
    words = r"the layer's activations have 8 \(shape \(2, 7, 8\) in a trial pass\)"
    refused(module, hook, "predict", token_data(), words)


def convolutions() -> nn.Module:
    """A stem with its norm, as one container."""
    return nn.Sequential(nn.Sequential(nn.Conv1d(8, 12, 3), nn.BatchNorm1d(12), nn.ReLU()), nn.Flatten())


def test_convolutions_in_a_container_show_their_channels() -> None:
    module = Example(convolutions(), torch.zeros(2, 8, 6))
    words = r"the layer's activations have 12 \(shape \(2, 12, 4\) in a trial pass\)"
    refused(module, SteeringController("model.0", WRONG), "predict", token_data(), words)
    refused(module, SteeringController("model.0", torch.ones(5)), "predict", token_data(), words)
    assert run("predict", trainer(watching(SteeringController("model.0", torch.ones(12)))), module, token_data())


def token_data(count: int = 20) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=generator), torch.tensor(0)) for _ in range(count)]


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = Mixer()

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.mT)  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [6, 12])
def test_a_width_that_is_that_of_the_input_is_left_to_the_run(width: int) -> None:
    """Scores are as wide as the text of the example is long; another text gives others."""
    module = Example(Last(), torch.zeros(2, 8, 9))
    layer = "model.mixer.scores" if width == 6 else "model.mixer"
    assert run("predict", trainer(watching(SteeringController(layer, torch.ones(width)))), module, token_data())
    with pytest.raises(HookError if width == 6 else VectorMismatch, match=rf"has \d+ .* ha(s|ve) {width}"):
        run("predict", trainer(watching(SteeringController(layer, torch.ones(7)))), module, token_data())


class Twice(nn.Module):
    """One layer without a declared width, called with two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.relu(x), self.relu(x[:, :4])], 1)


def test_a_vector_that_fits_one_of_the_calls_is_left_to_the_run() -> None:
    with pytest.raises(HookError, match=r"has 4 features, and the activation of 'model\.relu' has 8"):
        run("predict", trainer(watching(SteeringController("model.relu", torch.ones(4)))), Example(Twice()), data_of())


class Fails(Example):
    def forward(self, x: Tensor) -> Any:
        raise RuntimeError("only training_step is written")


def test_a_pass_that_fails_refuses_nothing() -> None:
    assert run("predict", trainer(watching(SteeringController("model.1", torch.ones(5)))), Fails(), data_of())


class Counts(Example):
    """Draws dropout, counts its calls, and keeps what it returned."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(8, WIDTH), nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), mlp_of(WIDTH)))
        self.calls, self.kept = 0, []

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        self.kept.append(self.model(x))
        self.log("calls", float(self.calls))
        return self.kept[-1]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1]) * (1 + self.calls)


def mlp_of(width: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Linear(width, 5))


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_run_with_a_trial_pass_is_the_run_without(dry_run: bool) -> None:
    watch = HookCallback(
        [ProjectionDetector("model.3", torch.ones(5))],
        [SteeringController("model.3.0", torch.ones(WIDTH), schedule=Schedule("predict"))],
        dry_run=dry_run,
    )
    left = []
    for callbacks in ([], [watch]):
        module, trace = Counts(), Trace()
        torch.manual_seed(3)
        runner = trainer(*callbacks, trace, limit_val_batches=0)
        run("fit", runner, module, data_of())
        kept = {str(index): value.detach() for index, value in enumerate(module.kept)}
        left.append({**fingerprint(module, runner), "losses": trace.losses, "calls": module.calls, "kept": kept})
    assert left[0]["calls"] == 5
    assert_bit_equal(*left)


TRIED: list[int] = []


class Tried(Example):
    """Notes, outside of all modules, that its forward ran; no step calls it."""

    def forward(self, x: Tensor) -> Any:
        TRIED.append(1)
        return self.model(x)


@pytest.mark.parametrize(("layer", "width", "tried"), [("model.0.3", WIDTH, 0), ("model.0.4", WIDTH, 1)])
def test_a_trial_pass_is_made_once_and_only_where_a_width_is_not_declared(layer: str, width: int, tried: int) -> None:
    TRIED.clear()
    hooks = [SteeringController(layer, torch.ones(width)), ProjectionDetector(layer, torch.ones(width))]
    run("predict", trainer(HookCallback(hooks[1:], hooks[:1])), Tried(), data_of())
    assert len(TRIED) == tried
