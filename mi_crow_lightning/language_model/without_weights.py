"""A transformers model made from its config alone: no weights are read, so its size does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mi_crow_lightning.language_model.loading import find_source

__all__ = ["model_from_config", "read_config"]


def read_config(name_or_path: str | Path) -> Any:
    """Read the config of a transformers model. Code that comes with a model is not run.

    Args:
        name_or_path: a name on the hub, a folder, a GGUF file, or a folder that holds one.

    Raises:
        OSError, ValueError: transformers cannot find the config, or does not recognise what it finds.
    """
    from huggingface_hub import constants
    from transformers import AutoConfig  # importing transformers takes seconds, so only where it is needed

    source, gguf = find_source(name_or_path)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **gguf)
    except OSError as error:
        if constants.HF_HUB_OFFLINE and not Path(source).exists():
            raise FileNotFoundError(
                f"{str(name_or_path)!r} is not a folder and not in the local cache, and HF_HUB_OFFLINE keeps it from "
                "being looked up on the hub: unset it, or give a folder"
            ) from error
        raise OSError(f"{str(name_or_path)!r}: {error}") from error


def model_from_config(config: Any, device: str = "meta") -> nn.Module:
    """Make the model that ``config`` describes, in evaluation mode.

    On the meta device its weights hold no numbers, elsewhere random ones. Its class is the one that the config
    names; without a name, a causal language model if there is one, else the bare model.

    Args:
        config: a config from `read_config`.
        device: where to make the model. On the meta device it has the config's dtype, elsewhere torch's default.
    """
    before = torch.get_default_dtype()
    dtype = (getattr(config, "dtype", None) if device == "meta" else None) or before
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: nn.Module = _instance(config, dtype)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def _instance(config: Any, dtype: torch.dtype) -> Any:
    import transformers

    named = [getattr(transformers, name, None) for name in getattr(config, "architectures", None) or []]
    for cls in named:
        if cls is not None:
            return cls(config)
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return transformers.AutoModel.from_config(config, dtype=dtype)
