"""Models from GGUF files, without the marks of quantisation, and their unpacked weights kept for the next load.

Unpacking a GGUF file takes transformers 17 s where the result loads in a tenth of a second. So the result is kept in
the user's cache, as transformers saves any model.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from mi_crow_lightning._foreign_files import named
from mi_crow_lightning._warned import warn
from mi_crow_lightning.warnings import SlowWarning

__all__ = ["CACHE", "clear_marks", "kept_or_unpacked"]

CACHE = "MI_CROW_LIGHTNING_CACHE"
"""The environment variable that names the folder of the cache; ``off`` for none."""

_FORMAT = "1"
_TEMPORARY = ".tmp-"
_ABANDONED = 24 * 3600  # seconds after which a temporary folder belongs to a process that was killed


def kept_or_unpacked(file: Path, params: Mapping[str, Any], load: Callable[..., nn.Module]) -> nn.Module:
    """Return the model of a GGUF file, from the cache if it was unpacked before.

    Args:
        file: the GGUF file.
        params: arguments of ``from_pretrained``; with others than ``dtype`` nothing is kept or taken.
        load: ``AutoModelForCausalLM.from_pretrained``.

    Warns:
        SlowWarning: the weights cannot be kept, or what was kept cannot be read.
    """
    root = _root()
    if root is None or set(params) != {"dtype"}:
        return clear_marks(load(str(file.parent), gguf_file=file.name, **params))
    kept = root / _name(file, params["dtype"])
    if kept.is_dir():
        try:
            return _named_after(load(str(kept), **params), str(file.parent))
        except Exception as error:  # whatever transformers makes of damaged files
            warn(f"{named(kept)} cannot be read and is made again: {type(error).__name__}: {error}"[:1000], SlowWarning)
            shutil.rmtree(kept, ignore_errors=True)
    model = clear_marks(load(str(file.parent), gguf_file=file.name, **params))
    _keep(model, root, kept)
    return model


def clear_marks(model: nn.Module) -> nn.Module:
    """Drop what says that a model is quantised: its weights were unpacked, and ``save_pretrained`` refuses it else."""
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if mark in vars(model):
            delattr(model, mark)
    config: Any = getattr(model, "config", None)
    if "quantization_config" in vars(config or object):
        del config.quantization_config
    return model


def _root() -> Path | None:
    """Return the folder of the cache; ``None`` if the user wants none."""
    given = os.environ.get(CACHE, "")
    if given.lower() in ("off", "0", "false", "no"):
        return None
    if given:
        return Path(given).expanduser() / "gguf"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "mi_crow_lightning" / "gguf"


def _name(file: Path, dtype: Any) -> str:
    """Return what the weights of a file are called: its place and the dtype, then what else they depend on."""
    import transformers

    there, facts = file.resolve(), file.stat()
    place = hashlib.sha256(f"{there}\n{dtype}".encode()).hexdigest()[:12]
    state = f"{_FORMAT}\n{transformers.__version__}\n{facts.st_size}\n{facts.st_mtime_ns}"
    return f"{file.stem[:60]}-{place}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"


def _named_after(model: nn.Module, source: str) -> nn.Module:
    """Give a model the name of where it comes from, not of the cache."""
    loaded: Any = model
    loaded.config._name_or_path = loaded.name_or_path = source
    return model


def _keep(model: Any, root: Path, kept: Path) -> None:
    """Write a model to its folder in one step, in place of what an earlier file or version left there."""
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        size = sum(one.numel() * one.element_size() for one in model.state_dict().values())
        if shutil.disk_usage(root).free < 2 * size:
            raise OSError(f"less than {2 * size / 1e9:.1f} GB are free")
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
        model.save_pretrained(temporary)
        temporary.rename(kept)
    except Exception as error:  # whatever transformers and safetensors make of a full disk, or of odd settings
        if not kept.is_dir():  # else another process was first
            warn(
                f"the unpacked weights cannot be kept in {named(root)}, so the next load takes as long: {error}. Set "
                f"{CACHE} to another folder, or to 'off'",
                SlowWarning,
            )
        return
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in root.glob(f"{glob.escape(kept.name.rpartition('-')[0])}-*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    for folder in root.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):  # it is gone meanwhile
            if folder.stat().st_mtime < time.time() - _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
