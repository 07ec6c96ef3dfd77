"""Real signals, anywhere in a run: Ctrl-C ends it and leaves nothing, SLURM's requeue signal saves it and goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController
from tests.callback.runs import (
    OnEvent,
    Seen,
    assert_bit_equal,
    checkpointed,
    data_of,
    interruptible,
    module_of,
    run,
    told,
)
from tests.callback.test_checkpoints import Plain, Resumable
from tests.models import WIDTH, Module, handles, trainer, vector_data

pytestmark = pytest.mark.faults

EVERY = Schedule()
LAYER = "model.model.layers.2"


def watching() -> HookCallback:
    return HookCallback(
        [Seen("block:0", schedule=EVERY), ActivationStatistics("block:*", schedule=EVERY)],
        SteeringController("block:1", torch.ones(WIDTH), 0.1, schedule=EVERY),
    )


class Once:
    """Sends a signal in the ``at``-th of its calls."""

    def __init__(self, at: int, signum: signal.Signals = signal.SIGINT) -> None:
        self.at, self.signum, self.calls = at, signum, 0

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(self.signum)


def in_forward(module: Module, watch: HookCallback, send: Once) -> Callable[[], None]:
    return module.get_submodule(LAYER).mlp.register_forward_hook(send).remove


def in_backward(module: Module, watch: HookCallback, send: Once) -> Callable[[], None]:
    return module.get_submodule(LAYER).mlp.register_full_backward_hook(send).remove


def in_recompute(module: Module, watch: HookCallback, send: Once) -> Callable[[], None]:
    """A layer of a checkpointed block runs a second time in the backward pass of each batch."""
    checkpointed(module)
    send.at *= 2
    return in_forward(module, watch, send)


def in_validation(module: Module, watch: HookCallback, send: Once) -> Callable[[], None]:
    validation = module.validation_step

    def step(batch: Any, batch_idx: int) -> None:
        with_signal = module.get_submodule(LAYER).mlp.register_forward_hook(send)
        try:
            validation(batch, batch_idx)
        finally:
            with_signal.remove()

    module.validation_step = step  # type: ignore[method-assign]
    return lambda: delattr(module, "validation_step")


def in_reading(module: Module, watch: HookCallback, send: Once) -> Callable[[], None]:
    """While the readings of a step are made."""
    detector = watch.detectors[1]
    readings = detector.readings
    detector.readings = lambda: (send(), readings())[1]
    return lambda: delattr(detector, "readings")


def in_start(module: Module, watch: HookCallback, send: Once) -> Callable[[], None]:
    """While hooks are registered: those before are on the model already."""
    detector, send.at = watch.detectors[1], 1
    prepare = detector.prepare
    detector.prepare = lambda *args: (prepare(*args), send())[0]
    return lambda: delattr(detector, "prepare")


PLACES = [in_start, in_forward, in_backward, in_recompute, in_validation, in_reading]


@pytest.mark.documents(
    "reliability/ctrl-c-in-the-start-a-forward-or-backward-pass-a-recompute-a-validation-or-a-reading"
)
@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_anywhere_in_a_fit_leaves_nothing(place: Callable[..., Callable[[], None]]) -> None:
    watch, module, send = watching(), module_of("llama"), Once(at=2)
    heal = place(module, watch, send)
    others = handles(module)
    with interruptible(), pytest.raises(SystemExit):
        run("fit", trainer(watch, num_sanity_val_steps=0), module, data_of("llama"))
    assert send.calls == send.at and handles(module) == others
    assert not any(hook.registered for hook in watch.detectors + watch.controllers)
    heal()
    assert_predicts_as_a_new_callback(watch, module)


@pytest.mark.documents("reliability/ctrl-c-in-generate")
@pytest.mark.parametrize("at", [1, 3, 7])
def test_ctrl_c_in_generate_leaves_nothing(at: int) -> None:
    """In the pass over the prompt, at a later token, and in the second batch."""
    watch, module, send = watching(), module_of("llama"), Once(at)
    heal = in_forward(module, watch, send)
    others = handles(module)
    with interruptible(), pytest.raises(SystemExit):
        run("predict", trainer(watch), module, data_of("llama"))
    assert send.calls == at and handles(module) == others
    heal()
    assert_predicts_as_a_new_callback(watch, module)


def assert_predicts_as_a_new_callback(watch: HookCallback, module: Module) -> None:
    before = handles(module)
    module.eval()
    found = [run("predict", trainer(one), module, data_of("llama")) for one in (watch, watching())]
    assert_bit_equal(*found)
    assert handles(module) == before


# SLURM's requeue.


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A job of one task, and a ``scontrol`` that writes down what it is asked; the folder of both."""
    facts = dict(JOB_ID="4711", JOB_NAME="train", NTASKS="1", PROCID="0", LOCALID="0", NODEID="0", NODELIST="127.0.0.1")
    for name, value in facts.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    before = signal.getsignal(signal.SIGUSR1)
    yield tmp_path
    signal.signal(signal.SIGUSR1, before)


def summing() -> HookCallback:
    return HookCallback(
        ActivationStatistics("model.*", schedule=EVERY, hook_id="sums"),
        SteeringController("model.3", torch.ones(WIDTH), 0.1, schedule=EVERY, hook_id="steer"),
        log_every_n_steps=5,
    )


def in_step(module: Plain) -> None:
    """Sends the signal between two layers, in the forward pass of the third batch."""
    module.model[2].register_forward_hook(Once(3, signal.SIGUSR1))


def after_batch(trainer: Any, module: Any, batch_idx: int) -> None:
    if batch_idx == 2:
        signal.raise_signal(signal.SIGUSR1)


def fit(folder: Path, watch: HookCallback, *callbacks: pl.Callback, amid: bool = False) -> Plain:
    """Ten batches, two readings, in a SLURM job that is asked to requeue in the middle of a batch or not at all."""
    module = Plain()
    if amid:
        in_step(module)
    options: dict[str, Any] = dict(
        plugins=[SLURMEnvironment()], default_root_dir=folder, limit_val_batches=0, num_sanity_val_steps=0
    )
    trainer(watch, *callbacks, **options).fit(module, Resumable(vector_data(40), batch_size=4), [vector_data(4)])
    return module


def rows(*watches: HookCallback) -> dict[Any, float]:
    return {(row.step, row.tag): row.value for watch in watches for row in watch.history()}


@pytest.mark.documents("reliability/slurms-requeue-signal-in-the-middle-of-a-pass")
def test_slurms_signal_amid_a_pass_changes_nothing_and_a_resumed_run_reports_it(slurm: Path) -> None:
    whole, signalled, resumed = summing(), summing(), summing()
    expected = fit(slurm / "whole", whole)
    module = fit(slurm / "job", signalled, amid=True)
    assert (slurm / "asked").read_text() == "requeue 4711\n"
    assert_bit_equal(dict(module.state_dict()), dict(expected.state_dict()))
    assert rows(signalled) == rows(whole) and {step for step, _ in rows(whole)} == {4, 9}
    assert list(handles(module)) == [("model.2", "_forward_hooks", next(iter(handles(module)))[2])]  # the test's own
    with told("written in the middle of a training batch"):
        fit(slurm / "job", resumed)
    assert rows(resumed).keys() == rows(whole).keys()


@pytest.mark.documents("reliability/slurms-requeue-signal-between-two-batches")
def test_a_run_that_slurm_requeued_between_batches_reads_as_one_that_was_not(slurm: Path) -> None:
    whole, signalled, resumed = summing(), summing(), summing()
    fit(slurm / "whole", whole)
    fit(slurm / "job", signalled, OnEvent("on_train_batch_end", after_batch))
    fit(slurm / "job", resumed)
    assert rows(resumed) == rows(whole) == rows(signalled)
    assert resumed.effects() == whole.effects()
