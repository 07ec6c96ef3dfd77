"""The fenced blocks of a page of the documentation, with what is said about them in comments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?"
    r"```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```[ ]*$"
    r"(?:\n+<!-- output(?P<ends> ends with)? -->\n+```text\n(?P<output>.*?)^```[ ]*$)?",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    language: str
    code: str
    line: int
    not_run: str | None
    output: str | None
    only_the_end: bool = False

    def printed(self, text: str) -> bool:
        return self.output is None or (text.endswith if self.only_the_end else text.__eq__)(self.output)


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["code"], text.count("\n", 0, m.start("code")), m["reason"], m["output"], bool(m["ends"]))
        for m in _BLOCK.finditer(text)
    ]
