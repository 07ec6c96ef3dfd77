"""Hooks on the layers of any torch module: watch activations, or change them.

=========================  ===========================================================================
`attached`                 puts hooks on a model for the length of a ``with`` block
`Layers`                   the registry: put hooks on layers, switch them, take them off
`Detector`                 a hook that observes: override ``observe(x, ctx)``
`SummingDetector`          a detector whose readings follow from sums: override ``measure`` and ``values``
`StatisticsDetector`       the base of those that give the statistics by name
`Controller`               a hook that edits: override ``edit(x, ctx)``
`Hook`, `HookType`         what both are; for everything else override ``_hook_fn``
`LayerActivationDetector`  keeps activations
`ActivationStatistics`     streams mean, std, ... and a histogram of activations
`GradientStatistics`       streams the same of the gradients of activations
`TokenStatistics`          streams how alike tokens are, their effective rank, and where the largest is
`WeightStatistics`         norms of weights, their gradients and updates, around optimizer steps
`ProjectionDetector`       streams projections on directions; may be a condition for edits
`LinearProbe`              trains a linear probe at each layer while the model trains, and reads its accuracy
`TraitMonitor`             says how far a fine-tune moved held-out texts along directions
`DriftDetector`            measures how far activations moved from those of a reference
`SteeringController`       adds a vector to activations at chosen tokens
`AblationController`       takes a direction, or a subspace, out
`ClampController`          sets, or limits, how far they lie along a direction
`ScaleController`          multiplies them by a factor
`PatchController`          replaces them by stored ones
`FunctionController`       applies a function to them
`TokenController`          the base of these: your own controller overrides ``change``
`VectorController`         the base of those that take a vector, one for all layers or one for each
`Schedule`, `Tokens`       when a hook is on, and at which positions
=========================  ===========================================================================

::

    with attached(model, [detector, controller]):
        model(**batch)
"""

from mi_crow_lightning._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
