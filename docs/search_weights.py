"""Pages that answer questions come first in the site's search: a hook of mkdocs.

The API reference has a thousand entries, which name everything: without weights they stand before the page that
explains it. A page that gives a ``search: boost`` itself keeps that.
"""

from __future__ import annotations

from typing import Any

WEIGHTS = {  # the first that fits counts; 1 for all other pages
    "explanation/hooks_fundamentals.md": 6.0,  # "hook" is a word of every page
    "how-to/lightning.md": 3.0,
    "how-to/": 2.0,
    "reference/api/": 0.2,
}


def on_page_content(html: str, *, page: Any, **_: Any) -> None:
    """Give a page the weight of its path."""
    for path, weight in WEIGHTS.items():
        if page.file.src_uri.startswith(path):
            page.meta.setdefault("search", {}).setdefault("boost", weight)
