"""What of a run's report is logged, where: all of it or less, with rich only on a terminal, features once a Trainer."""

from __future__ import annotations

import io
import logging
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mi_crow_lightning import ActivationStatistics, HookCallback
from mi_crow_lightning.report.info_log import log_info
from mi_crow_lightning.report.run_report import RunReport
from tests.callback.runs import data_of, module_of, run
from tests.models import trainer

STYLE = re.compile(r"\x1b\[[\d;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Our logger alone, whatever the tests before have set up."""
    logger = logging.getLogger("mi_crow_lightning")
    before = (logger.handlers, logger.propagate, logger.level)
    logger.handlers, logger.propagate = [], False
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def terminal(log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    log.addHandler(logging.StreamHandler(stream))
    return stream


def watching(**options: Any) -> HookCallback:
    return HookCallback([ActivationStatistics("model.*")], **options)


def predict(callback: HookCallback, **options: Any) -> RunReport:
    run("predict", trainer(callback, **options), module_of(), data_of())
    return callback.report()


def words(text: str) -> list[str]:
    return STYLE.sub("", text).split()


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_the_report_in_its_width(
    terminal: Terminal, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    report = predict(watching(), precision="bf16-mixed")
    shown = terminal.getvalue()
    assert STYLE.search(shown)
    assert max(map(len, STYLE.sub("", shown).splitlines())) <= width
    assert len(shown.splitlines()) <= 26  # two fewer with numba, which has less to say
    assert sorted(words(shown)) == sorted(str(report).split())  # other line breaks, and nothing else


def test_other_handlers_get_plain_text(terminal: Terminal, log: logging.Logger, tmp_path: Path) -> None:
    file = logging.FileHandler(tmp_path / "log.txt")
    file.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    pipe, errors = io.StringIO(), logging.StreamHandler(Terminal())
    errors.setLevel(logging.ERROR)
    for handler in (file, logging.StreamHandler(pipe), errors):
        log.addHandler(handler)
    report = predict(watching())
    file.close()
    assert (tmp_path / "log.txt").read_text() == f"INFO mi_crow_lightning: {report}\n"
    assert pipe.getvalue() == f"{report}\n"
    assert STYLE.search(terminal.getvalue()) and errors.stream.getvalue() == ""


def test_logging_is_configured_as_ever(terminal: Terminal, log: logging.Logger) -> None:
    log.handlers[0].setFormatter(logging.Formatter("12:00 %(message)s"))
    predict(watching())
    assert STYLE.sub("", terminal.getvalue()).startswith("12:00 HookCallback in predict: ")
    length = len(terminal.getvalue())
    log.setLevel(logging.WARNING)
    predict(watching())
    log.setLevel(logging.INFO)
    log.addFilter(deny := lambda record: False)
    predict(watching())
    log.removeFilter(deny)
    assert len(terminal.getvalue()) == length


def test_without_rich_a_terminal_gets_plain_text(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert terminal.getvalue() == "" and f"{predict(watching())}\n" == terminal.getvalue()


def test_no_colours_where_none_are_wanted(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    predict(watching())
    assert "\x1b[3" not in terminal.getvalue() and "HookCallback" in terminal.getvalue()


def test_names_are_not_read_as_markup(terminal: Terminal) -> None:
    predict(HookCallback([ActivationStatistics("model.[0]", hook_id="[red]mine[/red]")]))
    assert "[red]mine[/red]" in STYLE.sub("", terminal.getvalue()) and "'model.[0]'" in STYLE.sub(
        "", terminal.getvalue()
    )


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO):
        yield caplog


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "mi_crow_lightning"]


def test_features_are_logged_once_a_trainer(logged: pytest.LogCaptureFixture) -> None:
    first = HookCallback([ActivationStatistics("model.0")], name="first")
    second = HookCallback([ActivationStatistics("model.3")], name="second")
    runner, module = trainer(first, second, accumulate_grad_batches=2), module_of()
    run("fit", runner, module, data_of())
    run("predict", runner, module, data_of())
    texts = told(logged)
    assert len(texts) == 4
    assert [text.count("this run uses") for text in texts] == [1, 0, 0, 0]
    assert "gradient accumulation  2 batches a step" in texts[0]
    assert "\n\nnot used: gradient accumulation" in texts[2]  # what is other than in the fit
    for text, callback in zip(texts, (first, second) * 2, strict=True):
        assert repr(callback.detectors[0].layer_signature) in text
    assert "this run uses" in str(second.report())  # which is whole
    run("predict", trainer(first), module, data_of())
    assert "this run uses" in told(logged)[-1]  # another Trainer


@pytest.mark.parametrize("from_environment", [False, True])
def test_short_and_off(
    from_environment: bool, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reported(form: str) -> list[str]:
        logged.clear()
        if from_environment:
            monkeypatch.setenv("MI_CROW_LIGHTNING_REPORT", form)
        callback = pickle.loads(pickle.dumps(watching(**({} if from_environment else {"report": form}))))
        assert predict(callback, precision="16-true").hooks
        return told(logged)

    assert reported("short") == ["HookCallback in predict: 1 hook on 6 layers (ActivationStatistics)."]
    assert reported("off") == []
    assert len(reported("full")) == 1
    monkeypatch.setenv("MI_CROW_LIGHTNING_REPORT", "full")
    logged.clear()
    predict(watching(report="off"))
    assert told(logged) == []  # the argument wins


def test_a_short_report_names_what_works_only_in_part(logged: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    predict(watching(report="short"), logger=CSVLogger(tmp_path))
    (text,) = told(logged)
    assert text.splitlines()[1] == "degraded: logger CSVLogger (the main statistics, and no histograms)"


@pytest.mark.parametrize("form", ["full", "short", "off"])
def test_refusals_are_always_logged(form: Any, logged: pytest.LogCaptureFixture) -> None:
    predict(HookCallback([ActivationStatistics("nowhere")], report=form, dry_run=True))
    assert "This run would be refused: LayerNotFound: the model has no layer" in told(logged)[-1].replace("\n  ", " ")
    first, second = (HookCallback([ActivationStatistics("model.0")], name=name, report=form) for name in "ab")
    logged.clear()
    with pytest.raises(Exception, match="would both write"):
        run("predict", trainer(first, second), module_of(), data_of())
    assert "This run is refused: " in told(logged)[-1]


def test_a_form_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"report='shrot' is not known: choose one of .*Did you mean 'short'\?"):
        watching(report="shrot")


def test_a_form_in_the_environment_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_CROW_LIGHTNING_REPORT", "quiet")
    with pytest.raises(ValueError, match="the environment variable MI_CROW_LIGHTNING_REPORT='quiet' is not known"):
        watching()
    watching(report="off")
    monkeypatch.setenv("MI_CROW_LIGHTNING_REPORT", "")
    watching()


def test_what_is_not_a_report_is_logged_as_it_is(terminal: Terminal) -> None:
    log_info("plain")
    assert terminal.getvalue() == "plain\n"
