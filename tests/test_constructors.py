"""Arguments are checked at the door: a constructor works, or names the argument that it refuses, in a short message."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mi_crow_lightning import (
    ActivationStatistics,
    AllOf,
    ClampController,
    ContrastDetector,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    LocalStore,
    MiCrowError,
    ProjectionDetector,
    ScaleController,
    Schedule,
    SteeringController,
    SteeringVector,
    Tokens,
    attached,
)
from mi_crow_lightning.errors import HookError, StrengthMismatch
from mi_crow_lightning.hooks import Layers, tokens
from mi_crow_lightning.metrics import ActivationStatisticsMetric
from tests.constructors import CONSTRUCTORS, RECORDS, STRANGE, exported

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore:.*(nested|quantized|quantize|Sparse):UserWarning"),  # of torch
]
PAIRS = [(name, argument) for name, constructor in CONSTRUCTORS.items() for argument in constructor.rules]
UNUSUAL = ["complex tensor", "meta tensor", "sparse tensor", "nested tensor", "quantised tensor"]
LONG = ["long text", "long list", "long key", "hostile", "hostile inside", "deep", "many digits"]
V = torch.ones(4)


def check(name: str, argument: str, value: Any, what: str) -> None:
    """Call a constructor with one argument replaced."""
    make, right, rules = CONSTRUCTORS[name]
    if (
        name in ("CausalLMModule", "ContinuationScore", "DataScreening")
        and argument in ("model", "tokenizer")
        and isinstance(value, (str, Path))
    ):
        return  # the name of one on a hub
    call = f"{name}({argument}={what})"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failure = None
        try:
            made = make(**{**right, argument: value})
        except Exception as error:
            failure = error
        else:
            assert repr(made), call
    if failure is not None:
        message = str(failure)
        assert isinstance(failure, (MiCrowError, TypeError, ValueError, OSError)), f"{call}: {failure!r:.300}"
        assert argument in message, f"{call}: {failure!r:.300}"
        assert len(message) <= 2000, f"{call}: {len(message)} characters: {message:.300}"
        return
    assert rules[argument](value), f"{call} is taken"


@pytest.mark.documents("reliability/an-argument-of-a-wrong-kind")
def test_every_public_class_is_tried() -> None:
    tried = {make.__name__ for make, _, _ in CONSTRUCTORS.values()}
    assert exported() - RECORDS - tried == set()
    assert exported() >= RECORDS


@pytest.mark.documents("reliability/an-argument-of-a-wrong-kind")
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_strange_arguments(name: str) -> None:
    """Each of the strange values at each of the arguments."""
    make, right, rules = CONSTRUCTORS[name]
    make(**right)
    named = inspect.signature(make).parameters
    assert name == "attached" or any("**" in str(one) for one in named.values()) or rules.keys() <= named.keys()
    wrong = []
    for argument in rules:
        for what, value in STRANGE.items():
            try:
                check(name, argument, value(), what)
            except AssertionError as error:
                wrong.append(str(error))
    assert wrong == []


@st.composite
def values(draw: st.DrawFn) -> Any:
    """A strange value, several in a container, or whatever hypothesis has."""
    strange = st.sampled_from(list(STRANGE)).map(lambda what: STRANGE[what]())
    keys = st.text(max_size=5) | st.integers(-2, 3) | st.sampled_from([0.5, None, (), "x" * 10_000])
    plain = st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=5) | st.complex_numbers()
    leaf = strange | plain
    return draw(
        leaf
        | st.lists(leaf, max_size=3)
        | st.tuples(leaf, leaf)
        | st.dictionaries(keys, leaf, max_size=2)
        | st.lists(st.lists(leaf, max_size=2), max_size=2)
    )


@pytest.mark.fuzz
@pytest.mark.documents("reliability/an-argument-of-a-wrong-kind")
@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(pair=st.sampled_from(PAIRS), value=values())
def test_any_argument(pair: tuple[str, str], value: Any) -> None:
    check(*pair, value, type(value).__name__)


def refused(call: Any, *words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words) and len(message) <= 2000, message


@pytest.mark.documents("reliability/a-string-stands-for-true-or-false")
@pytest.mark.parametrize("value", ["no", "false", 0, 1, None, "", torch.tensor(True)])
def test_flags(value: Any) -> None:
    for flag in ("histogram", "per_channel", "before_edits"):
        refused(lambda flag=flag: ActivationStatistics("0", **{flag: value}), f"{flag}=", "must be True or False")
    refused(lambda: ScaleController("0", 2, preserve_norm=value), "preserve_norm=", "must be True or False")
    refused(lambda: ContrastDetector("0", keep_samples=value), "keep_samples=", "must be True or False")
    refused(lambda: Layers(nn.Linear(2, 2), allow_stacking=value), "allow_stacking=", "must be True or False")


@pytest.mark.documents("reliability/a-number-is-nan-infinite-or-too-large-for-a-float")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "small", True, 1 + 2j, torch.tensor(1.0)])
def test_numbers(value: Any) -> None:
    refused(lambda: ScaleController("0", value), "factor=", "finite number")
    refused(lambda: ClampController("0", V, high=value), "high=", "finite number")
    refused(lambda: ActivationStatistics("0", dead_threshold=value), "dead_threshold=", "positive number")
    refused(lambda: ProjectionDetector("0", V).above(value), "bound=", "finite number")
    if not isinstance(value, torch.Tensor):
        refused(lambda: SteeringController("0", V, value), "strength=", "finite number")


@pytest.mark.documents("reliability/a-whole-number-does-not-fit-64-bits")
@pytest.mark.parametrize("value", [2**70, 10**400, 10**5000], ids=["70", "400", "5000"])
def test_large_numbers(value: int) -> None:
    refused(lambda: Tokens(positions=[value]), "positions=")
    refused(lambda: Tokens(ids=[3, -value]), "ids=")
    refused(lambda: Tokens(window=(None, value)), "window=")
    refused(lambda: Schedule(epochs=[value]), "epochs=")
    refused(lambda: Schedule(every_n_steps=value), "every_n_steps=")
    refused(lambda: LayerActivationDetector("0", max_bytes=value), "max_bytes=")
    refused(lambda: ActivationStatistics(value), "layer_signature=")
    refused(lambda: ActivationStatisticsMetric(value), "layers=")  # before there is room for as many


@pytest.mark.documents("reliability/a-tensor-is-sparse-nested-quantised-complex-or-on-the-meta-device")
@pytest.mark.parametrize("what", UNUSUAL)
def test_unusual_tensors(what: str) -> None:
    value, word = STRANGE[what](), what.split()[0]
    refused(lambda: SteeringController("0", value), "vector", word)
    refused(lambda: SteeringController("0", {"h.0": V, "h.1": value}), "vector['h.1']", word)
    refused(lambda: SteeringController("0", V, value), "strength", word)
    refused(lambda: ProjectionDetector("0", vectors={"a": value}), "vectors['a']", word)
    refused(lambda: SteeringVector({"h.0": value}), "directions", word)


@pytest.mark.documents("reliability/a-strength-from-the-batch-or-a-function-is-complex")
def test_complex_strengths() -> None:
    strength = torch.ones(2, dtype=torch.complex64)
    model = nn.Sequential(nn.Identity(), nn.Identity())
    for own, batch in ((lambda ctx: strength, None), ("batch", {"strength": strength})):
        with attached(model, FunctionController("0", torch.neg, strength=own)) as layers:
            layers.begin_batch(None, batch)
            with pytest.raises(HookError, match="is complex") as caught:
                model(torch.ones(2, 4))
            assert isinstance(caught.value.original_error, StrengthMismatch)
            layers.unregister_all_hooks()


@pytest.mark.documents("reliability/one-string-or-one-hook-stands-where-a-list-is-expected")
def test_lone_values() -> None:
    refused(lambda: ActivationStatistics("0", statistics="mean"), "statistics=['mean', 'std']", "not one string")
    refused(lambda: ContrastDetector("0", covariance="difference"), "covariance=['difference']", "not one string")
    refused(lambda: HookCallback("block:0"), "detectors='block:0' is a string", "ActivationStatistics('block:0')")
    refused(lambda: attached(nn.Linear(2, 2), "block:0").__enter__(), "hooks='block:0' is a string, not a hook")
    refused(lambda: AllOf(schedules=Schedule()), "is one schedule: give a list, schedules=")
    refused(lambda: tokens.AnyOf(choices="generated"), "choices='generated' is one choice: give a list")
    refused(lambda: ContrastDetector("0", classes="ab"), "classes='ab' must be two different ones")
    one = ActivationStatistics("0")
    assert HookCallback(one).detectors == [one]  # these are taken alone
    assert Schedule(stages="train").stages == Schedule(stages=["train"]).stages
    assert Schedule(epochs=3).epochs == Schedule(epochs=[3]).epochs


@pytest.mark.documents("reliability/a-name-is-misspelt")
@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: ActivationStatistics("0", statistics=["mean", "kurtosys"]), "kurtosis"),
        (lambda: ActivationStatistics("0", tokens="promt"), "prompt"),
        (lambda: Tokens("Generated"), "generated"),
        (lambda: ActivationStatistics("0", hook_type="pre-forward"), "pre_forward"),
        (lambda: ActivationStatistics("0", on_error="disabled"), "disable"),
        (lambda: ContrastDetector("0", method="mean-difference"), "mean_difference"),
        (lambda: ContrastDetector("0", covariance=["diference"]), "difference"),
        (lambda: LayerActivationDetector("0", keep="al"), "all"),
        (lambda: HookCallback(scalars="sumary"), "summary"),
        (lambda: Schedule(stages="Predict"), "predict"),
        (lambda: ProjectionDetector("0", vectors={"calm": V, "joy": V}).above(1, vector="clam"), "calm"),
    ],
)
def test_did_you_mean(make: Any, meant: str) -> None:
    refused(make, "is not known: choose one of", f"Did you mean {meant!r}?")


@pytest.mark.documents("reliability/a-stage-has-a-name-that-lightning-has-elsewhere")
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("val", "'validate' is meant"),
        ("validation", "'validate' is meant"),
        ("fit", "A fit has two stages: 'train', and 'validate' for its validation"),
        ("training", "'train' is meant"),
        ("testing", "'test' is meant"),
        ("inference", "'predict' is meant"),
        ("eval", "'validate' or 'test' is meant"),
        ("sanity_check", "which is not a stage"),
    ],
)
def test_stages(stage: str, words: str) -> None:
    refused(lambda: Schedule(stages=["train", stage]), f"stages={stage!r} is not known: choose one of", words)
    refused(lambda: ContrastDetector("0", held_out=stage), f"held_out={stage!r} is not known", words)


@pytest.mark.documents("reliability/an-id-or-a-name-is-not-a-string-or-does-not-fit-one-line")
@pytest.mark.parametrize("value", [5, "", " ", "a\nb", "a\u2028b", "a\x00", "\ud800", "x" * 201])
def test_names(value: Any) -> None:
    refused(lambda: ScaleController("0", 2, hook_id=value), "hook_id=")
    refused(lambda: ActivationStatistics("0", name=value), "name=")
    refused(lambda: HookCallback(name=value), "name=")
    refused(lambda: ProjectionDetector("0", vectors={value: V}), "vectors: name=")
    assert ScaleController("0", 2, hook_id="steer/joy: 3 \N{GREEK SMALL LETTER ALPHA}").id.startswith("steer")


@pytest.mark.documents("reliability/a-name-is-given-twice")
def test_names_that_are_given_twice() -> None:
    refused(lambda: ActivationStatistics("0", statistics=["mean", "std", "mean"]), "statistics=", "'mean' twice")
    refused(lambda: ContrastDetector("0", covariance=["negative", "negative"]), "covariance=", "twice")
    refused(lambda: ActivationStatisticsMetric(["h.0", "h.0"]), "layers", "more than once")
    assert ActivationStatistics("0", statistics=(name for name in ("mean", "std"))).statistics == ("mean", "std")


@pytest.mark.documents("reliability/nothing-is-chosen")
def test_empty_choices() -> None:
    for empty in (range(0), [], set(), range(5, 2)):
        refused(lambda empty=empty: Schedule(epochs=empty), "epochs is empty, so the hook would never be on")
        refused(lambda empty=empty: Schedule(batches=empty), "batches is empty")
    for empty in ([], (), torch.zeros(0)):
        refused(lambda empty=empty: Schedule(stages=empty), "stages is empty")
        refused(lambda empty=empty: Tokens(positions=empty), "positions=", "at least one")
    refused(lambda: Schedule(epochs=range(-3, 5)), "epochs=-3 must be 0 or more")
    assert 10**12 - 1 in (Schedule(epochs=range(10**12)).epochs or ())


@pytest.mark.documents("reliability/a-store-is-given-as-a-path")
@pytest.mark.parametrize("kind", [str, Path])
def test_stores(kind: Any, tmp_path: Path) -> None:
    refused(lambda: LayerActivationDetector("0", store=kind("folder")), "store=", "is a path", "LocalStore(")
    refused(lambda: Layers(nn.Linear(2, 2), store=kind("folder")), "store=", "is a path", "LocalStore(")
    refused(lambda: LayerActivationDetector("0", store=LocalStore), "store=", "must be a store")
    assert LayerActivationDetector("0", store=LocalStore(tmp_path)).store.base_path == tmp_path


@pytest.mark.documents("reliability/a-dtype-is-given-by-name-or-is-none-that-a-copy-can-have")
def test_dtypes() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    for name in ("float16", "torch.float16", torch.float16):
        detector = LayerActivationDetector("0", target_dtype=name)
        with attached(model, detector):
            model(torch.ones(2, 4))
        assert detector.get_captured().dtype is torch.float16
    for wrong in (torch.quint8, "bits8", torch.float4_e2m1fn_x2):
        refused(lambda wrong=wrong: LayerActivationDetector("0", target_dtype=wrong), "target_dtype=", "a copy")
    for wrong in ("half-precision", "nn", 16, "Tensor", float):
        refused(
            lambda wrong=wrong: LayerActivationDetector("0", target_dtype=wrong), "target_dtype=", "a dtype such as"
        )


@pytest.mark.documents("reliability/a-device-that-is-none-or-holds-no-numbers")
def test_devices() -> None:
    for wrong in ("gpu", "cuda:x", -5, 2**70, True, 1.5, "meta", torch.device("meta")):
        refused(lambda wrong=wrong: LayerActivationDetector("0", device=wrong), "device=")
    assert LayerActivationDetector("0", device="cuda:3").device == torch.device("cuda:3")  # for another machine


@pytest.mark.documents("reliability/a-value-is-huge-or-cannot-be-shown")
@pytest.mark.parametrize(
    "what", ["long text", "long list", "long key", "hostile", "hostile inside", "deep", "many digits"]
)
def test_messages_stay_short(what: str) -> None:
    """Also where several values are shown."""
    value = STRANGE[what]()
    refused(lambda: ClampController("0", V, value=value, low=value, high=value), "value=")
    refused(lambda: ActivationStatistics("0", statistics=["mean", value]), "statistics=")
    refused(lambda: SteeringVector({"h.0": V}, metadata={"a": [value]}), "metadata['a']")
    refused(lambda: HookCallback([value]), "detectors holds")


@pytest.mark.documents("reliability/a-value-is-huge-or-cannot-be-shown")
def test_hooks_are_shown_short() -> None:
    assert len(repr(ActivationStatistics(["layers." + "x" * 900] * 500))) < 600
