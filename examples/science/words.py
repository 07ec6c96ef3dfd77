"""Numbers in the words of the page, and the machine that they are from."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers

import mi_crow_lightning


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


def machine(folder: Path) -> str:
    """Return what the run took, and on what."""
    seconds = sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in folder.glob("*.json"))
    versions = [f"{one.__name__} {one.__version__}" for one in (mi_crow_lightning, torch, lightning, transformers)]
    return (
        f"One-thread processes took {seconds / 60:.0f} minutes in all, on {os.cpu_count()} cores "
        f"({platform.machine()}), with {', '.join(versions)}, Python {platform.python_version()}, float32."
    )
