"""The compiled modules of a model, and the layers that run inside their graphs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["graphs_of", "is_compiled"]


def is_compiled(module: nn.Module) -> bool:
    """Return whether ``module`` itself was compiled, by ``module.compile()`` or ``torch.compile(module)``."""
    return module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"


def graphs_of(root: nn.Module, whole: bool = False) -> Mapping[nn.Module, nn.Module]:
    """Return the modules that run inside a compiled graph, each with the outermost compiled module around it.

    A compiled module is not inside its own graph: a hook on it stands outside.

    Args:
        root: the model.
        whole: whether ``root`` was compiled in a way that its modules do not show.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
        >>> model[1].compile()
        >>> graphs_of(model) == {model[1][0]: model[1]}
        True
    """
    found: dict[nn.Module, nn.Module] = {}
    _walk(root, root if whole else None, found, set())
    return found


def _walk(
    module: nn.Module, outermost: nn.Module | None, found: dict[nn.Module, nn.Module], seen: set[tuple[nn.Module, bool]]
) -> None:
    if (module, outermost is None) in seen:  # a module may be used in several places
        return
    seen.add((module, outermost is None))
    if outermost is not None:
        found.setdefault(module, outermost)
    inside = outermost if outermost is not None else module if is_compiled(module) else None
    for child in module.children():
        _walk(child, inside, found, seen)
