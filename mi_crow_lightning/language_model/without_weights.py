"""A transformers model made from its config alone: no weights are read, so its size does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mi_crow_lightning.language_model.loading import find_source

__all__ = ["make_blank", "read_config"]


def read_config(name_or_path: str | Path) -> Any:
    """The config of a model of transformers. Code that comes with a model is not run.

    Args:
        name_or_path: a name on the hub, a folder, or a GGUF file or a folder that holds one.

    Raises:
        OSError, ValueError: transformers cannot find it, or does not know what it finds.
    """
    from huggingface_hub import constants
    from transformers import AutoConfig  # loading transformers takes seconds: only when asked for

    source, gguf = find_source(name_or_path)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **gguf)
    except OSError as error:
        if constants.HF_HUB_OFFLINE and not Path(source).exists():
            raise FileNotFoundError(
                f"{str(name_or_path)!r} is neither a folder nor in the local cache, and HF_HUB_OFFLINE is set, so no "
                "hub is asked"
            ) from error
        raise OSError(f"{str(name_or_path)!r}: {error}") from error


def make_blank(config: Any, device: str = "meta") -> nn.Module:
    """The model that ``config`` describes, in evaluation mode: on the meta device without numbers, else random.

    Its class is the one that the config names; else a causal language model, or else the bare model.

    Args:
        config: from `read_config`.
        device: where to make it. On the meta device it has the config's dtype, on others torch's default one.
    """
    before = torch.get_default_dtype()
    dtype = (getattr(config, "dtype", None) if device == "meta" else None) or before
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: nn.Module = _made(config, dtype)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def _made(config: Any, dtype: torch.dtype) -> Any:
    import transformers

    named = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or []]
    for cls in named:
        if cls is not None:
            return cls(config)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return transformers.AutoModel.from_config(config, dtype=dtype)
