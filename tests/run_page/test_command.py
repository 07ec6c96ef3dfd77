"""``python -m mi_crow_lightning report LOGDIR -o run.html``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mi_crow_lightning.__main__ import _Progress, main
from tests.run_page.pages import embedded
from tests.tensorboard_plugin.logs import write_run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_run(tmp_path / "log" / "version_0", range(3))
    write_run(tmp_path / "log" / "version_1", range(4))
    return tmp_path / "log"


def test_the_page_of_all_runs_or_of_some(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.html"
    assert main(["report", str(log), "-o", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}: {file.stat().st_size / 1e6:.2f} MB, 2 runs\n", "")
    assert embedded(file).about["title"] == "Activations of log"
    assert main(["report", str(log), "-o", str(file), "--run", "version_1"]) == 0  # it replaces its own
    assert capsys.readouterr().out.endswith(", run version_1\n")
    assert [run["name"] for run in embedded(file).find("index")["runs"]] == ["version_1"]
    assert list(tmp_path.iterdir()) == [tmp_path / "log", file]


def test_what_is_left_out_is_said(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(log), "-o", str(tmp_path / "out.html"), "--max-mb", "0.01"]) == 0
    assert " MB, more than the 0.01 MB that it may have.\n" in capsys.readouterr().out


def test_it_needs_no_torch_and_writes_run_html(log: Path, tmp_path: Path) -> None:
    script = (
        f"import os, sys\nfrom mi_crow_lightning.__main__ import main\nos.chdir({str(tmp_path)!r})\n"
        f"assert main(['report', {str(log)!r}]) == 0\n"
        "print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("run.html: 0.") and ran.stdout.endswith(", 2 runs\n[]\n")
    assert (tmp_path / "run.html").exists()


def test_a_long_read_shows_now_and_then_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    often, never = _Progress(first=0.0, then=0.0), _Progress()
    for done in (10_400_000, 20_000_000):
        often(done, 20_000_000)
        never(done, 20_000_000)
    assert capsys.readouterr() == ("", "read 10 of 20 MB\nread 20 of 20 MB\n")


def write_damaged(log: Path) -> str:
    (file,) = (log / "version_1").iterdir()
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)
    return str(file)


@pytest.mark.parametrize(
    "fault", ["no folder", "a file", "no event file", "no activations", "nothing in the run", "no such run", "no size"]
)
def test_a_log_that_cannot_be_shown_ends_with_two_and_a_sentence(
    fault: str, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    (tmp_path / "empty").mkdir()
    with SummaryWriter(str(tmp_path / "other" / "run")) as writer:
        writer.add_scalar("train_loss", 1.0, 0)
    arguments, message = {
        "no folder": ([str(tmp_path / "nowhere")], f"there is no folder '{tmp_path}/nowhere'"),
        "a file": ([__file__], f"'{__file__}' is a file: give the folder of a log, as to tensorboard --logdir"),
        "no event file": ([str(tmp_path / "empty")], f"no event file of TensorBoard in '{tmp_path}/empty' or below it"),
        "no activations": (
            [str(tmp_path / "other")],
            f"there are no activations in the event files of '{tmp_path}/other': a Trainer writes them with "
            "HookCallback and a TensorBoardLogger",
        ),
        "nothing in the run": (
            [str(tmp_path), "--run", "log/version_0", "--run", "other/run"],
            f"there are no activations in the event files of run 'other/run' in '{tmp_path}': a Trainer writes them "
            "with HookCallback and a TensorBoardLogger",
        ),
        "no such run": (
            [str(log), "--run", "version1"],
            "run='version1' is not known: choose one of 'version_0', 'version_1'. Did you mean 'version_1'?",
        ),
        "no size": ([str(log), "--max-mb", "0"], "max_mb=0.0 must be a number of megabytes above 0, or math.inf"),
    }[fault]
    assert main(["report", *arguments, "-o", str(tmp_path / "out.html")]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert not (tmp_path / "out.html").exists()


@pytest.mark.documents("reliability/a-page-is-made-of-a-damaged-event-file")
def test_a_damaged_event_file_is_named_and_the_other_runs_can_be_shown(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_damaged(log), ["-o", str(tmp_path / "out.html")]
    assert main(["report", str(log), *out]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: '{file}' is damaged at byte ") and "a checksum does not fit" in said
    assert main(["report", str(log), *out, "--run", "version_0"]) == 0


def test_a_place_that_takes_no_file_is_refused_before_the_log_is_read(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_damaged(log)
    assert main(["report", str(log), "-o", str(tmp_path / "none" / "out.html")]) == 2
    assert capsys.readouterr().err == f"error: there is no folder '{tmp_path}/none' to write 'out.html' into\n"
    assert main(["report", str(log), "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: '{tmp_path}' is a folder: give the file to write, e.g. ")
