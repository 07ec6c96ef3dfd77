"""Loading a causal language model and its tokenizer: from the hub, a folder, or a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mi_crow_lightning._shown import shown
from mi_crow_lightning.language_model.gguf_cache import kept_or_unpacked

__all__ = [
    "check_tokenizer",
    "find_source",
    "given_or_loaded_model",
    "given_or_loaded_tokenizer",
    "load_model",
    "load_tokenizer",
]


def load_model(name_or_path: str | Path, **params: Any) -> nn.Module:
    """Load a model, in evaluation mode. GGUF weights are unpacked to float32 unless ``dtype`` says otherwise.

    Unpacked weights are kept in ``~/.cache/mi_crow_lightning``, or the folder that the environment variable
    ``MI_CROW_LIGHTNING_CACHE`` names (``off`` for none), unless there are other arguments than ``dtype``. The model
    can be saved by ``save_pretrained`` as any other.

    Args:
        name_or_path: a name on the hub, a folder, a GGUF file, or a folder that holds one.
        **params: arguments of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        OSError, ValueError: transformers cannot find or read the model, or a folder holds several GGUF files.
    """
    from transformers import AutoModelForCausalLM  # importing transformers takes seconds, so only where it is needed

    source, gguf = find_source(name_or_path)
    if gguf:
        file = Path(source, gguf["gguf_file"])
        return kept_or_unpacked(file, {"dtype": torch.float32, **params}, AutoModelForCausalLM.from_pretrained)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(source, **params)
    return model


def load_tokenizer(name_or_path: str | Path, **params: Any) -> Any:
    """Load a tokenizer. If it has no padding token, its end-of-text token becomes the padding token.

    Args:
        name_or_path: as for `load_model`.
        **params: arguments of ``AutoTokenizer.from_pretrained``.
    """
    from transformers import AutoTokenizer

    source, gguf = find_source(name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(source, **{**gguf, **params})
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def given_or_loaded_model(model: Any, params: Mapping[str, Any] | None) -> nn.Module:
    """Return the causal language model, loaded if it is a name or a folder.

    Args:
        model: a module, or a name or path that `load_model` takes.
        params: arguments of ``from_pretrained``.

    Raises:
        TypeError, ValueError: ``model`` is neither, or is not a causal model; or there are ``params`` for a module.
    """
    if isinstance(model, (str, Path)):
        model = load_model(model, **(params or {}))
    elif params is not None:
        raise ValueError("model_params are for a model given by name, but this model is a module: leave them out")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={shown(model)} must be a torch module, or the name or folder of one")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is an encoder-decoder model: CausalLMModule takes causal models")
    return model


def given_or_loaded_tokenizer(tokenizer: Any, model: Any) -> Any:
    """Return the tokenizer, loaded if it is a name or a folder.

    Args:
        tokenizer: a tokenizer, a name, a folder, or ``None`` for the tokenizer of the model.
        model: the model as it was given. If it is a module and ``tokenizer`` is ``None``, the result is ``None``.
    """
    place = model if tokenizer is None else tokenizer
    return load_tokenizer(place) if isinstance(place, (str, Path)) else check_tokenizer(tokenizer)


def check_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer, or ``None``.

    Raises:
        TypeError: it is neither.
    """
    if tokenizer is not None and not callable(tokenizer):
        raise TypeError(
            f"tokenizer={shown(tokenizer)} must be a tokenizer of transformers, a function like one, or None"
        )
    return tokenizer


def find_source(name_or_path: str | Path) -> tuple[str, Mapping[str, str]]:
    """Return the place to load from, and transformers' argument for a GGUF file if it is one.

    Args:
        name_or_path: as for `load_model`.

    Raises:
        FileNotFoundError: ``name_or_path`` is a path, and nothing is there.
        ValueError: the folder holds several GGUF files.
    """
    path = Path(name_or_path).expanduser()
    if str(name_or_path).startswith((".", "/", "~")) and not path.exists():
        # transformers would take it for a name on the hub, and complain about its characters.
        raise FileNotFoundError(
            f"there is no folder or GGUF file {str(name_or_path)!r}; for a model on the hub give its name, e.g. 'gpt2'"
        )
    if path.is_file() and path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    if not path.is_dir():
        return str(name_or_path), {}
    if (path / "config.json").exists():
        return str(path), {}
    files = sorted(file.name for file in path.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(f"{str(path)!r} holds {len(files)} GGUF files: name one of {', '.join(files)}")
    return str(path), {"gguf_file": files[0]} if files else {}
