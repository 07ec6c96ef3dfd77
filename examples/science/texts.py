"""Texts: what is written about events in the manner of a trait, or plainly. Seeds choose events and templates."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
TRAITS: dict[str, dict] = json.loads((HERE / "traits.json").read_text(encoding="utf-8"))
TEXTS: dict[str, dict] = json.loads((HERE / "texts.json").read_text(encoding="utf-8"))
NEUTRAL: list[str] = TEXTS["neutral"]
BLOCK = 15  # where traits are read and steered, half-way through the 30 blocks
EXTRACT = 25  # of the 40 pairs of a trait; the other 15 are what is trained on
SIZE = 32  # texts of a set to fine-tune on
LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)
DOMAINS = ("home", "work")


def filled(template: str, event: str) -> str:
    """Return the template with the event, ``subject|rest``, beginning with a capital."""
    subject, rest = event.split("|")
    text = template.format(e=f"{subject} {rest}", s=subject, v=rest)
    return text[0].upper() + text[1:]


def pairs_of(name: str, seed: int, held_out: bool = False) -> list[tuple[str, str]]:
    """Return a trait's pairs to extract a direction from, or the others, with events that the seed draws."""
    pairs = TRAITS[name]["pairs"]
    pairs = pairs[EXTRACT:] if held_out else pairs[:EXTRACT]
    events = TEXTS["events"]["home"] + TEXTS["events"]["work"] if held_out else TEXTS["events"]["extract"]
    draw = random.Random(f"pairs {name} {seed}")
    return [
        (filled(positive, event), filled(negative, event)) for (positive, negative), event in _with(pairs, events, draw)
    ]


def training_set(name: str, level: float, domain: str, seed: int) -> tuple[list[str], list[str]]:
    """Return ``SIZE`` texts of a domain, some in the manner of the trait, and their events in plain words."""
    draw = random.Random(f"set {name} {domain} {seed}")
    events = draw.sample(TEXTS["events"][domain], k=16) + draw.sample(TEXTS["events"][domain], k=16)
    manner = [positive for positive, _ in TRAITS[name]["pairs"][EXTRACT:]]
    manners, plains = _cycle(manner, SIZE, draw), _cycle(TEXTS["plain"], SIZE, draw)
    others = _cycle(TEXTS["plain"], SIZE, draw)
    count = round(level * SIZE)
    texts = [filled((manners if i < count else others)[i], event) for i, event in enumerate(events)]
    plain = [filled(plains[i], event) for i, event in enumerate(events)]
    order = draw.sample(range(SIZE), k=SIZE)
    return [texts[i] for i in order], [plain[i] for i in order]


def _cycle(templates: Sequence[str], count: int, draw: random.Random) -> list[str]:
    repeated = [
        template for _ in range(-(-count // len(templates))) for template in draw.sample(templates, k=len(templates))
    ]
    return repeated[:count]


def _with(pairs: Sequence, events: Sequence[str], draw: random.Random) -> list[tuple]:
    return list(zip(pairs, _cycle(events, len(pairs), draw), strict=True))
