"""One browser for the browser tests of a module, and a tab in which nothing may go wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tensorboard_plugin.browser import Browser, chromium
from tests.tensorboard_plugin.tab import Tab


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def tab(page: Browser, served: str) -> Iterator[Tab]:
    """The tab of the module's log; afterwards, nothing may have gone wrong in it, nor been asked for elsewhere."""
    page.errors.clear()
    page.requests.clear()
    yield Tab(page, served)
    assert not page.errors
    elsewhere = [url for url in page.requests if not url.startswith((served, "about:", "data:", "blob:"))]
    assert not elsewhere
