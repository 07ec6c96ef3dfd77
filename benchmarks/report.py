"""The results of a benchmark, as JSON and as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- begin: {} -->", "<!-- end: {} -->"


class NotRun(Exception):
    """A row cannot be measured: there is no GPU, or a package is missing."""


@dataclass(frozen=True)
class Target:
    """One line of the table of targets.

    Args:
        what: the measured quantity.
        value: the measured value; ``None`` if it was not run.
        limit: the most it may be; ``None`` if there is no target.
        unit: ``"share"``, ``"ratio"`` or the unit of the value.
        note: why it was not run, or how to read the value.
    """

    what: str
    value: float | None
    limit: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return f"not run: {self.note}"
        if self.limit is None:
            return "no target"
        if self.value <= self.limit:
            return "met"
        return f"missed by {number(self.value - self.limit, self.unit)}"


@dataclass
class Section:
    """A side-by-side table, and the targets that are read from it.

    Args:
        title: the subject of the table.
        note: how it was measured.
        lines: the rows of the table, each with its cells by column.
        targets: rows of the table of targets.
    """

    title: str
    note: str = ""
    lines: list[dict[str, str]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


def number(value: float, unit: str) -> str:
    """Write a measured value as text."""
    if unit == "share":
        return f"{value * 100:.2g} %"
    text = f"{value:.3g}" if unit == "ratio" or value != int(value) else f"{value:.0f}"
    return text if unit == "ratio" else f"{text} {unit}".strip()


def table(lines: Sequence[dict[str, str]]) -> list[str]:
    """Make a Markdown table with the columns of the first line; its cells are padded, so that it reads as text too."""
    columns = list(lines[0])
    rows = [columns, *([line.get(column, "") for column in columns] for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    rows.insert(1, ["-" * width for width in widths])
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]


def markdown(heading: str, sections: Sequence[Section]) -> str:
    """Write the targets of all sections, then each section's table."""
    targets = [
        {
            "what": target.what,
            "measured": "" if target.value is None else number(target.value, target.unit),
            "target": "" if target.limit is None else f"<= {number(target.limit, target.unit)}",
            "verdict": target.verdict + (f" ({target.note})" if target.note and target.value is not None else ""),
        }
        for section in sections
        for target in section.targets
    ]
    blocks = [[heading], table(targets)]
    for section in sections:
        if section.lines:
            blocks += [[f"### {section.title}"], [section.note] if section.note else [], table(section.lines)]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def as_json(machine: dict[str, Any], sections: Sequence[Section]) -> dict[str, Any]:
    """Return everything as values that JSON can hold."""
    return {**machine, "sections": [asdict(section) for section in sections]}


def from_json(stored: dict[str, Any]) -> tuple[dict[str, Any], list[Section]]:
    """Return the machine and the sections of what `as_json` returned."""
    sections = [section_from(section) for section in stored["sections"]]
    return {name: value for name, value in stored.items() if name != "sections"}, sections


def section_from(stored: dict[str, Any]) -> Section:
    """Return a section of what ``asdict`` made of it."""
    return Section(**{**stored, "targets": [Target(**target) for target in stored["targets"]]})


def heading(machine: dict[str, Any]) -> str:
    """Return a sentence on where and with what it was measured."""
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    return (
        f"Measured {machine['date']} on {machine['device']}, {machine['threads']} threads "
        f"(load average before the start: {machine['load']}), Python {machine['python']}; {versions}."
    )


def put_into(page: Path, text: str, by: str = "make bench") -> None:
    """Replace the text between the two marks of a page.

    Args:
        page: the page.
        text: what to put there.
        by: what the marks name.

    Raises:
        ValueError: the page does not have the marks.
    """
    first, last = BEGIN.format(by), END.format(by)
    before, begin, rest = page.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"{page} needs the lines {first} and {last}: the tables go between them")
    page.write_text(f"{before}{first}\n\n{text}\n{last}{after}", encoding="utf-8")
