"""Events of a run: written as texts, and read back once each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers import (
    DetectorReadings,
    EventRow,
    LoggedStep,
    compact,
    read_compact,
    read_compact_histograms,
    read_events,
    write,
    write_event,
)
from mi_crow_lightning.loggers.run_events import KINDS

ON = EventRow("train", 3, "switch", "on", "half")
WARNED = EventRow("train", 3, "warning", "<b>one</b> row\n\u202e was left out")
LATER = EventRow("train", 9, "exception", "ValueError: no", layer="h.0")


def write_steps(folder: Path, *steps: LoggedStep) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            write_event(writer, [], step.step, compact(step))


def of(*rows: EventRow, **options: Any) -> LoggedStep:
    return LoggedStep(rows[0].stage, rows[0].step, [], events=rows, **options)


def test_events_are_read_back_with_the_numbers_beside_them(tmp_path: Path) -> None:
    detector = DetectorReadings([Reading("h.0", "rms", 0.5)], ("h.0",), "h.*")
    write_steps(tmp_path, LoggedStep("train", 3, [detector], events=[ON, WARNED]), of(LATER))
    assert list(read_events(tmp_path)) == [ON, WARNED, LATER]
    assert [row.value for row in read_compact(tmp_path)] == [0.5] and not list(read_compact_histograms(tmp_path))


def test_a_step_that_is_written_again_is_read_once(tmp_path: Path) -> None:
    validated = ON._replace(stage="validate")
    write_steps(tmp_path, of(ON), of(validated), of(ON, WARNED), of(validated), of(LATER), of(LATER, LATER))
    assert list(read_events(tmp_path)) == [ON, validated, WARNED, LATER, LATER]


def test_callbacks_and_stages_have_tags_of_their_own(tmp_path: Path) -> None:
    steps = [of(ON, noted_by=one) for one in ("0", "1")] + [of(ON._replace(stage="test"))]
    tags = [compact(step)[0].tag for step in steps]
    assert len(set(tags)) == 3 and [tag.rpartition("#")[0] for tag in tags] == ["events/", "events/", "events/test/"]
    write_steps(tmp_path, *steps)
    assert list(read_events(tmp_path)) == [ON, ON, ON._replace(stage="test")]


def test_tensorboard_reads_the_texts(tmp_path: Path) -> None:
    write_steps(tmp_path, of(ON, WARNED))
    (file,) = tmp_path.glob("events*")
    (value,) = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    texts = [[text.decode() for text in row] for row in make_ndarray(value.tensor)]
    assert texts == [["switch", "on", "half", ""], ["warning", WARNED.text, "", ""]]


def test_a_run_without_events_has_none(tmp_path: Path) -> None:
    detector = DetectorReadings([Reading("h.0", "rms", 0.5)], ("h.0",), "h.*")
    write_steps(tmp_path, LoggedStep("train", 3, [detector]))
    assert list(read_events(tmp_path)) == []


def test_other_loggers_are_not_asked(tmp_path: Path) -> None:
    class Other:
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            raise AssertionError("an event is not a metric")

    write([Other()], of(ON))


def test_a_folder_without_event_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no event file"):
        read_events(tmp_path)


def test_every_kind_is_explained() -> None:
    assert EventRow.__doc__ is not None and all(f'``"{kind}"``' in EventRow.__doc__ for kind in KINDS)
