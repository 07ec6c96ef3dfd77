"""The handles on the ancestors of watched layers, which follow passes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.generate import follow_generate, unfollow_generate
from mi_crow_lightning.hooks.passes.handles import NO_KEYWORDS, Handle, InertWhenCopied, Rank, attach
from mi_crow_lightning.hooks.passes.pass_in_graph import PassInGraph
from mi_crow_lightning.hooks.passes.reentrancy import running
from mi_crow_lightning.hooks.passes.token_call import read_facts, with_masks_of_outer
from mi_crow_lightning.hooks.passes.token_module import Signature, takes_a_mask, token_module
from mi_crow_lightning.hooks.passes.tracker import Passes

__all__ = ["GraphCall", "Watchers"]


class OuterGraphCall:
    """The running call of a module around a token module, for graphs that run the token module.

    Attributes:
        signature: the module's signature.
        given: the arguments of the call, by parameter name; ``None`` if there is none.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.given: dict[str, Any] | None = None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of a call while it runs."""
        self.given = self.signature.given(args, kwargs)


class GraphCall:
    """The call of a token module as a graph of ``torch.compile`` sees it.

    It is never recomputed, and its arguments, and those of the calls around it, are all that is known about it.

    Attributes:
        facts: the facts of the call that is being compiled; ``None`` before the first.
        outer: the calls around it, innermost first.
        is_root: whether the module itself was compiled, so that its graph begins after its call.
        is_reported: whether the graph reports the call when it runs, for hooks that it calls.
        number: of the facts that the graph has when it runs, see `PassInGraph`; ``None`` where it reports no call.
    """

    def __init__(self, signature: Signature, in_graph: PassInGraph) -> None:
        self.facts: PassFacts | None = None
        self.outer: list[OuterGraphCall] = []
        self.is_root = False
        self.is_reported = False
        self.number: Tensor | None = None
        self._signature = signature
        self._in_graph = in_graph

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the facts of a call that is being compiled."""
        facts = read_facts(module, self._signature.given(args, kwargs), self._signature, None, None)
        calls = [(call.signature, call.given) for call in self.outer if call.given is not None]
        self.facts = with_masks_of_outer(facts, calls)
        if self.is_reported and torch.compiler.is_compiling():
            self.number = self._in_graph.begin(self.facts)


class EnterCall(InertWhenCopied):
    """A callable that reports to `Passes` that a module is called."""

    order = (Rank.ENTER, 0)

    def __init__(self, passes: Passes[Any], graph_call: GraphCall | None, outer: OuterGraphCall | None) -> None:
        self._passes = passes
        self._graph_call = graph_call
        self._outer = outer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KEYWORDS) -> None:
        if self._outer is not None:
            self._outer.begin(args, kwargs)
        if torch.compiler.is_compiling():
            if self._graph_call is not None:
                self._graph_call.begin(module, args, kwargs)
        elif running.context is None:
            if self._graph_call is not None and self._graph_call.is_root:
                self._graph_call.begin(module, args, kwargs)
            self._passes.enter(module, args, kwargs)


class LeaveCall(InertWhenCopied):
    """A callable that reports to `Passes` that a module returned or raised."""

    order = (Rank.LEAVE, 0)

    def __init__(self, passes: Passes[Any], outer: OuterGraphCall | None) -> None:
        self._passes = passes
        self._outer = outer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any = None) -> None:
        if self._outer is not None:
            self._outer.given = None
        if not torch.compiler.is_compiling() and running.context is None:
            self._passes.leave(module, output)


NO_GRAPHS: Mapping[nn.Module, nn.Module] = MappingProxyType({})


class Watchers:
    """The keeper of the handles on the ancestors of attached layers, and on no other module.

    Args:
        passes: the passes that the ancestors report to.
        graphs: the modules that run inside a compiled graph, where no handle can stay outside the graph.
    """

    def __init__(self, passes: Passes[Any], graphs: Mapping[nn.Module, nn.Module] = NO_GRAPHS) -> None:
        self._passes = passes
        self._graphs = graphs
        self._graph_calls: dict[nn.Module, GraphCall] = {}
        self._outer_calls: dict[nn.Module, OuterGraphCall] = {}
        self._handles: dict[nn.Module, list[Handle]] = {}
        self._users: dict[nn.Module, int] = {}

    def plan(self, layer: nn.Module, uses: list[list[nn.Module]]) -> tuple[list[nn.Module], list[nn.Module]]:
        """Return what to watch around a layer.

        Args:
            layer: the layer.
            uses: for each of its names, the modules that hold it, innermost first.

        Returns:
            The modules to watch, and the ones among them whose call says which tokens the layer has, at most one for
            each use. If the layer is the whole model, that is the layer itself.
        """
        watched: dict[nn.Module, None] = {}
        sources: dict[nn.Module, None] = {}
        for use in uses:
            called = [module for module in use if not isinstance(module, (nn.ModuleList, nn.ModuleDict))]
            watched.update(dict.fromkeys(called))
            source = token_module([*called, layer])
            if source is not None:
                signature = self._passes.read_tokens_at(source, called)
                self._plan_graph(source, signature, called)
                watched[source] = sources[source] = None
        return list(watched), list(sources)

    def _plan_graph(self, source: nn.Module, signature: Signature, called: list[nn.Module]) -> None:
        """Prepare the call of a token module, and those of the modules around it, for graphs that run them."""
        call = self._graph_calls.get(source)
        if call is None:
            in_graph = PassInGraph(partial(self._passes.complete, source))
            call = self._graph_calls[source] = GraphCall(signature, in_graph)
        call.is_root = bool(self._graphs) and source not in self._graphs
        outside = called[called.index(source) + 1 :] if source in called and self._graphs else []
        for outer in filter(takes_a_mask, outside):
            known = self._outer_calls.setdefault(outer, OuterGraphCall(Signature.of(outer, [])))
            if known not in call.outer:
                call.outer.append(known)

    def graph_call(self, module: nn.Module) -> GraphCall:
        """Return the call of a token module as a graph sees it."""
        return self._graph_calls[module]

    def attach(self, modules: list[nn.Module]) -> None:
        """Watch ``modules``, and count one more user for each."""
        for module in modules:
            self._users[module] = users = self._users.get(module, 0) + 1
            if users == 1:
                outside = module not in self._graphs
                outer = self._outer_calls.get(module)
                enter_call = EnterCall(self._passes, self._graph_calls.get(module), outer)
                leave_call = LeaveCall(self._passes, outer)
                enter = attach(module, enter_call, HookType.PRE_FORWARD, outside=outside)
                leave = attach(module, leave_call, HookType.FORWARD, always_call=True, outside=outside)
                self._handles[module] = [enter, leave]
                follow_generate(module, self._passes)

    def cleared(self) -> set[nn.Module]:
        """Return the watched modules whose calls torch no longer reports, because somebody took the handles off."""
        return {module for module, of_it in self._handles.items() if not all(handle.in_place for handle in of_it)}

    def detach(self, modules: list[nn.Module]) -> None:
        """Count one user fewer for each of ``modules``, and stop watching those that have none left."""
        for module in modules:
            self._users[module] -= 1
            if not self._users[module]:
                del self._users[module]
                unfollow_generate(module, self._passes)
                self._passes.forget(module)
                if module in self._graph_calls:
                    self._graph_calls[module].number = None  # which keeps the batch
                for handle in self._handles.pop(module):
                    handle.remove()
