"""`SummingDetector`: what a few lines of a newcomer's give, in Trainers, is what numpy says of all that was seen."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from mi_crow_lightning import HookCallback, Schedule, SummingDetector, attached
from mi_crow_lightning.hooks import Layers
from mi_crow_lightning.metrics.running_sums import masked_sum
from tests.callback.runs import assert_bit_equal, checkpointed, data_of, fingerprint, fit, module_of, run
from tests.hooks import program_sums_on_ranks as script
from tests.hooks.controllers.cases import BATCH, REAL, original
from tests.hooks.summing import PositiveShare, Spread, assert_numpys, numpys, values_of
from tests.models import WIDTH, Module, llama, loader, token_data, trainer

# Of what dynamo does, see tests/callback/test_compiled.py.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create:UserWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning"),
]

EVERY = Schedule()
LAYERS = [f"model.model.layers.{i}" for i in range(4)]


class Outputs:
    """What the blocks gave, as numpy float64, real tokens only; by stage."""

    def __init__(self, module: Module) -> None:
        self.module, self.seen = module, {}  # type: ignore[var-annotated]
        for index, block in enumerate(module.model.model.layers):
            block.register_forward_hook(lambda block, args, output, index=index: self.note(index, output))

    def note(self, index: int, output: Tensor) -> None:
        stage = self.module.trainer.state.stage.value
        self.seen.setdefault((stage, index), []).append(output.detach().double().numpy())

    def tokens(self, stage: str, index: int, batches: list[Any], chosen: Any = slice(None)) -> np.ndarray:
        masks = [batch["attention_mask"].numpy().astype(bool) for batch in batches]
        pairs = list(zip(self.seen[stage, index], masks, strict=True))[chosen]
        return np.concatenate([x[mask] for x, mask in pairs])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fit_with_validation_in_the_middle_of_a_reading(accumulate: int) -> None:
    """Padding, an uneven last batch, accumulation: each stage has its own numbers, those of numpy."""
    data = token_data(22)  # batches of 4, 4, 4, 4, 4, 2
    module = module_of("llama")
    outputs, watch = Outputs(module), HookCallback(Spread("block:*", schedule=EVERY))
    options: dict[str, Any] = dict(log_every_n_steps=3 // accumulate, val_check_interval=2, num_sanity_val_steps=0)
    trainer(watch, accumulate_grad_batches=accumulate, **options).fit(module, loader(data), loader(data[:7]))
    batches = list(loader(data))
    steps = {1: {2: slice(0, 3), 5: slice(3, 6)}, 2: {0: slice(0, 2), 1: slice(2, 4), 2: slice(4, 6)}}[accumulate]
    assert len({row.step for row in watch.history() if row.stage == "train"}) == len(steps)
    for step, chosen in steps.items():
        tokens = {layer: outputs.tokens("train", i, batches, chosen) for i, layer in enumerate(LAYERS)}
        assert_numpys(values_of(watch, "train", step), {layer: numpys(x) for layer, x in tokens.items()})
    validations = sorted({row.step for row in watch.history() if row.stage == "validate"})
    assert len(validations) == 3
    for i, step in enumerate(validations):
        tokens = {
            layer: outputs.tokens("validate", index, list(loader(data[:7])) * 3, slice(2 * i, 2 * i + 2))
            for index, layer in enumerate(LAYERS)
        }
        assert_numpys(values_of(watch, "validate", step), {layer: numpys(x) for layer, x in tokens.items()})


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_example_word_for_word(stage: str) -> None:
    module, data = module_of("llama"), data_of("llama")
    outputs, watch = Outputs(module), HookCallback(PositiveShare(2))
    runner = trainer(watch)
    run(stage, runner, module, data)
    share = numpys(outputs.tokens(stage, 2, list(loader(data))))["positive_share"]
    (row,) = watch.history()
    assert (row.tag, row.value) == (
        f"activations_positive_share/{'val' if stage == 'validate' else 'test'}/{LAYERS[2]}",
        pytest.approx(share, rel=1e-12),
    )
    assert float(runner.callback_metrics[row.tag]) == pytest.approx(share, rel=1e-6)


def test_the_run_is_that_without_it() -> None:
    def trained(*callbacks: Any) -> dict[str, Any]:
        module = module_of("llama")
        torch.manual_seed(3)
        return fingerprint(module, fit(module, data_of("llama"), *callbacks, accumulate_grad_batches=2))

    assert_bit_equal(
        trained(), trained(HookCallback([Spread("block:*", schedule=EVERY), PositiveShare(1, name="share")]))
    )


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated", "last"])
def test_tokens_of_a_generate(tokens: str) -> None:
    """In a pass without a chosen token there is no maximum, and nothing is added."""
    model, seen = llama().eval(), []
    model.generation_config.eos_token_id = None
    model.model.layers[1].register_forward_hook(lambda module, args, output: seen.append(output.double().clone()))
    detector = Spread("block:1", tokens=tokens)
    with attached(model, detector) as layers:
        model.generate(**BATCH, max_new_tokens=4, do_sample=False)
        found = {(reading.layer, reading.name): reading.value for reading in layers.take_readings()}
    prompt, new = seen[0][REAL], torch.cat([one[:, 0] for one in seen[1:]])
    chosen = {"all": [prompt, new], "prompt": [prompt], "generated": [new], "last": [seen[0][:, -1], new]}[tokens]
    assert_numpys(found, {"model.layers.1": numpys(torch.cat(chosen).numpy())})


class Means(SummingDetector):
    """Gives NaN where no token is chosen."""

    names, sums = ("mean", "passes"), 2

    def measure(self, x, mask, ctx):
        return (x if mask is None else x[mask]).mean(dtype=torch.float64), 1

    def values(self, sums):
        return {"mean": sums[0] / sums[1], **({"passes": sums[1]} if sums[1] > 1 else {})}


def test_where_nothing_was_seen_there_is_no_reading() -> None:
    model = llama().eval()
    with attached(model, Means("block:0-1", tokens="generated")) as layers:
        model(**BATCH)
        assert layers.take_readings() == []
        assert layers.take_readings() == []
    with attached(nn.Sequential(nn.Identity()), Means("0")) as layers:
        layers.root(torch.ones(0, 3, WIDTH))
        assert layers.take_readings() == []


def test_a_pass_without_a_chosen_token_adds_nothing() -> None:
    model = llama().eval()
    model.generation_config.eos_token_id = None
    with attached(model, Means("block:0", tokens="generated")) as layers:
        model.generate(**BATCH, max_new_tokens=2, do_sample=False)  # the prompt's pass, and one more
        (reading,) = layers.take_readings()
        assert reading.name == "mean" and np.isfinite(reading.value)  # a name that is left out is not read
        model.generate(**BATCH, max_new_tokens=3, do_sample=False)
        assert [reading.value for reading in layers.take_readings()][1:] == [2.0]


def test_what_is_wide_is_summed_in_float64() -> None:
    class Sum(SummingDetector):
        names, sums = ("sum",), 1

        def measure(self, x, mask, ctx):
            return masked_sum(x, mask)[None]

        def values(self, sums):
            return {"sum": sums[0]}

    x = torch.full((1, 1, 10_000), 0.1, dtype=torch.float16)
    with attached(nn.Sequential(nn.Identity()), Sum("0")) as layers:
        for _ in range(3):
            layers.root(x)
        (reading,) = layers.take_readings()
    assert reading.value == pytest.approx(3 * x.double().numpy().sum(), rel=1e-14)


def test_autocast_does_not_touch_what_is_measured() -> None:
    class Along(SummingDetector):
        names, sums = ("along",), 1

        def measure(self, x, mask, ctx):
            return (x @ torch.ones(x.shape[-1])).sum()[None]

        def values(self, sums):
            return {"along": sums[0]}

    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    with attached(nn.Sequential(nn.Identity()), Along("0")) as layers, torch.autocast("cpu", torch.bfloat16):
        layers.root(x)
        (reading,) = layers.take_readings()
    assert reading.value == pytest.approx(x.double().numpy().sum(), rel=1e-5)


def test_gradient_checkpointing_counts_once() -> None:
    found = []
    for wrap in (lambda module: module, checkpointed):
        module = Module(llama(attention_dropout=0.0))
        watch = HookCallback(Spread("block:*", schedule=EVERY), log_every_n_steps=2)
        fit(wrap(module), data_of("llama"), watch)
        found.append(values_of(watch, "train"))
    assert found[0] == found[1] and len(found[0]) == 12


def test_early_stopping_monitors_it() -> None:
    tag = f"activations_positive_share/val/{LAYERS[3]}"
    stop = EarlyStopping(tag, mode="max", patience=1, min_delta=1.0)  # a share does not grow by one
    watch, data = HookCallback(PositiveShare("block:3")), data_of("llama")
    runner = trainer(stop, watch, max_epochs=5)
    run("fit", runner, module_of("llama"), data)
    assert runner.current_epoch == 2 and len(values_of(watch, "validate")) == 1
    first = next(row for row in watch.history() if row.tag == tag)
    assert float(stop.best_score) == pytest.approx(first.value)


# Checkpoints.


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_fit_goes_on_in_the_middle_of_an_epoch_to_the_bit(tmp_path: Path, at: int) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = script.fit(None, saver, enable_checkpointing=True)
    resumed = script.fit(tmp_path / f"step={at}.ckpt")
    assert script.rows(resumed) == script.rows(whole) and len(script.rows(whole)) == 24


def registered(detector: SummingDetector) -> nn.Module:
    model = llama().eval()
    Layers(model).register_hook(None, detector)
    return model


def test_a_state_is_taken_before_and_after_it_is_registered() -> None:
    detector = Spread("block:1")
    registered(detector)(**BATCH)
    state = pickle.loads(pickle.dumps(detector.state_dict()))
    for early in (True, False):
        twin = Spread("block:1")
        if early:
            twin.load_state_dict(state)
            assert_bit_equal(twin.state_dict(), state)  # a checkpoint may be written before the run begins
        registered(twin)
        if not early:
            twin.load_state_dict(state)
        assert list(twin.readings()) == list(detector.readings()) != []
        twin.forget_run()
        assert list(twin.readings()) == []


def test_an_evaluation_is_not_kept() -> None:
    """One that was cut short is not gone on with."""
    kept: list[Any] = []

    class Keep(pl.Callback):
        def on_validation_batch_end(self, *event: Any) -> None:
            kept.append(detector.state_dict()["rows"])

    detector = Spread("block:1", schedule=EVERY)
    run("fit", trainer(HookCallback(detector), Keep()), module_of("llama"), data_of("llama"))
    assert kept[-1].keys() == {"train"} and "validate" in detector._sums.state()


def test_a_state_of_something_else_is_refused() -> None:
    detector = Spread("block:1")
    registered(detector)(**BATCH)
    state = detector.state_dict()
    for wrong, message in (
        (Spread("block:2"), r"checkpoint's sums are of the layers \['model.layers.1'\], and the detector has"),
        (
            PositiveShare("block:1"),
            r"are of the merge \['sum', 'sum', 'min', 'max'\], and the detector has",
        ),
    ):
        wrong.load_state_dict(state)
        with pytest.raises(ValueError, match=message):
            registered(wrong)


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_have_sums_of_their_own(travel: Any) -> None:
    detector = Spread("block:1")
    model = registered(detector)
    model(**BATCH)
    expected = list(detector.readings())
    twin = travel(detector)
    assert not twin.registered
    registered(twin)(**BATCH)
    assert list(twin.readings()) == list(detector.readings()) == expected


# What a subclass may get wrong.


def kind_of(**said: Any) -> SummingDetector:
    return type("Mine", (PositiveShare,), said)("0")  # type: ignore[no-any-return]


NAMES = r"must be a tuple of different names without '/', at least one, such as names = \('positive_share',\)"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"names": ()}, rf"Mine: names=\(\) {NAMES}"),
        ({"names": "share"}, f"Mine: names='share' {NAMES}"),
        ({"names": ("a/b",)}, rf"Mine: names=\('a/b',\) {NAMES}"),
        ({"names": ("a", "a")}, rf"Mine: names=\('a', 'a'\) {NAMES}"),
        ({"names": (1,)}, rf"Mine: names=\(1,\) {NAMES}"),
        ({"sums": 0}, "Mine: sums=0 must be a whole number, 1 or more: how many numbers measure"),
        ({"sums": 2.0}, "Mine: sums=2.0 must be a whole number"),
        ({"sums": True}, "Mine: sums=True must be a whole number"),
        (
            {"merge": "mean"},
            "Mine: merge='mean' must be one of 'sum', 'max', 'min', or a tuple of 2",
        ),
        ({"merge": ("sum",)}, r"Mine: merge=\('sum',\) must be one of 'sum', 'max', 'min', or a tuple of 2"),
    ],
)
def test_a_wrong_declaration_is_refused_at_the_start(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layers(nn.Sequential(nn.Identity())).register_hook("0", kind_of(**said))


@pytest.mark.parametrize("method", ["measure", "values"])
def test_a_missing_method_is_refused_at_the_start(method: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine must override {method}\(\)"):
        registered(type("Mine", (PositiveShare,), {method: getattr(SummingDetector, method)})("block:0"))


GIVES = r"Mine.measure must return 2 real numbers, as its sums=2 says: a tensor \(2,\), or a tuple of numbers and tens"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.ones(3), r"It returned a tensor \(3,\) of torch.float32"),
        (torch.ones(()), r"It returned a tensor \(\) of torch.float32"),
        (torch.ones(2, dtype=torch.complex64), r"It returned a tensor \(2,\) of torch.complex64"),
        ((1.0, torch.ones(2)), r"It returned a tuple of 2: 1.0, a tensor \(2,\) of torch.float32"),
        ([1.0, 2.0, 3.0], "It returned a list of 3: 1.0, 2.0, 3.0"),
        ((), "It returned a tuple of 0: "),
        (None, "It returned None"),
        ({"a": 1.0}, "It returned {'a': 1.0}"),
    ],
)
def test_wrong_numbers_are_repeated(given: Any, message: str) -> None:
    model = nn.Sequential(nn.Identity())
    with (
        attached(model, kind_of(measure=lambda self, x, mask, ctx: given)),
        original(ValueError, f"{GIVES}.*{message}"),
    ):
        model(torch.ones(1, 2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"other": 1.0}, r"must return a mapping from names in \('positive_share',\) to numbers. It returned {'other'"),
        (3.0, "must return a mapping from names .* It returned 3.0"),
        ({"positive_share": torch.ones(2)}, r"a number for 'positive_share'. It gave a tensor \(2,\) of torch.float32"),
        ({"positive_share": "much"}, "must give a number for 'positive_share'. It gave 'much'"),
    ],
)
def test_wrong_readings_are_repeated(given: Any, message: str) -> None:
    model = nn.Sequential(nn.Identity())
    with attached(model, kind_of(values=lambda self, sums: given)) as layers:
        model(torch.ones(1, 2))
        with pytest.raises(Exception, match=message):
            layers.take_readings()


def test_an_error_where_tokens_were_chosen_is_the_detectors_own() -> None:
    def measure(self: Any, x: Tensor, mask: Any, ctx: Any) -> Any:
        raise IndexError("mine")

    model = nn.Sequential(nn.Identity())
    with attached(model, kind_of(measure=measure)), original(IndexError, "mine"):
        model(torch.ones(1, 2))
