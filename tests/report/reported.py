"""A run of one batch, and what its report says."""

from __future__ import annotations

from typing import Any

from mi_crow_lightning import ActivationStatistics, HookCallback
from mi_crow_lightning.report import RunReport, Support
from tests.callback.runs import data_of, module_of, run
from tests.models import Module, trainer

SUPPORTED, DEGRADED, UNTESTED = Support.SUPPORTED, Support.DEGRADED, Support.UNTESTED


def watching(*detectors: Any, **options: Any) -> HookCallback:
    return HookCallback([*detectors] or [ActivationStatistics("block:*")], **options)


def report_of(stage: str, kind: str = "mlp", module: Module | None = None, **changes: Any) -> RunReport:
    """The report of a run of one batch."""
    watch, limits = watching(), {f"limit_{name}_batches": 1 for name in ("train", "val", "test", "predict")}
    run(
        stage,
        trainer(watch, **{**limits, "num_sanity_val_steps": 0, **changes}),
        module or module_of(kind),
        data_of(kind),
    )
    return watch.report()


def not_used(report: RunReport) -> set[str]:
    return {feature.name for feature in report.features if feature.support is Support.NOT_USED}
