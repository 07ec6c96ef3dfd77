"""The page: of each effect the published figure, ours with its interval, the verdict, and why a miss may be one."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from examples.science.draw import draw
from examples.science.plan import EFFECTS, PLAN, judged
from examples.science.texts import HERE
from examples.science.words import machine, shown

ROOT = HERE.parents[1]


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


HEADLINES = {  # what the table shows of an effect: rows whose names end so; else the first row
    "shift": ("same-trait r", "cross-trait r", "within a level"),
    "data": ("mean r over traits", "AUROC of single texts"),
    "prevention": (": cut",),
    "dose": ("nats per strength",),
    "coherence": ("ones", "alone"),
    "massive": ("zeroed: times", "mean: times"),
    "capping": ("extreme answers", "times, mean"),
    "coordinates": ("SP, readout: slope", "muP, readout: slope"),
    "collapse": ("spread without the stopped gradient", "ratio of ranks"),
}


def table(verdicts: dict[str, dict]) -> list[str]:
    """Return the verdicts in one table, each with its main figures."""
    lines = ["| effect | published | found here | verdict |", "|---|---|---|---|"]
    for name, verdict in verdicts.items():
        ends = HEADLINES.get(name, (next(iter(verdict["found"])),))
        ours = "; ".join(f"{what}: {shown(value)}" for what, value in verdict["found"].items() if what.endswith(ends))
        word = "reproduced" if verdict["met"] else "**missed**"
        lines.append(f"| {EFFECTS[name]['title']} | {EFFECTS[name]['published']} | {ours} | {word} |")
    return lines


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
    lines = [intro, *table(verdicts), "", f"{machine(folder)} {notes.get('run', '')}".strip(), ""]
    for name, verdict in verdicts.items():
        lines += section(name, verdict, notes.get(name, ""), "images/science")
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return page


def _notes(path: Path) -> dict[str, str]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def _seeds(quick: bool) -> str:
    seeds: Sequence[int] = PLAN["quick_seeds" if quick else "seeds"]
    return ", ".join(map(str, seeds))
