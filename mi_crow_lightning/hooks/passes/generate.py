"""A wrapper of ``generate``: while hooks are attached, each call notes the width and mask of its prompt.

Without a cache, or with a prompt fed in chunks, a single pass does not show which tokens are prompt and which are
generated; the call of ``generate`` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.token_call import Generation
from mi_crow_lightning.hooks.passes.token_module import virtual_tokens
from mi_crow_lightning.hooks.passes.tracker import Passes

__all__ = ["follow_generate", "unfollow_generate"]


class _FollowedGenerate:
    """A stand-in for a model's ``generate`` that notes the prompt; a copy of the model gets its own ``generate``."""

    def __init__(self, model: nn.Module, passes: Passes[Any]) -> None:
        self.model = model
        self.original: Callable[..., Any] = getattr(model, "generate")  # noqa: B009
        self.shadowed = model.__dict__.get("generate")
        self.passes = passes
        functools.update_wrapper(self, self.original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.passes.generating(_generation(self.model, args, kwargs)):
            return self.original(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_own_generate, (self.model,))


def _own_generate(model: nn.Module) -> Any:
    return getattr(type(model), "generate").__get__(model)  # noqa: B009


def _generation(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
    """Return the prompt as the model will see it: with PEFT, the wrapper around the model prepares its inputs."""
    said = _said(model, args, kwargs)
    learned = virtual_tokens(getattr(getattr(model, "prepare_inputs_for_generation", None), "__self__", None))
    if said.width is None or not learned:
        return said
    mask = nn.functional.pad(said.mask, (learned, 0), value=1) if said.mask is not None else None
    return Generation(learned + said.width, mask)


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
    """Note the prompt whenever ``model.generate`` is called, if the model has that method."""
    if callable(getattr(type(model), "generate", None)):
        # Through __dict__, because a module may guard its __setattr__.
        model.__dict__["generate"] = _FollowedGenerate(model, passes)


def unfollow_generate(model: nn.Module, passes: Passes[Any]) -> None:
    """Stop noting for ``passes``; other stand-ins for ``model.generate`` stay."""
    outer, followed = None, model.__dict__.get("generate")
    while isinstance(followed, _FollowedGenerate) and followed.passes is not passes:
        outer, followed = followed, followed.shadowed
    if not isinstance(followed, _FollowedGenerate):
        return
    if outer is not None:
        outer.original, outer.shadowed = followed.original, followed.shadowed
    elif followed.shadowed is None:
        del model.__dict__["generate"]
    else:
        model.__dict__["generate"] = followed.shadowed
