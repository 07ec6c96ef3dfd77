"""The passes through a model: when one is over, what its tokens are, and which hooks failed in it.

The ancestors of the watched layers report when they are entered and left. The outermost ancestor that is called marks
the pass: when it returns, the pass is over, and only then are errors of hooks raised or reported. One ancestor of each
layer, its *token module*, also says which tokens are real, see ``token_module.py``.

A forward pass belongs to the thread that runs it, with its batch: two threads may run one model side by side. Detectors
add up what they see, and are for one thread at a time: `ThreadConflict` names the thread that comes second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import torch
from torch import nn

from mi_crow_lightning.errors import HookError, TokensUnknown
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.recomputes import EndedCalls, next_node
from mi_crow_lightning.hooks.passes.running_batch import NO_BATCH, RunningBatch
from mi_crow_lightning.hooks.passes.threads import frame_of_call, is_over, thread_name
from mi_crow_lightning.hooks.passes.token_call import Generation, OuterCall, read_facts, with_masks_of_outer
from mi_crow_lightning.hooks.passes.token_module import Signature, takes_a_mask, virtual_tokens

__all__ = ["Passes"]

H = TypeVar("H")

_IDLE = "idle"  # stands before a site that did not act


class _ThreadPass:
    """The running pass of one thread.

    Args:
        batch: the running batch.

    Attributes:
        ident: the number of the thread.
        batch: the batch that hooks see in this thread.
        has_own_batch: whether this thread began it outside a Trainer, so that another thread's batch changes nothing.
        is_second: whether the pass began while another thread's pass was running.
        directly: whether a layer is being called that no watched module around it was called for.
        without: IDs of the hooks that are left out of this thread's passes.
        calls: the watched modules that are being called, outermost first.
        frame: the frame of the call that began the pass.
        outer: the running calls around token modules, outermost first, each with its arguments.
        tokens: for each token module, the facts of its running call, or of its last call in the batch; under ``None``
            the facts of the running pass for layers without a token module.
        starts: for each token module, and under ``None`` for the pass, the number of the call's first autograd node.
        failed: IDs of the hooks that failed in the pass, and of those that are left out.
        errors: their errors, each with its hook.
        first_widths: for each token module, the width of the first pass with an empty cache.
        generations: the running calls of ``generate``, outermost first.
    """

    def __init__(self, batch: RunningBatch) -> None:
        self.ident = threading.get_ident()
        self.has_own_batch = False
        self.is_second = False
        self.directly = False
        self.without: frozenset[str] = frozenset()
        self.generations: list[Generation] = []
        self.begin(batch)

    def begin(self, batch: RunningBatch) -> None:
        """Forget all passes, because another batch begins."""
        self.batch = batch
        self.tokens: dict[nn.Module | None, PassFacts] = {}
        self.first_widths: dict[nn.Module, int] = {}
        self.cut_short()

    def cut_short(self) -> None:
        """Forget the running pass."""
        self.calls: list[nn.Module] = []
        self.frame: FrameType | None = None
        self.outer: dict[nn.Module, OuterCall] = {}
        self.starts: dict[nn.Module | None, int] = {}
        self.errors: list[tuple[HookError, Any]] = []
        self.failed = set(self.without)

    @property
    def is_running(self) -> bool:
        """Whether the thread is in a pass, or in a call of ``generate``, and not merely left in one by a Ctrl-C."""
        frame = self.frame
        return bool(self.generations) or (bool(self.calls) and not (frame is not None and is_over(frame)))


class _Threads(threading.local):
    """The state of each thread, found with one look-up.

    Args:
        made: makes the state of a thread.
    """

    def __init__(self, made: Callable[[], _ThreadPass]) -> None:
        self.state = made()


class Passes(Generic[H]):
    """The running passes of one model.

    Args:
        over: called when a pass is over, with its errors, each with its hook, and its output.
        second: called when a pass has begun that runs beside another thread's.

    Attributes:
        threads: its ``state`` is the running pass of this thread.
        direct_calls: held by a thread while a detector sees a layer that is called outside a pass.
        acted: the sites whose hook had its effect when it was last called in the batch: used by a recompute whose pass
            is not known.
    """

    def __init__(
        self, over: Callable[[list[tuple[HookError, H]], Any], None], second: Callable[[str], None] = lambda name: None
    ) -> None:
        self._batch = NO_BATCH
        self._lock = threading.Lock()
        self._states: WeakSet[_ThreadPass] = WeakSet()
        self._running: dict[int, _ThreadPass] = {}  # the threads that are in a pass, or in a call of `generate`
        self._first: _ThreadPass | None = None
        self.threads = _Threads(self._new_state)
        self.direct_calls = threading.RLock()
        self.acted: set[object] = set()
        self._over, self._second = over, second
        self._signatures: dict[nn.Module, Signature] = {}
        self._outer: dict[nn.Module, Signature] = {}
        self._ended: dict[nn.Module | None, EndedCalls] = {None: EndedCalls()}

    def read_tokens_at(self, module: nn.Module, ancestors: list[nn.Module]) -> Signature:
        """Read from now on which tokens ``module`` is called with, and return its signature.

        Args:
            module: a token module.
            ancestors: the modules around one of its layers.
        """
        if module not in self._signatures:
            self._signatures[module] = Signature.of(module, ancestors)
            self._ended[module] = EndedCalls()
            outside = ancestors[ancestors.index(module) + 1 :] if module in ancestors else []
            self._outer.update({outer: Signature.of(outer, []) for outer in outside if takes_a_mask(outer)})
        return self._signatures[module]

    def begin(self, batch: RunningBatch) -> None:
        """Begin a batch: forget all passes before it; errors of an interrupted pass are lost too.

        In a Trainer it is the batch of all threads. Outside, each thread may begin its own. A pass that another thread
        is in goes on with the batch that it began with.
        """
        here = self.threads.state
        with self._lock:
            here.has_own_batch, self._batch = batch.moment is None, batch
            begun = [one for one in self._states if one is here or not (one.calls or one.generations)]
            begun = [one for one in begun if one is here or not one.has_own_batch]
            for one in begun:
                one.begin(batch)
            for ended in self._ended.values():
                ended.forget(begun)
        self.acted.clear()

    def _new_state(self) -> _ThreadPass:
        with self._lock:
            state = _ThreadPass(self._batch)
            self._states.add(state)
        return state

    @contextmanager
    def leaving_out(self, hook_ids: Iterable[str]) -> Iterator[None]:
        """Leave hooks out of the passes of this thread, and of no other, for as long as the block runs."""
        here = self.threads.state
        before, here.without = here.without, here.without | frozenset(hook_ids)
        here.failed |= here.without
        try:
            yield
        finally:
            here.failed -= here.without - before
            here.without = before

    def other_threads(self) -> list[str]:
        """Return the names of the other threads that are in a pass."""
        here = self.threads.state
        return [thread_name(one.ident) for one in list(self._running.values()) if one is not here and one.is_running]

    def facts_at(self, modules: Sequence[nn.Module], recomputing: bool = False) -> PassFacts:
        """Return the facts of the running pass, or of the pass that is recomputed, as read at token modules.

        Args:
            modules: the token modules of a layer; if there are several, the innermost that is being called counts.
            recomputing: whether it is a recompute.
        """
        here = self.threads.state
        if not modules:
            repeated = self._ended[None].repeated() if recomputing else here.tokens.get(None)
            return repeated or PassFacts(generating=bool(here.generations))
        module = next((called for called in reversed(here.calls) if called in modules), modules[0])
        known, ended = here.tokens.get(module), self._ended[module]
        if not recomputing or (known is None and ended.is_empty):
            return known or PassFacts(takes_mask=True, unseen=True)  # the layer was called directly
        again = known if module in here.calls else None  # if checkpointed as a whole, the module itself is called again
        return ended.repeated() or again or PassFacts(takes_mask=True, lost=True)

    @contextmanager
    def generating(self, generation: Generation) -> Iterator[None]:
        """Note the running ``generate`` of this thread for as long as the block runs."""
        here = self.threads.state
        here.generations.append(generation)
        self._start(here)
        try:
            yield
        finally:
            here.generations.pop()
            self._stop(here)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that an ancestor is called."""
        here = self.threads.state
        if module in here.calls:
            here.cut_short()  # as after a Ctrl-C: torch does not report that these calls are over
        begins = not here.calls
        with self._lock:  # a batch that another thread begins must not forget half of this
            if begins:
                self._begin_pass(here)
            here.calls.append(module)
        if module in self._outer:
            outer = self._outer[module]
            here.outer[module] = (outer, outer.given(args, kwargs))
        signature = self._signatures.get(module)
        if signature is not None:
            here.tokens[module] = self._read(module, signature, signature.given(args, kwargs))
            here.starts[module] = next_node()
        if begins and here.is_second and self._first is not None:
            self._second(thread_name(self._first.ident))

    def _begin_pass(self, here: _ThreadPass) -> None:
        if here.batch is not self._batch and not here.has_own_batch:
            here.begin(self._batch)  # the last pass of this thread ended after another one began this batch
        here.frame, acted = frame_of_call(), _acted()
        here.tokens[None] = PassFacts(generating=bool(here.generations), acted=acted, derived={}, batch=here.batch)
        here.starts[None] = next_node()
        if acted is not None:  # else it is a recompute, which belongs to a pass that is over
            self._start(here)

    def _start(self, here: _ThreadPass) -> None:
        """Note that a thread is in a pass, and whether another one was first."""
        self._running[here.ident] = here
        here.is_second = len(self._running) > 1 and self._is_second(here)
        if not here.is_second:
            self._first = here

    def _is_second(self, here: _ThreadPass) -> bool:
        """Return whether a pass that begins in this thread runs beside one of the thread that was first."""
        for one in list(self._running.values()):
            if one is not here and not one.is_running:
                self._running.pop(one.ident, None)
        first = self._first
        return first is not None and first is not here and self._running.get(first.ident) is first

    def _stop(self, here: _ThreadPass) -> None:
        """Note that a thread is no longer in a pass, if it is not in an outer one."""
        if not here.calls:
            here.frame = None
            if not here.generations:
                self._running.pop(here.ident, None)

    def leave(self, module: nn.Module, output: Any) -> None:
        """Note that an ancestor returned or raised."""
        here = self.threads.state
        if module not in here.calls:
            return
        while here.calls.pop() is not module:
            pass  # calls that a BaseException interrupted
        here.outer.pop(module, None)
        if module in here.starts:
            self._end(module)
        if not here.calls:
            self._end(None)
            here.tokens.pop(None, None)
            self._stop(here)
            self.settle(output)

    def forget(self, module: nn.Module) -> None:
        """Forget an ancestor that is no longer watched, because the end of a running call will not be reported."""
        here = self.threads.state
        here.calls = [called for called in here.calls if called is not module]
        self._stop(here)

    def failed(self, error: HookError, hook: H) -> None:
        """Note that a hook failed: it stays out of the rest of the pass, and its error waits until the pass is over."""
        here = self.threads.state
        here.errors.append((error, hook))
        here.failed.add(error.hook_id)
        if not here.calls:  # no ancestor was called, so the layer's own call is the whole pass
            self.settle()

    def note_idle(self, site: object, facts: PassFacts) -> None:
        """Note that a hook did not have its effect in a pass."""
        self.acted.discard(site)
        if facts.acted is not None:
            facts.acted.add((_IDLE, site))

    def acted_in(self, site: object, facts: PassFacts, layer: str) -> bool:
        """Return whether a hook had its effect in a pass that is recomputed.

        Raises:
            TokensUnknown: the layer was called several times in the pass, and the hook acted in some of the calls only.
        """
        if facts.acted is None:
            return site in self.acted
        if site in facts.acted and (_IDLE, site) in facts.acted:
            raise TokensUnknown(
                f"gradient checkpointing runs {layer!r} again, and it is not known which earlier call that repeats: "
                "the layer was called several times in this pass, and a hook on it was off or failed in some of them. "
                "Keep the hook on, or train without checkpointing."
            )
        return site in facts.acted

    def has_failed(self, hook_id: str) -> bool:
        """Return whether the hook failed in the running pass."""
        return hook_id in self.threads.state.failed

    def settle(self, output: Any = None) -> None:
        """Raise or report the errors of a pass that is over, even if nothing watches its modules any more."""
        here = self.threads.state
        errors, here.errors = here.errors, []
        here.failed = set(here.without)
        if errors:
            self._over(errors, output)

    def complete(self, module: nn.Module, facts: PassFacts) -> PassFacts:
        """Return the facts of a call that a graph of ``torch.compile`` makes, with what is known when it runs.

        Args:
            module: a token module.
            facts: what its arguments show.
        """
        here = self.threads.state
        signature, generation = self._signatures[module], here.generations[-1] if here.generations else None
        facts = replace(
            facts,
            side=signature.side,
            pad_ids=signature.pad_ids,
            generating=generation is not None,
            guided=generation is not None and generation.guidance is not None,
            acted=set(),
            batch=here.batch,
            derived={},
        )
        tokens, past = facts.tokens, facts.past
        if generation is None or tokens is None or facts.side == "encoder":
            learned = max(map(virtual_tokens, here.calls), default=0)
            facts = replace(facts, prompt_width=here.first_widths.get(module) if past and past != learned else None)
        elif facts.guided:  # which of the two sequences it is, the cache alone would show
            facts = replace(facts, past_unknown=True)
        else:
            past = generation.past_of(module, past, tokens, facts.mask)
            width, mask = generation.prompt_of(module, None, past or 0, tokens)
            facts = replace(facts, past=past, prompt_width=width, prompt_mask=mask)
            if mask is not None and facts.mask is None and not facts.unreadable:
                facts = facts.with_grown_mask(generation.mask_so_far(module, facts.rows or 0))
        if not facts.past and tokens is not None:
            here.first_widths[module] = tokens
        return facts

    def _end(self, module: nn.Module | None) -> None:
        here = self.threads.state
        start = here.starts.pop(module)
        if torch.is_grad_enabled():
            self._ended[module].add(start, here, here.tokens[module])

    def _read(self, module: nn.Module, signature: Signature, given: dict[str, Any]) -> PassFacts:
        here = self.threads.state
        generation = here.generations[-1] if here.generations else None
        learned = max(map(virtual_tokens, here.calls))
        width = here.first_widths.get(module)
        facts = read_facts(
            module, given, signature, generation, width, learned, kept=True, acted=_acted(), batch=here.batch
        )
        if here.outer:
            facts = with_masks_of_outer(facts, list(reversed(here.outer.values())))
        if generation is not None and facts.prompt_mask is not None and facts.mask is None and not facts.unreadable:
            facts = facts.with_grown_mask(generation.mask_so_far(module, facts.rows or 0))
        if not facts.past and facts.tokens is not None:
            # In a user's own decoding loop, the first pass with an empty cache is the prompt.
            here.first_widths[module] = facts.tokens
        return facts


def _acted() -> set[object] | None:
    """Return a set for the sites that act in a pass; ``None`` in a recompute, which is not a new pass."""
    return set() if torch._C._current_graph_task_id() == -1 else None
