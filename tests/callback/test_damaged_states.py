"""The callback's state comes from somebody's file: whatever is wrong in it is one short error, and no hook has changed.

The error names the hook and the field.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mi_crow_lightning import ContrastDetector, HookCallback, MiCrowError, ProjectionDetector, SteeringVector
from mi_crow_lightning.errors import HookStateError
from mi_crow_lightning.hooks import Layers
from tests.callback.damaged import (
    MISSING,
    STRANGE,
    V,
    at,
    changed_tensors,
    deep,
    endless,
    hooks,
    huge,
    paths,
    saved,
    with_value,
)
from tests.callback.runs import Seen, assert_bit_equal, data_of, fit, module_of

pytestmark = pytest.mark.faults
STATE = saved()
PATHS = list(paths(STATE))


def refuses(state: Any, *words: str) -> str:
    """Load a damaged state: the error is short and has these words in it, and every hook is as it was."""
    watch = hooks()
    before = watch.state_dict()
    with pytest.raises(HookStateError) as caught:
        watch.load_state_dict(state)
    message = str(caught.value)
    assert len(message) <= 2000 and all(word in message for word in words), message
    assert_bit_equal(watch.state_dict(), before)
    return message


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The words that an error about this place of the state must have: of whom, and which field."""
    if path[0] == "hooks" and len(path) > 1:
        return (f"id='{path[1]}'", *map(str, path[2:3]))
    return ("HookCallback",)


@pytest.mark.documents("reliability/a-field-of-a-hooks-state-is-damaged")
def test_the_state_that_is_damaged_here_is_whole() -> None:
    """Else the tests below would damage nothing."""
    fields = STATE["hooks"]
    assert set(fields["seen"]) == {"enabled", "layers", "rows", "channels"} and fields["seen"]["rows"]["train"].any()
    assert fields["along"]["rows"]["train"].shape == (2, 2, 6) and fields["spread"]["rows"]["train"].shape == (2, 5)
    assert set(fields["contrast"]["extraction"]["samples"]) == {"model.0", "model.3"} and fields["contrast"]["scores"]
    assert STATE["effects"]["steered"]["rows"]["train"].any() and len(PATHS) > 90
    watch = hooks()
    watch.load_state_dict(STATE)
    assert_bit_equal(watch.state_dict(), STATE)


@pytest.mark.documents("reliability/a-field-of-a-hooks-state-is-damaged")
@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[(("seen", "enabled"), value) for value in (None, "no", 1, 10**400, torch.ones(2))],
        *[(("seen", "layers"), value) for value in (None, 5, "model.0", [3])],
        *[(("seen", "rows"), value) for value in ("x", {"train": 5}, {"train": torch.ones(2)}, {"fit": V})],
        *[(("seen", "channels"), value) for value in ({}, {"train": torch.ones(2, 3)})],
        *[(("along", "vectors"), value) for value in (None, "ab", [None])],
        *[(("along", "rows"), value) for value in ("x", {"train": 5}, {"train": torch.ones(2)})],
        *[(("spread", "merge"), value) for value in (None, "sum")],
        *[(("steered", "strength"), value) for value in (None, "x", [], float("nan"), 10**400, {0: "x"})],
        *[(("steered", "vector"), value) for value in (None, 5, torch.ones(2, 2), torch.full((2,), float("nan")), {})],
        *[(("by layer", "vector"), value) for value in ({"model.0": 5}, {0.5: V}, {"model.0": torch.zeros(0)})],
        *[(("each", "strength"), value) for value in (torch.ones(2, 2), torch.zeros(0), torch.ones(2, dtype=bool))],
        *[(("contrast", "model"), value) for value in (None, 5)],
        *[(("contrast", "extraction"), value) for value in (5, {"moments": {}, "samples": {}}, {"moments": {}})],
        *[(("contrast", "scores"), value) for value in (5, ["x"], [["model.0", 0.5, 8]], [["model.0", "x", 8, 1.0]])],
        *[(("contrast", "scores"), [["model.0", 0.5, 8, 1.0, *more]]) for more in (["0"], [-1], [0, 0])],
    ],
    ids=str,
)
def test_a_damaged_field(path: tuple[str, str], value: Any) -> None:
    refuses(with_value(STATE, ("hooks", *path), value), *names_of(("hooks", *path)))


@pytest.mark.documents("reliability/the-fields-of-a-state-do-not-fit-one-another")
@pytest.mark.parametrize(
    ("hook", "field", "value", "words"),
    [
        ("seen", "layers", ["model.0"], "rows['train'] must be a float tensor (1, 80), not"),
        ("seen", "sums", ["cubes"], "rows['train'] must be a float tensor (2, 81), not"),
        ("seen", "channels", {}, "rows are of the stages ['train'], and channels of []"),
        ("along", "vectors", ["a"], "rows['train'] must be a float tensor (2, 1, 6), not"),
        ("spread", "merge", ["sum"], "rows['train'] must be a float tensor (2, 2), not"),
    ],
)
def test_fields_that_do_not_fit(hook: str, field: str, value: Any, words: str) -> None:
    refuses(with_value(STATE, ("hooks", hook, field), value), f"id='{hook}'", words)


@pytest.mark.documents("reliability/a-field-of-a-hooks-state-is-missing")
@pytest.mark.parametrize(
    "path",
    [
        path
        for path in PATHS
        if path[0] == "hooks" and len(path) == 3 and path[2] not in ("strength", "vector", "reliability")
    ],
    ids=str,
)
def test_a_missing_field(path: tuple[Any, ...]) -> None:
    refuses(with_value(STATE, path, MISSING), f"id='{path[1]}'", f"it lacks '{path[2]}'")


@pytest.mark.documents("reliability/a-field-of-the-callbacks-own-state-is-damaged-or-missing")
@pytest.mark.parametrize(
    ("path", "value"),
    [
        *[(("hooks",), value) for value in (MISSING, None, 5, [STATE["hooks"]])],
        *[(("hooks", "seen"), value) for value in (None, [])],
        *[(("effects",), value) for value in (MISSING, None, "x")],
        *[(("effects", "steered"), value) for value in (None, {}, {"layers": ["model.0"]})],
        *[(("effects", "steered", "rows"), value) for value in (5, {"train": torch.ones(2)}, {"never": V})],
        (("effects", "steered", "rows", "train"), torch.full((2, 7), float("nan"))),
        (("effects", "steered", "layers"), ["model.0", "model.0"]),
    ],
    ids=str,
)
def test_a_damaged_part_of_the_callback(path: tuple[str, ...], value: Any) -> None:
    refuses(with_value(STATE, path, value), "seen" if path == ("hooks", "seen") else "HookCallback", path[-1])


@pytest.mark.documents("reliability/a-state-of-another-version")
@pytest.mark.parametrize("version", [MISSING, 2, "1", True, 1.0, torch.ones(2), "x" * 10_000])
def test_another_version(version: Any) -> None:
    refuses(with_value(STATE, ("version",), version), "reads version 1: give the callback another name=")
    refuses(None if version is MISSING else [version], "HookCallback")  # no state at all


@pytest.mark.documents("reliability/a-path-stands-where-a-vector-should-be")
@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_not_opened(kind: Any, tmp_path: Path) -> None:
    SteeringVector({"model.0": 777 * V, "model.3": V}).save(file := tmp_path / "other.safetensors")
    refuses(with_value(STATE, ("hooks", "steered", "vector"), kind(file)), "id='steered'", "vector")
    refuses(with_value(STATE, ("hooks", "by layer", "vector", "model.0"), kind(file)), "id='by layer'", "vector")
    refuses(with_value(STATE, ("hooks", "steered", "strength"), kind(file)), "id='steered'", "strength")


@pytest.mark.documents("reliability/a-tensor-in-a-state-claims-more-numbers-than-it-holds")
@pytest.mark.parametrize("path", [path for path in PATHS if isinstance(at(STATE, path), Tensor)], ids=str)
def test_a_tensor_that_claims_to_be_huge(path: tuple[Any, ...]) -> None:
    words = "claims 1,000,000,000,000 numbers, and holds 1"
    refuses(with_value(STATE, path, huge()), words, *names_of(path))


@pytest.mark.documents("reliability/a-tensor-in-a-state-is-sparse-nested-quantised-complex-or-on-the-meta-device")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "quantised"),
        (lambda: torch.ones(2, dtype=torch.complex64), "complex"),
        (lambda: torch.ones(2, device="meta"), "meta device"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about sparse and nested tensors
def test_an_unusual_tensor(make: Any, words: str) -> None:
    value = make()
    refuses(with_value(STATE, ("hooks", "steered", "vector"), value), "id='steered'", "vector", words)
    refuses(with_value(STATE, ("hooks", "seen", "rows", "train"), value), "id='seen'", "rows", words)
    refuses(with_value(STATE, ("effects", "steered", "totals"), {"train": value}), "HookCallback", "effects", words)


@pytest.mark.documents("reliability/a-state-is-nested-deeply-or-holds-itself")
def test_deep_states() -> None:
    for value in (deep(100_000), endless()):
        refuses(with_value(STATE, ("hooks", "steered", "vector"), value), "id='steered'", "vector", "levels")
        refuses(with_value(STATE, ("hooks", "contrast", "extraction"), {"moments": value}), "id='contrast'", "levels")
        refuses(with_value(STATE, ("effects", "steered"), value), "HookCallback", "effects")


@pytest.mark.documents("reliability/a-state-holds-something-else-than-tensors-numbers-and-strings")
@pytest.mark.parametrize("value", [np.ones(2), print, b"x", {1, 2}, object(), torch.float32])
def test_other_objects(value: Any) -> None:
    words = "a state holds tensors, numbers and strings only"
    refuses(with_value(STATE, ("hooks", "steered", "vector"), value), "id='steered'", "vector", words)
    refuses(with_value(STATE, ("hooks", "seen", "rows"), {"train": value}), "id='seen'", "rows", words)
    refuses(with_value(STATE, ("hooks", "batch", "strength"), value), "id='batch'", "strength", words)


@pytest.mark.documents("reliability/counts-in-a-state-are-negative-or-not-finite")
@pytest.mark.parametrize("count", [-1.0, float("nan"), float("inf")])
def test_counts(count: float) -> None:
    for hook in ("seen", "along", "spread"):
        rows = at(STATE, ("hooks", hook, "rows", "train")).clone()
        rows[..., 0] = count
        refuses(with_value(STATE, ("hooks", hook, "rows", "train"), rows), f"id='{hook}'", "rows['train']", "count")
    path = ("hooks", "contrast", "extraction", "moments", "model.0", "count")
    refuses(with_value(STATE, path, torch.full((3,), count)), "id='contrast'", "extraction", "count")


@pytest.mark.documents("reliability/widths-in-a-state-are-not-those-of-its-channels")
@pytest.mark.parametrize("width", [31.0, 1e12, 31.5])
def test_widths(width: float) -> None:
    rows = at(STATE, ("hooks", "seen", "rows", "train")).clone()
    rows[0, 9], rows[1, 9] = width, (64 - width if width % 1 else 32)  # Row.CHANNELS; halves that add up
    refuses(with_value(STATE, ("hooks", "seen", "rows", "train"), rows), "id='seen'", "channels")


class Kept(Seen):
    """A user's hook that keeps things of its own, numpy's among them."""

    def state_dict(self) -> dict[str, Any]:
        return {"mine": np.ones(3), "nothing": "else"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state["mine"]


@pytest.mark.documents("reliability/one-of-several-states-is-damaged")
def test_no_state_is_loaded_if_one_is_damaged() -> None:
    for last in ("batch", "seen"):
        state = with_value(STATE, ("hooks", last, "enabled"), "no")
        for other in STATE["hooks"].keys() - {last}:
            state["hooks"][other]["enabled"] = False
        refuses(state, f"id='{last}'", "enabled='no' must be True or False")


@pytest.mark.documents("reliability/your-own-hook-cannot-load-its-state")
def test_the_error_of_a_hook_of_ones_own_is_named() -> None:
    watch = HookCallback([Kept(hook_id="mine")], name="all")
    state = watch.state_dict()
    again = HookCallback([Kept(hook_id="mine")], name="all")
    again.load_state_dict(state)  # in its own form, which nothing else looks at
    assert again.detectors[0].loaded is state["hooks"]["mine"]["mine"]
    del state["hooks"]["mine"]["mine"]
    with pytest.raises(HookStateError, match=r"state of Kept\(.*id='mine'\) cannot be loaded: KeyError: 'mine'"):
        again.load_state_dict(state)


@pytest.mark.documents("reliability/a-state-has-a-field-that-its-hook-does-not-know")
def test_more_fields_are_left_alone() -> None:
    state = with_value(STATE, ("hooks", "seen", "mine"), np.ones(2))
    watch = hooks()
    watch.load_state_dict(state)
    assert_bit_equal(watch.state_dict(), STATE)


@pytest.mark.documents("reliability/the-states-of-ranks-do-not-fit-one-another")
def test_other_ranks() -> None:
    """A state of three ranks, loaded by one, which joins them."""
    first = {name: STATE[name] for name in ("hooks", "effects")}
    for path, value, words in (
        (("hooks", "seen", "rows"), {"train": torch.ones(2)}, "id='seen'"),
        (("hooks", "along", "rows"), {"train": torch.zeros(1, 2, 6)}, "id='along'"),
        (("hooks", "spread"), None, "id='spread'"),
        (("effects", "steered", "rows"), {"train": torch.ones(2)}, "effects"),
        (("effects", "steered"), {"layers": ["model.0"], "rows": {"train": torch.ones(1, 7)}, "totals": {}}, "effects"),
        (("effects",), MISSING, "effects"),
        (("hooks",), MISSING, "hooks"),
    ):
        refuses({**STATE, "other_ranks": [first, with_value(first, path, value)]}, words)
    for others in (5, [5], {"hooks": {}}):
        refuses({**STATE, "other_ranks": others}, "HookCallback")
    watch = hooks()
    watch.load_state_dict({**STATE, "other_ranks": [first, first]})
    joined = watch.state_dict()["hooks"]["spread"]["rows"]["train"]
    assert joined[0, 0] == 3 * at(STATE, ("hooks", "spread", "rows", "train"))[0, 0]


@pytest.mark.documents("reliability/a-damaged-state-in-validate-test-or-predict")
def test_only_results_are_looked_at_outside_a_fit() -> None:
    """As `trainer.validate(ckpt_path=...)` loads a state."""
    state = with_value(STATE, ("hooks", "seen", "rows"), "x")
    watch = hooks()
    watch._resumes = False
    watch.load_state_dict(state)
    assert isinstance(contrast := watch.detectors[-1], ContrastDetector)
    assert contrast.separability()[0].n == 8
    again, before = hooks(), hooks().state_dict()
    again._resumes = False
    with pytest.raises(HookStateError, match=r"id='contrast'.*scores=5 must be a list"):
        again.load_state_dict(with_value(state, ("hooks", "contrast", "scores"), 5))
    assert_bit_equal(again.state_dict(), before)


@pytest.mark.documents("reliability/a-state-is-loaded-into-a-hook-that-is-on-a-model")
def test_a_registered_hook_stays_as_it_was() -> None:
    """Sharded strategies load when the model is set up."""
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    along = ProjectionDetector("block:*", V, schedule=None, hook_id="along")
    Layers(model).register_hook(None, along)
    model(torch.ones(2, len(V)))
    before = along.state_dict()
    for changes in ({"layers": ["0", "2"]}, {"vectors": ["a"]}, {"enabled": False, "rows": {"": torch.ones(2, 1, 5)}}):
        with pytest.raises(HookStateError, match="id='along'"):
            along.load_state_dict({**before, "enabled": False, **changes})
        assert_bit_equal(along.state_dict(), before)
        assert along.enabled


def loads_or_refuses(path: tuple[Any, ...], value: Any) -> None:
    """Load a state that may be damaged; where it is taken, a run goes on from it."""
    watch = hooks()
    before = watch.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hooks that the state has not
        try:
            watch.load_state_dict(with_value(STATE, path, value))
        except HookStateError as error:
            message = str(error)
            assert len(message) <= 2000 and names_of(path)[0] in message, message
            assert_bit_equal(watch.state_dict(), before)
            return
        try:
            fit(module_of(), data_of()[:8], watch, log_every_n_steps=1)
        except MiCrowError as error:  # such as a vector of another width
            message = str(error)
            assert len(message) <= 2000


@st.composite
def damages(draw: st.DrawFn) -> tuple[tuple[Any, ...], Any]:
    """A place in the state, and what to put there."""
    path = draw(st.sampled_from(PATHS))
    value = at(STATE, path)
    ways = [st.sampled_from(list(STRANGE)).map(STRANGE.__getitem__), st.sampled_from(PATHS).map(partial(at, STATE))]
    if isinstance(value, Tensor):
        changed = changed_tensors(value)
        ways += [st.sampled_from(list(changed)).map(changed.__getitem__)] * 2
    return path, draw(st.one_of(ways))


@pytest.mark.fuzz
@pytest.mark.documents("reliability/a-field-of-a-hooks-state-is-damaged")
@settings(max_examples=80)
@given(damage=damages())
def test_any_damage(damage: tuple[tuple[Any, ...], Any]) -> None:
    loads_or_refuses(*damage)
