"""Putting hooks on a model, and beginning a batch, take work in proportion to its layers and hooks: calls, counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import ActivationStatistics, ScaleController, SteeringController, attached
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.addressing.sizes import Sizes, size_of
from mi_crow_lightning.hooks import Layers
from mi_crow_lightning.hooks.schedules import Moment, Schedule, Stage
from mi_crow_lightning.runs.arguments import check_hooks
from mi_crow_lightning.runs.hooked_run import HookedRun
from mi_crow_lightning.runs.names import readable_names
from tests.counted import calls_in


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(2, 6), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(), nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Custom(nn.Module):
    """A module whose class and weights say nothing of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def listed(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    return lambda count: nn.ModuleDict({"layers": nn.ModuleList([make() for _ in range(count)])})


def tied(count: int) -> nn.Module:
    net = listed(Block)(count)
    for block in net["layers"]:
        block.mlp[2].weight = block.mlp[0].weight
    return net


MODELS: dict[str, tuple[Callable[[int], nn.Module], Signature]] = {
    "blocks": (listed(Block), "block:*"),
    "parts of blocks": (listed(Block), "block:*.attn"),
    "parts by name": (listed(Block), "layers.*.mlp"),
    "parts in another stack": (listed(Block), "layers.block:*.mlp.[0-1]"),
    "several signatures": (listed(Block), ["block:*", "type:Linear"]),
    "blocks that no class shows": (listed(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), "block:*"),
    "activation functions": (lambda n: nn.Sequential(nn.Linear(2, 2), *[nn.ReLU() for _ in range(n)]), "type:ReLU"),
    "nothing that shows channels": (lambda n: nn.Sequential(*[nn.Identity() for _ in range(n)]), "*"),
    "modules that show nothing": (listed(Custom), "layers.*"),
    "many stacks": (lambda n: nn.ModuleDict({f"s{i}": nn.Sequential(nn.ReLU(), nn.ReLU()) for i in range(n)}), "*.0"),
    "tied weights": (tied, "block:*"),
}


@pytest.mark.documents("reliability/a-model-of-10-000-modules")
@pytest.mark.parametrize("kind", MODELS)
def test_registration_is_linear_in_the_layers(kind: str) -> None:
    make, signature = MODELS[kind]

    def register(net: nn.Module) -> None:
        layers = Layers(net)
        layers.register_hook(signature, ActivationStatistics())
        layers.unregister_all_hooks()

    small, large = make(12), make(96)
    register(small)
    assert calls_in(lambda: register(large)) < 9 * calls_in(lambda: register(small))  # quadratic: 64


def test_vectors_by_layer_do_not_change_that() -> None:
    def register(count: int) -> None:
        vector = {f"layers.{i}": torch.ones(2) for i in range(count)}
        layers = Layers(listed(Custom)(count))
        layers.register_hook("layers.*", SteeringController(None, vector))
        layers.unregister_all_hooks()

    assert calls_in(lambda: register(200)) < 4.6 * calls_in(lambda: register(50))


@pytest.mark.documents("reliability/200-hooks-on-one-model")
@pytest.mark.parametrize("way", ["attached", "a run", "register_hooks"])
def test_the_model_is_walked_once_for_all_hooks(way: str) -> None:
    schedule = Schedule() if way == "a run" else None

    def put_on(count: int, net: nn.Module) -> None:
        hooks = [ScaleController(f"layers.{i % 20}", 2.0, schedule=schedule) for i in range(count)]
        if way == "a run":
            HookedRun(net, hooks, None).end()
        elif way == "register_hooks":
            layers = Layers(net, allow_stacking=True)
            layers.register_hooks(hooks)
            layers.unregister_all_hooks()
        else:
            for hook in hooks:
                hook.on_error = "warn"
            with attached(net, hooks):
                for hook in hooks:
                    hook.disable()

    small, large = listed(Block)(20), listed(Block)(80)
    assert calls_in(lambda: put_on(15, large), of=ModuleTree.__init__) == 1
    few, many, more = (calls_in(lambda count=count: put_on(count, large)) for count in (5, 10, 20))
    assert more - many == pytest.approx(2 * (many - few), rel=0.05)
    in_small = calls_in(lambda: put_on(20, small)) - calls_in(lambda: put_on(10, small))
    assert more - many == pytest.approx(in_small, rel=0.05)  # a hook costs the same, however large the model is


def test_hooks_are_registered_all_or_none() -> None:
    layers = Layers(listed(Block)(2))
    first, second = ScaleController("layers.0", 2.0), ScaleController("layers.0", 3.0)
    with pytest.raises(Exception, match="already has a controller"):
        layers.register_hooks([first, second])
    assert layers.get_hooks() == [] and not first.registered
    assert layers.register_hooks([second]) == [second.id]
    layers.unregister_hook(second)
    assert layers.register_hooks([first]) == [first.id]


def run_of(net: nn.Module) -> HookedRun:
    return HookedRun(net, [ActivationStatistics("block:*")], None)


@pytest.mark.documents("reliability/a-batch-of-a-model-of-1-000-blocks")
def test_beginning_and_ending_a_batch_is_linear_in_the_layers() -> None:
    def batch(run: HookedRun) -> None:
        run.begin_batch(Moment(Stage.TRAIN, logged=True), None)
        run.end_batch()

    calls = {}
    for count in (25, 200):
        run = run_of(listed(Block)(count))
        calls[count] = calls_in(lambda run=run: batch(run))
        run.end()
    assert calls[200] < 8.5 * calls[25]
    assert calls[200] < 35 * 200  # for each layer, putting a handle on, looking at it and taking it off


@pytest.mark.parametrize("how", ["replaced", "deleted", "moved", "wrapped"])
def test_a_batch_still_sees_that_a_layer_is_not_where_it_was(how: str) -> None:
    net = listed(Block)(4)
    run, blocks = run_of(net), net["layers"]
    (hook,) = run.detectors
    if how == "replaced":
        blocks[2] = Block()
    elif how == "deleted":
        del blocks[3]
    elif how == "moved":
        blocks.insert(0, Block())
    else:
        blocks[1] = nn.Sequential(blocks[1])
    in_place = how in ("moved", "wrapped")
    try:
        if in_place:
            run.layers.check_in_place(hook)
        else:
            with pytest.raises(Exception, match=r"no longer in the model: layers\.[23]\."):
                run.layers.check_in_place(hook)
    finally:
        run.end()


@pytest.mark.documents("reliability/hundreds-of-hooks-without-an-id")
@pytest.mark.parametrize("given", [None, "mine", "ScaleController-3"])
def test_naming_hooks_is_linear(given: str | None) -> None:
    def hooks(count: int) -> list[ScaleController]:
        named = [ScaleController(0, 2.0, hook_id=given)] if given is not None else []
        return named + [ScaleController(0, 2.0) for _ in range(count)]

    few, many = hooks(100), hooks(800)
    assert calls_in(lambda: readable_names(many)) < 9 * calls_in(lambda: readable_names(few))
    assert calls_in(lambda: check_hooks(None, many)) < 9 * calls_in(lambda: check_hooks(None, few))
    names = readable_names(many)
    assert len(set(names)) == len(names) == len(many)
    assert names[-1] == f"ScaleController-{801 if given == 'ScaleController-3' else 800}"


def shared() -> nn.Module:
    block = Block()
    return nn.Sequential(block, Block(), block)


def tied_across() -> nn.Module:
    """A weight that counts in each of two lists, and once in the whole."""
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    net[1][0].weight = net[0][0].weight
    return net


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod, self.weight = inner, inner.weight


@pytest.mark.parametrize(
    "make",
    [
        lambda: listed(Block)(3),
        lambda: tied(3),
        shared,
        tied_across,
        lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2)),
        lambda: nn.Sequential(Wrapper(nn.Linear(2, 3)), nn.Linear(3, 2)),
    ],
)
def test_sizes_are_those_of_the_parameters(make: Callable[[], nn.Module]) -> None:
    tree = ModuleTree(make())
    sizes = Sizes(tree)
    assert {name: sizes.of(name) for name in tree.modules} == {
        name: size_of(module) for name, module in tree.modules.items()
    }
