"""The page: one HTML file that shows what a run did, without a server and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from mi_crow_lightning._arguments import listed, not_known, place
from mi_crow_lightning._foreign_files import named
from mi_crow_lightning._shown import shown
from mi_crow_lightning.run_page.answers import Answer, answers
from mi_crow_lightning.run_page.bundle import bundled, style
from mi_crow_lightning.run_page.event_log import EventLog, Progress, event_files
from mi_crow_lightning.run_page.fitting import Fitted, fitted
from mi_crow_lightning.run_page.thinning import steps_of

__all__ = ["MAX_MB", "Page", "write_page"]

MAX_MB = 2.0
"""The most that a page has by itself, in millions of bytes."""

_MB = 1_000_000
_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="mi-crow-lightning">
<title>Activations</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<div id="app"></div>
<noscript><p>This page draws what it holds: it needs JavaScript.</p></noscript>
<script type="application/octet-stream" id="answers">{answers}</script>
<script type="module">{script}</script>
</body>
</html>
"""


class Page(NamedTuple):
    """A page that was written.

    Attributes:
        path: its file.
        size: its size in bytes.
        runs: the runs that it shows.
        notes: a sentence on each thing that the page leaves out, as the page itself says it; usually none.
    """

    path: Path
    size: int
    runs: tuple[str, ...]
    notes: tuple[str, ...]


def write_page(
    log_dir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    runs: Sequence[str] | None = None,
    max_mb: float = MAX_MB,
    progress: Progress | None = None,
) -> Page:
    """Write what runs did as one HTML file: what the Activations tab of TensorBoard shows, without TensorBoard.

    Where the file would become too large, it leaves out steps, evenly, of histograms first, and says so.

    Args:
        log_dir: a folder with event files, in it or below it: a TensorBoardLogger's ``log_dir``, or all of a log.
        path: the file to write. A file that is there is replaced.
        runs: the runs to show, by their paths from ``log_dir`` on, ``"."`` for that folder alone; by default all.
        max_mb: the size that the file may have, in millions of bytes; ``math.inf`` for any.
        progress: called while files are read, with the bytes that were read and those there are.

    Raises:
        TypeError, ValueError: an argument is wrong, ``log_dir`` has no such run or no activations, or an event file is
            damaged.
        OSError: there is no event file, one cannot be read, or the page cannot be written.

    Examples:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> from mi_crow_lightning import Reading
        >>> from mi_crow_lightning.loggers import DetectorReadings, LoggedStep, compact, write_event
        >>> detector = DetectorReadings([Reading("h.0", "rms", 0.5)], ("h.0",), "h.*")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with SummaryWriter(f"{folder}/first") as writer:
        ...         write_event(writer, [], 3, compact(LoggedStep("train", 3, [detector])))
        ...     page = write_page(folder, f"{folder}/run.html")
        ...     page.path.name, page.runs, page.notes
        ('run.html', ('first',), ())
    """
    folder, file = place("log_dir", log_dir), place("path", path)
    limit = _limit(max_mb)
    _check_target(file)
    found = _named(_chosen(event_files(folder), runs), folder)
    given = answers(EventLog(found, progress))
    shown_runs = _with_activations(folder, found, given[0].content["runs"], runs)
    title = f"Activations of {next(iter(found)) if len(found) == 1 else _name_of(folder)}"
    facts = _facts(shown_runs)

    def about(one: Fitted) -> dict[str, Any]:
        return {"title": title, "lines": [facts, *_notes(one, given, max_mb)]}

    frame = len(_html(b""))

    def size(one: Fitted) -> int:
        return frame + 5 * (len(one.archive.to_bytes(about(one))) // 4 + 1)

    best = fitted(given, size, limit)
    content = _html(best.archive.to_bytes(about(best)))
    _write(file, content)
    notes = _notes(best, given, max_mb)
    if len(content) > limit:
        notes.append(f"The page has {len(content) / _MB:.1f} MB, more than the {max_mb:g} MB that it may have.")
    return Page(file, len(content), tuple(run["name"] for run in shown_runs), tuple(notes))


def _limit(max_mb: object) -> float:
    if not isinstance(max_mb, (int, float)) or isinstance(max_mb, bool) or not max_mb > 0:
        raise ValueError(f"max_mb={shown(max_mb)} must be a number of megabytes above 0, or math.inf")
    return max_mb * _MB


def _check_target(file: Path) -> None:
    """Refuse a place where no file can be written, before time is spent on the log."""
    if file.is_dir():
        raise IsADirectoryError(f"{named(file)} is a folder: give the file to write, e.g. {named(file / 'run.html')}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {named(file.parent)} to write {file.name!r:.200} into")


def _chosen(found: dict[str, list[Path]], runs: Sequence[str] | None) -> dict[str, list[Path]]:
    if runs is None:
        return found
    names = listed("runs", runs, "names of runs", "['version_0']")
    for name in names:
        if name not in found:
            raise not_known("run", name, found)
    if not names:
        raise ValueError(f"runs is empty: leave it out for all of {', '.join(map(repr, list(found)[:5]))}")
    return {name: files for name, files in found.items() if name in names}


def _named(found: dict[str, list[Path]], folder: Path) -> dict[str, list[Path]]:
    """Return runs with the name of the folder for the one that is the folder itself, if it is the only one."""
    return {_name_of(folder): found["."]} if list(found) == ["."] else found


def _name_of(folder: Path) -> str:
    return os.fsencode(folder.resolve().name or "log").decode("utf-8", "replace")


def _with_activations(
    folder: Path, found: Iterable[str], in_index: Sequence[Any], runs: Sequence[str] | None
) -> Sequence[Any]:
    """Return the runs that the page shows.

    Raises:
        ValueError: there is none, or one that was asked for has nothing to show.
    """
    names = {run["name"] for run in in_index}
    missing = [run for run in found if run not in names] if runs is not None else []
    if missing or not names:
        of = f"run {missing[0]!r:.200} in {named(folder)}" if missing else named(folder)
        raise ValueError(
            f"there are no activations in the event files of {of}: a Trainer writes them with HookCallback and a "
            "TensorBoardLogger"
        )
    return in_index


def _facts(runs: Sequence[Any]) -> str:
    from mi_crow_lightning import __version__

    last = datetime.fromtimestamp(max(run["last"] for run in runs), timezone.utc)
    counted = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    return f"{counted}, last entry {last:%Y-%m-%d %H:%M} UTC. Written by mi-crow-lightning {__version__}."


def _notes(one: Fitted, given: Iterable[Answer], max_mb: float) -> list[str]:
    """Return what the page leaves out, in sentences."""
    found = list(given)
    drawn = [answer for answer in found if answer.route == "histogram"]
    others = [answer for answer in found if answer.route != "histogram"]
    notes = []
    for every, what, of in ((one.statistics, "statistics", others), (one.histograms, "histograms", drawn)):
        if every > 1 and of:
            steps = f"every {_nth(every)} of up to {max(map(steps_of, of)):,} steps"
            notes.append(
                f"To keep this page below {max_mb:g} MB, its {what} are those of {steps}: the event files hold all."
            )
    return notes


def _nth(number: int) -> str:
    end = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{end}"


def _html(archive: bytes) -> bytes:
    """Return the page around an archive. Names from the log are in the archive alone, which is in base 85."""
    styles, script = f"\n{style()}", f"\n{bundled()}\n"
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(styles),
        "img-src": "data:",
        "connect-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
    }
    html = _HTML.format(
        policy="; ".join(f"{name} {value}" for name, value in policy.items()),
        style=styles,
        script=script,
        answers=_text_of(archive),
    )
    return html.encode()


def _text_of(archive: bytes) -> str:
    """Return bytes in base 85, a sixteenth shorter than base 64, without the characters that mean something in HTML."""
    padded = archive + bytes(-len(archive) % 4)
    return base64.b85encode(padded).translate(bytes.maketrans(b"<>&", b",/.")).decode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _write(file: Path, content: bytes) -> None:
    """Write a file at once: one that was there stays whole if this fails."""
    partial = file.with_name(f".{file.name[:100]}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
