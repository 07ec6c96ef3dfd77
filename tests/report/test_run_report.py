"""The report of a run: what was matched, told once, and true to what the run then does."""

from __future__ import annotations

import logging
import pickle
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    LayerActivationDetector,
    LayerNotFound,
    Schedule,
    SteeringController,
)
from mi_crow_lightning.errors import NoReport, TagConflict
from mi_crow_lightning.metrics.one_pass.in_numba import choice
from mi_crow_lightning.report import HookedLayer, HookPlan, RunReport
from tests.callback.runs import STAGES, data_of, fit, module_of, run
from tests.callback.runs import told as warned
from tests.models import WIDTH, trainer


def steering(**options: Any) -> SteeringController:
    return SteeringController("block:2", vector=torch.ones(WIDTH), **options)


def predicted(watch: HookCallback, kind: str = "llama", **changes: Any) -> RunReport:
    run("predict", trainer(watch, limit_predict_batches=1, **changes), module_of(kind), data_of(kind))
    return watch.report()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "mi_crow_lightning"]


def test_each_hook_is_told_with_its_layers_schedule_and_tokens() -> None:
    watch = HookCallback(
        [ActivationStatistics("block:1-2", hook_id="watch"), LayerActivationDetector("lm_head")],
        [steering(tokens="generated")],
        log_every_n_steps=5,
    )
    assert predicted(watch).hooks == (
        HookPlan(
            hook="SteeringController",
            edits=True,
            layer_signature="block:2",
            layers=("model.model.layers.2",),
            when="predict",
            tokens="what is generated, from the prompt's last token on",
        ),
        HookPlan(
            hook="ActivationStatistics 'watch'",
            edits=False,
            layer_signature="block:1-2",
            layers=("model.model.layers.1", "model.model.layers.2"),
            when="logged steps of train (every 5), validate and test (not in this run)",
            tokens="all but padding",
        ),
        HookPlan("LayerActivationDetector", False, "lm_head", ("model.lm_head",), "always", "every position"),
    )


def test_a_disabled_hook_is_told() -> None:
    steer = steering()
    steer.disable()
    (plan,) = predicted(HookCallback(controllers=[steer])).hooks
    assert plan.when == "disabled (else predict)"


@pytest.mark.parametrize(("stage", "told_of"), [("fit", False), ("validate", True), ("test", True), ("predict", False)])
def test_a_controller_that_the_run_never_comes_to_is_told(stage: str, told_of: bool) -> None:
    never, once = steering(), steering(schedule=Schedule(stages="test") | ~Schedule(stages=["train", "test"]))
    off = steering()
    off.disable()
    watch = HookCallback([LayerActivationDetector("block:1")], [never, once, off])
    words = (
        rf"is off in this whole {stage}, because of its schedule Schedule\(stages=.'predict'.\).*\(stages='{stage}'\)"
    )
    with warned(words, times=told_of):
        run(stage, trainer(watch), module_of("llama"), data_of("llama"))
    found = [plan.when for plan in watch.report().hooks]
    assert found[0] == ("predict" if stage == "predict" else "predict (not in this run)")
    assert not any("not in this run" in when for when in found[1:])


def test_a_wrapped_layer_is_told_by_its_own_class() -> None:
    module = module_of()
    module.model[5] = torch.compile(module.model[5], backend="eager")  # type: ignore[index,operator]
    watch = HookCallback([LayerActivationDetector("model.5")])
    run("predict", trainer(watch), module, data_of())
    (layer,) = watch.report().layers
    assert layer == HookedLayer("model.5", 5, "Linear", ("LayerActivationDetector",), "(..., 5)", "model")
    assert watch.detectors[0].get_captured() is not None  # type: ignore[attr-defined]


class Order(FunctionController):
    """Notes in ``calls`` that it ran."""

    def __init__(self, calls: list[str], **options: Any) -> None:
        super().__init__("model.0", lambda x: self.calls.append(self.id) or x + 1, schedule=Schedule(), **options)
        self.calls = calls


class Noted(LayerActivationDetector):
    def __init__(self, calls: list[str], **options: Any) -> None:
        super().__init__("model.0", **options)
        self.calls = calls

    def observe(self, x: Any, ctx: Any) -> None:
        self.calls.append(self.id)


def test_the_hooks_of_a_layer_stand_in_the_order_in_which_they_run() -> None:
    calls: list[str] = []
    detectors = [
        Noted(calls, hook_id="late"),
        Noted(calls, hook_id="early", before_edits=True, name="a"),
        Noted(calls, hook_id="input", hook_type="pre_forward", name="b"),
    ]
    editing = [Order(calls, hook_id="edit"), Order(calls, hook_id="edit input", hook_type="pre_forward")]
    report = predicted(HookCallback(detectors, editing), "mlp")
    (layer,) = report.layers
    assert layer == HookedLayer("model.0", 0, "Linear", layer.hooks, f"(..., {WIDTH})", "model")
    assert [label.split("'")[1] for label in layer.hooks] == calls == ["edit input", "input", "early", "edit", "late"]


def test_layers_stand_in_the_models_order_with_the_block_they_lie_in() -> None:
    watch = HookCallback([ActivationStatistics("lm_head"), ActivationStatistics("block:1-2.attn")])
    assert [(layer.name, layer.index) for layer in predicted(watch).layers] == [
        ("model.model.layers.1.self_attn", 1),
        ("model.model.layers.2.self_attn", 2),
        ("model.lm_head", None),
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_each_run_is_told_once_at_info_level(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = HookCallback([ActivationStatistics("model.*")])
    runner, module = trainer(watch, max_epochs=2), module_of()
    with caplog.at_level(logging.INFO):
        run(stage, runner, module, data_of())
        assert told(caplog) == [str(watch.report())]
        assert watch.report().run == stage and not watch.report().dry_run
        assert [record.levelname for record in caplog.records if record.name == "mi_crow_lightning"] == ["INFO"]
        run("predict", runner, module, data_of())
    (second,) = told(caplog)[1:]
    assert str(watch.report()).startswith(second.partition("not used")[0].rstrip())
    assert watch.report().run == "predict"


def test_only_the_first_rank_tells(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from mi_crow_lightning.report import info_log
    from mi_crow_lightning.report.info_log import log_info

    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(info_log, "is_first_rank", lambda: False)
        log_info("from rank 1")
        monkeypatch.undo()
        log_info("from rank 0")
    assert told(caplog) == ["from rank 0"]


def test_there_is_no_report_before_a_run() -> None:
    with pytest.raises(NoReport, match="there is no report yet: it is made when a run has begun"):
        HookCallback().report()


def test_a_run_whose_layers_are_not_found_has_none() -> None:
    watch = HookCallback([ActivationStatistics("nowhere")])
    with pytest.raises(LayerNotFound):
        predicted(watch)
    with pytest.raises(NoReport):
        watch.report()


def test_tags_that_two_callbacks_share_are_in_the_report_of_the_one_that_is_refused() -> None:
    first, second = (HookCallback([ActivationStatistics("model.0")], name=name) for name in ("first", "second"))
    with pytest.raises(TagConflict) as caught:
        fit(module_of(), data_of(), first, second)
    assert first.report().refusals == ()
    assert second.report().refusals == (str(caught.value),)
    assert str(second.report()).endswith("becomes its tags' first part")


def test_a_report_pickles_and_holds_no_model() -> None:
    watch = HookCallback([ActivationStatistics("block:*")])
    report = predicted(watch)
    size = len(pickle.dumps(report))
    assert pickle.loads(pickle.dumps(report)) == report
    assert size < 5_000
    assert pickle.loads(pickle.dumps(watch)).report() == report


def test_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "choice", lambda: choice.Choice(None, "it is off"))
    watch = HookCallback(
        [
            ActivationStatistics("block:*", schedule=Schedule("test")),
            LayerActivationDetector("lm_head", hook_id="head"),
        ],
        [steering(tokens="prompt")],
    )
    assert (
        str(predicted(watch))
        == """\
HookCallback in predict: 3 hooks on 5 layers.

hook                            layers               when                    tokens
SteeringController              'block:2'  1 layer   predict                 the prompt
ActivationStatistics            'block:*'  4 layers  test (not in this run)  all but padding
LayerActivationDetector 'head'  'lm_head'  1 layer   always                  every position

layer                                             class              output     hooks, in the order they run
model.model.layers.0 to model.model.layers.1 (2)  LlamaDecoderLayer             ActivationStatistics
model.model.layers.2                              LlamaDecoderLayer             SteeringController, ActivationStatistics
model.model.layers.3                              LlamaDecoderLayer             ActivationStatistics
model.lm_head                                     Linear             (..., 64)  LayerActivationDetector 'head'

this run uses
strategy          SingleDeviceStrategy, 1 process  supported
precision         32-true                          supported
attention kernel  sdpa                             supported
CPU statistics    by numpy                         supported  numba is several times faster: it is off
not used: torch.compile, gradient accumulation, gradient checkpointing, PEFT, quantisation, logger"""
    )


def test_a_long_report_is_cut_and_the_value_is_not() -> None:
    layers = tuple(HookedLayer(f"model.{i}", i, "Linear" if i % 2 else "ReLU", ("Mine",)) for i in range(40))
    report = RunReport("fit", False, (), layers, ())
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[3:27]] == [f"model.{i}" for i in range(24)]
    assert lines[27].split() == ["...", "16", "more", "rows"]
    assert len(report.layers) == 40


def test_a_short_repr_says_what_runs_where() -> None:
    report = predicted(HookCallback([ActivationStatistics("block:1-2")], [steering()]))
    assert repr(report) == "<RunReport of predict: 2 hooks on 2 layers>"
    refused = predicted(HookCallback([ActivationStatistics("nowhere")], dry_run=True))
    assert repr(refused) == "<RunReport of predict in a dry run: 1 hook on 0 layers, 1 refusal>"


class Cells(HTMLParser):
    """The texts of a page's cells and paragraphs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_notebook_shows_all_that_the_text_says() -> None:
    report = predicted(HookCallback([ActivationStatistics("block:1-2", hook_id="<script>")], [steering()]))
    cells = Cells(report._repr_html_())
    assert "script" not in cells.tags and "ActivationStatistics '<script>'" in cells.texts
    said = {cell for line in str(report).splitlines() for cell in re.split(r"  +", line.strip()) if cell}
    said = {cell for cell in said if not cell.startswith("not used: ")}
    assert said <= {*cells.texts, "this run uses"}


def test_a_notebook_folds_many_layers_and_shows_all_of_them() -> None:
    layers = tuple(HookedLayer(f"a.{i}", i, f"Block{i}", ("Hook",)) for i in range(30))
    report = RunReport(run="fit", dry_run=False, hooks=(), layers=layers, features=())
    page = report._repr_html_()
    assert "a.29" in page and "more rows" not in page and "<details><summary>Layers" in page
    assert "6 more rows" in str(report)
