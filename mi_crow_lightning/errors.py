"""Every error that this package raises, in one tree.

::

    MiCrowError
    ├── HookError                        a hook failed during a pass; wraps the original error
    ├── RegistrationError (ValueError)   a hook cannot be put on the model
    │   ├── LayerNotFound                no layer has that name, index or role
    │   ├── HookConflict                 another hook has the layer, or the ID
    │   ├── TagConflict                  two detectors would write the same tag
    │   └── RanksDiffer                  the callback is not the same on all ranks
    ├── ActivationError                  raised inside a hook; reaches you as HookError.original_error
    │   ├── NoTensorFound (TypeError)    the layer's output or input holds no tensor
    │   ├── WrittenInPlace               a hook wrote to the model's own tensor
    │   ├── EditMismatch (ValueError)    a controller returned another shape, dtype or device
    │   ├── VectorMismatch (ValueError)  a steering vector does not fit the layer
    │   ├── StrengthMismatch (ValueError)  strengths are missing, or do not fit the rows
    │   ├── ConditionMismatch (ValueError)  a condition's mask does not fit, or the condition cannot be decided
    │   ├── PatchMismatch (ValueError)   stored activations do not fit those of the run
    │   ├── TokensUnknown (ValueError)   a hook asked for tokens where there is no sequence
    │   ├── UnreadableActivation (TypeError)  a nested tensor, or one inside a transform of torch.func
    │   ├── ThreadConflict (RuntimeError)  a detector met two threads at once, or a hook half of a thread's pass
    │   └── CaptureBudgetExceeded        a capture would grow past its byte budget
    ├── NeverFired (RuntimeError)        a controller was on, and none of its layers ran
    ├── NoReport (RuntimeError)          no run has begun that could be reported on
    ├── RankFailed (RuntimeError)        the run cannot go on, because a hook failed on another rank
    ├── RanElsewhere (RuntimeError)      the results are in the processes that the run was started in, not in this one
    ├── NothingExtracted (RuntimeError)  no run has given anything to make vectors or scores from
    ├── RandomDirection (RuntimeError)  an extracted direction is not better than random ones
    ├── NothingToDraw (RuntimeError)     a figure was asked for before there was anything to show
    ├── HookStateError (ValueError)      a checkpoint's state of a hook, or of the callback, cannot be loaded
    ├── ReferenceMismatch (ValueError)   activations cannot be compared with a reference: other layers, texts or calls
    ├── ReferenceFileError (ValueError)  a file holds no reference that can be read
    ├── VectorFileError (ValueError)     a file or folder holds no vector that can be read
    ├── HubError (OSError)               a repository on the Hugging Face Hub cannot be read or written
    ├── SnapshotError (ValueError)       a file is not a snapshot that an alarm wrote, or cannot be run again
    ├── StoreFileError (OSError, ValueError)  a file of a store is damaged, or is not one of its files
    └── StoreKeyError (ValueError)       a key cannot be a file name, or would lead out of the store's folder

Wrong arguments to a constructor raise a plain ``ValueError`` or ``TypeError``.
"""

from __future__ import annotations

from typing import Any

from mi_crow_lightning._messages import in_a_notebook, message_of

__all__ = [
    "ActivationError",
    "CaptureBudgetExceeded",
    "ConditionMismatch",
    "EditMismatch",
    "HookConflict",
    "HookError",
    "HookStateError",
    "HubError",
    "LayerNotFound",
    "MiCrowError",
    "NeverFired",
    "NoReport",
    "NoTensorFound",
    "NothingExtracted",
    "NothingToDraw",
    "PatchMismatch",
    "RanElsewhere",
    "RandomDirection",
    "RankFailed",
    "RanksDiffer",
    "ReferenceFileError",
    "ReferenceMismatch",
    "RegistrationError",
    "SnapshotError",
    "StoreFileError",
    "StoreKeyError",
    "StrengthMismatch",
    "TagConflict",
    "ThreadConflict",
    "TokensUnknown",
    "UnreadableActivation",
    "VectorFileError",
    "VectorMismatch",
    "WrittenInPlace",
]


class MiCrowError(Exception):
    """The base class of all errors of this package."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows, instead of some hundred for the frames of torch and Lightning."""
        return in_a_notebook(self)


class HookError(MiCrowError):
    """A hook failed during a pass.

    The pass went on as if this hook had done nothing; the error is raised once the pass is over.

    Attributes:
        hook_id: ID of the hook that failed.
        hook_type: ``"forward"`` or ``"pre_forward"``.
        original_error: the error that the hook raised.
        layer: name of the layer, or ``None`` if it is not known.
        stage: the Trainer's stage (``"train"``, ``"validate"``, ...), or ``None`` outside a Trainer.
        batch_idx: index of the batch, or ``None`` outside a Trainer.
        shape: shape of the activation that the hook was given, or ``None``.
        unreadable: the reason why most hooks cannot read the activation: it is a nested tensor, or inside a
            transform of torch.func. ``None`` of any other.
        hook_class: name of the hook's class.
        has_given_id: whether the user gave the ID. The message leaves out IDs that were made up.
        outputs: the result of the pass, without this hook.
        others: the errors of other hooks in the same pass.
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
        unreadable: str | None = None,
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
        self.unreadable = unreadable
        self.hook_class = hook_class
        self.has_given_id = has_given_id
        self.outputs: Any = None
        self.others: tuple[HookError, ...] = ()
        super().__init__(hook_id, self.hook_type, original_error)

    def __str__(self) -> str:
        where = [f"layer {self.layer!r}"] if self.layer is not None else []
        if self.stage is not None:
            where.append(f"stage {self.stage}, batch {self.batch_idx}")
        if self.unreadable is not None:
            where.append(f"activation: {self.unreadable}")
        elif self.shape is not None:
            where.append(f"activation of shape {self.shape}")
        place = f" at {'; '.join(where)}" if where else ""
        more = f" ({len(self.others)} more hook(s) failed in this pass: see .others)" if self.others else ""
        cause = f"{type(self.original_error).__name__}: {message_of(self.original_error)}"
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


class RanksDiffer(RegistrationError):
    """The callback, or its hooks, layers or options, are not the same on all ranks, or a rank could not start."""


class ActivationError(MiCrowError):
    """An error inside a hook; it reaches the user as ``HookError.original_error``."""


class NoTensorFound(ActivationError, TypeError):
    """The output, or the input, of a layer holds no tensor."""


class EditMismatch(ActivationError, ValueError):
    """A controller returned a tensor of another shape, dtype or device."""


class WrittenInPlace(ActivationError):
    """A hook wrote to the activation it was given, which is the running model's own tensor."""


class VectorMismatch(ActivationError, ValueError):
    """A steering vector does not fit the model, the layer, or the other vector that it is used with."""


class StrengthMismatch(ActivationError, ValueError):
    """A controller's strength is missing, or there is not one for each sample."""


class ConditionMismatch(ActivationError, ValueError):
    """A controller's ``when`` did not return a mask of the activation, or asks for something that is not known."""


class PatchMismatch(ActivationError, ValueError):
    """Stored activations are not aligned with the activation that they should replace."""


class TokensUnknown(ActivationError, ValueError):
    """A hook asked for tokens, and the activation is not a sequence, or its mask does not fit."""


class UnreadableActivation(ActivationError, TypeError):
    """A detector met a nested tensor, or one that exists only inside a transform of torch.func such as vmap."""


class ThreadConflict(ActivationError, RuntimeError):
    """Two threads used a detector at once, or a hook would act in a part of a pass that another thread is in."""


class CaptureBudgetExceeded(ActivationError):
    """Keeping one more activation would exceed the detector's byte budget."""


class NeverFired(MiCrowError, RuntimeError):
    """A controller was on in a batch, or in a whole stage, and none of its layers ran."""


class NoReport(MiCrowError, RuntimeError):
    """No run has begun that could be reported on."""


class RankFailed(MiCrowError, RuntimeError):
    """A hook failed on another rank in a way that ends the run on all of them."""


class RanElsewhere(MiCrowError, RuntimeError):
    """Results were asked for that stayed in the processes which ``ddp_spawn`` and the like start for a run."""


class NothingExtracted(MiCrowError, RuntimeError):
    """Vectors or held-out scores were asked for before a run gave any."""


class RandomDirection(MiCrowError, RuntimeError):
    """The directions that an extraction found are not better than random ones."""


class NothingToDraw(MiCrowError, RuntimeError):
    """A figure was asked for before there was anything to show."""


class HookStateError(MiCrowError, ValueError):
    """A checkpoint's state of a hook, or of the callback, cannot be loaded; what it is of stays as it was."""


class ReferenceMismatch(MiCrowError, ValueError):
    """Activations cannot be compared with a reference: the layers, the texts or the way they were made differ."""


class ReferenceFileError(MiCrowError, ValueError):
    """A file holds no drift reference that can be read."""


class VectorFileError(MiCrowError, ValueError):
    """A file or folder holds no vector that can be read."""


class HubError(MiCrowError, OSError):
    """A repository on the Hugging Face Hub cannot be read or written."""


class SnapshotError(MiCrowError, ValueError):
    """A file is not a snapshot that an alarm wrote, is damaged, or cannot be run again."""


class StoreFileError(MiCrowError, OSError, ValueError):
    """A file of a store is damaged, or something else than a store's file."""


class StoreKeyError(MiCrowError, ValueError):
    """A run, layer or key cannot be a file name inside the store's folder."""
