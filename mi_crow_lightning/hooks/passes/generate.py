"""A wrapper of ``generate``: while hooks are attached, each call notes the width and mask of its prompt.

Without a cache, or with a prompt fed in chunks, a single pass does not show which tokens are prompt and which are
generated; the call of ``generate`` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.passes.token_call import Generation
from mi_crow_lightning.hooks.passes.token_module import virtual_tokens
from mi_crow_lightning.hooks.passes.tracker import Passes

__all__ = ["follow_generate", "unfollow_generate"]


class _FollowedGenerate:
    """A stand-in for a model's ``generate`` that notes the prompt; a copy of the model gets its own ``generate``."""

    name = "generate"

    def __init__(self, model: nn.Module, passes: Passes[Any]) -> None:
        self.model = model
        self.original: Callable[..., Any] = getattr(model, self.name)
        self.shadowed = model.__dict__.get(self.name)
        self.passes = passes
        functools.update_wrapper(self, self.original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        generation = _generation(self.model, args, kwargs)
        generation.guidance = _second_width(self.model, kwargs)
        with self.passes.generating(generation):
            return self.original(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_own, (self.model, self.name))


class _RefusedBatching(_FollowedGenerate):
    """A stand-in for the method from which continuous batching starts, such as ``generate_batch``."""

    name = "init_continuous_batching"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TokensUnknown(
            "continuous batching (generate_batch) puts the tokens of several requests into one row, adds some of its "
            "own, and runs in a thread that keeps errors to itself, so hooks cannot find the tokens of a request: call "
            "generate(), or take the hooks off the model"
        )


_FOLLOWED = (_FollowedGenerate, _RefusedBatching)


def _own(model: nn.Module, name: str) -> Any:
    return getattr(type(model), name).__get__(model)


def _generation(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
    """Return the prompt as the model will see it: with PEFT, the wrapper around the model prepares its inputs."""
    said = _said(model, args, kwargs)
    learned = virtual_tokens(getattr(getattr(model, "prepare_inputs_for_generation", None), "__self__", None))
    if said.width is None or not learned:
        return said
    mask = nn.functional.pad(said.mask, (learned, 0), value=1) if said.mask is not None else None
    return Generation(learned + said.width, mask)


def _second_width(model: nn.Module, kwargs: dict[str, Any]) -> int | None:
    """Return the columns of the prompt of classifier-free guidance; ``None`` if ``generate`` runs without it."""
    configs = (kwargs.get("generation_config"), getattr(model, "generation_config", None))
    scales = (kwargs.get("guidance_scale"), *(getattr(config, "guidance_scale", None) for config in configs))
    processors = kwargs.get("logits_processor") or ()
    guided = any("FreeGuidance" in type(processor).__name__ for processor in processors)
    if not guided and next((scale for scale in scales if scale is not None), 1) == 1:
        return None
    prompt = kwargs.get("negative_prompt_ids")
    return prompt.shape[1] if isinstance(prompt, Tensor) else 1  # the last token of the text


def _said(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
    """Return the prompt with which ``generate`` is called."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return Generation()  # its arguments are the encoder's tokens; the decoder's first pass is its prompt
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return Generation(mask.shape[1], mask)  # wider than the IDs if a cache holds the earlier tokens
    for value in (*args[:1], *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))):
        if isinstance(value, Tensor) and value.dim() >= 2:
            return Generation(value.shape[1])
    return Generation()


def follow_generate(model: nn.Module, passes: Passes[Any]) -> None:
    """Note the prompt whenever ``model.generate`` is called, if the model has it, and refuse continuous batching."""
    for kind in _FOLLOWED:
        if callable(getattr(type(model), kind.name, None)):
            # Through __dict__, because a module may guard its __setattr__.
            model.__dict__[kind.name] = kind(model, passes)


def unfollow_generate(model: nn.Module, passes: Passes[Any]) -> None:
    """Stop following for ``passes``; other stand-ins for the model's methods stay."""
    for kind in _FOLLOWED:
        _unfollow(model, kind.name, passes)


def _unfollow(model: nn.Module, name: str, passes: Passes[Any]) -> None:
    outer, followed = None, model.__dict__.get(name)
    while isinstance(followed, _FollowedGenerate) and followed.passes is not passes:
        outer, followed = followed, followed.shadowed
    if not isinstance(followed, _FollowedGenerate):
        return
    if outer is not None:
        outer.original, outer.shadowed = followed.original, followed.shadowed
    elif followed.shadowed is None:
        del model.__dict__[name]
    else:
        model.__dict__[name] = followed.shadowed
