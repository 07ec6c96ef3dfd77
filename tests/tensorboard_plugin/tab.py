"""The tab in a browser, as a user moves in it."""

from __future__ import annotations

import json
from typing import Any

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
            const labels = [...document.querySelectorAll('label')];
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
