"""Threads beside a Trainer's: inside a step, in the data loader, and across batches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import TextIteratorStreamer

from mi_crow_lightning import (
    ActivationStatistics,
    HookCallback,
    HookError,
    ScaleController,
    Schedule,
    SteeringController,
)
from tests.callback.runs import assert_bit_equal, checkpointed, data_of, fingerprint, fit, module_of, run, told
from tests.hooks.test_threads import In, Tokenizer, together
from tests.models import WIDTH, Module, handles, loader, trainer

pytestmark = pytest.mark.faults

EVERY = Schedule()
LAYER = "model.model.layers.1"
V = torch.linspace(-1, 1, WIDTH)


def statistics(**options: Any) -> ActivationStatistics:
    return ActivationStatistics(LAYER, statistics=["mean"], histogram=False, schedule=EVERY, **options)


class InThreads(Module):
    """Runs each half of a batch in a thread, one after the other or both at once."""

    def __init__(self, at_once: bool) -> None:
        super().__init__(module_of("llama").model.eval())
        self.at_once = at_once

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        halves = [{key: value[rows] for key, value in batch.items()} for rows in (slice(2), slice(2, None))]
        calls = [torch.inference_mode()(lambda half=half: self.model(**half).logits) for half in halves]
        if not self.at_once:
            return [In(call, "half").join() for call in calls]
        together_at = threading.Barrier(2)

        def both(*args: Any) -> None:
            together_at.wait(60)

        handle = self.model.model.layers[0].register_forward_pre_hook(both)
        try:
            return together(calls)
        finally:
            handle.remove()


@pytest.mark.documents("reliability/a-step-runs-the-model-in-several-threads")
def test_a_step_that_runs_its_passes_in_threads_by_turns_is_read_as_one() -> None:
    found = []
    for module in (InThreads(at_once=False), Module(module_of("llama").model.eval())):
        watch = HookCallback(statistics(), ScaleController(LAYER, 1.5))
        if not isinstance(module, InThreads):
            module.predict_step = lambda batch, batch_idx, module=module: module.model(**batch).logits
        predictions = run("predict", trainer(watch), module, data_of("llama"))
        logits = [torch.cat(one) if isinstance(one, list) else one for one in predictions]
        found.append((logits, {row.tag: row.value for row in watch.history()}))
    (logits, rows), (expected, of_one) = found
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(logits, expected, strict=True))
    fired = {tag for tag in rows if "fired" in tag}  # two calls a batch
    assert {tag: rows[tag] for tag in rows.keys() - fired} == pytest.approx(
        {tag: of_one[tag] for tag in of_one.keys() - fired}, rel=1e-5
    )


@pytest.mark.documents("reliability/a-step-runs-the-model-in-several-threads")
def test_a_step_that_runs_two_passes_at_once_is_steered_and_counted_for_one() -> None:
    watch = HookCallback(controllers=ScaleController(LAYER, 1.5, hook_id="scale"))
    with told(r"thread .* began a pass while .* effects\(\) leaves them out", RuntimeWarning, times=5):
        found = run("predict", trainer(watch), InThreads(at_once=True), data_of("llama"))
    alone = run(
        "predict", trainer(HookCallback(controllers=ScaleController(LAYER, 1.5))), InThreads(False), data_of("llama")
    )
    assert_bit_equal(found, alone)
    (effect,) = watch.effects()
    assert effect.fired == 5, "of ten calls the five that were first"


@pytest.mark.documents("reliability/a-step-runs-the-model-in-several-threads")
def test_a_detector_in_a_step_that_runs_two_passes_at_once_is_switched_off() -> None:
    watch = HookCallback(statistics())
    with told(r"ThreadConflict: thread .* began a pass while[\s\S]*disabled", RuntimeWarning):
        found = run("predict", trainer(watch), InThreads(at_once=True), data_of("llama"))
    assert_bit_equal(found, run("predict", trainer(), InThreads(at_once=True), data_of("llama")))
    assert watch.history() == []


class Serving(Module):
    """Generates in a thread, and reads the tokens as they come."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True, timeout=60)  # type: ignore[arg-type]
        one = {key: value[:1] for key, value in batch.items()}
        call = lambda: self.model.generate(**one, max_new_tokens=5, do_sample=False, streamer=streamer)  # noqa: E731
        thread = In(call, "served")
        return "".join(streamer), thread.join()


@pytest.mark.documents("reliability/generate-runs-in-a-thread-with-a-streamer")
def test_a_predict_step_that_streams() -> None:
    def predicted(kind: type[Module]) -> Any:
        module = kind(module_of("llama").model.eval())
        module.model.generation_config.eos_token_id = None
        if kind is Module:
            module.predict_step = lambda batch, batch_idx: module.model.generate(
                **{key: value[:1] for key, value in batch.items()}, max_new_tokens=5, do_sample=False
            )
        watch = HookCallback(statistics(), SteeringController(LAYER, V, 3.0, tokens="generated"))
        return run("predict", trainer(watch), module, data_of("llama")), {row.tag: row.value for row in watch.history()}

    (streamed, rows), (expected, of_one) = predicted(Serving), predicted(Module)
    assert rows == of_one and len(rows) == 5
    for (text, ids), tokens in zip(streamed, expected, strict=True):
        assert torch.equal(ids, tokens) and [int(one) for one in text.split()] == tokens[0, -5:].tolist()


class Prefetched(IterableDataset[Any]):
    """Batches that a thread prepares ahead, each with the model's own embedding of it, as in replay or distillation."""

    def __init__(self, module: Module, batches: list[Any]) -> None:
        self.module, self.batches = module, batches

    def __iter__(self) -> Iterator[Any]:
        ready: queue.Queue[Any] = queue.Queue(2)

        def prepare() -> None:
            for batch in self.batches:
                with torch.no_grad():
                    ready.put({**batch, "seen": self.module.model.model.embed_tokens(batch["input_ids"]).sum()})
            ready.put(None)

        threading.Thread(target=prepare, daemon=True, name="prefetch").start()
        while (batch := ready.get()) is not None:
            yield batch


@pytest.mark.documents("reliability/a-data-loader-prefetches-in-a-thread")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_thread_that_prefetches_beside_the_steps() -> None:
    """Its calls are of a module outside the hooked layers: the run is the one without hooks, and is read as ever."""

    class Trained(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss({key: value for key, value in batch.items() if key != "seen"})

    def trained(*callbacks: pl.Callback, prefetch: bool) -> Any:
        pl.seed_everything(3, verbose=False)
        module = Trained(module_of("llama").model)
        batches = list(loader(data_of("llama")))
        data: Any = Prefetched(module, batches) if prefetch else batches
        trainer(*callbacks, limit_val_batches=0).fit(module, DataLoader(data, batch_size=None))
        return fingerprint(module)["weights"]

    watches = [HookCallback(statistics()), HookCallback(statistics())]
    weights = [trained(watches[0], prefetch=True), trained(watches[1], prefetch=False), trained(prefetch=True)]
    assert_bit_equal(weights[0], weights[1])
    assert_bit_equal(weights[0], weights[2])
    rows = [[(row.step, row.tag, row.value) for row in watch.history()] for watch in watches]
    assert rows[0] == rows[1] and len(rows[0]) == 5


class Straddling(Module):
    """A thread begins a pass in one batch and is still in it when the batch ends."""

    def __init__(self) -> None:
        super().__init__(module_of("llama").model.eval())
        self.inside, self.go = threading.Event(), threading.Event()

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:

            def wait(*args: Any) -> None:
                if threading.current_thread().name == "straddles":
                    self.inside.set()
                    assert self.go.wait(60)

            self.model.model.layers[0].register_forward_pre_hook(wait)
            self.thread = In(torch.inference_mode()(lambda: self.model(**batch)), "straddles")
            assert self.inside.wait(20), self.thread.join()
            return batch_idx
        return self.model(**batch).logits

    def end(self) -> None:
        self.go.set()
        self.thread.join()


@pytest.mark.documents("reliability/hooks-come-off-while-another-thread-is-in-a-pass")
def test_a_pass_that_goes_on_when_its_batch_ends_ends_the_run_of_a_controller() -> None:
    module = Straddling()
    with pytest.raises(HookError, match=r"batch 1: ThreadConflict: the hook comes off while thread 'straddles'"):
        run("predict", trainer(HookCallback(controllers=ScaleController(LAYER, 1.5))), module, data_of("llama"))
    module.end()
    assert not [hook for hook in handles(module).values() if "mi_crow" in type(hook).__module__]


@pytest.mark.documents("reliability/hooks-come-off-while-another-thread-is-in-a-pass")
@pytest.mark.filterwarnings("ignore:.*never ran")
def test_a_pass_that_goes_on_when_its_batch_ends_switches_a_detector_off() -> None:
    module, watch = Straddling(), HookCallback(statistics())
    with told(r"batch 1: ThreadConflict: the hook comes off while thread 'straddles'[\s\S]*disabled", RuntimeWarning):
        run("predict", trainer(watch), module, data_of("llama"))
    module.end()
    assert watch.history() == [] and isinstance(module.thread.result.logits, Tensor)


@pytest.mark.documents("reliability/backward-runs-in-another-thread")
def test_a_step_whose_backward_runs_in_another_thread() -> None:
    """As on CUDA, where autograd has a thread for each device: recomputes find their pass."""

    class Manual(Module):
        def __init__(self, again: bool, in_a_thread: bool) -> None:
            super().__init__(module_of("llama").model)
            self.automatic_optimization, self.in_a_thread = False, in_a_thread
            if again:
                checkpointed(self)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss, optimizer = self.loss(batch), self.optimizers()
            backward = lambda: self.manual_backward(loss)  # noqa: E731
            assert (In(backward, "backward").join() if self.in_a_thread else backward()) is None
            optimizer.step()
            optimizer.zero_grad()

    def trained(again: bool, in_a_thread: bool) -> Any:
        pl.seed_everything(3, verbose=False)
        module = Manual(again, in_a_thread)
        steer = SteeringController(LAYER + ".mlp", V, 0.5, tokens="last", schedule=EVERY)
        watch = HookCallback(statistics(), steer)
        fit(module, data_of("llama"), watch)
        return fingerprint(module)["weights"], [(row.tag, row.value) for row in watch.history()]

    expected = trained(False, False)
    for again, in_a_thread in ((True, False), (True, True), (False, True)):
        assert_bit_equal(trained(again, in_a_thread), expected)
