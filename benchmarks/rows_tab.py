"""The tab in TensorBoard: how long it takes to open it, and to switch the statistic, in a real browser."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import NotRun, Section, Target
from tests.tensorboard_plugin.browser import CHROMIUM, Browser, chromium
from tests.tensorboard_plugin.logs import write_run
from tests.tensorboard_plugin.served import tensorboard
from tests.tensorboard_plugin.tab import Tab

NAMES = ("mean", "std", "rms", "min", "max", "abs_max", "token_norm_mean", "kurtosis")
LOADERS = {"fast": "--load_fast=true", "slow": "--load_fast=false"}
OPEN, SWITCH = 2000.0, 200.0  # milliseconds

_SWITCH = """(async () => {
    const field = [...document.querySelectorAll('label')].find((one) => one.innerText.startsWith('Statistic'));
    const select = field.querySelector('select');
    const busy = () => document.querySelector('main').getAttribute('aria-busy') === 'true';
    const start = performance.now();
    select.value = [...select.options].find((option) => option.text === %s).value;
    select.dispatchEvent(new Event('change'));
    while (busy()) await new Promise((resolve) => setTimeout(resolve, 1));
    await new Promise(requestAnimationFrame);
    return performance.now() - start;
})()"""


def tab(layers: int = 100, steps: int = 1000, rounds: int = 5) -> Section:
    """Measure both loaders of TensorBoard.

    Raises:
        NotRun: there is no Chromium.
    """
    if CHROMIUM is None:
        raise NotRun("Chromium is not installed")
    lines, targets = [], []
    # Chromium may still write into its profile.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_run(Path(folder, "log", "run"), range(steps), [f"model.layers.{i}" for i in range(layers)], NAMES)
        with chromium(Path(folder, "browser")) as page:
            for loader, option in LOADERS.items():
                place = Path(folder, loader)
                place.mkdir()
                with tensorboard(Path(folder, "log"), place, option) as address:
                    opened, switched = _measured(page, address, steps, rounds)
                size = f"{layers} layers x {steps} steps x {len(NAMES)} statistics, {loader} loader"
                lines.append({"": size, "open, ms": f"{opened:.0f}", "switch, ms": f"{switched:.0f}"})
                targets.append(Target(f"tab, {size}: open", opened, OPEN, "ms"))
                targets.append(Target(f"tab, {size}: switch the statistic", switched, SWITCH, "ms"))
    note = "From the address to the picture, TensorBoard's own page included; medians. Each statistic's first switch."
    return Section("The tab in TensorBoard", note, lines, targets)


def _measured(page: Browser, address: str, steps: int, rounds: int) -> tuple[float, float]:
    shown = Tab(page, address)
    shown.open(name=NAMES[0])
    while f"{steps} of {steps} steps" not in shown.title:  # TensorBoard is still reading the log
        time.sleep(0.5)
        shown.open(name=NAMES[0])
    return statistics.median(_opened(shown, rounds)), statistics.median(_switched(shown))


def _opened(shown: Tab, rounds: int) -> Iterator[float]:
    for _ in range(rounds):
        start = time.perf_counter()
        shown.open(name=NAMES[0])
        yield 1000 * (time.perf_counter() - start)


def _switched(shown: Tab) -> Iterator[float]:
    for name in NAMES[1:]:
        yield float(shown.run(_SWITCH % json.dumps(name)))
