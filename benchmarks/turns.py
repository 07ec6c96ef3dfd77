"""Variants that take turns in one run of a real Trainer, batch by batch.

Each variant is a callback whose batch events reach it only in its own turn, so that a bare step is bare. The step is
measured from its start event to its end event, and within it the time spent in the callback's events and in the torch
hooks that the callback put on the model.
"""

from __future__ import annotations

import contextlib
import gc
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.cases import Case, Measured
from benchmarks.timing import Clock, Spent, StepTimer, Summary
from tests.models import trainer

WARM_UP = 2  # rounds in which buffers get their sizes, memory is allocated and the charts' layout is written
EVENTS = {"fit": "train", "validate": "validation", "predict": "predict"}
KINDS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass
class Variant:
    """A way to watch or steer, with its measurements.

    Args:
        name: its name in the tables.
        callbacks: the callbacks that do it; none for the bare model.
        timed_hooks: whether its time is spent in hooks and events; otherwise only the step's time is meaningful.
    """

    name: str
    callbacks: Sequence[pl.Callback] = ()
    timed_hooks: bool = True
    steps: list[Spent] = field(default_factory=list)
    hooks: list[Spent] = field(default_factory=list)
    handles: int = 0

    def share(self, clock: str = "wall") -> Summary:
        """Return the time in hooks and events over the step's time."""
        pairs = zip(self.hooks, self.steps, strict=True)
        return Summary.of([getattr(spent, clock) / getattr(step, clock) for spent, step in pairs])

    def ratio(self, bare: Variant, clock: str = "wall") -> Summary:
        """Return the step's time over that of the bare step in the same round."""
        pairs = zip(self.steps, bare.steps, strict=True)
        return Summary.of([getattr(step, clock) / getattr(other, clock) for step, other in pairs])

    def line(self, bare: Variant, on_cpu: bool) -> dict[str, str]:
        """Return its row of a table."""
        ratio, share = self.ratio(bare), self.share()
        has_share = self.timed_hooks and self is not bare
        times = {
            "": self.name,
            "step, ms": f"{Summary.of([step.wall * 1000 for step in self.steps]).median:.4g}",
            "ratio (spread)": f"{ratio.median:.3f} ({ratio.least:.2f}-{ratio.most:.2f})",
        }
        if not on_cpu:  # there the hooks' time on the host says little
            return times
        return {
            **times,
            "CPU time, ratio": f"{self.ratio(bare, 'cpu').median:.3f}",
            "share": f"{share.median:.2%}" if has_share else "",
            "(spread)": f"{share.least:.2%}-{share.most:.2%}" if has_share else "",
            "share of CPU time": f"{self.share('cpu').median:.2%}" if has_share else "",
        }


class _Turns:
    """The variant whose turn it is, and the clock of its work."""

    def __init__(self, case: Case, variants: Sequence[Variant], rounds: int) -> None:
        self.case, self.variants, self.rounds = case, variants, rounds
        self.clock, self.timer = Clock(), StepTimer(case.device)
        self.batches = len(variants) * (rounds + WARM_UP)
        self.index = -1
        self._before: set[tuple[int, str, int]] = set()
        self._timed: list[tuple[nn.Module, str, int, Callable[..., Any]]] = []

    @property
    def current(self) -> Variant:
        return self.variants[self.index % len(self.variants)]

    @property
    def warming_up(self) -> bool:
        return self.index < WARM_UP * len(self.variants)

    def begin(self, root: nn.Module) -> None:
        """Begin a step, before any callback's start event."""
        self.index += 1
        gc.collect()  # no variant pays for the garbage of another
        self._before = {(id(module), kind, key) for module, kind, key, _ in _hooks(root)}
        self.clock.take()
        self.timer.start()

    def attached(self, root: nn.Module) -> None:
        """Time the hooks that the callbacks put on the model, after all their start events."""
        if not (self.case.on_cpu or self.warming_up):
            return
        new = [hook for hook in _hooks(root) if (id(hook[0]), hook[1], hook[2]) not in self._before]
        self.current.handles = len(new)
        self._timed = new if self.case.on_cpu else []
        for module, kind, key, function in self._timed:
            getattr(module, kind)[key] = self.clock(function)

    def put_back(self) -> None:
        """Put the hooks themselves back: a HookCallback reports those that somebody else has replaced.

        So a recompute in the backward pass is not timed.
        """
        for module, kind, key, function in self._timed:
            if key in (hooks := getattr(module, kind)):
                hooks[key] = function
        self._timed = []

    def end(self) -> None:
        """End a step, after all callbacks' end events."""
        took, hooks = self.timer.stop(), self.clock.take()
        if not self.warming_up:
            self.current.steps.append(took)
            self.current.hooks.append(hooks)


def _hooks(root: nn.Module) -> Iterator[tuple[nn.Module, str, int, Callable[..., Any]]]:
    for module in root.modules():
        for kind in KINDS:
            for key, function in list(getattr(module, kind).items()):
                yield module, kind, key, function


def _edge(stage: str, start: Callable[[nn.Module], None], end: Callable[[], None]) -> pl.Callback:
    """Make a callback of two events. The first and the last of all callbacks stand around the variants."""
    callback, name = pl.Callback(), EVENTS[stage]
    setattr(callback, f"on_{name}_batch_start", lambda trainer, module, *batch: start(module))
    setattr(callback, f"on_{name}_batch_end", lambda *batch: end())
    return callback


def _gate(callback: pl.Callback, variant: Variant, turns: _Turns, stage: str) -> None:
    """Let batch events reach a callback only in its variant's turn, and time them."""
    for when in ("start", "end"):
        event = f"on_{EVENTS[stage]}_batch_{when}"
        timed = turns.clock(getattr(callback, event))

        def gated(*args: Any, timed: Callable[..., Any] = timed) -> None:
            if turns.current is variant:
                timed(*args)

        setattr(callback, event, gated)


def take_turns(
    case: Case,
    module: Measured,
    batch: dict[str, Tensor],
    variants: Sequence[Variant],
    rounds: int,
    stage: str = "fit",
    *observers: pl.Callback,
) -> None:
    """Run all variants, and store the measurements in them.

    Args:
        case: the device and the options.
        module: the module to run.
        batch: the batch of every step.
        variants: in the order of their turns.
        rounds: how many measured turns each variant has.
        stage: ``"fit"``, ``"validate"`` or ``"predict"``.
        *observers: callbacks that get the events of every turn, before the variants.
    """
    turns = _Turns(case, variants, rounds)
    first = _edge(stage, turns.begin, turns.put_back)
    first.on_before_backward = lambda *event: turns.put_back()  # type: ignore[method-assign]
    last = _edge(stage, turns.attached, turns.end)
    callbacks = [callback for variant in variants for callback in variant.callbacks]
    for variant in variants:
        for callback in variant.callbacks:
            _gate(callback, variant, turns, stage)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        options = dict(logger=TensorBoardLogger(folder), log_every_n_steps=10**9, num_sanity_val_steps=0)
        runner = trainer(first, *observers, *callbacks, last, **options, **case.trainer_options())
        loader = DataLoader([batch] * turns.batches, batch_size=None)
        if stage == "fit":
            runner.fit(module, loader)
        elif stage == "validate":
            runner.validate(module.eval(), loader, verbose=False)
        else:
            runner.predict(module.eval(), loader, return_predictions=False)
    assert all(len(variant.steps) == rounds for variant in variants)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advice, and keep garbage collection away from objects that were there before."""
    gc.collect()
    gc.freeze()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.unfreeze()
