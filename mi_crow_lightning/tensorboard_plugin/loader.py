"""The module that TensorBoard imports when it starts: it may not fail, so it imports no more than the base class."""

from __future__ import annotations

from typing import Any

from tensorboard.plugins import base_plugin

__all__ = ["SAMPLES", "ActivationsLoader"]

_NAME = "mi_crow_lightning"  # as in `metadata`, which is imported only where a failure does no harm

SAMPLES = 1000
"""The steps that TensorBoard keeps of each tensor, unless ``--samples_per_plugin`` says otherwise."""


class ActivationsLoader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard is untyped
    """TensorBoard's way to the plugin. Whatever is wrong with the plugin, TensorBoard itself keeps running."""

    def fix_flags(self, flags: Any) -> None:
        """Keep more steps than TensorBoard does by itself: 10 with its slow loader, 100 with the fast one."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(_NAME, SAMPLES)

    def load(self, context: Any) -> Any | None:
        """Return the plugin, or ``None`` with a warning if it cannot be made."""
        try:
            from mi_crow_lightning.tensorboard_plugin.plugin import ActivationsPlugin

            return ActivationsPlugin(context)
        except Exception as error:  # whatever it is: TensorBoard would not start
            import warnings

            warnings.warn(
                f"TensorBoard starts without the Activations tab: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
