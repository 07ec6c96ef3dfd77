"""Events with a checksum in C: the bytes of the file are those of TensorBoard's own writer."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from mi_crow_lightning.loggers import checksum, write_event
from mi_crow_lightning.loggers.checksum import masked_checksum
from tests.loggers.written import MIDDLE, drawn, events, scalar

READINGS = [scalar("m/h.0", 0.1), scalar("m/h.1", -3.0), drawn(MIDDLE)]
INSTALLED = pytest.mark.skipif(checksum._in_c() is None, reason="google-crc32c is not installed")


@pytest.fixture(params=[pytest.param(True, marks=INSTALLED), False], ids=["in C", "without"])
def in_c(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether checksums are computed in C; in an environment that has it, both ways are tried."""
    if not request.param:
        monkeypatch.setattr(checksum, "_in_c", lambda: None)
    return request.param


def payloads(file: Path) -> Iterator[bytes]:
    data = file.read_bytes()
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        yield data[place + 12 : place + 12 + size]
        place += 16 + size


@given(st.binary(max_size=300))
def test_the_checksum_is_tensorboards(data: bytes) -> None:
    assert masked_checksum(data) == masked_crc32c(data)


def test_the_file_is_byte_for_byte_what_tensorboard_writes(
    tmp_path: Path, in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []  # sizes of what TensorBoard's own function is given
    usual = checksum_of_tensorboard = RecordWriter.write.__globals__["masked_crc32c"]

    def counting(data: Any) -> int:
        computed.append(len(bytes(data)))
        return usual(data)

    monkeypatch.setitem(RecordWriter.write.__globals__, "masked_crc32c", counting)
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (3, 53, 2**40):
            write_event(writer, READINGS, step)
            writer.add_scalar("of/others", 0.5, step)  # between ours: order and bytes are kept
    monkeypatch.setitem(RecordWriter.write.__globals__, "masked_crc32c", checksum_of_tensorboard)
    (file,) = tmp_path.iterdir()
    again = io.BytesIO()
    for payload in payloads(file):
        RecordWriter(again).write(payload)
    assert file.read_bytes() == again.getvalue()
    assert [(e.step, len(e.summary.value)) for e in events(tmp_path)] == [
        pair for step in (3, 53, 2**40) for pair in ((step, 3), (step, 1))
    ]
    largest = max(map(len, payloads(file)))
    assert (largest in computed) is not in_c


@INSTALLED
def test_an_event_holds_what_torch_would_put_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name in ("in_c", "without"):
        if name == "without":
            monkeypatch.setattr(checksum, "_in_c", lambda: None)
        with SummaryWriter(str(tmp_path / name)) as writer:
            write_event(writer, READINGS, 7)
        (file,) = (tmp_path / name).iterdir()
        event = Event.FromString(list(payloads(file))[1])
        assert event.wall_time > 1.7e9
        event.wall_time = 0.0
        written.append(event.SerializeToString(deterministic=True))
    assert written[0] == written[1]


@pytest.mark.parametrize("where", ["class", "object"])
def test_who_reads_along_in_torchs_writer_still_gets_every_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """MLflow's autologging wraps the class's ``add_event``."""
    seen: list[int] = []
    usual = FileWriter.add_event

    def reading_along(self: FileWriter, event: Any, step: int | None = None, walltime: float | None = None) -> None:
        seen.append(len(event.summary.value))
        usual(self, event, step, walltime)

    with SummaryWriter(str(tmp_path)) as writer:
        file_writer = writer._get_file_writer()
        if where == "class":
            monkeypatch.setattr(FileWriter, "add_event", reading_along)
        else:
            file_writer.add_event = reading_along.__get__(file_writer)
        write_event(writer, READINGS, 7)
    assert seen == [3]
    assert [event.step for event in events(tmp_path)] == [7]


def test_a_closed_writers_error_is_tensorboards(tmp_path: Path, in_c: bool) -> None:
    writer = SummaryWriter(str(tmp_path))
    file_writer = writer._get_file_writer()
    writer.close()
    with pytest.raises(OSError, match="Writer is closed"):
        checksum.add_summary(file_writer, Event(summary={"value": [{"tag": "a", "simple_value": 1.0}]}).summary, 1)


def test_it_is_imported_with_the_first_event_alone() -> None:
    code = "import sys, mi_crow_lightning, mi_crow_lightning.loggers.dispatch; print('google_crc32c' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
