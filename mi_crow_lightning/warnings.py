"""Every kind of warning that this package gives, to silence one kind and keep the others.

::

    MiCrowWarning (UserWarning)
    ├── NothingSeenWarning                       a hook, an alarm or a log has nothing to see, change or write
    ├── InexactWarning (RuntimeWarning)          numbers leave something out, or hold something that you may not mean
    ├── DoubtfulVectorWarning                    a steering vector may not mean what it should
    ├── ResumeWarning (RuntimeWarning)           a checkpoint does not bring everything back
    ├── FailureWarning (RuntimeWarning)          something failed, and the run goes on without it
    ├── SlowWarning (RuntimeWarning)             the same result takes longer than it could
    └── AlarmWarning (RuntimeWarning)            an alarm fired

The page "Warnings" of the documentation lists each.
"""

from __future__ import annotations

__all__ = [
    "AlarmWarning",
    "DoubtfulVectorWarning",
    "FailureWarning",
    "InexactWarning",
    "MiCrowWarning",
    "NothingSeenWarning",
    "ResumeWarning",
    "SlowWarning",
]


class MiCrowWarning(UserWarning):
    """The base class of all warnings of this package.

    Examples:
        >>> import warnings
        >>> from mi_crow_lightning.warnings import InexactWarning
        >>> with warnings.catch_warnings():
        ...     warnings.filterwarnings("ignore", category=InexactWarning)
        ...     warnings.warn("every token counts, including padding", InexactWarning)
    """


class NothingSeenWarning(MiCrowWarning):
    """A hook saw or changed nothing, or an alarm or a log will have nothing to say."""


class InexactWarning(MiCrowWarning, RuntimeWarning):
    """Numbers leave something out, or hold something that you may not mean, such as padding."""


class DoubtfulVectorWarning(MiCrowWarning):
    """A steering vector may not mean what it should: random, made by massive tokens, or of another model."""


class ResumeWarning(MiCrowWarning, RuntimeWarning):
    """A checkpoint does not bring everything back."""


class FailureWarning(MiCrowWarning, RuntimeWarning):
    """Something failed, and the run goes on without it."""


class SlowWarning(MiCrowWarning, RuntimeWarning):
    """The same result takes longer than it could."""


class AlarmWarning(MiCrowWarning, RuntimeWarning):
    """An alarm fired."""
