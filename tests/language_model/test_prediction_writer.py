"""PredictionWriter: every record of every batch, in lines that outlive the process."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from mi_crow_lightning import HookCallback, PredictionWriter
from mi_crow_lightning.language_model import read_predictions
from mi_crow_lightning.language_model.line_file import LineFile, holds_lines
from tests.callback.runs import told
from tests.language_model.test_sweep import SWEEP, module_of, steer
from tests.language_model.tiny import TEXTS, model_of, texts_loader
from tests.models import trainer
from tests.strangers import damaged, outcome

ROOT = Path(__file__).parents[2]


class Returns(pl.LightningModule):
    """A module whose `predict_step` returns what a function makes of the batch, a list of numbers."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.function(batch.tolist())


def numbers(start: int = 0, count: int = 5, batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(range(start, start + count), batch_size=batch_size)  # type: ignore[arg-type]


def as_texts(batch: list[int]) -> list[str]:
    return [f"{n}" for n in batch]


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.split("\n")[:-1]]


def write(path: Path, function: Callable[[Any], Any], data: Any = None, mode: str = "x") -> list[dict[str, Any]]:
    trainer(PredictionWriter(path, mode)).predict(Returns(function), numbers() if data is None else data)
    return lines(path)


def test_generated_texts_with_their_prompts_strengths_and_places(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "texts.jsonl"
    run = trainer(HookCallback(controllers=steer()), PredictionWriter(path))
    batches = run.predict(module_of(model_of("llama")), texts_loader())
    expected = [
        {"index": 2 * i + text.row, "dataloader_idx": 0, "batch_idx": i, **text._asdict()}
        for i, batch in enumerate(batches)
        for text in batch
    ]
    assert lines(path) == expected and len(expected) == len(TEXTS) * len(SWEEP)


class Pair(NamedTuple):
    text: str
    score: float


@dataclass
class Scored:
    text: str
    score: float


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (lambda n: f"number {n}", lambda n: {"text": f"number {n}"}),
        (lambda n: {"n": n, "of": {"a": [None, True]}}, lambda n: {"n": n, "of": {"a": [None, True]}}),
        (lambda n: Pair("é", n / 2), lambda n: {"text": "é", "score": n / 2}),
        (lambda n: Scored("漢", n / 2), lambda n: {"text": "漢", "score": n / 2}),
        (
            lambda n: {
                "tensor": torch.tensor([n, 1.5]),
                "array": np.arange(2),
                "number": np.float64(n),
                "path": Path("a"),
            },
            lambda n: {"tensor": [float(n), 1.5], "array": [0, 1], "number": float(n), "path": "a"},
        ),
        (lambda n: {"index": "mine"}, lambda n: {"record_index": "mine"}),
        (
            lambda n: {"record_index": 1, "index": n, "batch_idx": 3, "dataloader_idx": None},
            lambda n: {
                "record_index": 1,
                "record_record_index": n,
                "record_batch_idx": 3,
                "record_dataloader_idx": None,
            },
        ),
    ],
    ids=["string", "mapping", "named tuple", "dataclass", "arrays", "a field of the same name", "several"],
)
def test_records_of_any_predict_step(tmp_path: Path, record: Any, fields: Any) -> None:
    found = write(tmp_path / "a.jsonl", lambda batch: [record(n) for n in batch])
    assert found == [{"index": n, "dataloader_idx": 0, "batch_idx": n // 2, **fields(n)} for n in range(5)]
    assert "\\u" not in (tmp_path / "a.jsonl").read_text("utf-8")
    alone = write(tmp_path / "b.jsonl", lambda batch: record(batch[0]), numbers(batch_size=1))
    assert alone == [{"index": n, "dataloader_idx": 0, "batch_idx": n, **fields(n)} for n in range(5)]


def test_the_index_is_left_open_where_it_is_not_known(tmp_path: Path) -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    three_a_sample = write(tmp_path / "a.jsonl", lambda batch: [f"{n}" for n in batch for _ in range(3)])
    assert [line["index"] for line in three_a_sample] == [None] * 15
    data = [numbers(count=4), DataLoader(Stream(), batch_size=2)]  # Lightning keeps the last batch's indices
    with told("Couldn't infer the batch indices"):
        found = write(tmp_path / "b.jsonl", as_texts, data)
    assert [(line["dataloader_idx"], line["batch_idx"], line["index"], line["text"]) for line in found] == [
        *((0, n // 2, n, f"{n}") for n in range(4)),
        *((1, n // 2, None, f"{n}") for n in range(4)),
    ]


def test_shuffled_samples_keep_their_index(tmp_path: Path) -> None:
    data = DataLoader(range(7), batch_size=3, sampler=[3, 6, 0, 5, 1, 2, 4])  # type: ignore[arg-type]
    found = write(tmp_path / "a.jsonl", as_texts, data)
    assert [line["index"] for line in found] == [3, 6, 0, 5, 1, 2, 4] == [int(line["text"]) for line in found]


@given(st.lists(st.text(st.characters()), min_size=1, max_size=4))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Also with line breaks of all kinds, which no reader may take for an end, and with half of a surrogate pair."""
    path = tmp_path_factory.mktemp("a") / "a.jsonl"
    file = LineFile(path, "x")
    file.append([json.dumps(text, ensure_ascii=False) for text in texts])
    file.close()
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == texts
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == texts


@pytest.mark.documents("reliability/a-prediction-holds-line-separators")
@pytest.mark.parametrize(
    "separator", ["\u2028", "\u2029", "\u0085", "\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
)
def test_separators_within_a_text_end_no_line(tmp_path: Path, separator: str) -> None:
    found = write(tmp_path / "a.jsonl", lambda batch: [f"{n}{separator}end" for n in batch])
    assert [line["text"] for line in found] == [f"{n}{separator}end" for n in range(5)]
    text = (tmp_path / "a.jsonl").read_text("utf-8")
    assert len(text.splitlines()) == 5 and [json.loads(line) for line in text.splitlines()] == found


# The file.


def test_a_file_that_is_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("mine")
    with pytest.raises(FileExistsError) as caught:
        write(path, lambda batch: pytest.fail("it ran"))
    assert str(caught.value) == (
        f"{str(path)!r} exists already: PredictionWriter(..., mode='w') overwrites it, mode='a' continues it"
    )
    assert path.read_text() == "mine"


def test_a_file_is_written_anew_or_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for mode, expected in (("a", 5), ("a", 10), ("w", 5), ("a", 10)):
        found = write(path, as_texts, mode=mode)
        assert [line["text"] for line in found] == [str(n % 5) for n in range(expected)]


@pytest.mark.parametrize("whole", [b"", b'{"text": "0"}\n', b'{"text": "' + b"0" * 200_000 + b'"}\n'])
@pytest.mark.parametrize("half", [b"", b'{"te', b'{"text": "' + b"x" * 200_000])
def test_a_half_line_at_the_end_of_a_continued_file_is_cut(tmp_path: Path, whole: bytes, half: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole + half)
    with told(f"ended in half a line: its last {len(half)} bytes were cut off", times=1 if half else 0):
        write(path, as_texts, mode="a")
    assert path.read_bytes().startswith(whole) and len(lines(path)) == len(whole.splitlines()) + 5


OTHERS = {
    "model": b"GGUF" + bytes(range(256)),
    "text": b"joy\nand more joy",
    "list of lines": b'["a"]\n["b"]\n',
    "number": b"1\n2\n",
    "list": b'[{"a": 1},\n{"b": 2}]',
    "JSON on several lines": b'{\n  "a": 1\n}',
    "table": b"a,b\n1,2\n",
    "one line without an end": b"x" * 200_000,
    "nested": b'{"a":' * 5000 + b"\n",
    "number of many digits": b'{"a": ' + b"1" * 5000 + b"}\n",
    "zeros": b"\0" * 4096,
    "not UTF-8": b'{"a": "\xff"}\n',
}


@pytest.mark.documents("reliability/a-file-to-be-continued-holds-something-other-than-json-lines")
@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_a_file_of_something_else_is_not_continued_and_not_cut(tmp_path: Path, content: bytes) -> None:
    """What follows its last line break would be cut off as half a line: of most files, everything."""
    (path := tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"a' does not begin with a line of JSON, so it is not continued"):
        write(path, as_texts, mode="a")
    assert path.read_bytes() == content


@pytest.mark.fuzz
@pytest.mark.documents("reliability/a-file-to-be-continued-is-damaged")
@settings(max_examples=150)
@given(damaged(b'{"index": 0, "text": "joy"}\n{"index": 1, "text": "\\u00e9 and [more]"}\n{"index": 2}\n'))
def test_a_damaged_file_is_continued_after_its_last_line_or_left(folder: Path, content: bytes) -> None:
    (path := folder / "a.jsonl").write_bytes(content)
    assert outcome(lambda: holds_lines(path), path, ()) in (True, False)
    if not holds_lines(path):
        return
    with warnings.catch_warnings(record=True, action="always") as caught:
        (file := LineFile(path, "a")).append(["{}"])
        file.close()
    whole = content[: content.rfind(b"\n") + 1]
    assert path.read_bytes() == whole + b"{}\n" and len(caught) == (whole != content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


def test_each_batch_is_on_disk_when_the_next_one_starts(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.jsonl", []

    def step(batch: list[int]) -> list[str]:
        seen.append(len(lines(path)))
        return [f"{n}" for n in batch]

    write(path, step)
    assert seen == [0, 2, 4]


def test_a_run_that_fails_keeps_what_it_wrote_and_closes_the_file(tmp_path: Path) -> None:
    def step(batch: list[int]) -> list[str]:
        if 4 in batch:
            raise RuntimeError("broken on purpose")
        return [f"{n}" for n in batch]

    writer = PredictionWriter(tmp_path / "a.jsonl")
    with pytest.raises(RuntimeError, match="broken on purpose"):
        trainer(writer).predict(Returns(step), numbers())
    assert [line["text"] for line in lines(tmp_path / "a.jsonl")] == ["0", "1", "2", "3"]
    assert writer._lines is None and list(tmp_path.iterdir()) == [tmp_path / "a.jsonl"]


@pytest.mark.documents("reliability/the-process-is-killed-while-predictionwriter-writes")
def test_a_run_that_is_killed_keeps_what_it_wrote(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from tests.language_model.test_prediction_writer import *\n"
        f"write(Path({str(tmp_path / 'a.jsonl')!r}), lambda batch: [str(n) for n in batch] if 4 not in batch "
        "else os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [line["text"] for line in lines(tmp_path / "a.jsonl")] == ["0", "1", "2", "3"]


KILLED = """
import resource, signal, sys
from pathlib import Path
from mi_crow_lightning.language_model.line_file import LineFile
file = LineFile(Path(sys.argv[1]), "x")
file.append(["first"] * 3)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # kills the process where the file reaches the limit
file.append(["a second"] * 3)
"""


@pytest.mark.documents("reliability/the-process-is-killed-within-a-batch-of-predictionwriter")
@pytest.mark.parametrize("size", [25, 27, 28, 36])
def test_half_a_batch_is_cut_when_its_file_is_continued(tmp_path: Path, size: int) -> None:
    """The batch begins after 18 bytes, its lines have 9."""
    path = tmp_path / "a.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(size)], cwd=ROOT, timeout=200)
    assert done.returncode == -signal.SIGXFSZ and len(path.read_bytes()) == size
    with told(f"ended in half a batch: its last {size - 18} bytes were cut off"):
        file = LineFile(path, "a")
    file.append(["again"])
    file.close()
    assert path.read_bytes() == b"first\n" * 3 + b"again\n"
    assert list(tmp_path.iterdir()) == [path]


LOOP = """
import sys
from pathlib import Path
from mi_crow_lightning.language_model.line_file import LineFile
file, number = LineFile(Path(sys.argv[1]), "a"), int(sys.argv[2])
while True:
    file.append([f'{{"n": {number}, "text": "{4000 * "x"}"}}'] * 200)
    print(number, flush=True)
    number += 1
"""


def batches_in(path: Path) -> set[int]:
    """The numbers of a file's batches, each of which must be whole."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*ends in .* bytes of a batch")
        there = Counter(record["n"] for record in read_predictions(path))
    assert set(there.values()) <= {200}
    return set(there)


def kill_and_continue(path: Path, kills: int, seed: int) -> int:
    """Kill a writer at random times, and return how many of its batches were cut."""
    rng, cut, number = random.Random(seed), 0, 0
    for _ in range(kills):
        command = [sys.executable, "-c", LOOP, str(path), str(number)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline())]
            time.sleep(rng.random() * 0.01)
            process.kill()
            said += map(int, process.stdout.read().split())
        before, read = path.stat().st_size, batches_in(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*ended in half a batch")
            LineFile(path, "a").close()
        cut += path.stat().st_size < before
        assert set(range(said[-1] + 1)) <= read == batches_in(path)
        number = max(read) + 1
    return cut


@pytest.mark.documents("reliability/the-process-is-killed-within-a-batch-of-predictionwriter")
@pytest.mark.parametrize("more", [b"", b'{"text"', b'{"text": 2}\n', b'{"text": 2}\n{"te'])
def test_a_reader_stops_where_whole_batches_end(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "a.jsonl"
    file = LineFile(path, "x")
    file.append(['{"text": "\u2028"}', '{"text": 1}'])
    with path.open("ab") as other:  # the part of a batch
        other.write(more)
    with told(f"ends in {len(more)} bytes of a batch", times=1 if more else 0):
        assert read_predictions(path) == [{"text": "\u2028"}, {"text": 1}]
    file.close()


def test_a_reader_finds_whole_batches_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    file = LineFile(path, "x")

    def write_all() -> None:
        for number in range(100):
            file.append([f'{{"n": {number}, "text": "{2000 * "x"}"}}'] * 200)
        file.close()

    writer = threading.Thread(target=write_all)
    writer.start()
    found = [0]
    while writer.is_alive():
        found.append(len(batches_in(path)))
    writer.join()
    assert found == sorted(found) and batches_in(path) == set(range(100))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a": 1}\n[2]\n', "has a line 2 that is not a JSON object, but a list"),
        (b'{"a": 1}\n{"a"', "has a line 2 that is not JSON: Expecting ':' delimiter"),
        (b'{"a": 1}\n\xff\n', "has a line 2 that is not JSON: 'utf-8' codec"),
        (b"[" * 10**5, "has a line 1 that is nested deeper than 100 levels"),
    ],
)
def test_a_reader_names_the_line_that_is_not_a_record(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"a.jsonl' {says}"):
        read_predictions(path)
    with pytest.raises(FileNotFoundError):
        read_predictions(tmp_path / "b.jsonl")


def test_a_reader_and_a_writer_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert write(path, as_texts) == read_predictions(path) == read_predictions(str(path))


@pytest.mark.documents("reliability/the-process-is-killed-within-a-batch-of-predictionwriter")
def test_kills_at_random_times_leave_whole_batches(tmp_path: Path) -> None:
    kill_and_continue(tmp_path / "a.jsonl", kills=4, seed=0)


@pytest.mark.documents("reliability/the-process-is-killed-within-a-batch-of-predictionwriter")
@pytest.mark.parametrize("note", [b"", b"0", b"%020d" % 10**9, b"not a number", None])
@pytest.mark.parametrize("mode", ["a", "w"])
def test_a_note_of_an_earlier_file_does_no_harm(tmp_path: Path, note: bytes | None, mode: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"old\n")
    if note is not None:
        (tmp_path / "a.jsonl.unfinished").write_bytes(note)
    with told("ended in half a batch: its last 4 bytes", times=int(note == b"0" and mode == "a")):
        file = LineFile(path, mode)
    file.append(["new"])
    file.close()
    assert path.read_bytes() == (b"old\n" if mode == "a" and note != b"0" else b"") + b"new\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.documents("reliability/the-disk-is-full-while-predictionwriter-writes")
def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """The largest file that this process may write stands for the disk."""
    file = LineFile(tmp_path / "a.jsonl", "x")
    file.append(["whole"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9, before[1]))
        with pytest.raises(OSError, match="File too large"):
            file.append(["another", "and one more"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a.jsonl").read_bytes() == b"whole\n"
    file.append(["again"])
    file.close()
    assert (tmp_path / "a.jsonl").read_bytes() == b"whole\nagain\n"


def test_a_writer_that_wrote_pickles(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "a.jsonl", "w")
    trainer(writer).predict(Returns(as_texts), numbers())
    copy = pickle.loads(pickle.dumps(writer))
    assert (copy.path, copy.mode) == (writer.path, "w")


# Values that are not records.


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (lambda batch: torch.ones(2, 3), "a Tensor of shape (2, 3)"),
        (lambda batch: [torch.ones(3)] * 2, "a list with a Tensor of shape (3,)"),
        (lambda batch: [1, 2], "a list with a int"),
        (lambda batch: [["a"], ["b"]], "a list with a list"),
        (lambda batch: [Scored], "a list with a type"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, made: Any, what: str) -> None:
    with pytest.raises(TypeError) as caught:
        write(tmp_path / "a.jsonl", made)
    assert str(caught.value) == (
        "PredictionWriter writes records: a mapping, a named tuple, a dataclass or a string, or a list of them. "
        f"predict_step returned {what}"
    )


@pytest.mark.filterwarnings("ignore:predict returned None")
def test_nothing_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="predict_step returned a NoneType"):
        write(tmp_path / "a.jsonl", lambda batch: None)


def test_a_field_that_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(TypeError) as caught:
        write(tmp_path / "a.jsonl", lambda batch: [{"text": "a", "made": object()}])
    assert str(caught.value).startswith(
        "PredictionWriter cannot write a record with the fields ['index', 'dataloader_idx', 'batch_idx', 'text', "
        "'made']: a object is not text, a number, a list or a mapping"
    )
    assert not (tmp_path / "a.jsonl").read_bytes()


# Two processes.


def run_two(folder: Path, mode: str = "x") -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.language_model.program_prediction_writer",
        str(folder),
        mode,
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)


def test_two_processes_write_a_file_each_and_together_what_one_writes(tmp_path: Path) -> None:
    run = trainer(HookCallback(controllers=steer()), PredictionWriter(tmp_path / "one.jsonl"))
    run.predict(module_of(model_of("llama")), texts_loader())
    expected = {(line["index"], line["strength"]): line["token_ids"] for line in lines(tmp_path / "one.jsonl")}

    done = run_two(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [lines(tmp_path / f"texts.rank{rank}.jsonl") for rank in range(2)]
    assert all(ranks) and len(ranks[0]) + len(ranks[1]) == len(expected)
    assert {(line["index"], line["strength"]): line["token_ids"] for rank in ranks for line in rank} == expected
    key, columns, rows, step = json.loads((tmp_path / "table.json").read_text("utf-8"))
    assert (key, columns[:2], step) == ("predict/texts", ["prompt", "strength 0"], 0)
    assert [row[0] for row in rows] == [ranks[0][0]["prompt"], ranks[0][len(SWEEP)]["prompt"]]

    (tmp_path / "texts.rank0.jsonl").unlink()  # rank 1's file alone stops both
    again = run_two(tmp_path)
    assert again.returncode != 0 and "exists already" in again.stderr + again.stdout
    assert not (tmp_path / "texts.rank0.jsonl").exists()
