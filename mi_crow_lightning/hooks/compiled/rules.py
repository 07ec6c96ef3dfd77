"""The rules for hooks on layers inside a graph of ``torch.compile``, so that the graph holds them as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.hooks.compiled.torch_version import why_torch_is_too_old
from mi_crow_lightning.hooks.compiled.traceable import why_not_called, why_not_traceable
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.traced_site import TracedSite
from mi_crow_lightning.hooks.schedules import Stage

__all__ = ["MOST_SCHEDULES", "called_hooks", "choose_ways", "graph_refusals", "toggling_schedules"]

MOST_SCHEDULES = 2
"""The schedules that go on and off among traced hooks; where there are more, the graph calls their hooks."""
_MOST_GRAPHS = 2


def graph_refusals(layers: Layers, stages: Collection[Stage]) -> Iterator[RegistrationError]:
    """Yield the reasons why hooks cannot run in the compiled graphs that their layers are in.

    Args:
        layers: the registry of the hooks.
        stages: the stages of the run.
    """
    if layers.traced_hooks() and (too_old := why_torch_is_too_old()) is not None:
        yield RegistrationError(
            f"{too_old}. Run without torch.compile, or hook the compiled module itself or a layer outside it."
        )
        return
    called = called_hooks(layers, stages)
    for hook in layers.traced_hooks():
        reason, not_called = why_not_traceable(hook), why_not_called(hook)
        if reason is not None and not_called is not None:
            layer, graph = next(_traced_layers(layers, hook))
            yield RegistrationError(
                f"{hook!r} would run inside a graph of torch.compile: {layer!r} lies in {_name(graph, layers)}, "
                f"which is compiled. There, {reason}, and {not_called}. Run without torch.compile, or hook the "
                "compiled module itself or a layer outside it."
            )
        yield from _refused_for_uses(layers, hook)
        if Stage.TRAIN in stages and hook not in called:
            yield from _refused_for_checkpointing(layers, hook)
    schedules = toggling_schedules(layers, stages)
    if len(schedules) > MOST_SCHEDULES:
        yield RegistrationError(
            f"the hooks in compiled graphs go on and off by {len(schedules)} schedules: {', '.join(schedules)}. Each "
            f"combination is compiled separately, so at most {MOST_SCHEDULES} are allowed: give hooks the same "
            "schedule, or one that holds for whole stages."
        )
    yield from _refused_regions(layers)


def choose_ways(layers: Layers, stages: Collection[Stage]) -> None:
    """Choose for every hook in a graph whether it is traced or called, before the graphs are compiled.

    Args:
        layers: the registry of the hooks.
        stages: the stages of the run.
    """
    called = called_hooks(layers, stages)
    for hook in layers.traced_hooks():
        for site in layers.sites(hook):
            if isinstance(site, TracedSite):
                site.is_called = hook in called


def called_hooks(layers: Layers, stages: Collection[Stage]) -> set[Hook]:
    """Return the hooks that graphs call as the Python that they are: those that cannot be traced, and can be called.

    Args:
        layers: the registry of the hooks.
        stages: the stages of the run.
    """
    hooks = layers.traced_hooks()
    callable_ones = [hook for hook in hooks if why_not_called(hook) is None]
    called = {hook for hook in callable_ones if why_not_traceable(hook) is not None}
    if Stage.TRAIN in stages:
        called |= {hook for hook in callable_ones if next(_refused_for_checkpointing(layers, hook), None) is not None}
    if len(_toggling(set(hooks) - called, hooks, stages)) > MOST_SCHEDULES:
        called |= {hook for hook in callable_ones if _toggles(hook, stages)}
    if any(hook.edits for hook in called):  # it may ask a detector what that saw in the pass
        called |= {hook for hook in callable_ones if hook._is_asked_in_pass}
    return called


def toggling_schedules(layers: Layers, stages: Collection[Stage]) -> list[str]:
    """Return the different schedules by which traced hooks go on and off within a stage."""
    hooks = layers.traced_hooks()
    return _toggling(set(hooks) - called_hooks(layers, stages), hooks, stages)


def _toggling(traced: Collection[Hook], hooks: Sequence[Hook], stages: Collection[Stage]) -> list[str]:
    return list(dict.fromkeys(repr(hook.when()) for hook in hooks if hook in traced and _toggles(hook, stages)))


def _toggles(hook: Hook, stages: Collection[Stage]) -> bool:
    return any(hook.when().varies_in(stage) for stage in stages)


def _refused_regions(layers: Layers) -> Iterator[RegistrationError]:
    """Refuse hooks in many compiled modules of a class: one graph serves all of them until hooks make them differ."""
    found = {graph for hook in layers.traced_hooks() for _, graph in _traced_layers(layers, hook)}
    by_class: dict[type, list[nn.Module]] = {}
    for graph in found:
        by_class.setdefault(type(unwrapped(graph)), []).append(graph)
    for cls, graphs in by_class.items():
        if len(graphs) > _MOST_GRAPHS:
            yield RegistrationError(
                f"{len(graphs)} modules of class {cls.__name__} are compiled one by one, and with hooks inside them "
                "each would need its own graph: hook these modules themselves, or compile the model around them as a "
                "whole."
            )


def _refused_for_uses(layers: Layers, hook: Hook) -> Iterator[RegistrationError]:
    """Refuse a hook on a layer that is used in several places: which use is running is looked up in Python."""
    for site in layers.sites(hook):
        if site.is_traced and len(site.token_sources) > 1:
            yield RegistrationError(
                f"{hook!r}: {site.match.name!r} is used in several places in a graph of torch.compile, where it is not "
                "known which of them calls it, and therefore not which tokens are real. Hook another layer, or run "
                "without torch.compile."
            )
            return


def _refused_for_checkpointing(layers: Layers, hook: Hook) -> Iterator[RegistrationError]:
    """Refuse a hook in a checkpointed module, which is in the graph in one piece while its layers run twice."""
    tree = ModuleTree(layers.root)
    for site in layers.sites(hook):
        layer = site.match.module
        # transformers 4 checkpoints a block's call, and with it the hooks on the block; transformers 5 its forward.
        inside = [layer] if type(layer).__call__ is not nn.Module.__call__ else []
        around = [module for module in (*inside, *tree.ancestors(layer)) if _is_checkpointed(module)]
        if site.is_traced and around:
            yield RegistrationError(
                f"{hook!r}: {site.match.name!r} lies inside, or is, a {type(unwrapped(around[0])).__name__} with "
                "gradient checkpointing in a graph of torch.compile, where its two runs cannot be distinguished. Hook "
                "the checkpointed module itself, or train without checkpointing or without torch.compile."
            )
            return


def _is_checkpointed(module: nn.Module) -> bool:
    classes = {cls.__name__ for cls in type(module).__mro__}
    by_transformers = "GradientCheckpointingLayer" in classes and vars(module).get("gradient_checkpointing") is True
    return by_transformers or "CheckpointWrapper" in classes


def _traced_layers(layers: Layers, hook: Hook) -> Iterator[tuple[str, nn.Module]]:
    for site in layers.sites(hook):
        if site.is_traced:
            yield site.match.name, layers.graphs[site.match.module]


def _name(graph: nn.Module, layers: Layers) -> str:
    names = {unwrapped(module): name for name, module in ModuleTree(layers.root).modules.items() if name}
    module = unwrapped(graph)
    return repr(names[module]) if module in names else f"the {type(module).__name__}"
