"""Watch and steer a network's activations inside PyTorch Lightning.

::

    watch = HookCallback(
        detectors=[ActivationStatistics("block:*")],
        controllers=[SteeringController("block:12", vector=v, strength=4.0, tokens="generated")],
    )
    trainer = lightning.Trainer(callbacks=[watch], logger=TensorBoardLogger("logs"))
    trainer.fit(module)        # every block's activations stream into TensorBoard
    trainer.predict(module)    # the same model, steered
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mi_crow_lightning._lazy import lazy_attribute

if TYPE_CHECKING:
    from mi_crow_lightning.callback import HookCallback
    from mi_crow_lightning.errors import (
        HookConflict,
        HookError,
        LayerNotFound,
        MiCrowError,
        NeverFired,
        RegistrationError,
    )
    from mi_crow_lightning.hooks import (
        AblationController,
        ActivationStatistics,
        AllOf,
        AnyOf,
        ClampController,
        Controller,
        Detector,
        FunctionController,
        Hook,
        HookContext,
        HookType,
        LayerActivationDetector,
        Layers,
        LoggedSteps,
        Not,
        PatchController,
        ProjectionDetector,
        Reading,
        ScaleController,
        Schedule,
        Stage,
        SteeringController,
        TokenController,
        Tokens,
        attached,
    )
    from mi_crow_lightning.language_model import CausalLMModule, LanguageModel, PredictionWriter, by_strength
    from mi_crow_lightning.store import LocalStore
    from mi_crow_lightning.vectors import ContrastDetector, LabelCollator, PairCollator, SteeringVector

_HERE = "mi_crow_lightning"
_SOURCES = {
    **dict.fromkeys(
        ["HookConflict", "HookError", "LayerNotFound", "MiCrowError", "NeverFired", "RegistrationError"],
        f"{_HERE}.errors",
    ),
    **dict.fromkeys(
        [
            "AblationController",
            "ActivationStatistics",
            "AllOf",
            "AnyOf",
            "ClampController",
            "Controller",
            "Detector",
            "FunctionController",
            "Hook",
            "HookContext",
            "HookType",
            "LayerActivationDetector",
            "Layers",
            "LoggedSteps",
            "Not",
            "PatchController",
            "ProjectionDetector",
            "Reading",
            "ScaleController",
            "Schedule",
            "Stage",
            "SteeringController",
            "TokenController",
            "Tokens",
            "attached",
        ],
        f"{_HERE}.hooks",
    ),
    **dict.fromkeys(["ContrastDetector", "LabelCollator", "PairCollator", "SteeringVector"], f"{_HERE}.vectors"),
    "HookCallback": f"{_HERE}.callback",
    **dict.fromkeys(["CausalLMModule", "LanguageModel", "PredictionWriter", "by_strength"], f"{_HERE}.language_model"),
    "LocalStore": f"{_HERE}.store",
}

__all__ = [
    "AblationController",
    "ActivationStatistics",
    "AllOf",
    "AnyOf",
    "CausalLMModule",
    "ClampController",
    "ContrastDetector",
    "Controller",
    "Detector",
    "FunctionController",
    "Hook",
    "HookCallback",
    "HookConflict",
    "HookContext",
    "HookError",
    "HookType",
    "LabelCollator",
    "LanguageModel",
    "LayerActivationDetector",
    "LayerNotFound",
    "Layers",
    "LocalStore",
    "LoggedSteps",
    "MiCrowError",
    "NeverFired",
    "Not",
    "PairCollator",
    "PatchController",
    "PredictionWriter",
    "ProjectionDetector",
    "Reading",
    "RegistrationError",
    "ScaleController",
    "Schedule",
    "Stage",
    "SteeringController",
    "SteeringVector",
    "TokenController",
    "Tokens",
    "attached",
    "by_strength",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mi-crow-lightning")
    return lazy_attribute(__name__, _SOURCES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
