"""The handles around watched layers: on their ancestors, so that passes can be followed."""

from __future__ import annotations

from collections.abc import Container

from torch import nn
from torch.utils.hooks import RemovableHandle

from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.compiled_module import OutsideHandle
from mi_crow_lightning.hooks.passes.facts import token_module
from mi_crow_lightning.hooks.passes.generate import follow_generate, unfollow_generate
from mi_crow_lightning.hooks.passes.handles import attach
from mi_crow_lightning.hooks.passes.tracker import EnterCall, LeaveCall, Passes

__all__ = ["Watchers"]


class Watchers:
    """Keeps the ancestors of attached layers watched, and no others.

    Args:
        passes: what the ancestors report to.
        graphs: the modules that run inside of a compiled graph: on them nothing can stand outside.
    """

    def __init__(self, passes: Passes, graphs: Container[nn.Module] = ()) -> None:
        self._passes = passes
        self._graphs = graphs
        self._handles: dict[nn.Module, list[RemovableHandle | OutsideHandle]] = {}
        self._users: dict[nn.Module, int] = {}

    def plan(self, layer: nn.Module, uses: list[list[nn.Module]]) -> tuple[list[nn.Module], list[nn.Module]]:
        """What to watch around a layer.

        Args:
            layer: the layer.
            uses: for each of its names the modules that hold it, innermost first.

        Returns:
            The modules to watch, and those of them whose call tells the layer's tokens, one for each use at most.
            That is the layer itself when it is the whole model.
        """
        watched: dict[nn.Module, None] = {}
        sources: dict[nn.Module, None] = {}
        for use in uses:
            called = [module for module in use if not isinstance(module, (nn.ModuleList, nn.ModuleDict))]
            watched.update(dict.fromkeys(called))
            source = token_module([*called, layer])
            if source is not None:
                self._passes.read_tokens_at(source, called)
                watched[source] = sources[source] = None
        return list(watched), list(sources)

    def attach(self, modules: list[nn.Module]) -> None:
        """Watch ``modules``, each for one more user."""
        for module in modules:
            self._users[module] = self._users.get(module, 0) + 1
            if self._users[module] == 1:
                outside, enter_call = (
                    module not in self._graphs,
                    EnterCall(self._passes, self._passes.token_calls(module)),
                )
                enter = attach(module, enter_call, HookType.PRE_FORWARD, outside=outside)
                leave = attach(module, LeaveCall(self._passes), HookType.FORWARD, always_call=True, outside=outside)
                self._handles[module] = [enter, leave]
                follow_generate(module, self._passes)

    def detach(self, modules: list[nn.Module]) -> None:
        """One user fewer for ``modules``: those without any are left alone again."""
        for module in modules:
            self._users[module] -= 1
            if not self._users[module]:
                del self._users[module]
                unfollow_generate(module, self._passes)
                self._passes.forget(module)
                for handle in self._handles.pop(module):
                    handle.remove()
