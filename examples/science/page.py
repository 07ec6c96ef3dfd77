"""The page: of each effect the published figure, ours with its interval, the verdict, and why a miss may be one."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
import yaml

import mi_crow_lightning
from examples.science.draw import draw
from examples.science.plan import EFFECTS, PLAN, judged
from examples.science.texts import HERE

ROOT = HERE.parents[1]


def shown(value: Any) -> str:
    """Return a number, an interval or a table of numbers as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items())
    if isinstance(value, (tuple, list)) and len(value) == 3:
        return f"{shown(value[0])} [{shown(value[1])}, {shown(value[2])}]"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(shown, value))
    return str(value)


def section(name: str, verdict: dict, note: str, image: str) -> list[str]:
    """Return the part of the page about one effect."""
    effect = EFFECTS[name]
    rows = [f"| {what} | {shown(value)} |" for what, value in verdict["found"].items()]
    return [
        f"## {effect['title']}", "",
        f"**Published:** {effect['published']} ({effect['source']}).",
        f"**Reproduced if:** {effect['counts']}.",
        f"**Verdict: {'reproduced' if verdict['met'] else 'missed'}.** {note}".strip(), "",
        "| | found |", "|---|---|", *rows, "", f"![{effect['title']}]({image}/{name}.png)", "",
    ]  # fmt: skip


def table(verdicts: dict[str, dict]) -> list[str]:
    """Return the verdicts in one table, each with its first figure."""
    lines = ["| effect | published | found here | verdict |", "|---|---|---|---|"]
    for name, verdict in verdicts.items():
        what, value = next(iter(verdict["found"].items()))
        ours, word = f"{what}: {shown(value)}", "reproduced" if verdict["met"] else "**missed**"
        lines.append(f"| {EFFECTS[name]['title']} | {EFFECTS[name]['published']} | {ours} | {word} |")
    return lines


def machine(folder: Path) -> str:
    """Return what the run took, and on what."""
    seconds = sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in folder.glob("*.json"))
    versions = [f"{one.__name__} {one.__version__}" for one in (mi_crow_lightning, torch, lightning, transformers)]
    return (
        f"One-thread processes took {seconds / 60:.0f} minutes in all, on {os.cpu_count()} cores ({platform.machine()}), "
        f"with {', '.join(versions)}, Python {platform.python_version()}, float32."
    )


def write(folder: Path, quick: bool, page: Path | None) -> Path:
    """Write the page and its figures; return where the page is."""
    page = page or (folder / "science.md" if quick else ROOT / "docs" / "explanation" / "science.md")
    images = page.parent / "images" / "science"
    images.mkdir(parents=True, exist_ok=True)
    verdicts = {name: judged(folder, name, quick) for name in EFFECTS}
    for name in EFFECTS:
        draw(name, folder, quick).savefig(images / f"{name}.png", dpi=90)
    count, notes = sum(one["met"] for one in verdicts.values()), _notes(HERE / "notes.yaml")
    intro = (HERE / "intro.md").read_text(encoding="utf-8").format(count=count, all=len(verdicts), seeds=_seeds(quick))
    lines = [intro, *table(verdicts), "", machine(folder), ""]
    for name, verdict in verdicts.items():
        lines += section(name, verdict, notes.get(name, ""), "images/science")
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return page


def _notes(path: Path) -> dict[str, str]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def _seeds(quick: bool) -> str:
    seeds: Sequence[int] = PLAN["quick_seeds" if quick else "seeds"]
    return ", ".join(map(str, seeds))
