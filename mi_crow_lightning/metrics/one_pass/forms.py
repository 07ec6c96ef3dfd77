"""Which form measures, and which further sums it leaves to eager torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from mi_crow_lightning.metrics.one_pass import in_graph, on_cpu
from mi_crow_lightning.metrics.one_pass.in_numba import choice as in_numba
from mi_crow_lightning.metrics.one_pass.on_cuda.choice import kernels_know, kernels_run_on


def prepare_form(device: torch.device) -> None:
    """Load the form that measures on a device now, where that may take seconds, and not in a step."""
    if device.type == "cpu":
        in_numba.choice()


def form_on_cpu() -> tuple[str, str]:
    """Return what measures on a CPU outside of graphs, ``"numba"`` or ``"numpy"``, and why it is not numba."""
    chosen = in_numba.choice()
    return ("numpy", chosen.why) if chosen.add is None else ("numba", "")


def left_to_torch(names: Iterable[str], device: torch.device, graph: bool = False) -> dict[str, str]:
    """Return the sums that a form does not know, which are measured by torch operations, as they are declared.

    Args:
        names: the names of further sums.
        device: where the activations are.
        graph: whether they are in a compiled graph.

    Returns:
        Name of the sum -> name of the form, ``"a compiled graph"``, ``"Triton"`` or ``"numpy"``. Empty on a device
        where torch operations measure everything.

    Examples:
        >>> left_to_torch(["abs_sum"], torch.device("cpu"))
        {'abs_sum': 'numpy'}
    """
    form, knows = _form(device, graph)
    return {name: form for name in names if not knows(name)}


def _form(device: torch.device, graph: bool) -> tuple[str, Callable[[str], bool]]:
    if graph:
        return "a compiled graph", in_graph.SUMS.__contains__
    if kernels_run_on(device):
        return "Triton", kernels_know
    if device.type == "cpu":
        return "numpy", on_cpu.SUMS.__contains__
    return "torch", lambda name: True
