"""Following the passes through a model: where one is over, what its tokens are, which hooks failed in it.

The ancestors of the watched layers report when they are entered and left. The outermost one that is
called marks the pass: when it returns, the pass is over, and only then are the errors of hooks dealt
with. One ancestor of each layer, its *token module*, also tells which tokens are real: the innermost
that takes token IDs or embeddings beside an ``attention_mask``, else the innermost with a mask. (An
inner mask may speak of keys, as in cross attention, and an outer one of another model's tokens.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks.context import PassFacts
from mi_crow_lightning.hooks.handles import InertWhenCopied, Rank

if TYPE_CHECKING:
    from mi_crow_lightning.hooks.hook import Hook

__all__ = ["EnterCall", "LeaveCall", "Passes", "parameters_of", "token_module"]

_TOKEN_INPUTS = ("input_ids", "inputs_embeds")


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the module's ``forward``, in order."""
    return tuple(inspect.signature(module.forward).parameters)


def token_module(ancestors: Sequence[nn.Module]) -> nn.Module | None:
    """Of a layer's ancestors, innermost first, the one whose call tells which tokens are real."""
    with_mask = [module for module in ancestors if "attention_mask" in parameters_of(module)]
    for module in with_mask:
        if any(name in parameters_of(module) for name in _TOKEN_INPUTS):
            return module
    return with_mask[0] if with_mask else None


class Passes:
    """The running passes of one model.

    Args:
        over: called with the errors of a pass, each with its hook, and its output once the pass is over.
    """

    def __init__(self, over: Callable[[list[tuple[HookError, Hook]], Any], None]) -> None:
        self._over = over
        self._calls: list[nn.Module] = []
        self._errors: list[tuple[HookError, Hook]] = []
        self._failed: set[str] = set()
        self._skipped: set[tuple[str, str]] = set()
        self._token_modules: dict[nn.Module, tuple[str, ...]] = {}
        self._facts: dict[nn.Module, PassFacts] = {}
        self._awaiting_backward: set[nn.Module] = set()
        self._prompt_widths: dict[nn.Module, int] = {}
        self._generate_widths: list[int | None] = []

    def read_tokens_at(self, module: nn.Module) -> None:
        """From now on note the attention mask and cache length that ``module`` is called with."""
        self._token_modules[module] = parameters_of(module)

    def reset(self) -> None:
        """Forget the running pass: the next batch begins. Errors of a pass that was cut short are lost with it."""
        self._forget_pass()
        self._facts.clear()
        self._awaiting_backward.clear()
        self._prompt_widths.clear()

    def _forget_pass(self) -> None:
        self._calls.clear()
        self._errors.clear()
        self._failed.clear()
        self._skipped.clear()

    def facts_at(self, module: nn.Module | None, recomputing: bool = False) -> PassFacts:
        """What the running pass says about its tokens, as read at a token module."""
        if module is None:
            return PassFacts(generating=bool(self._generate_widths))
        if recomputing:
            self._awaiting_backward.discard(module)
        return self._facts.get(module, PassFacts(takes_mask=True))

    @contextmanager
    def generating(self, prompt_width: int | None) -> Iterator[None]:
        """While ``generate`` runs, with a prompt of so many columns."""
        self._generate_widths.append(prompt_width)
        try:
            yield
        finally:
            self._generate_widths.pop()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An ancestor is called."""
        if module in self._calls:
            self._forget_pass()  # a Ctrl-C cut it short: torch tells no one that these calls are over
        self._calls.append(module)
        names = self._token_modules.get(module)
        if names is not None:
            self._take(module, self._read(module, _Call(names, args, kwargs)))

    def leave(self, module: nn.Module, output: Any) -> None:
        """An ancestor returned, or raised."""
        if module not in self._calls:
            return
        while self._calls.pop() is not module:
            pass  # calls that a BaseException cut short
        if not self._calls:
            self._settle(output)

    def forget(self, module: nn.Module) -> None:
        """An ancestor is no longer watched: if it is being called, its return will not be told."""
        self._calls = [called for called in self._calls if called is not module]

    def failed(self, error: HookError, hook: Hook) -> None:
        """A hook failed: it stays out of the rest of the pass, and its error waits until the pass is over."""
        self._errors.append((error, hook))
        self._failed.add(error.hook_id)
        if not self._calls:  # no ancestor was called, so the layer's own call is the whole pass
            self._settle(None)

    def has_failed(self, hook_id: str) -> bool:
        """Whether the hook failed in the running pass."""
        return hook_id in self._failed

    def note_effect(self, hook_id: str, layer: str, skipped: bool) -> None:
        """Remember whether a hook's effect on a layer was skipped, for a recompute to do the same."""
        if skipped:
            self._skipped.add((hook_id, layer))
        else:
            self._skipped.discard((hook_id, layer))

    def was_skipped(self, hook_id: str, layer: str) -> bool:
        """Whether the hook had no effect on the layer in the pass that is recomputed."""
        return (hook_id, layer) in self._skipped

    def _take(self, module: nn.Module, facts: PassFacts) -> None:
        """Keep the facts of a pass, and whether they replace others that a recompute may still ask for."""
        if module in self._awaiting_backward:
            before = self._facts[module]
            facts = replace(facts, superseded=before.superseded or not before.agree_with(facts))
        if torch.is_grad_enabled():
            self._awaiting_backward.add(module)
        self._facts[module] = facts

    def _settle(self, output: Any) -> None:
        errors, self._errors = self._errors, []
        self._failed.clear()
        if errors:
            self._over(errors, output)

    def _read(self, module: nn.Module, call: _Call) -> PassFacts:
        past = _cache_length(call.get("past_key_values")) if "past_key_values" in call.names else None
        width = self._generate_widths[-1] if self._generate_widths else None
        tokens = call.tokens()
        if width is None:
            width = self._width_of_first_pass(module, past, tokens)
        mask = call.get("attention_mask")
        return PassFacts(
            mask=mask if isinstance(mask, Tensor) else None,
            past=past,
            tokens=tokens,
            prompt_width=width,
            generating=bool(self._generate_widths),
            takes_mask=True,
        )

    def _width_of_first_pass(self, module: nn.Module, past: int | None, tokens: int | None) -> int | None:
        """In a decoding loop of the user's own, the first pass with an empty cache is the prompt."""
        if past:
            return self._prompt_widths.get(module)
        if tokens is not None:
            self._prompt_widths[module] = tokens
        return None


class _Call:
    """The arguments of a call, by the name of the parameter."""

    def __init__(self, names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.names = names
        self._given = {**dict(zip(names, args, strict=False)), **kwargs}

    def get(self, name: str) -> Any:
        return self._given.get(name)

    def tokens(self) -> int | None:
        """How many tokens each row is called with, where that can be told."""
        for name in _TOKEN_INPUTS:
            value = self.get(name)
            if isinstance(value, Tensor) and value.dim() >= 2:
                return value.shape[1]
        return None


def _cache_length(cache: Any) -> int:
    """Tokens in a transformers cache, or in the tuple of (key, value) pairs that older models use."""
    if cache is None:
        return 0
    if isinstance(cache, (tuple, list)):
        return int(cache[0][0].shape[-2]) if cache else 0
    return int(cache.get_seq_length())


class EnterCall(InertWhenCopied):
    """Tells `Passes` that a module is called."""

    order = (Rank.ENTER, 0)

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._passes.enter(module, args, kwargs)


class LeaveCall(InertWhenCopied):
    """Tells `Passes` that a module returned or raised."""

    order = (Rank.LEAVE, 0)

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._passes.leave(module, output)
