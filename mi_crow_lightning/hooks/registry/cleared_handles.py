"""The check that nobody else took our handles off a model while hooks were on."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.hooks.registry.sites import Site

__all__ = ["refuse_cleared_handles"]


def refuse_cleared_handles(cleared: Mapping[nn.Module, Site], root: nn.Module) -> None:
    """Raise the error for a hook whose layers are called without it, or without the handles around them.

    Args:
        cleared: the modules that have lost a handle, each with a site that needs it.
        root: layer names are relative to it.

    Raises:
        RegistrationError: it names the modules.
    """
    names = {module: name or "the outermost module" for name, module in root.named_modules()}
    names.update({site.match.module: site.match.module_name for site in cleared.values()})
    shown = [repr(names.get(module, type(module).__name__)) for module in cleared]
    raise RegistrationError(
        f"handles of the hook were taken off or replaced while it was on, at {', '.join(shown[:8])}"
        f"{', ...' if len(shown) > 8 else ''}: it was not called there, or without its tokens. Something clears or "
        "replaces the hooks of these modules (_forward_hooks, _forward_pre_hooks): let it take off only what it has "
        "put on, with handle.remove()"
    )
