"""The page of the documentation that a sweep writes."""

from __future__ import annotations

import json
import platform
from collections import Counter
from pathlib import Path

import torch

from tests.architectures.tiny_model import TABLES

PAGE = Path("docs/reference/architectures.md")

_START = """\
# Architectures

`make sweep` builds a tiny random model of every architecture that the installed transformers has, and compares what
hooks read and change with plain hooks of torch, which know the padding. This page is its result, with transformers
{version}, torch {torch} and Python {python} on a CPU.

The checks of a model: which layers `block:*` and the roles `attn` and `mlp` mean; means and numbers of elements in
every block of its main stack, and of an encoder before it, without padding and with padding on either side, while
the model's outputs stay equal to the bit; edits of the first block and of the last of each class, of all tokens or
the last ones and with a strength for each sample, against the same edit by hand; `generate` with and without its
cache, for `all`, `prompt`, `generated` and `last` tokens; labels alone, for a decoder that makes its tokens of them;
the gradients of a checkpointed step, to the bit; and that no hook stays on the model.

| outcome | it means |
|---|---|
| exact | what the hook read or changed is what the hook by hand did |
| refused | an error named the layer and what to do, and nothing was changed |
| warned | a warning named the layer and said that its padding counts |
| missed | a signature found no layer, or not in all blocks, where a layer's class looks like the role |
| not run | the model cannot do this without hooks either, or the reference does not know the layer's tokens |
| not built | no tiny model could be made, or none that runs with generated inputs |

A result that differs from the reference without a word would be called *silently wrong*, and make the sweep fail.
Below, a model counts as exact if each check is that it can run at all, and otherwise by its worst outcome.

"""


def write_page(folder: Path) -> None:
    """Write the page of a folder's results, ``VERSION/KIND-ARCHITECTURE.json``, beside counts of other versions."""
    start = _START.format(version=folder.name, torch=torch.__version__.split("+")[0], python=platform.python_version())
    versions = sorted(path for path in folder.parent.iterdir() if path.is_dir())
    parts = [start, _counts(folder)]
    parts += [f"\nWith transformers {other.name}:\n\n{_counts(other)}" for other in versions if other != folder]
    parts += [_section(kind, found) for kind, found in _results(folder).items() if found]
    PAGE.write_text("".join(parts))


def _results(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Return the outcomes by kind, architecture and check."""
    found: dict[str, dict[str, dict[str, str]]] = {kind: {} for kind in TABLES}
    for path in sorted(folder.glob("*.json")):
        kind = next(kind for kind in TABLES if path.stem.startswith(f"{kind}-"))
        found[kind][path.stem.removeprefix(f"{kind}-")] = json.loads(path.read_text())
    return found


def summary(checks: dict[str, str]) -> str:
    """Return what an architecture's checks say together: the outcome that says most."""
    outcomes = {outcome.split(":")[0] for outcome in checks.values()}
    if "not built" in outcomes:
        return "not built"
    worst = next((one for one in ("wrong", "refused", "warned", "missed") if one in outcomes), "exact")
    return {"wrong": "silently wrong", "refused": "refused or warned", "warned": "refused or warned"}.get(worst, worst)


_COLUMNS = ("exact", "missed", "refused or warned", "silently wrong", "not built")


def _counts(folder: Path) -> str:
    lines = ["| kind | " + " | ".join(_COLUMNS) + " |", "|---" * (1 + len(_COLUMNS)) + "|"]
    for kind, found in _results(folder).items():
        counts = Counter(map(summary, found.values()))
        lines.append(f"| {kind} | " + " | ".join(str(counts[column]) for column in _COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _section(kind: str, found: dict[str, dict[str, str]]) -> str:
    exact = [name for name, checks in found.items() if set(checks.values()) == {"exact"}]
    absent = {name: checks for name, checks in found.items() if summary(checks) == "not built"}
    others = {name: checks for name, checks in found.items() if name not in exact and name not in absent}
    parts = [f"\n## {kind[0].upper()}{kind[1:]}\n"]
    if exact:
        parts.append(f"\nExact in every check ({len(exact)}): {', '.join(exact)}.\n")
    if others:
        rows = [f"| {name} | {_exact(checks)} | {_else(checks)} |" for name, checks in others.items()]
        parts.append("\n| architecture | exact checks | the others |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    if absent:
        rows = [f"| {name} | {_cell(next(iter(checks.values())))} |" for name, checks in absent.items()]
        parts.append("\n| architecture | not built |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "".join(parts)


def _exact(checks: dict[str, str]) -> str:
    return f"{sum(outcome == 'exact' for outcome in checks.values())} of {len(checks)}"


def _else(checks: dict[str, str]) -> str:
    """Return the outcomes that are not exact, each with its checks."""
    names: dict[str, list[str]] = {}
    for check, outcome in checks.items():
        if outcome != "exact":
            names.setdefault(outcome, []).append(check)
    return "<br>".join(f"{_folded(which)}: {_cell(outcome)}" for outcome, which in names.items())


def _folded(checks: list[str]) -> str:
    return ", ".join(checks) if len(checks) < 4 else f"{checks[0]} and {len(checks) - 1} more"


def _cell(outcome: str) -> str:
    kind, _, why = outcome.partition(": ")
    why = " ".join(why.split())
    for character in "\\`*_<|[":
        why = why.replace(character, f"\\{character}" if character != "<" else "&lt;")
    return f"**{kind}**: {why[:220]}{'...' if len(why) > 220 else ''}"
