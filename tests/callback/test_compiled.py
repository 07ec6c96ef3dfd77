"""Hooks in runs of what `torch.compile` compiled: the numbers of the uncompiled run, in graphs of one piece."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    ClampController,
    Detector,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    ProjectionDetector,
    ScaleController,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import NeverFired, RegistrationError
from mi_crow_lightning.hooks import Tokens
from mi_crow_lightning.hooks.hook import Hook
from tests.callback.runs import checkpointed, fit, run, told
from tests.models import (
    WIDTH,
    Module,
    assert_same_handles,
    handles,
    llama,
    loader,
    mlp,
    token_data,
    trainer,
    vector_data,
)

# Dynamo looks at .grad of what it guards, and hides the warning only where warnings are no errors.
# transformers 4.57 makes its masks by vmap, in which dynamo meets a class of torch's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
INDUCTOR = pytest.param("inductor", marks=pytest.mark.skipif(not COMPILER, reason="inductor needs a C++ compiler"))


class Silent(Module):
    """Does not log: Lightning's ``self.log`` cannot be traced, so a compiled step has none."""

    def log(self, *args: Any, **options: Any) -> None:
        pass


def small_llama(**changes: Any) -> Silent:
    return Silent(llama(num_hidden_layers=2, attention_dropout=0.0, **changes))


class Chain(nn.Sequential):
    """A class of one's own: of torch's containers, `compile()` compiles nothing."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def small_mlp() -> Silent:
    model = Chain(*mlp())
    model[2] = nn.Dropout(0.0)
    return Silent(model)


def three_blocks() -> Silent:
    blocks = [Chain(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)]
    for block in blocks:
        block.compile(backend="eager")
    return Silent(Chain(*blocks, nn.Linear(8, 5)))


def as_it_is(module: Silent, backend: Any) -> pl.LightningModule:
    return module


def whole(module: Silent, backend: Any) -> pl.LightningModule:
    return torch.compile(module, backend=backend)  # type: ignore[return-value]


def wrapped(module: Silent, backend: Any) -> pl.LightningModule:
    module.model = torch.compile(module.model, backend=backend)  # type: ignore[assignment]
    return module


def in_place(module: Silent, backend: Any) -> pl.LightningModule:
    module.model.compile(backend=backend)
    return module


WAYS = [whole, wrapped, in_place]


class Counted:
    """A backend that counts graphs, and the breaks between them."""

    def __init__(self, backend: str = "eager") -> None:
        self.backend = CompileCounterWithBackend(backend)
        counters.clear()

    @property
    def graphs(self) -> int:
        return self.backend.frame_count

    @property
    def breaks(self) -> int:
        return sum(counters["graph_break"].values())


def fitted(
    way: Callable[[Silent, Any], pl.LightningModule],
    hooks: Callable[[], HookCallback] | None,
    backend: str = "eager",
    **changes: Any,
) -> tuple[HookCallback | None, Counted, list[Tensor]]:
    """A fit with validation inside and a sanity check before; gives the weights too."""
    torch._dynamo.reset()
    counted, module = Counted(backend), small_llama()
    callback = hooks() if hooks is not None else None
    runner = trainer(*([callback] if callback is not None else []), **{"num_sanity_val_steps": 1, **changes})
    run("fit", runner, way(module, counted.backend), token_data(8))
    return callback, counted, [weight.detach().clone() for weight in module.parameters()]


def assert_same_numbers(found: HookCallback, expected: HookCallback) -> None:
    rows = found.history(), expected.history()
    assert len(rows[0]) == len(rows[1]) > 0
    for one, other in zip(*rows, strict=True):
        assert one[:-1] == other[:-1]  # stage, step and tag
        assert one[-1] == pytest.approx(other[-1], rel=1e-4, abs=1e-5), one
    for one, other in zip(found.effects(), expected.effects(), strict=True):
        assert one[:5] == other[:5]  # the tokens that were changed, and how often
        assert one[5:] == pytest.approx(other[5:], rel=1e-4)


def watched_and_steered() -> HookCallback:
    steer = SteeringController("block:1", torch.ones(WIDTH), 0.1, schedule=Schedule(stages=["train", "validate"]))
    watch = ActivationStatistics("block:1", statistics=["mean", "std", "dead_share"])
    return HookCallback(watch, steer, log_every_n_steps=2)


@pytest.mark.parametrize("way", WAYS)
def test_a_fit_gives_the_numbers_of_one_that_is_not_compiled(way: Any) -> None:
    expected, _, weights = fitted(as_it_is, watched_and_steered, max_epochs=3)
    found, counted, compiled_weights = fitted(way, watched_and_steered, max_epochs=3)
    assert found is not None and expected is not None
    assert_same_numbers(found, expected)
    for one, other in zip(compiled_weights, weights, strict=True):
        torch.testing.assert_close(one, other)
    _, bare, _ = fitted(way, None)
    assert counted.breaks == bare.breaks == 0
    assert bare.graphs < counted.graphs <= bare.graphs + 2


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_other_backends(backend: str) -> None:
    callbacks, counted = [], Counted(backend)
    for way in (as_it_is, wrapped):
        watch = ActivationStatistics("model.3", statistics=["mean", "std", "dead_share"], histogram=False)
        steer = ScaleController("model.3", 2.0, schedule=Schedule(stages="train"))
        callbacks.append(HookCallback(watch, steer))
        run("fit", trainer(callbacks[-1], limit_val_batches=0), way(small_mlp(), counted.backend), vector_data())
    assert_same_numbers(*callbacks)
    assert (counted.graphs, counted.breaks) == (1, 0)


class Outputs:
    """What a layer gave in an eager run, as numpy float64, real tokens only."""

    def __init__(self, layer: nn.Module) -> None:
        self.seen: list[np.ndarray] = []
        layer.register_forward_hook(lambda module, args, output: self.seen.append(output.detach().double().numpy()))

    def tokens(self) -> np.ndarray:
        masks = [batch["attention_mask"].numpy().astype(bool) for batch in loader(token_data())]
        return np.concatenate([x[mask] for x, mask in zip(self.seen, masks, strict=True)])


@pytest.mark.parametrize("way", WAYS)
def test_statistics_leave_padding_out(way: Any) -> None:
    bare = small_llama()
    outputs = Outputs(bare.model.model.layers[1])  # type: ignore[index]
    run("validate", trainer(), bare, token_data())
    x = outputs.tokens()
    watch = HookCallback(ActivationStatistics("block:1"))
    run("validate", trainer(watch), way(small_llama(), "eager"), token_data())
    found = {tag.split("/")[0].removeprefix("activations_"): value for *_, tag, value in watch.history()}
    norms = np.linalg.norm(x, axis=1)
    expected = {
        "mean": x.mean(),
        "std": x.std(),
        "min": x.min(),
        "max": x.max(),
        "token_norm_mean": norms.mean(),
        "token_norm_max": norms.max(),
        "kurtosis": ((x - x.mean()) ** 4).mean() / x.var() ** 2 - 3,
        "outlier_ratio": (rms := np.sqrt((x**2).mean(0))).max() / np.median(rms),
        "nonfinite_count": 0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert found["zero_share"] == found["dead_share"] == 0


# The trap: what was compiled before the hooks came.


@pytest.mark.parametrize("way", WAYS)
def test_hooks_that_come_after_a_compiled_run_are_seen(way: Any, caplog: pytest.LogCaptureFixture) -> None:
    counted, module = Counted(), small_mlp()
    module = way(module, counted.backend)
    before = handles(getattr(module, "_orig_mod", module))
    bare = run("predict", trainer(), module, vector_data(8))
    first = HookCallback(controllers=ScaleController("model.3", 2.0))
    with caplog.at_level(logging.INFO):
        scaled = run("predict", trainer(first), module, vector_data(8))
    assert caplog.text.count("what torch.compile compiled earlier in this process was forgotten") == 1
    second = HookCallback(ActivationStatistics("model.0"), ScaleController("model.3", 3.0, hook_id="thrice"))
    again = run("predict", trainer(second), module, vector_data(8))
    assert [effect.fired for effect in (*first.effects(), *second.effects())] == [2, 2]
    expected = run(
        "predict", trainer(HookCallback(controllers=ScaleController("model.3", 2.0))), small_mlp(), vector_data(8)
    )
    for ones, others in zip(scaled, expected, strict=True):
        torch.testing.assert_close(ones, others)
    assert not torch.equal(scaled[0], again[0])
    # Nothing stays: the model is the bare one again, though its graphs were made with hooks.
    for ones, others in zip(run("predict", trainer(), module, vector_data(8)), bare, strict=True):
        assert torch.equal(ones, others)
    assert_same_handles(before, getattr(module, "_orig_mod", module))
    assert torch._dynamo.config.skip_nnmodule_hook_guards and torch._dynamo.config.recompile_limit == 8


def test_of_two_modules_of_a_class_the_one_with_the_hook_is_seen() -> None:
    """torch's own guards would let the graph of the first serve for both."""
    module = three_blocks()
    watch = HookCallback(ActivationStatistics("model.1.0"), ScaleController("model.1.0", 2.0, schedule=Schedule()))
    run("validate", trainer(watch), module, vector_data(8))
    assert {row.layer for row in watch.history()} >= {"model.1.0"}
    assert [effect.fired for effect in watch.effects()] == [2]


def test_a_run_that_crashes_leaves_nothing() -> None:
    class Crash(pl.Callback):
        def on_train_batch_end(self, *event: Any) -> None:
            raise OSError("the disk is gone")

    module = in_place(small_mlp(), "eager")
    before = handles(module)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(module, vector_data(), HookCallback(ActivationStatistics("model.3")), Crash())
    assert_same_handles(before, module)
    assert torch._dynamo.config.skip_nnmodule_hook_guards


class Half(nn.Module):
    """Never calls one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


def test_a_layer_that_never_runs_is_told() -> None:
    detector = ActivationStatistics("model.*", schedule=Schedule())
    with told("these of its 2 layers never ran: model.unused"):
        run("predict", trainer(HookCallback(detector)), in_place(Silent(Half()), "eager"), vector_data(8))
    steer = HookCallback(controllers=ScaleController("model.unused", 2.0))
    with pytest.raises(NeverFired, match=r"these of its 1 layers never ran: model\.unused"):
        run("predict", trainer(steer), in_place(Silent(Half()), "eager"), vector_data(8))


# Schedules.


def test_two_schedules_that_go_on_and_off_by_themselves() -> None:
    counted, module = Counted(), small_mlp()
    hooks = [
        ScaleController("model.3", 2.0, hook_id="even", schedule=Schedule("predict", every_n_batches=2)),
        ScaleController("model.0", 2.0, hook_id="third", schedule=Schedule("predict", every_n_batches=3)),
        ScaleController("model.3", 2.0, hook_id="all", schedule=Schedule("predict")),
    ]
    watch = HookCallback(controllers=hooks)
    run("predict", trainer(watch), in_place(module, counted.backend), vector_data(48))
    assert {effect.hook: effect.fired for effect in watch.effects()} == {"even": 6, "third": 4, "all": 12}
    assert (counted.graphs, counted.breaks) == (4, 0)


def test_a_third_schedule_is_refused() -> None:
    hooks = [
        ActivationStatistics("model.3", name=f"every {n}", schedule=Schedule("train", every_n_batches=n))
        for n in (2, 3, 4)
    ]
    with pytest.raises(RegistrationError, match=r"on and off by 3 schedules: .*every_n_batches=2.*at most 2"):
        fit(in_place(small_mlp(), "eager"), vector_data(), HookCallback(hooks))
    # Of those that do not go on and off in this run there may be more.
    run("predict", trainer(HookCallback(hooks)), in_place(small_mlp(), "eager"), vector_data(8))


def test_switching_a_hook_off_and_on_in_a_run() -> None:
    steer = ScaleController("model.3", 2.0)

    class Switch(pl.Callback):
        def on_predict_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *rest: Any) -> None:
            (steer.enable if batch_idx % 2 else steer.disable)()

    watch = HookCallback(controllers=steer)
    run("predict", trainer(Switch(), watch), in_place(small_mlp(), "eager"), vector_data(20))
    assert [effect.fired for effect in watch.effects()] == [2]


# What hooks may do.


@pytest.mark.parametrize(
    "make",
    [
        lambda: SteeringController("model.0", torch.arange(WIDTH) / WIDTH, -2.0, preserve_norm=True),
        lambda: SteeringController("model.*", {"model.0": torch.ones(WIDTH), "model.3": torch.ones(WIDTH)}),
        lambda: SteeringController("model.3", torch.ones(WIDTH), torch.tensor([0.0, 1.0, 2.0, 3.0])),
        lambda: SteeringController("model.3", torch.ones(WIDTH), hook_type="pre_forward"),
        lambda: AblationController("model.3", torch.eye(WIDTH)[:3], strength=0.5),
        lambda: ClampController("model.3", torch.ones(WIDTH), high=0.1),
        lambda: ClampController("model.3", torch.ones(WIDTH), value=1.0),
        lambda: ScaleController("model.0", 0.5),
    ],
)
def test_controllers_edit_as_they_do_without_compiling(make: Callable[[], Any]) -> None:
    outputs, effects, counted = [], [], Counted()
    for way in (as_it_is, in_place):
        controller = make()
        if controller.layer_signature == "model.*":
            controller.layer_signature = "model.0"
        watch = HookCallback(controllers=controller)
        outputs.append(torch.cat(run("predict", trainer(watch), way(small_mlp(), counted.backend), vector_data(8))))
        effects.append(watch.effects())
    torch.testing.assert_close(outputs[1], outputs[0])
    assert [effect[:5] for effect in effects[0]] == [effect[:5] for effect in effects[1]] and effects[0][0].fired > 0
    assert (counted.graphs, counted.breaks) == (1, 0)


def test_projections_are_those_without_compiling() -> None:
    callbacks = []
    for way in (as_it_is, in_place):
        detector = ProjectionDetector("block:*", vectors={"a": torch.ones(WIDTH), "b": torch.arange(WIDTH) - 8.0})
        callbacks.append(HookCallback(detector, log_every_n_steps=1))
        run("fit", trainer(callbacks[-1]), way(small_llama(), "eager"), token_data(8))
    assert_same_numbers(*callbacks)


class RowSums(Detector):
    """An own detector that can be traced: its state is a tensor."""

    traceable = True

    def __init__(self, layer_signature: str) -> None:
        super().__init__(layer_signature, schedule=Schedule())
        self.sums = torch.zeros(10)

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.sums.index_add_(0, ctx.batch_idx[None], x.sum()[None])


def test_an_own_detector_that_says_so_is_traced() -> None:
    counted, detector, outputs = Counted(), RowSums("model.3"), []
    module = small_mlp()
    module.model[3].register_forward_hook(lambda layer, args, output: outputs.append(output.sum()))  # type: ignore
    run("predict", trainer(), module, vector_data())
    run("predict", trainer(HookCallback(detector)), in_place(small_mlp(), counted.backend), vector_data())
    torch.testing.assert_close(detector.sums[:5], torch.stack(outputs))
    assert (counted.graphs, counted.breaks) == (1, 0)


class Louder(ActivationStatistics):
    """Does more than what it is made of."""

    def observe(self, x: Tensor, ctx: Any) -> None:
        super().observe(x, ctx)


class Own(Hook):
    def _hook_fn(self, module: nn.Module, input: tuple[Any, ...], output: Any = None) -> None:
        pass


REFUSED = "would run inside of a graph of torch.compile: 'model.3' lies in 'model', which is compiled. There, "
NOT_KNOWN = "what {} does is not known to be traceable"


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (FunctionController("model.3", torch.neg), NOT_KNOWN.format("FunctionController")),
        (LayerActivationDetector("model.3"), NOT_KNOWN.format("LayerActivationDetector")),
        (Louder("model.3"), NOT_KNOWN.format("Louder")),
        (Own("model.3"), NOT_KNOWN.format("Own")),
        (ScaleController("model.3", 2.0, when=lambda x, ctx: True), "when= is decided while the model runs"),
        (ScaleController("model.3", 2.0, strength=lambda ctx: 1.0), "strength=<function .* is asked for in each pass"),
        (ScaleController("model.3", 2.0, strength="batch"), "strength='batch' is asked for in each pass"),
        (ScaleController("model.3", 2.0, tokens="generated"), "tokens='generated' depend on where the prompt ends"),
        (
            ActivationStatistics("model.3", tokens=Tokens(positions=[-1])),
            r"tokens=Tokens\(positions=\[-1\]\) depend on",
        ),
        (ActivationStatistics("model.3", tokens=Tokens("all") & ~Tokens("last")), "tokens='last' depend on"),
        (
            ScaleController("model.3", 2.0, tokens=Tokens(where=lambda x, ctx: x)),
            r"tokens=Tokens\(where=.*calls a function",
        ),
    ],
)
def test_what_cannot_be_traced_is_refused(hook: Hook, reason: str) -> None:
    hooks = {"controllers" if hook.edits else "detectors": hook}
    with pytest.raises(RegistrationError, match=REFUSED + reason):
        run("predict", trainer(HookCallback(**hooks)), wrapped(small_mlp(), "eager"), vector_data())  # type: ignore
    assert not hook.registered


# Which tokens.


@pytest.mark.parametrize("way", [wrapped, in_place])
def test_generating_steers_and_counts_as_without_compiling(way: Any) -> None:
    outputs, callbacks = [], []
    for how in (as_it_is, way):
        steer = SteeringController("block:1", torch.arange(WIDTH) / 8, 1.0)
        callbacks.append(HookCallback(ActivationStatistics("block:1", schedule=Schedule()), steer))
        module = small_llama()
        module.model.eval()
        outputs.append(run("predict", trainer(callbacks[-1]), how(module, "eager"), token_data(8)))
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    assert_same_numbers(*callbacks)


def test_lengths_are_no_reason_to_compile_anew() -> None:
    """Not even where the module that is given the mask is the compiled one, and is called from outside."""
    counted = Counted()
    batches = []
    for length in (5, 7, 9, 11, 13):
        rows = token_data(4, length)
        batches.append({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
    watch = HookCallback(ActivationStatistics("model.lm_head"))
    data: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer(watch).validate(wrapped(small_llama(), counted.backend), data, verbose=False)
    assert counted.graphs <= 3 and counted.breaks == 0


class Sequences(Silent):
    """A model that is given no mask."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Chain(nn.Linear(4, 8), nn.Linear(8, 2)))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(batch["x"])


@pytest.mark.parametrize("by", ["batch", "token_mask"])
def test_padding_that_the_batch_tells(by: str) -> None:
    name = "attention_mask" if by == "batch" else "real"
    rows = [{"x": torch.randn(3, 4), name: torch.tensor([1, 1, i % 2])} for i in range(8)]
    options = {} if by == "batch" else {"token_mask": lambda batch: batch["real"]}
    counted, callbacks, edited = Counted(), [], []
    for way in (as_it_is, in_place):
        watch = ActivationStatistics("model.0", schedule=Schedule())
        callbacks.append(HookCallback(watch, ScaleController("model.0", 3.0), **options))  # type: ignore[arg-type]
        edited.append(torch.cat(run("predict", trainer(callbacks[-1]), way(Sequences(), counted.backend), rows)))
    assert_same_numbers(*callbacks)
    assert callbacks[0].effects()[0].tokens == 20
    torch.testing.assert_close(*edited)
    assert (counted.graphs, counted.breaks) == (1, 0)


# Compiled block by block.


@pytest.mark.parametrize("by", ["compile()", "torch.compile"])
def test_hooks_on_compiled_blocks_stand_outside_and_may_be_any(by: str) -> None:
    outputs, captured, counted = [], [], Counted()
    for backend in (None, counted.backend):
        module, capture = small_mlp(), LayerActivationDetector("model.3")
        module.model[3] = Chain(module.model[3])  # type: ignore[index]
        if backend is not None and by == "compile()":
            module.model[3].compile(backend=backend)  # type: ignore[index]
        elif backend is not None:
            module.model[3] = torch.compile(module.model[3], backend=backend)  # type: ignore[index,operator]
        compiled_call = module.model[3]._compiled_call_impl  # type: ignore[index]
        twice = FunctionController("model.3", lambda x: x * 2, hook_type="pre_forward")
        watch = HookCallback(capture, [twice, FunctionController("model.3", lambda x: x + 1)])
        outputs.append(torch.cat(run("predict", trainer(watch), module, vector_data(8))))
        captured.append(capture.tensor_metadata["activations"])
        assert module.model[3]._compiled_call_impl is compiled_call  # type: ignore[index]
    assert torch.equal(*outputs) and torch.equal(*captured)
    assert (counted.graphs, counted.breaks) == (1, 0)


def test_a_hook_outside_sees_an_error_of_the_block_and_copies_have_no_hook() -> None:
    import copy

    module, copies = small_mlp(), []

    class Keep(LayerActivationDetector):
        def observe(self, x: Tensor, ctx: Any) -> None:
            super().observe(x, ctx)
            copies.append(copy.deepcopy(module.model[3]))  # type: ignore[index]

    module.model[3].compile(backend="eager")  # type: ignore[index]
    run("predict", trainer(HookCallback(Keep("model.3"))), module, vector_data(4))
    assert len(copies) == 1 and copies[0]._compiled_call_impl is None and not copies[0]._forward_hooks


def test_layers_inside_of_many_compiled_blocks_are_refused() -> None:
    module = three_blocks()
    with pytest.raises(RegistrationError, match="3 modules of class Chain are compiled one by one, and hooks inside"):
        fit(module, vector_data(), HookCallback(ActivationStatistics("model.*.0")))


# Gradient checkpointing.


CALLS_ARE_CHECKPOINTED = LlamaDecoderLayer.__call__ is not nn.Module.__call__  # hooks too, in transformers 4


@pytest.mark.skipif(CALLS_ARE_CHECKPOINTED, reason="refused, see below")
@pytest.mark.parametrize("way", [whole, wrapped])
def test_checkpointed_blocks_are_counted_and_edited_once(way: Any) -> None:
    callbacks, weights = [], []
    for how in (as_it_is, way):
        steer = SteeringController("block:0", torch.arange(WIDTH) / 8, 1.0, schedule=Schedule())
        callbacks.append(HookCallback(ActivationStatistics("block:1"), steer, log_every_n_steps=1))
        module = small_llama()
        checkpointed(module)
        fit(how(module, "aot_eager"), token_data(8), callbacks[-1])
        weights.append(torch.cat([weight.detach().flatten() for weight in module.parameters()]))
    assert_same_numbers(*callbacks)
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("layer", ["block:1.mlp", *["block:1"] * CALLS_ARE_CHECKPOINTED])
def test_layers_inside_of_checkpointed_blocks_are_refused(layer: str) -> None:
    module = checkpointed(small_llama())
    with pytest.raises(RegistrationError, match="is, a LlamaDecoderLayer with gradient checkpointing, in a"):
        fit(in_place(module, "eager"), token_data(), HookCallback(ActivationStatistics(layer)))


# Checkpoints of a run.


def test_the_state_is_that_without_compiling() -> None:
    states = []
    for way in (as_it_is, in_place):
        detector = ActivationStatistics("model.3", schedule=Schedule("train"))
        kept: list[Any] = []

        class Keep(pl.Callback):
            def on_train_end(self, *event: Any) -> None:
                kept.append(detector.state_dict())  # noqa: B023

        fit(
            way(small_mlp(), "eager"),
            vector_data(),
            HookCallback(detector, log_every_n_steps=100),
            Keep(),
            max_epochs=1,
        )
        states.append(kept[0])
    for part in ("rows", "channels"):
        torch.testing.assert_close(states[1][part]["train"], states[0][part]["train"], rtol=1e-5, atol=1e-5)
