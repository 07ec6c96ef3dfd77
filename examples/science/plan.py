"""The effects, the parts that each consists of, and where their results lie."""

import json
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from examples.science.texts import HERE, TRAITS

PLAN: dict[str, Any] = yaml.safe_load((HERE / "thresholds.yaml").read_text(encoding="utf-8"))
EFFECTS: dict[str, dict] = PLAN["effects"]
OF_TRAITS = ("fine_tuning", "prevention", "capping", "monitoring")  # each trait is a part, the longest first
OTHERS = ("coherence", "dose", "massive", "collapse", "coordinates")


class Part(NamedTuple):
    """One run of an effect: with a seed and, for those of traits, with one of these."""

    effect: str
    seed: int
    trait: str | None

    @property
    def name(self) -> str:
        """The name of its result."""
        return "-".join(map(str, filter(lambda one: one is not None, self)))

    def run(self, quick: bool) -> dict:
        """Return what its module of ``measures`` sees."""
        run = partial(import_module(f"examples.science.measures.{self.effect}").run, seed=self.seed, quick=quick)
        run = run if self.trait is None else partial(run, trait=self.trait)
        return run(bounds=EFFECTS["prevention"]["bounds"]) if self.effect == "prevention" else run()


def parts(quick: bool) -> list[Part]:
    """Return all parts, seed by seed."""
    found = []
    for seed in PLAN["quick_seeds" if quick else "seeds"]:
        found += [Part(effect, seed, trait) for effect, trait in product(OF_TRAITS, TRAITS)]
        found += [Part(effect, seed, None) for effect in OTHERS]
    return found


def results(folder: Path, effect: str, quick: bool) -> list[dict]:
    """Return what the parts of an effect gave; a shift and the data share the fine-tunes."""
    run = "fine_tuning" if effect in ("shift", "data") else effect
    names = [part.name for part in parts(quick) if part.effect == run]
    return [json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["result"] for name in names]


def judged(folder: Path, effect: str, quick: bool) -> dict:
    """Return the verdict on an effect and what was found."""
    verdict = import_module(f"examples.science.verdicts.{effect}")
    return verdict.judge(results(folder, effect, quick), EFFECTS[effect]["bounds"])
