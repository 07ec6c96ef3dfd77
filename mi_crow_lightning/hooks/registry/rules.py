"""The rules for registration: what a hook must fulfil to be put on layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from mi_crow_lightning._arguments import listed
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.module_tree import ModuleTree, can_be_called
from mi_crow_lightning.addressing.signatures import Match
from mi_crow_lightning.addressing.widths import channels_are_last, declared_width
from mi_crow_lightning.errors import HookConflict, RegistrationError, TagConflict, VectorMismatch
from mi_crow_lightning.hooks.controller import Controller
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.registry.sites import Registration, Site

__all__ = [
    "listed_hooks",
    "other_width",
    "refuse_at_heads",
    "refuse_other_widths",
    "refuse_replicated",
    "refuse_same_kind_on_layer",
    "refuse_scripted",
    "refuse_shared_tags",
    "refuse_uncalled",
    "refuse_unfit",
    "replicates",
    "vector_and_layer_width",
]

# By kind of hook: the methods that do something once a subclass overrides one of them.
_EXTENSION_POINTS: dict[type[Hook], tuple[str, ...]] = {
    Detector: ("observe", "process_activations", "_hook_fn"),
    Controller: ("edit", "modify_activations", "_edited", "_hook_fn"),
    Hook: ("_hook_fn",),
}


def listed_hooks(argument: str, hooks: Any) -> list[Hook]:
    """Return a hook, or several, as a list.

    Raises:
        TypeError: it is neither; the message names the argument.
    """
    if isinstance(hooks, Hook):
        hooks = [hooks]
    if isinstance(hooks, str):
        raise TypeError(
            f"{argument}={shown(hooks)} is a string, not a hook: give a hook on these layers, such as "
            f"ActivationStatistics({shown(hooks)}), or a list of hooks"
        )
    if not isinstance(hooks, Iterable):
        raise TypeError(f"{argument}={shown(hooks)} must be a hook or a list of hooks, not a {type(hooks).__name__}")
    listing = listed(argument, hooks, "hooks", "[ActivationStatistics('block:*')]")
    for hook in listing:
        if not isinstance(hook, Hook):
            hint = f": give an instance, {hook.__name__}(...)" if isinstance(hook, type) else ""
            raise TypeError(f"{argument} holds {shown(hook)}, which is a {type(hook).__name__}, not a hook{hint}")
        if "id" not in vars(hook):
            raise TypeError(f"{argument}: {type(hook).__name__}.__init__ must call super().__init__(...)")
    return listing


def refuse_unfit(hook: Hook, taken_ids: Iterable[str]) -> None:
    """Refuse what is not a hook, is already registered, or would do nothing.

    Raises:
        TypeError: ``hook`` is not a hook, or its class did not call ``super().__init__``.
        HookConflict: its ID is taken, or it is registered elsewhere.
        RegistrationError: its class overrides no method that does something.
    """
    if not isinstance(hook, Hook):
        raise TypeError(
            f"{shown(hook)} is not a hook: pass an instance of Detector, Controller or Hook, not a "
            f"{type(hook).__name__}"
        )
    if "id" not in vars(hook):
        raise TypeError(f"{type(hook).__name__}.__init__ must call super().__init__(...)")
    if hook.id in taken_ids:
        what = f"a hook with ID {hook.id!r}" if hook._has_given_id else f"{hook!r}, or a copy of it,"
        raise HookConflict(f"{what} is already registered here: unregister it first")
    if hook.registered:
        raise HookConflict(
            f"{hook!r} is already registered, with a LanguageModel, Layers or another HookCallback: "
            "unregister it there, or make a second hook"
        )
    kinds: list[type[Hook]] = [kind for kind in (Detector, Controller) if isinstance(hook, kind)] or [Hook]
    names = list(dict.fromkeys(name for kind in kinds for name in _EXTENSION_POINTS[kind]))
    if not any(_overrides(hook, name) for name in names):
        raise RegistrationError(f"{type(hook).__name__} overrides none of {', '.join(names)}, so it would do nothing")


def _overrides(hook: Hook, name: str) -> bool:
    """Return whether the hook's class has its own ``name``, rather than one inherited from this package's bases."""
    return all(getattr(type(hook), name) is not getattr(kind, name, None) for kind in _EXTENSION_POINTS)


def refuse_scripted(hook: Hook, matches: Iterable[Match]) -> None:
    """Refuse layers that cannot take torch hooks.

    Raises:
        RegistrationError: a layer is a TorchScript module; the message names it.
    """
    for match in matches:
        if isinstance(match.module, torch.jit.ScriptModule):
            raise RegistrationError(
                f"{hook!r}: layer {match.name!r} is a TorchScript module, which takes no hooks: choose a layer around "
                "it, or load the model without scripting"
            )


def refuse_uncalled(hook: Hook, matches: Sequence[Match]) -> None:
    """Refuse layers that nothing can call: containers without a ``forward``, such as ``nn.ModuleList``.

    Raises:
        RegistrationError: no layer has a ``forward``; the message names one, and how to name what it holds.
    """
    if any(can_be_called(match.module) for match in matches):
        return
    name, kind = matches[0].name, type(matches[0].module).__name__
    raise RegistrationError(
        f"{hook!r}: layer {name!r} is a {kind}, which has no forward() and is never called: name what it holds, "
        f"such as '{name}.*'"
    )


def refuse_replicated(hook: Hook, matches: Iterable[Match], tree: ModuleTree) -> None:
    """Refuse layers that ``nn.DataParallel`` copies, to run each copy in its own thread.

    Raises:
        RegistrationError: a layer is inside ``nn.DataParallel``; the message names it.
    """
    for match in matches:
        if any(replicates(module) for module in tree.ancestors(match.module)):
            raise RegistrationError(
                f"{hook!r}: layer {match.name!r} is inside nn.DataParallel, which runs copies of it in several "
                "threads, and hooks would mix them up: leave nn.DataParallel out, and let the Trainer run one "
                "process per device with strategy='ddp'"
            )


def refuse_at_heads(hook: Hook, hook_type: HookType, matches: Iterable[Match]) -> None:
    """Refuse what heads of attention cannot have.

    Raises:
        RegistrationError: the hook is to run before a head, or reads the weights of layers.
    """
    head = next((match for match in matches if match.head is not None), None)
    if head is None:
        return
    if hook_type is HookType.PRE_FORWARD:
        raise RegistrationError(
            f"{hook!r}: {head.name!r} is a head, which has an output alone, its slice of the input of "
            f"{head.module_name!r}: leave out hook_type='pre_forward'"
        )
    if not hook._called_at_layers:
        raise RegistrationError(
            f"{hook!r} reads weights, and {head.name!r} is a head, a slice of an activation: name "
            f"{head.module_name!r}, or the attention"
        )


def refuse_other_widths(hook: Hook, hook_type: HookType, matches: Iterable[Match], tree: ModuleTree) -> None:
    """Refuse a vector that is not as wide as its layer, where the layer declares its width.

    Elsewhere a pass shows it: the one at the start of a Trainer's run, or the first that is for real.

    Raises:
        VectorMismatch: it names the layer, and both widths.
    """
    if type(hook)._width_at is Hook._width_at:
        return  # it has no vectors
    for match in matches:
        given, width = vector_and_layer_width(hook, hook_type, match, tree)
        if given is not None and width is not None and width != given:
            raise other_width(hook, match.name, given, width)


def vector_and_layer_width(
    hook: Hook, hook_type: HookType, match: Match, tree: ModuleTree
) -> tuple[int | None, int | None]:
    """Return how wide a hook's vector for a layer is, and the layer's declared width; ``None`` for what is not known.

    With ``channels=`` the user says that the layer's class is not to be asked.
    """
    if hook.channels is None or (hook.channels == -1 and channels_are_last(match)):
        width = declared_width(tree, match, of_input=hook_type is HookType.PRE_FORWARD)
        return hook._width_at(match.name, match.index, channels_are_last(match)), width
    return hook._width_at(match.name, match.index, hook.channels == -1), None


def other_width(hook: Hook, layer: str, given: int, width: int, shown: str = "") -> VectorMismatch:
    """Return the error for a vector that is not as wide as its layer.

    Args:
        hook: the hook.
        layer: the layer's name.
        given: the vector's width.
        width: the layer's width.
        shown: how that is known, if the layer does not declare it.
    """
    return VectorMismatch(
        f"{hook!r}: its vector for layer {layer!r} has {given} features, and the layer's activations have "
        f"{width}{shown}: use a vector extracted from this model and layer"
    )


def replicates(module: nn.Module) -> bool:
    """Return whether ``module`` is an ``nn.DataParallel`` that runs copies, as it does on several devices."""
    return isinstance(module, nn.DataParallel) and len(module.device_ids) > 1


def refuse_same_kind_on_layer(
    hook: Hook, hook_type: HookType, names: Iterable[str], present: Iterable[Registration]
) -> None:
    """Refuse a second detector, or a second controller, on one layer and hook type.

    Raises:
        HookConflict: the place is taken; the message names the hook that has it.
    """
    wanted = set(names)
    for other in present:
        shared = wanted & other.names
        if shared and other.hook.hook_type is hook_type and other.hook.edits == hook.edits:
            kind = "controller" if hook.edits else "detector"
            raise HookConflict(
                f"layer {min(shared)!r} already has a {kind} ({hook_type.value}): {other.hook!r}. One {kind} per "
                f"layer and hook type is allowed here: unregister that one, or set allow_stacking=True."
            )


class _Registered(Protocol):
    def get_hooks(self) -> Sequence[Hook]: ...

    def sites(self, hook_or_id: Hook | str) -> Sequence[Site]: ...


def refuse_shared_tags(registries: Iterable[_Registered]) -> None:
    """Refuse two detectors that would write to the same tag, because only one value per step would be visible.

    Raises:
        TagConflict: two detectors share a tag; the message names both.
    """
    owners: dict[tuple[str, str, str], Detector] = {}
    for layers in registries:
        for detector in layers.get_hooks():
            if not isinstance(detector, Detector):
                continue
            for site in layers.sites(detector):
                for name in detector.reading_names():
                    other = owners.setdefault((detector.tag_prefix, site.match.name, name), detector)
                    if other is not detector:
                        raise TagConflict(
                            f"{other!r} and {detector!r} would both write the {name} of {site.match.name!r} under "
                            f"{detector.tag_prefix!r}: give one of them name=..., which becomes its tags' first part"
                        )
