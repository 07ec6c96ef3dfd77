"""The tab in a browser, as a user moves in it."""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tensorboard_plugin.browser import Browser

FRAME = "plugin_entry.html"
BUSY = "document.querySelector('main')?.getAttribute('aria-busy')"
READOUT = "document.querySelector('.readout').textContent"
TITLE = "document.querySelector('.notes').textContent"


class Tab:
    """The Activations tab of one TensorBoard.

    Args:
        page: the browser.
        address: TensorBoard's.
    """

    def __init__(self, page: Browser, address: str) -> None:
        self.page, self.address = page, address

    def open(self, **state: Any) -> None:
        """Open the tab by a link, as if for the first time."""
        parts = "".join(f"&p.mi_crow_lightning.{key}={value}" for key, value in state.items())
        self.page.open(f"{self.address}#mi_crow_lightning{parts}")
        self.ready()

    def ready(self) -> None:
        """Wait until nothing is being read."""
        self.page.wait(f"{BUSY} === 'false'", FRAME)

    def run(self, script: str) -> Any:
        """Return what an expression is in the tab."""
        return self.page.run(script, FRAME)

    def wait(self, script: str) -> Any:
        """Return what an expression is in the tab as soon as that is true."""
        return self.page.wait(script, FRAME)

    def choose(self, label: str, value: str) -> None:
        """Choose an option by its text, or type into a field, by its label."""
        self.run(
            f"""(() => {{
            const labels = [...document.querySelectorAll('label')].filter((one) => one.checkVisibility());
            const label = labels.find((one) => one.innerText.trim().startsWith({json.dumps(label)}));
            const field = label.querySelector('select, input');
            const wanted = {json.dumps(value)};
            if (field.tagName === 'SELECT') field.value = [...field.options].find((one) => one.text === wanted).value;
            else field.value = wanted;
            field.dispatchEvent(new Event(field.type === 'search' ? 'input' : 'change'));
            }})()"""
        )
        self.ready()

    def press(self, text: str) -> None:
        """Press a button by its text."""
        self.run(
            f"[...document.querySelectorAll('button')].find((one) => one.textContent === {json.dumps(text)}).click()"
        )
        self.ready()

    def cell(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a cell of the heatmap, as a point of the window."""
        inside = self.run(
            f"""(() => {{
            const overlay = document.querySelector('.overlay');
            const {{left, cellWidth, rowHeight, tops}} = overlay.dataset;
            const box = overlay.getBoundingClientRect();
            const top = Number(tops.split(' ')[{row}]);
            return [box.x + Number(left) + {column + 0.5} * cellWidth, box.y + top + rowHeight / 2];
            }})()"""
        )
        frame = self.corner()
        return inside[0] + frame[0], inside[1] + frame[1]

    def corner(self) -> tuple[float, float]:
        """The corner of the tab, as a point of the window."""
        x, y = self.page.run(
            f"(({{x, y}}) => [x, y])(document.querySelector('iframe[src*=\"{FRAME}\"]').getBoundingClientRect())"
        )
        return x, y

    def click(self, row: int, column: int) -> None:
        """Click on a cell of the heatmap."""
        self.page.click(*self.cell(row, column))
        self.ready()

    def key(self, *names: str, modifiers: int = 0) -> None:
        """Press keys on the heatmap."""
        self.run("document.querySelector('.overlay').focus()")
        for name in names:
            self.page.key(name, modifiers)

    @property
    def readout(self) -> str:
        """What a screen reader says of the cell under the cursor."""
        text: str = self.run(READOUT)
        return text

    @property
    def title(self) -> str:
        """The lines above the controls."""
        text: str = self.run(TITLE)
        return text

    def table(self, selector: str) -> list[list[str]]:
        """The texts of a table's rows."""
        cells = "[...row.cells].map((cell) => cell.textContent)"
        rows: list[list[str]] = self.run(f"[...document.querySelectorAll('{selector} tr')].map((row) => {cells})")
        return rows


def downloaded(tab: Tab, name: str) -> list[dict[str, str]]:
    """The lines of a CSV file that was asked for, once the browser has written it."""
    file, until = tab.page.downloads / name, time.monotonic() + 20
    while not file.exists() and time.monotonic() < until:
        tab.run("1")
        time.sleep(0.05)
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def violations(tab: Tab, dark: bool = False) -> list[list[str]]:
    """What axe-core finds serious or critical in the tab as it is."""
    axe = os.environ.get("AXE")
    if axe is None:
        pytest.skip("AXE does not name the file axe.min.js: make test-browser sets it")
    if dark:
        tab.page.run("document.body.classList.add('dark-mode')")
        tab.wait("document.documentElement.classList.contains('dark')")
    tab.run(Path(axe).read_text(encoding="utf-8") + "; 1")
    found = tab.run(
        "axe.run(document).then(({violations}) => violations.map(({id, impact, nodes}) => [impact, id, nodes[0].html]))"
    )
    return [violation for violation in found if violation[0] in ("serious", "critical")]
