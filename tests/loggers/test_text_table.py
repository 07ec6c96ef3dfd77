"""Tables of texts: what a reader of TensorBoard sees is the text itself."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from mi_crow_lightning.loggers import write_text_table
from mi_crow_lightning.loggers.text_table import markdown_table, takes_text

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")


class Cells(HTMLParser):
    """The cells of a page's tables, as they are read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


WILD = [
    "a | b || c",
    "*a* _b_ __c__ `d` ~~e~~ # f",
    "<b>bold</b> &amp; <script>x</script> <br>",
    "[link](http://example.com) ![image](x.png) http://example.com",
    "1. one\n2. two\n\n- three\n    code\n> quote",
    "\\| \\n \\",
    "ünïcödé 漢字 🙂 مرحبا",
    "| --- | --- |",
    "",
]


@pytest.mark.parametrize("text", WILD)
def test_a_text_is_read_as_it_is(text: str) -> None:
    page = Cells(markdown_to_safe_html(markdown_table(["prompt", text], [["Rain", text], [text, "fell"]])))
    assert page.rows == [["prompt", text], ["Rain", text], [text, "fell"]]
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "br"}


def is_no_character(one: str) -> bool:
    """Whether Unicode reserves the code point for no character: a table shows the replacement character for it."""
    return 0xFDD0 <= ord(one) <= 0xFDEF or ord(one) & 0xFFFE == 0xFFFE


@example(["\ufdd0 a", "\U0010ffff"])
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])), min_size=2, max_size=2))
def test_any_text_is_read_as_it_is(texts: list[str]) -> None:
    page = Cells(markdown_to_safe_html(markdown_table(["prompt", "text"], [texts])))
    shown = ["".join("\ufffd" if is_no_character(one) else one for one in text) for text in texts]
    assert [" ".join(cell.split()) for cell in page.rows[1]] == [" ".join(text.split()) for text in shown]


def test_control_characters_are_marked() -> None:
    page = Cells(markdown_to_safe_html(markdown_table(["prompt"], [["a\x00b\x02c\x1b\x85d"]])))
    assert page.rows[1] == ["a\ufffdb\ufffdc\ufffd\ufffdd"]


def test_the_table_is_in_the_event_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    assert takes_text(logger)
    write_text_table([logger], "predict/texts", ["prompt", "text"], [["Rain", " fell | hard"]], step=7)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    (tag,) = events.Tags()["tensors"]
    (event,) = events.Tensors(tag)
    assert tag == "predict/texts/text_summary" and event.step == 7
    page = Cells(markdown_to_safe_html(event.tensor_proto.string_val[0]))
    assert page.rows == [["prompt", "text"], ["Rain", "fell | hard"]]


class Table:
    """A logger like Lightning's WandbLogger: `log_text` makes its own table."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_text(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None
    ) -> None:
        self.calls.append((key, columns, data, dataframe, step))


def test_a_logger_with_log_text_gets_columns_and_rows(tmp_path: Path) -> None:
    table = Table()
    assert takes_text(table) and not takes_text(CSVLogger(tmp_path))
    loggers = [CSVLogger(tmp_path), table]
    write_text_table(loggers, "predict/texts", ("prompt", "text"), [("Rain", " fell | hard")], step=7)
    assert table.calls == [("predict/texts", ["prompt", "text"], [["Rain", " fell | hard"]], None, 7)]
