"""Every error this package raises, in one tree.

::

    MiCrowError
    ├── HookError                        a hook failed during a pass; wraps the original error
    ├── RegistrationError (ValueError)   a hook cannot be put on the model
    │   ├── LayerNotFound                no layer has that name, index or role
    │   ├── HookConflict                 the layer, or the ID, is taken by another hook
    │   └── TagConflict                  two detectors would write the same tag
    ├── ActivationError                  met inside a hook; reaches you as HookError.original_error
    │   ├── NoTensorFound (TypeError)    the layer's output or input holds no tensor
    │   ├── WrittenInPlace               a hook wrote to the model's own tensor
    │   ├── EditMismatch (ValueError)    a controller returned another shape, dtype or device
    │   ├── VectorMismatch (ValueError)  a steering vector does not fit the layer
    │   ├── StrengthMismatch (ValueError)  strengths do not fit the rows, or there are none
    │   ├── ConditionMismatch (ValueError)  a condition gives no mask that fits, or cannot be told
    │   ├── PatchMismatch (ValueError)   stored activations do not fit those of the run
    │   ├── TokensUnknown (ValueError)   tokens were asked for where there is no sequence
    │   └── CaptureBudgetExceeded        a capture would grow past its byte budget
    ├── NeverFired (RuntimeError)        a controller was on, and none of its layers ran
    ├── NoReport (RuntimeError)          a run's report was asked for before a run
    ├── RanElsewhere (RuntimeError)      what stayed in the processes that a run was started in was asked for outside
    ├── NothingExtracted (RuntimeError)  vectors or scores were asked for before there was anything to make them of
    ├── VectorFileError (ValueError)     a file or folder holds no vector that can be read
    └── StoreKeyError (ValueError)       a key that would leave the store's folder

Wrong arguments to a constructor are plain ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ActivationError",
    "CaptureBudgetExceeded",
    "ConditionMismatch",
    "EditMismatch",
    "HookConflict",
    "HookError",
    "LayerNotFound",
    "MiCrowError",
    "NeverFired",
    "NoReport",
    "NoTensorFound",
    "NothingExtracted",
    "PatchMismatch",
    "RanElsewhere",
    "RegistrationError",
    "StoreKeyError",
    "StrengthMismatch",
    "TagConflict",
    "TokensUnknown",
    "VectorFileError",
    "VectorMismatch",
    "WrittenInPlace",
]


class MiCrowError(Exception):
    """The base of all errors of this package."""


class HookError(MiCrowError):
    """A hook failed during a pass.

    The pass itself went on without the hook's effect; the error is raised once the pass is over.

    Attributes:
        hook_id: ID of the hook that failed.
        hook_type: ``"forward"`` or ``"pre_forward"``.
        original_error: what the hook raised.
        layer: name of the layer, or ``None`` when it is not known.
        stage: the Trainer's stage (``"train"``, ``"validate"``, ...), or ``None`` outside a Trainer.
        batch_idx: index of the batch, or ``None`` outside a Trainer.
        shape: shape of the activation the hook was given, or ``None``.
        hook_class: name of the hook's class.
        has_given_id: whether the ID was given by the user; the message leaves out others.
        outputs: what the pass returned, without this hook's effect.
        others: errors of other hooks in the same pass.
    """

    def __init__(
        self,
        hook_id: str,
        hook_type: str,
        original_error: BaseException,
        *,
        layer: str | None = None,
        stage: str | None = None,
        batch_idx: int | None = None,
        shape: tuple[int, ...] | None = None,
        hook_class: str = "Hook",
        has_given_id: bool = True,
    ) -> None:
        self.hook_id = hook_id
        self.hook_type = str(getattr(hook_type, "value", hook_type))
        self.original_error = original_error
        self.layer = layer
        self.stage = stage
        self.batch_idx = batch_idx
        self.shape = shape
        self.hook_class = hook_class
        self.has_given_id = has_given_id
        self.outputs: Any = None
        self.others: tuple[HookError, ...] = ()
        super().__init__(hook_id, self.hook_type, original_error)

    def __str__(self) -> str:
        where = [f"layer {self.layer!r}"] if self.layer is not None else []
        if self.stage is not None:
            where.append(f"stage {self.stage}, batch {self.batch_idx}")
        if self.shape is not None:
            where.append(f"activation of shape {self.shape}")
        place = f" at {'; '.join(where)}" if where else ""
        more = f" ({len(self.others)} more hook(s) failed in this pass: see .others)" if self.others else ""
        cause = f"{type(self.original_error).__name__}: {self.original_error}"
        hook = f"{self.hook_class} {self.hook_id!r}" if self.has_given_id else self.hook_class
        return f"{hook} ({self.hook_type}) failed{place}: {cause}{more}"


class RegistrationError(MiCrowError, ValueError):
    """A hook cannot be put on the model."""


class LayerNotFound(RegistrationError):
    """No layer of the model has the name, index or role that was asked for."""


class HookConflict(RegistrationError):
    """Another hook already has the layer, or the ID."""


class TagConflict(RegistrationError):
    """Two detectors would write their readings to the same tag."""


class ActivationError(MiCrowError):
    """Met inside a hook; reaches the user as ``HookError.original_error``."""


class NoTensorFound(ActivationError, TypeError):
    """The output, or the input, of a layer holds no floating-point tensor."""


class EditMismatch(ActivationError, ValueError):
    """A controller returned a tensor of another shape, dtype or device."""


class WrittenInPlace(ActivationError):
    """A hook wrote to the activation it was given, which is the running model's own tensor."""


class VectorMismatch(ActivationError, ValueError):
    """A steering vector does not fit the model, the layer or the other vector that it was to be used with."""


class StrengthMismatch(ActivationError, ValueError):
    """A controller's strength is not there, or not one for each sample."""


class ConditionMismatch(ActivationError, ValueError):
    """What a controller's ``when`` gave is no mask of the activation, or what it asks for is not known."""


class PatchMismatch(ActivationError, ValueError):
    """Stored activations are not aligned with the activation that they were to replace."""


class TokensUnknown(ActivationError, ValueError):
    """Tokens were asked for where the activation is not a sequence, or its mask does not fit."""


class CaptureBudgetExceeded(ActivationError):
    """Keeping one more activation would exceed the detector's byte budget."""


class NeverFired(MiCrowError, RuntimeError):
    """A controller was on in a stage, and none of its layers ran."""


class NoReport(MiCrowError, RuntimeError):
    """A run's report was asked for where no run has begun."""


class RanElsewhere(MiCrowError, RuntimeError):
    """Something of a run was asked for that stayed in the processes which ``ddp_spawn`` and its like start for it."""


class NothingExtracted(MiCrowError, RuntimeError):
    """Vectors, or held-out scores, were asked for before a run gave any."""


class VectorFileError(MiCrowError, ValueError):
    """A file, or folder, holds no vector that can be read."""


class StoreKeyError(MiCrowError, ValueError):
    """A run, layer or key that cannot be a file name inside the store's folder."""
