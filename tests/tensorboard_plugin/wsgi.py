"""A log that TensorBoard's own WSGI application serves, without a process and without a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.application import TensorBoardWSGI
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.core.core_plugin import CorePlugin
from werkzeug.test import Client, TestResponse

from mi_crow_lightning.tensorboard_plugin.packing import unpack
from mi_crow_lightning.tensorboard_plugin.plugin import ActivationsPlugin

HERE = "/data/plugin/mi_crow_lightning"


class Log:
    """A log that TensorBoard has read, and may read again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._multiplexer = EventMultiplexer(tensor_size_guidance={"mi_crow_lightning": 0, "scalars": 0})
        provider = MultiplexerDataProvider(self._multiplexer, str(folder))
        self.plugin = ActivationsPlugin(TBContext(data_provider=provider, sampling_hints={"mi_crow_lightning": 1000}))
        self.reload()
        core = CorePlugin(TBContext(data_provider=provider, logdir=str(folder)))
        self._client = Client(TensorBoardWSGI([core, self.plugin], data_provider=provider))

    def reload(self) -> None:
        self._multiplexer.AddRunsFromDirectory(str(self.folder))
        self._multiplexer.Reload()

    def get(self, route: str, method: str = "GET", headers: Any = None, **query: Any) -> TestResponse:
        return self._client.open(f"{HERE}/{route}", method=method, query_string=query, headers=headers)

    def index(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.get("index").data)
        return answer

    def unpacked(self, route: str, **query: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        response = self.get(route, **query)
        assert response.status_code == 200, response.data
        return unpack(response.data)
