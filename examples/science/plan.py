"""The effects, the parts that each consists of, and where their results lie."""

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from examples.science import (
    capping,
    coherence,
    collapse,
    coordinates,
    dose,
    fine_tuning,
    massive,
    monitoring,
    prevention,
    shift,
)
from examples.science.texts import HERE, TRAITS

PLAN: dict[str, Any] = yaml.safe_load((HERE / "thresholds.yaml").read_text(encoding="utf-8"))
EFFECTS: dict[str, dict] = PLAN["effects"]
JUDGES: dict[str, Callable[[list[dict], dict], dict]] = {
    "shift": shift.shift, "data": shift.data, "prevention": prevention.prevention, "dose": dose.dose,
    "coherence": coherence.judge, "massive": massive.judge, "capping": capping.capping,
    "coordinates": coordinates.coordinates, "collapse": collapse.collapse, "monitoring": monitoring.monitoring,
}  # fmt: skip
_OF_TRAITS: dict[str, Callable[..., dict]] = {
    "fine_tuning": fine_tuning.run,
    "prevention": partial(prevention.run, bounds=EFFECTS["prevention"]["bounds"]),
    "capping": capping.run,
    "monitoring": monitoring.run,
}
_OTHERS = {name: module.run for name, module in dict(
    dose=dose, coherence=coherence, massive=massive, coordinates=coordinates, collapse=collapse
).items()}  # fmt: skip


class Part(NamedTuple):
    """One run of an effect: with a seed and, for those of traits, with one of these."""

    effect: str
    seed: int
    trait: str | None

    @property
    def name(self) -> str:
        return "-".join(map(str, filter(lambda one: one is not None, self)))

    def run(self, quick: bool) -> dict:
        run = (_OTHERS | _OF_TRAITS)[self.effect]
        of = {} if self.trait is None else {"trait": self.trait}
        return run(seed=self.seed, quick=quick, **of)


def parts(quick: bool) -> list[Part]:
    """Return all parts, the longest first."""
    seeds = PLAN["quick_seeds" if quick else "seeds"]
    of_traits = [Part(effect, seed, trait) for effect, seed, trait in product(_OF_TRAITS, seeds, TRAITS)]
    return of_traits + [Part(effect, seed, None) for effect, seed in product(_OTHERS, seeds)]


def results(folder: Path, effect: str, quick: bool) -> list[dict]:
    """Return what the parts of an effect gave; a shift and the data share the fine-tunes."""
    run = "fine_tuning" if effect in ("shift", "data") else effect
    names = [part.name for part in parts(quick) if part.effect == run]
    return [json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["result"] for name in names]


def judged(folder: Path, effect: str, quick: bool) -> dict:
    """Return the verdict on an effect and what was found."""
    return JUDGES[effect](results(folder, effect, quick), EFFECTS[effect]["bounds"])
