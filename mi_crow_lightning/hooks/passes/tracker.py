"""Following the passes through a model: where one is over, what its tokens are, which hooks failed in it.

The ancestors of the watched layers report when they are entered and left. The outermost one that is
called marks the pass: when it returns, the pass is over, and only then are the errors of hooks dealt
with. One ancestor of each layer, its *token module*, also tells which tokens are real, see ``facts.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks.passes.facts import Generation, PassFacts, Signature, read_facts, virtual_tokens
from mi_crow_lightning.hooks.passes.handles import InertWhenCopied, Rank
from mi_crow_lightning.hooks.passes.reentrancy import in_a_hook

if TYPE_CHECKING:
    from mi_crow_lightning.hooks.hook import Hook

__all__ = ["EnterCall", "LeaveCall", "Passes", "TokenCalls"]

_REMEMBERED = 32  # calls of a module before a backward pass; older ones are lost, which is told


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
        self._acted: set[tuple[str, str]] = set()
        self._token_calls: dict[nn.Module, TokenCalls] = {}
        self._first_widths: dict[nn.Module, int] = {}
        self._generations: list[Generation] = []

    def read_tokens_at(self, module: nn.Module, ancestors: list[nn.Module]) -> None:
        """From now on note the attention mask and cache length that ``module`` is called with.

        Args:
            module: a token module.
            ancestors: the modules around a layer of it.
        """
        if module not in self._token_calls:
            self._token_calls[module] = TokenCalls(Signature.of(module, ancestors))

    def token_calls(self, module: nn.Module) -> TokenCalls | None:
        """The calls of a token module; ``None`` of any other."""
        return self._token_calls.get(module)

    def reset(self) -> None:
        """Forget the running pass: the next batch begins. Errors of a pass that was cut short are lost with it."""
        self._forget_pass()
        for calls in self._token_calls.values():
            calls.forget()
        self._first_widths.clear()

    def _forget_pass(self) -> None:
        self._calls.clear()
        self._errors.clear()
        self._failed.clear()
        self._acted.clear()

    def facts_at(self, modules: list[nn.Module], recomputing: bool = False) -> PassFacts:
        """What the running pass, or the one that is recomputed, says about its tokens, as read at token modules.

        Args:
            modules: the token modules of a layer; of several, the innermost that is being called counts.
            recomputing: whether it is a recompute.
        """
        if not modules:
            return PassFacts(generating=bool(self._generations))
        module = next((called for called in reversed(self._calls) if called in modules), modules[0])
        calls = self._token_calls.get(module)
        if calls is None or calls.facts is None:  # the layer was called on its own
            return PassFacts(takes_mask=True)
        if not recomputing or module in self._calls:  # checkpointed as a whole, the module itself is called again
            return calls.facts
        return calls.repeated() or PassFacts(takes_mask=True, lost=True)

    @contextmanager
    def generating(self, generation: Generation) -> Iterator[None]:
        """While ``generate`` runs."""
        self._generations.append(generation)
        try:
            yield
        finally:
            self._generations.pop()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An ancestor is called."""
        if module in self._calls:
            self._forget_pass()  # a Ctrl-C cut it short: torch tells no one that these calls are over
        self._calls.append(module)
        calls = self._token_calls.get(module)
        if calls is not None:
            calls.begin(self._read(module, calls, calls.given(args, kwargs)))

    def leave(self, module: nn.Module, output: Any) -> None:
        """An ancestor returned, or raised."""
        if module not in self._calls:
            return
        while self._calls.pop() is not module:
            pass  # calls that a BaseException cut short
        if module in self._token_calls:
            self._token_calls[module].end()
        if not self._calls:
            self.settle(output)

    def forget(self, module: nn.Module) -> None:
        """An ancestor is no longer watched: if it is being called, its return will not be told."""
        self._calls = [called for called in self._calls if called is not module]

    def failed(self, error: HookError, hook: Hook) -> None:
        """A hook failed: it stays out of the rest of the pass, and its error waits until the pass is over."""
        self._errors.append((error, hook))
        self._failed.add(error.hook_id)
        if not self._calls:  # no ancestor was called, so the layer's own call is the whole pass
            self.settle()

    def has_failed(self, hook_id: str) -> bool:
        """Whether the hook failed in the running pass."""
        return hook_id in self._failed

    def note_effect(self, hook_id: str, layer: str, acted: bool) -> None:
        """Remember whether a hook had its effect on a layer, for a recompute to do the same."""
        if acted:
            self._acted.add((hook_id, layer))
        else:
            self._acted.discard((hook_id, layer))

    def has_acted(self, hook_id: str, layer: str) -> bool:
        """Whether the hook had its effect on the layer in the pass that is recomputed."""
        return (hook_id, layer) in self._acted

    def settle(self, output: Any = None) -> None:
        """The pass is over: deal with its errors, also where the hooks that follow it were unregistered in it."""
        errors, self._errors = self._errors, []
        self._failed.clear()
        if errors:
            self._over(errors, output)

    def _read(self, module: nn.Module, calls: TokenCalls, given: dict[str, Any]) -> PassFacts:
        generation = self._generations[-1] if self._generations else None
        learned = max(map(virtual_tokens, self._calls))
        facts = read_facts(module, given, calls.signature, generation, self._first_widths.get(module), learned)
        if not facts.past and facts.tokens is not None:
            # In a decoding loop of the user's own, the first pass with an empty cache is the prompt.
            self._first_widths[module] = facts.tokens
        return facts


class TokenCalls:
    """The last calls of a token module, to find the one that a recompute repeats.

    A recompute runs while a node of the original graph runs backward. Nodes are numbered in the order they were
    made, so the node's number lies between the numbers at the start and at the end of its call.

    Args:
        signature: of the module.

    Attributes:
        facts: those of the running call, or the last one of the batch; ``None`` where there was none.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.facts: PassFacts | None = None
        self._ended: deque[tuple[int, int, PassFacts]] = deque(maxlen=_REMEMBERED)
        self._started = 0

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call, by the name of the parameter."""
        return {**dict(zip(self.signature.names, args, strict=False)), **kwargs}

    def begin_in_graph(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call that is being compiled: it is not repeated, and what it is given is all there is to know."""
        self.facts = read_facts(module, self.given(args, kwargs), self.signature, None, None)

    def forget(self) -> None:
        """The next batch begins."""
        self.facts = None
        self._ended.clear()

    def begin(self, facts: PassFacts) -> None:
        self.facts, self._started = facts, _next_node()

    def end(self) -> None:
        if self.facts is not None and torch.is_grad_enabled():
            self._ended.append((self._started, _next_node(), self.facts))

    def repeated(self) -> PassFacts | None:
        """The facts of the call that is repeated."""
        node = torch._C._current_autograd_node()
        number = node._sequence_nr() if node is not None else -1
        return next((facts for start, end, facts in reversed(self._ended) if start <= number < end), None)


def _next_node() -> int:
    number: int = torch._C._autograd._get_sequence_nr()
    return number


class EnterCall(InertWhenCopied):
    """Tells `Passes` that a module is called."""

    order = (Rank.ENTER, 0)

    def __init__(self, passes: Passes, token_calls: TokenCalls | None) -> None:
        self._passes = passes
        self._token_calls = token_calls

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            if self._token_calls is not None:
                self._token_calls.begin_in_graph(module, args, kwargs)
        elif not in_a_hook():
            self._passes.enter(module, args, kwargs)


class LeaveCall(InertWhenCopied):
    """Tells `Passes` that a module returned or raised."""

    order = (Rank.LEAVE, 0)

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not torch.compiler.is_compiling() and not in_a_hook():
            self._passes.leave(module, output)
