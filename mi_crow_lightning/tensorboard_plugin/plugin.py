"""The plugin: TensorBoard's questions, and the addresses of the tab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin

from mi_crow_lightning.tensorboard_plugin.assets import ENTRY, asset_apps
from mi_crow_lightning.tensorboard_plugin.metadata import NAME
from mi_crow_lightning.tensorboard_plugin.routes import Routes
from mi_crow_lightning.tensorboard_plugin.source import Source, Where

__all__ = ["ActivationsPlugin"]


class ActivationsPlugin(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard is untyped
    """The Activations tab.

    Args:
        context: TensorBoard's. Data are read through its data provider alone: the fast loader has nothing else.

    Raises:
        ValueError: there is no data provider.
    """

    plugin_name = NAME

    def __init__(self, context: Any) -> None:
        if context.data_provider is None:
            raise ValueError("this TensorBoard runs without a data provider: start it without --generic_data=false")
        self._source = Source(context.data_provider)
        self._samples = (context.sampling_hints or {}).get(NAME)

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """Return the WSGI application of each address."""
        return {**asset_apps(), **Routes(self._source, self._samples).apps()}

    def is_active(self) -> bool:
        """Return whether a run has plain scalars to show; TensorBoard itself looks for the compact tensors."""
        return self._source.has_plain(Where(RequestContext(), ""))

    def frontend_metadata(self) -> Any:
        """Return how TensorBoard shows the tab."""
        return base_plugin.FrontendMetadata(es_module_path=ENTRY, tab_name="Activations")
