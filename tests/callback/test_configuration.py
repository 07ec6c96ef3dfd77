"""All that a LightningCLI's YAML may hold: nested, joined, by importable name and by path; and it is printed again."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import mi_crow_lightning as mcl
from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    AllOf,
    ClampController,
    ContrastDetector,
    FunctionController,
    Hook,
    HookCallback,
    LayerActivationDetector,
    LinearProbe,
    LocalStore,
    LoggedSteps,
    PatchController,
    ProjectionDetector,
    ScaleController,
    Schedule,
    SteeringController,
    SteeringVector,
    Tokens,
)
from tests.models import trainer

jsonargparse = pytest.importorskip("jsonargparse")

from tests.callback import configured  # noqa: E402  the command line is there
from tests.callback.configured import (  # noqa: E402
    Configured,
    Tokens20,
    cli,
    contents,
    hook_callbacks,
    instance,
    one,
    ours,
    printed,
    scale,
    vector_file,
    watch,
)

HERE, TOKENS = "tests.callback.configured", "mi_crow_lightning.hooks.tokens"

EARLY, LATE = one("Schedule", stages="train", stop_step=4), one("Schedule", stages=["train", "test"], epochs=[0, 2])
ALL_BUT_LAST = one(f"{TOKENS}.AllOf", choices=["all", one(f"{TOKENS}.Not", choice="last")])
RANGE = one("Schedule", epochs="range(0, 10, 2)", batches=3)

# What stands in the file, and what it means in Python.
CALLBACKS: dict[str, tuple[dict[str, Any], Callable[[], HookCallback]]] = {
    "nothing": ({}, HookCallback),
    "options": (
        dict(root="model", name="mine", log_every_n_steps=2, scalars="summary", per_dataloader=True, dry_run=True),
        lambda: HookCallback(
            **dict(root="model", name="mine", log_every_n_steps=2, scalars="summary"), per_dataloader=True, dry_run=True
        ),
    ),
    "figures": ({"figures": True}, lambda: HookCallback(figures=True)),
    "figures by name": (
        {"detectors": ours("ActivationStatistics", 3), "figures": ["rms", "abs_max"]},
        lambda: HookCallback(ActivationStatistics(3), figures=["rms", "abs_max"]),
    ),
    "names of statistics and tags": (
        {
            "detectors": ours("ActivationStatistics", 3),
            "scalars": ["rms", "histogram"],
            "monitor": ["activations_rms/*", "other"],
            "prog_bar": ["rms"],
            "log_hyperparams": False,
        },
        lambda: HookCallback(
            ActivationStatistics(3),
            scalars=["rms", "histogram"],
            monitor=["activations_rms/*", "other"],
            prog_bar=["rms"],
            log_hyperparams=False,
        ),
    ),
    "token mask": (
        {"token_mask": f"{HERE}.not_padding"},
        lambda: HookCallback(token_mask=configured.not_padding),
    ),
    "one hook without a list": (
        {"detectors": ours("ActivationStatistics", 3)},
        lambda: HookCallback(ActivationStatistics(3)),
    ),
    "lists of layers": (
        {
            "detectors": ours("ActivationStatistics", ["block:0", -1, "3"]),
            "controllers": scale(layer_signature=[0, "1"]),
        },
        lambda: HookCallback(
            ActivationStatistics(["block:0", -1, "3"]), ScaleController(layer_signature=[0, "1"], factor=2)
        ),
    ),
    "every option of a detector": (
        {
            "detectors": [
                ours(
                    *("ActivationStatistics", "block:*"),
                    **dict(statistics=["mean", "std"], histogram=False, per_channel=True, dead_threshold=1, name="x"),
                    **dict(hook_type="pre_forward", hook_id="me", before_edits=True, on_error="warn", schedule=EARLY),
                    store=ours("LocalStore", base_path="there"),
                )
            ]
        },
        lambda: HookCallback(
            ActivationStatistics(
                "block:*",
                **dict(statistics=["mean", "std"], histogram=False, per_channel=True, dead_threshold=1, name="x"),
                **dict(hook_type="pre_forward", hook_id="me", before_edits=True, on_error="warn"),
                schedule=Schedule(stages="train", stop_step=4),
                store=LocalStore("there"),
            )
        ),
    ),
    "detectors": (
        {
            "detectors": [
                ours(
                    "LayerActivationDetector",
                    "block:1",
                    target_dtype="torch.float16",
                    device="cpu",
                    keep="all",
                    tokens="last",
                ),
                ours("ContrastDetector", "block:1", label="joy", classes=["a", 1], tokens="last"),
                ours("ContrastDetector", "block:2", on_error="disable", held_out=None),
                one(f"{HERE}.Along", layer_signature="lm_head", most=2, name="own", schedule=one("LoggedSteps")),
            ]
        },
        lambda: HookCallback(
            [
                LayerActivationDetector("block:1", target_dtype=torch.float16, device="cpu", keep="all", tokens="last"),
                ContrastDetector("block:1", label="joy", classes=["a", 1], tokens="last"),
                ContrastDetector("block:2", on_error="disable", held_out=None),
                configured.Along("lm_head", most=2.0, name="own", schedule=LoggedSteps()),
            ]
        ),
    ),
    "joined schedules": (
        {
            "controllers": [
                scale(schedule=one("AllOf", schedules=[EARLY, LATE])),
                scale(schedule=ours("AnyOf", schedules=[RANGE, one("Not", schedule=EARLY)])),
            ]
        },
        lambda: HookCallback(
            controllers=[
                ScaleController(0, 2, schedule=AllOf(early(), late())),
                ScaleController(0, 2, schedule=in_range() | ~early()),
            ]
        ),
    ),
    "tokens": (
        {
            "controllers": [
                scale(tokens="generated"),
                scale(tokens={"ids": [2, 5]}),
                scale(tokens=ours("Tokens", window=[-8, None])),
                scale(tokens={"positions": [0, -1]}),
                scale(tokens={"where": f"{HERE}.large"}),
            ]
        },
        lambda: HookCallback(
            controllers=[
                ScaleController(0, 2, tokens="generated"),
                ScaleController(0, 2, tokens=Tokens(ids=[2, 5])),
                ScaleController(0, 2, tokens=Tokens(window=(-8, None))),
                ScaleController(0, 2, tokens=Tokens(positions=[0, -1])),
                ScaleController(0, 2, tokens=Tokens(where=configured.large)),
            ]
        ),
    ),
    "joined tokens": (
        {
            "controllers": [
                scale(tokens=one("AllOf", choices=["prompt", {"ids": [2]}])),
                scale(tokens=one("AnyOf", choices=["last", one("Not", choice="prompt")])),
                scale(tokens=one(f"{TOKENS}.AnyOf", choices=[{"ids": [2]}, ALL_BUT_LAST])),
            ]
        },
        lambda: HookCallback(
            controllers=[
                ScaleController(0, 2, tokens=Tokens("prompt") & Tokens(ids=[2])),
                ScaleController(0, 2, tokens=Tokens("last") | ~Tokens("prompt")),
                ScaleController(0, 2, tokens=Tokens(ids=[2]) | (Tokens("all") & ~Tokens("last"))),
            ]
        ),
    ),
    "strengths": (
        {"controllers": [scale(strength=of) for of in (3, 0.5, "batch", {1: 2, 2: 0.5}, {"layers.1": 2.0})]},
        lambda: HookCallback(
            controllers=[
                ScaleController(0, 2, strength=of)  # type: ignore[arg-type]
                for of in (3, 0.5, "batch", {1: 2, 2: 0.5}, {"layers.1": 2.0})
            ]
        ),
    ),
    "strengths by function": (
        {"controllers": [scale(strength=f"{HERE}.warm_up"), scale(strength="math.sqrt")]},
        lambda: HookCallback(
            controllers=[ScaleController(0, 2, strength=configured.warm_up), ScaleController(0, 2, strength=math.sqrt)]
        ),
    ),
    "functions": (
        {
            "detectors": [
                ours("LinearProbe", 0, labels=f"{HERE}.negated", classes=3, per="token", lr=0.1),
                ours("LinearProbe", 0, labels="y", classes=["a", "b"], tokens="last", name="p"),
            ],
            "controllers": [
                ours("FunctionController", 0, function=f"{HERE}.negated", when=f"{HERE}.large", preserve_norm=True),
                ours("FunctionController", 0, function="torch.tanh", tokens="last"),
                ours("FunctionController", 0, function=one(f"{HERE}.Times", factor=2)),
            ],
        },
        lambda: HookCallback(
            [
                LinearProbe(0, labels=configured.negated, classes=3, per="token", lr=0.1),
                LinearProbe(0, labels="y", classes=["a", "b"], tokens="last", name="p"),
            ],
            controllers=[
                FunctionController(0, configured.negated, when=configured.large, preserve_norm=True),
                FunctionController(0, torch.tanh, tokens="last"),
                FunctionController(0, configured.Times(2.0)),
            ],
        ),
    ),
}


def early() -> Schedule:
    return Schedule(stages="train", stop_step=4)


def late() -> Schedule:
    return Schedule(stages=["train", "test"], epochs=[0, 2])


def in_range() -> Schedule:
    return Schedule(epochs=range(0, 10, 2), batches=3)


@pytest.mark.documents("compatibility/lightningcli-yaml-and-print-config/detectors")
@pytest.mark.parametrize(("arguments", "meant"), CALLBACKS.values(), ids=CALLBACKS)
def test_a_file_gives_what_python_would_and_so_does_what_is_printed_of_it(
    arguments: dict[str, Any], meant: Callable[[], HookCallback]
) -> None:
    written = ours("HookCallback", **arguments)
    for text in (yaml.safe_dump({"callback": written}), printed(written)):
        assert contents(instance(text)) == contents(meant())


def test_the_comparison_would_see_a_difference() -> None:
    def difference(changed: dict[str, Any], arguments: dict[str, Any] = {"factor": 2}) -> bool:  # noqa: B006
        pair = [HookCallback(controllers=ScaleController(0, **{**arguments, **more})) for more in ({}, changed)]
        return contents(pair[0]) != contents(pair[1])

    assert not difference({})
    for changed in (
        {"factor": 3},
        {"strength": 2},
        {"tokens": "last"},
        {"tokens": Tokens(ids=[1])},
        {"when": configured.large},
        {"schedule": early()},
        {"on_error": "warn"},
    ):
        assert difference(changed), changed
    assert difference({"schedule": late()}, {"factor": 2, "schedule": early()})
    assert difference({"tokens": Tokens(ids=[2])}, {"factor": 2, "tokens": Tokens(ids=[1])})


# Vectors by path.


def controllers_of(vector: Any) -> list[Hook]:
    return [
        SteeringController("block:1-2", vector, 2.0),
        AblationController("block:1-2", vector),
        ClampController("block:1-2", vector, high=1.0),
        PatchController("block:1-2", vector),
    ]


@pytest.mark.documents("compatibility/lightningcli-yaml-and-print-config/controllers")
def test_vectors_are_given_by_path(tmp_path: Path) -> None:
    path = vector_file(tmp_path)
    vector, text = SteeringVector.load(path), str(path)
    arguments = dict(
        detectors=[
            ours("ProjectionDetector", "block:1", vector=text),
            ours("ProjectionDetector", "block:2", vectors={"joy": text, "again": text}, name="both"),
        ],
        controllers=[
            ours("SteeringController", "block:1-2", vector=text, strength=2),
            ours("AblationController", "block:1-2", vector=text),
            ours("ClampController", "block:1-2", vector=text, high=1),
            ours("PatchController", "block:1-2", source=text),
        ],
    )
    meant = HookCallback(
        [
            ProjectionDetector("block:1", vector),
            ProjectionDetector("block:2", vectors={"joy": vector, "again": vector}, name="both"),
        ],
        controllers_of(vector),
    )
    assert contents(instance(printed(ours("HookCallback", **arguments)))) == contents(meant)
    by_path = HookCallback(controllers=controllers_of(path))
    assert contents(by_path) == contents(HookCallback(controllers=controllers_of(vector)))


def test_vectors_by_name_are_given_by_path(tmp_path: Path) -> None:
    path = vector_file(tmp_path)
    rows = {"vector": "batch", "strength": "batch", "layers": "batch"}
    given = ours("SteeringController", "block:1-2", vectors={"joy": str(path)}, **rows)
    (steer,) = instance(printed(ours("HookCallback", controllers=[given]))).controllers
    assert (steer.vector, steer.strength, steer.layers) == ("batch", "batch", "batch")
    meant = SteeringController("block:1-2", vectors={"joy": SteeringVector.load(path)}, **rows)
    assert contents(HookCallback(controllers=steer)) == contents(HookCallback(controllers=meant))
    assert torch.equal(steer.vectors["joy"]["model.layers.2"], torch.arange(1, 33.0) + 2)


def test_a_vector_may_be_changed_to_that_of_another_file(tmp_path: Path) -> None:
    steer = SteeringController("block:1", torch.ones(32))
    steer.vector = vector_file(tmp_path)  # type: ignore[assignment]
    assert torch.equal(steer.vector["model.layers.2"], torch.arange(1, 33.0) + 2)


# Every hook.

HOOKS = [value for name in mcl.__all__ if inspect.isclass(value := getattr(mcl, name)) and issubclass(value, Hook)]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_option_of_a_hook_is_known_with_its_type(hook: type[Hook]) -> None:
    parameters = {p.name: p for p in jsonargparse._parameter_resolvers.get_signature_parameters(hook, "__init__")}
    assert {"layer_signature", "hook_type", "hook_id", "schedule", "on_error"} <= parameters.keys()
    assert not {"options", "kwargs"} & parameters.keys()
    untyped = [p.name for p in parameters.values() if isinstance(p.annotation, str) or p.annotation is inspect._empty]
    assert not untyped


# Runs.


@pytest.mark.documents("compatibility/lightningcli-yaml-and-print-config/controllers")
def test_a_configured_run_watches_and_steers(tmp_path: Path) -> None:
    callbacks = watch(
        detectors=[ours("ActivationStatistics", "block:*", statistics=["mean"], schedule=one("Schedule"))],
        controllers=[ours("SteeringController", "block:1", vector=str(vector_file(tmp_path)), tokens="generated")],
    )
    (in_fit,), (in_predict,) = hook_callbacks(cli(callbacks, "fit")), hook_callbacks(cli(callbacks, "predict"))
    assert {row.layer for row in in_fit.history()} == {f"model.model.layers.{i}" for i in range(4)}
    assert [effect.layer for effect in in_predict.effects()] == ["model.model.layers.1"] and not in_fit.effects()


def test_a_short_name_will_do_where_the_class_is_imported() -> None:
    callback = one("HookCallback", detectors=[one("ActivationStatistics", layer_signature=0)])
    assert contents(instance(printed(callback))) == contents(HookCallback(ActivationStatistics(0)))


def test_print_config_of_a_command_gives_the_same_run_again(capsys) -> None:
    callbacks = watch(detectors=[ours("ActivationStatistics", "block:*")], controllers=[scale(schedule=EARLY)])
    with pytest.raises(SystemExit) as ended:
        cli(callbacks, "fit", "--print_config")
    assert not ended.value.code
    again = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    (one_run,), (other_run,) = hook_callbacks(cli(callbacks)), hook_callbacks(cli(again))
    assert contents(one_run) == contents(other_run)


# The documentation.


def test_the_files_of_the_documentation_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    (functions,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    my_hooks = ModuleType("my_hooks")
    exec(functions, my_hooks.__dict__)
    monkeypatch.setitem(sys.modules, "my_hooks", my_hooks)
    monkeypatch.chdir(tmp_path)
    vector_file(tmp_path)
    files = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    (first,), (joined,), (by_name,) = [[instance(printed(one)) for one in file["callbacks"]] for file in files]
    assert [type(hook) for hook in first.detectors] == [ActivationStatistics, LayerActivationDetector]
    (halved, other), schedule = joined.controllers, Schedule(stages=["test", "predict"])
    assert contents(halved.schedule) == contents(schedule & ~Schedule(batches=0))
    assert contents(halved.tokens) == contents(Tokens("generated") & ~Tokens(ids=[13, 198]))
    assert contents(other.schedule) == contents(Schedule(epochs=range(0, 100, 2)))
    assert by_name.token_mask is my_hooks.not_padding and by_name.controllers[0].condition is my_hooks.sure

    by_name.controllers[0].schedule = by_name.detectors[0].schedule = Schedule(stages="predict")
    by_name.controllers[0].function = torch.zeros_like
    trainer(by_name).predict(Configured(), Tokens20().predict_dataloader())
    assert {effect.layer for effect in by_name.effects()} == {"model.model.layers.2", "model.model.layers.3"}
