"""References to measure drift from: sketches of the activations that one pass over a loader gave.

=================  ===================================================================
`DriftReference`   sketches of some tokens at each layer; `DriftDetector` makes it
`drift`            compares two references of the same texts: a table
`DriftTable`       how far each layer moved, and the samples that moved most
=================  ===================================================================
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
