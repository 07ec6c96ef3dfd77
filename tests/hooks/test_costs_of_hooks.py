"""What hooks do in a pass and keep after a run, counted: neither grows with the passes, the runs or the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    ClampController,
    ContrastDetector,
    FunctionController,
    LayerActivationDetector,
    PatchController,
    ProjectionDetector,
    ScaleController,
    SteeringController,
    attached,
)
from mi_crow_lightning.hooks import Hook, HookContext, SummingDetector, Tokens
from mi_crow_lightning.hooks.per_layer import PerLayer
from tests.counted import calls_in, few_objects, operations_in, tensors_alive

WIDTH = 8


class Positive(SummingDetector):
    """A detector of a user."""

    names, sums = ("positive",), 1

    def measure(self, x: Tensor, mask: Tensor | None, ctx: HookContext) -> tuple[Tensor]:
        return ((x > 0).sum(),)

    def values(self, sums: Tensor) -> dict[str, Tensor]:
        return {"positive": sums[0]}


DETECTORS: dict[str, Callable[[], Hook]] = {
    "statistics": lambda: ActivationStatistics("*"),
    "projections": lambda: ProjectionDetector("*", torch.ones(WIDTH)),
    "projections on several": lambda: ProjectionDetector(
        "*", vectors={"a": torch.ones(WIDTH), "b": -torch.ones(WIDTH)}
    ),
    "activations": lambda: LayerActivationDetector("*"),
    "the user's": lambda: Positive("*"),
}
CONTROLLERS: dict[str, Callable[[], Hook]] = {
    "steering": lambda: SteeringController("*", torch.ones(WIDTH)),
    "steering of one layer": lambda: SteeringController("*", {"0": torch.ones(WIDTH), "1": torch.ones(WIDTH)}),
    "steering by sample": lambda: SteeringController("*", torch.ones(WIDTH), torch.ones(1)),
    "steering of the prompt": lambda: SteeringController("*", torch.ones(WIDTH), tokens="prompt"),
    "ablation": lambda: AblationController("*", torch.ones(WIDTH)),
    "clamp": lambda: ClampController("*", torch.ones(WIDTH), 1.0),
    "patch": lambda: PatchController("*", torch.ones(WIDTH)),
    "scale": lambda: ScaleController("*", 2.0),
    "function": lambda: FunctionController("*", lambda x: x + 1),
}


@pytest.fixture(autouse=True, scope="module")
def _few_objects() -> Iterator[None]:
    with few_objects():
        yield


def stack(layers: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Identity() for _ in range(layers)])


@pytest.mark.documents("reliability/the-same-hook-in-many-runs")
@pytest.mark.parametrize("kind", [*DETECTORS, *CONTROLLERS])
def test_a_hook_keeps_no_more_after_many_runs(kind: str) -> None:
    hook, counts = (DETECTORS | CONTROLLERS)[kind](), []
    for _ in range(2):
        for _ in range(4):
            net = stack(2)
            with torch.no_grad(), attached(net, hook):
                net(torch.ones(1, 3, WIDTH))
        counts.append(len(tensors_alive()))
    assert counts[0] == counts[1]


@pytest.mark.documents("reliability/the-same-hook-in-many-runs")
def test_projections_of_a_run_are_let_go_with_it() -> None:
    net, detector = stack(2), ProjectionDetector("*", torch.ones(WIDTH))

    def of_tokens() -> int:
        return sum(300 in tensor.shape for tensor in tensors_alive())

    with torch.no_grad(), attached(net, detector):
        net(torch.ones(1, 300, WIDTH))
        assert of_tokens() == 4  # of each layer, the projections and the norms
    assert of_tokens() == 0


@pytest.mark.documents("reliability/layeractivationdetector-keep-all-over-many-passes")
@pytest.mark.parametrize("tokens", [None, "all"])
def test_keeping_all_does_as_much_in_each_pass(tokens: str | None) -> None:
    net, x = stack(4), torch.ones(2, 3, WIDTH)
    detector = LayerActivationDetector("*", keep="all", tokens=tokens)

    def pass_and_read() -> None:
        net(x)
        layers.take_readings()

    with torch.no_grad(), attached(net, detector) as layers:
        pass_and_read()
        calls, operations = calls_in(pass_and_read), operations_in(pass_and_read)
        for _ in range(100):
            net(x)
        pass_and_read()
        assert calls_in(pass_and_read) == calls
        assert operations_in(pass_and_read) == operations
    captured = detector.get_captured()
    assert [len(captured[layer]) for layer in "0123"] == [106] * 4
    assert detector.metadata["activations_shape"]["3"] == [tuple(one.shape) for one in captured["3"]]


def test_readings_of_all_that_is_held_are_those_of_one_tensor() -> None:
    net, passes = stack(2), torch.randn(7, 2, 3, WIDTH)
    detector = LayerActivationDetector("0", keep="all")
    with torch.no_grad(), attached(net, detector) as layers:
        for x in passes:
            net(x)
            readings = {reading.name: reading.value for reading in layers.take_readings()}
    assert readings["mean"] == pytest.approx(passes.mean().item(), rel=1e-6)
    assert readings["std"] == pytest.approx(passes.std(correction=0).item(), rel=1e-6)
    assert readings["token_norm"] == pytest.approx(passes.norm(dim=-1).mean().item(), rel=1e-6)


def test_what_a_user_takes_out_of_the_list_frees_its_bytes() -> None:
    net = stack(2)
    detector = LayerActivationDetector("0", keep="all", max_bytes=100)
    with torch.no_grad(), attached(net, detector):
        for _ in range(5):
            net(torch.ones(2, WIDTH))  # 64 bytes
            detector.get_captured().clear()


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_does_not_search_its_layers_in_a_pass(kind: str) -> None:
    """A list is searched by comparing names, which a count of calls does not show: so the names count."""
    compared = 0

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    count, hook = 200, DETECTORS[kind]()
    net = stack(count)
    with torch.no_grad(), attached(net, hook):
        net(torch.ones(1, 3, WIDTH))
        hook.prepare([Name(layer) for layer in map(str, range(count))], torch.device("cpu"))
        net(torch.ones(1, 3, WIDTH))
        assert compared <= 8 * count  # a search would take 20,000


@pytest.mark.documents("reliability/a-vector-or-a-strength-for-each-of-many-layers")
@pytest.mark.parametrize("key", ["block", "end of a name", "name"])
def test_a_value_of_a_layer_is_found_without_a_look_at_all(key: str) -> None:
    def found_in(layers: int) -> int:
        keys = {"block": lambda i: i, "end of a name": lambda i: f"h.{i}", "name": lambda i: f"model.h.{i}"}[key]
        values = PerLayer({keys(i): i for i in range(layers)}, "value", lambda value, name: value)
        return calls_in(lambda: [values.of(f"model.h.{i}", i) for i in range(layers)])

    assert found_in(400) < 2.2 * found_in(200)


def test_tokens_at_many_positions_take_as_many_operations_as_positions() -> None:
    net, x = stack(1), torch.ones(1, 64, WIDTH)

    def operations(count: int) -> int:
        controller = ScaleController("0", 2.0, tokens=Tokens(positions=range(count)))
        with torch.no_grad(), attached(net, controller):
            return operations_in(lambda: net(x))

    assert operations(60) < 2.2 * operations(30)


def test_extracting_keeps_nothing_of_earlier_runs() -> None:
    net, counts = stack(2), []
    detector = ContrastDetector("*")
    batch = {"x": torch.randn(4, 3, WIDTH), "label": torch.tensor([0, 1, 0, 1])}
    for runs in range(8):
        with torch.no_grad(), attached(net, detector) as layers:
            layers.begin_batch(None, batch)
            net(batch["x"])
        if runs in (3, 7):
            counts.append(len(tensors_alive()))
    assert counts[0] == counts[1]
