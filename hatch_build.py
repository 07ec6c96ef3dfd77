"""What a distribution says about itself: addresses, and a README whose links lead somewhere on a package index.

The repository's address is one line of pyproject.toml: `repository`, below `[tool.hatch.metadata.hooks.custom]`. While
it is empty, a distribution has no addresses, and links to files of the repository become plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_FENCE = re.compile(r"(^```.*?^```\n)", re.MULTILINE | re.DOTALL)
_RELATIVE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """The addresses and the description, made when a distribution is built."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the fields that pyproject.toml names as dynamic."""
        repository, version = str(self.config["repository"]).rstrip("/"), f"v{metadata['version']}"
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": with_absolute_links(text, repository, version)}
        if repository:
            metadata["urls"] = {
                "Repository": repository,
                "Documentation": f"{repository}/blob/{version}/docs/index.md",
                "Changelog": f"{repository}/blob/{version}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }


def with_absolute_links(text: str, repository: str, version: str) -> str:
    """Return Markdown whose links to files of the repository lead to its address, or are plain text without one.

    Args:
        text: the Markdown. What stands in fences stays as it is.
        repository: the address, as GitHub forms those of files; empty if there is none.
        version: the tag of the release.
    """

    def replaced(link: re.Match[str]) -> str:
        picture, shown, file = link.groups()
        if not repository:
            return "" if picture else shown
        return f"{picture}[{shown}]({repository}/{'raw' if picture else 'blob'}/{version}/{file})"

    parts = _FENCE.split(text)  # every second one is a fence
    return "".join(part if i % 2 else _RELATIVE_LINK.sub(replaced, part) for i, part in enumerate(parts))
