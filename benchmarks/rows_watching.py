"""Watching every block: training steps and forward passes, in turns with the bare model and with other packages."""

from __future__ import annotations

import copy
from collections.abc import Callable

import lightning.pytorch as pl
import torch

from benchmarks import rivals
from benchmarks.cases import Case, Measured
from benchmarks.report import NotRun, Section, Target
from benchmarks.turns import Variant, take_turns
from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController

WRITTEN = "ActivationStatistics, read and written each step"
SEEN = "ActivationStatistics, read at the end"
IDLE = "three hooks that are not due, or disabled"
INTERVAL = 50
NEVER = 10**9


def training(case: Case, rounds: int) -> Section:
    """Measure training steps."""
    model = case.make()
    width, vocabulary, slow = model.config.hidden_size, model.config.vocab_size, case.slow_rivals
    variants, missing = variants_of(
        {
            "hooks that do nothing": rivals.do_nothing,
            "6 statistics with .item()": rivals.item_statistics,
            **({"copy to the CPU + add_histogram": lambda: rivals.copy_to_cpu(add_histogram=True)} if slow else {}),
            "mi-crow: capture": rivals.mi_crow_capture,
            SEEN: lambda: _watch(name="seen", schedule=Schedule(stages="train"), every=NEVER),
            WRITTEN: lambda: _watch(name="written", every=1),
            IDLE: lambda: _idle(width),
        }
    )
    take_turns(case, Measured(model), case.data(vocabulary), variants, rounds)
    lines = [variant.line(variants[0], case.on_cpu) for variant in variants] + missing
    named = {variant.name: variant for variant in variants}
    return Section(
        f"Training step: {case.title}",
        f"{rounds} rounds after warming up; every variant takes one step a round.",
        lines,
        _training_targets(case, named),
    )


def _training_targets(case: Case, named: dict[str, Variant]) -> list[Target]:
    bare, seen, written, idle = (named[name] for name in ("bare", SEEN, WRITTEN, IDLE))
    unit = "share" if case.on_cpu else "ratio"
    limit, what = case.train_limit, "13 statistics and histogram of every block, every training step"
    once = (0.001 if case.on_cpu else 0.002) if case.train_limit else None
    idle_share = idle.share().median
    costs = {variant.name: _cost(variant, bare, case.on_cpu) for variant in (seen, written)}
    rare = (costs[WRITTEN] + (INTERVAL - 1) * idle_share) / INTERVAL
    base = 0.0 if case.on_cpu else 1.0
    note = "one step read and written, 49 not due"
    return [
        Target(f"{what}, read at the end; {case.name}", base + costs[SEEN], limit, unit),
        Target(f"{what}, read and written each step; {case.name}", base + costs[WRITTEN], limit, unit),
        Target(f"the same at log_every_n_steps={INTERVAL}; {case.name}", base + rare, once and base + once, unit, note),
        Target(
            "handles of hooks that are not due or disabled", idle.handles, 0, "handles", f"{_micro(idle)} us a step"
        ),
    ]


def _cost(variant: Variant, bare: Variant, on_cpu: bool) -> float:
    """Return the cost relative to the step's time: on a CPU the share, on a GPU the ratio less 1."""
    return variant.share().median if on_cpu else variant.ratio(bare).median - 1


def _micro(variant: Variant) -> str:
    spent = sorted(spent.wall for spent in variant.hooks)
    return f"{spent[len(spent) // 2] * 1e6:.0f}"


def forward(case: Case, rounds: int) -> Section:
    """Measure forward passes without gradients, as validation runs them."""
    model = case.make()
    variants, missing = variants_of(
        {
            "hooks that do nothing": rivals.do_nothing,
            "6 statistics with .item()": rivals.item_statistics,
            "copy to the CPU": lambda: rivals.copy_to_cpu(add_histogram=False),
            "mi-crow: capture": rivals.mi_crow_capture,
            "nnsight: capture": lambda: rivals.NNsightCapture(copy.deepcopy(model).to(case.device, case.dtype).eval()),
            SEEN: lambda: HookCallback(ActivationStatistics("block:*")),
        }
    )
    for variant in variants:
        variant.timed_hooks = "nnsight" not in variant.name
    vocabulary = model.config.vocab_size
    take_turns(case, Measured(model), case.data(vocabulary), variants, rounds, "validate")
    targets = []
    if case.forward_limit:
        what, cost = f"the same, forward pass; {case.name}", _cost(variants[-1], variants[0], case.on_cpu)
        if case.on_cpu:
            targets.append(Target(what, cost, case.forward_limit, "share"))
        else:
            targets.append(Target(what, 1 + cost, case.forward_limit, "ratio"))
    return Section(
        f"Forward pass: {case.title}",
        f"{rounds} rounds. nnsight traces a copy of the model; its time cannot be separated from the pass's.",
        [variant.line(variants[0], case.on_cpu) for variant in variants] + missing,
        targets,
    )


def variants_of(makers: dict[str, Callable[[], pl.Callback]]) -> tuple[list[Variant], list[dict[str, str]]]:
    """Return the bare model and the variants that can be made, and lines for those that cannot."""
    variants, missing = [Variant("bare")], []
    for name, make in makers.items():
        try:
            variants.append(Variant(name, [make()]))
        except NotRun as reason:
            missing.append({"": name, "step, ms": f"not run: {reason}"})
    return variants, missing


def _watch(name: str, every: int, schedule: Schedule | None = None) -> HookCallback:
    return HookCallback(ActivationStatistics("block:*", name=name, schedule=schedule), log_every_n_steps=every)


def _idle(width: int) -> HookCallback:
    """Make a detector that is not due, one that is disabled, and a controller that acts in predict."""
    detectors = [ActivationStatistics("block:*", name="rare"), ActivationStatistics("block:*", name="off")]
    detectors[1].disable()
    return HookCallback(detectors, SteeringController("block:0", torch.ones(width)), log_every_n_steps=NEVER)
