"""What a run is made of, told before it is paid for: layers, hooks on them, what is supported and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.report.feature import Feature, Support
    from mi_crow_lightning.report.run_report import HookedLayer, HookPlan, RunReport

__all__ = ["Feature", "HookPlan", "HookedLayer", "RunReport", "Support"]

_SOURCES = {
    **dict.fromkeys(["Feature", "Support"], "mi_crow_lightning.report.feature"),
    **dict.fromkeys(["HookPlan", "HookedLayer", "RunReport"], "mi_crow_lightning.report.run_report"),
}


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
