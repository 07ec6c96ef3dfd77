"""The form that measures statistics on a CPU, and the statistics that no fast form measures."""

from __future__ import annotations

import torch

from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.statistics_detector import StatisticsDetector
from mi_crow_lightning.metrics.known_statistics import sums_of
from mi_crow_lightning.metrics.one_pass.forms import form_on_cpu, left_to_torch
from mi_crow_lightning.report.feature import Feature, Support

__all__ = ["statistic_forms"]


def statistic_forms(device: torch.device, layers: Layers) -> list[Feature]:
    """Return what measures on a CPU, and the sums that torch operations measure because the form lacks them."""
    left: dict[str, set[str]] = {}  # by form
    by_form = False
    for hook in layers.get_hooks():
        if isinstance(hook, StatisticsDetector):
            names = [one.name for one in sums_of(hook.statistics)]
            for graph in {site.match.module in layers.graphs for site in layers.sites(hook)}:
                by_form |= not graph and device.type == "cpu"
                for name, form in left_to_torch(names, device, graph).items():
                    left.setdefault(form, set()).add(name)
    note = "measured by plain torch operations, which takes longer: {} has no form of it"
    return [
        *([_form_on_cpu()] if by_form else []),
        *(
            Feature("statistics", ", ".join(sorted(names)), Support.SUPPORTED, note.format(form))
            for form, names in sorted(left.items())
        ),
    ]


def _form_on_cpu() -> Feature:
    form, why_not = form_on_cpu()
    note = f"numba is several times faster: {why_not}" if why_not else "compiled"
    return Feature("CPU statistics", f"by {form}", Support.SUPPORTED, note)
