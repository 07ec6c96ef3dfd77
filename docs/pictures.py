"""Make the pictures of the documentation from the log of the demo.

    make demo
    .venv/bin/python docs/pictures.py outputs/logs

It needs Chromium, as ``make test-browser`` does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))

from tests.tensorboard_plugin.browser import chromium  # noqa: E402
from tests.tensorboard_plugin.served import tensorboard  # noqa: E402
from tests.tensorboard_plugin.tab import Tab  # noqa: E402


def main(logdir: Path) -> None:
    """Take a picture of the tab: the heatmap of all blocks, and one block below it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        served, browser = Path(folder, "served"), Path(folder, "browser")
        served.mkdir()
        with tensorboard(logdir, served) as address, chromium(browser, width=1480, height=1110) as page:
            tab = Tab(page, address)
            tab.open(name="rms", stage="train", scale="symlog")
            tab.click(12, 10)
            page.mouse("mouseMoved", 740, 20)  # without the tooltip
            tab.wait("document.querySelectorAll('.detail .uplot').length > 3")
            page.screenshot(IMAGES / "activations_tab.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logdir", type=Path, help="the folder of the demo's logs")
    main(parser.parse_args().logdir)
