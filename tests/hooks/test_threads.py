"""One hooked model in several threads: each pass is what it is alone, or the thread that comes second is refused."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import TextIteratorStreamer

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookError,
    ProjectionDetector,
    SteeringController,
    attached,
)
from mi_crow_lightning.errors import MiCrowError, ThreadConflict
from mi_crow_lightning.hooks import Detector, Layers
from mi_crow_lightning.language_model import LanguageModel
from tests.callback.runs import told
from tests.models import WIDTH, handles, llama

pytestmark = pytest.mark.faults

VECTOR = torch.linspace(-1, 1, WIDTH)
IDS = torch.arange(3, 27).reshape(3, 8)
LEFT = (torch.arange(8) >= torch.tensor([[0], [2], [5]])).long()
MASKS = [LEFT, LEFT.flip(1)]


class Stop(nn.Module):
    """A module that a test may stop each pass at."""

    def __init__(self) -> None:
        super().__init__()
        self.stop: Callable[[], None] = lambda: None

    def forward(self, x: Tensor) -> Tensor:
        self.stop()
        return x


class Model(nn.Module):
    """Two layers, with a stop between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first, self.between = nn.Embedding(32, 8), nn.Linear(8, 8), Stop()
        self.second = nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x: Tensor = self.second(self.between(self.first(self.embed(input_ids))))
        return x


class In:
    """A function that runs in a thread, and what it returns or raises there."""

    def __init__(self, function: Callable[[], Any], name: str) -> None:
        self.result: Any = None
        self.function = function
        self.thread = threading.Thread(target=self._run, name=name)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:
            self.result = error

    def join(self) -> Any:
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.result


@contextmanager
def stopped(model: Model, function: Callable[[], Any], name: str = "worker") -> Iterator[In]:
    """A thread that runs a function up to the stop of its pass, and goes on when the block ends."""
    inside, go = threading.Event(), threading.Event()

    def stop() -> None:
        if threading.current_thread().name == name:
            inside.set()
            assert go.wait(60)

    model.between.stop = stop
    thread = In(function, name)
    assert inside.wait(60)
    try:
        yield thread
    finally:
        go.set()
        thread.thread.join(60)
        model.between.stop = lambda: None


def together(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        barrier.wait(60)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


class Tokenizer:
    """One token a letter, padded on the left."""

    pad_token, eos_token_id, all_special_ids = "<pad>", 2, (0, 1, 2)

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Tensor]:
        width = max(map(len, texts))
        ids = torch.tensor([[0] * (width - len(text)) + [3 + ord(c) % 50 for c in text] for text in texts])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def decode(self, ids: Any, **options: Any) -> str:
        return "".join(f"{int(one)} " for one in ids)


def texts_of(count: int) -> list[list[str]]:
    return [["x" * (1 + i % 5), "some words that are longer"[: 8 + i % 9], "y" * (i % 7 + 2)] for i in range(count)]


@pytest.mark.documents("reliability/several-threads-run-one-steered-model-at-once")
@pytest.mark.parametrize("tokens", ["all", "last", "prompt"])
def test_twenty_texts_in_five_threads_are_steered_as_alone(tokens: str) -> None:
    lm = LanguageModel(llama().eval(), Tokenizer())
    lm.layers.register_hook("block:1", SteeringController(None, VECTOR, 3.0, tokens=tokens))
    run = lambda texts: lm.inference.execute_inference(texts)[0].logits  # noqa: E731
    batches = texts_of(20)
    alone = [run(texts) for texts in batches]
    parts = together([lambda part=part: [run(texts) for texts in batches[part::5]] for part in range(5)])
    found = [parts[i % 5][i // 5] for i in range(20)]
    assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))
    lm.layers.unregister_all_hooks()
    assert not torch.equal(run(batches[0]), alone[0]), "it was steered"


@pytest.mark.documents("reliability/several-threads-run-one-steered-model-at-once")
def test_each_thread_leaves_controllers_out_for_itself_and_training_mode_comes_back() -> None:
    """Bare and steered inference at once, in a model that was in training mode, with dropout."""
    lm = LanguageModel(llama(attention_dropout=0.5).train(), Tokenizer())
    lm.layers.register_hook("block:1", SteeringController(None, VECTOR, 3.0))
    batches = texts_of(8)

    def run(i: int) -> Tensor:
        logits: Tensor = lm.inference.execute_inference(batches[i], with_controllers=i % 2 == 0)[0].logits
        return logits

    alone = [run(i) for i in range(8)]
    for _ in range(3):
        found = together([lambda i=i: run(i) for i in range(8)])
        assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))
    assert all(module.training for module in lm.model.modules())
    assert all(hook.enabled for hook in lm.layers.get_controllers())


def generating(model: Any, prompt: Tensor, **options: Any) -> list[int]:
    ids = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, **options
    )
    return list(ids[0].tolist())


def serving_model() -> Any:
    model = llama().eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.documents("reliability/generate-runs-in-a-thread-with-a-streamer")
@pytest.mark.parametrize("how", ["attached", "language model"])
def test_a_streamed_text_and_its_readings_are_those_of_one_thread(how: str) -> None:
    """As people serve: ``generate`` in a thread, its tokens read in this one."""
    model, prompt = serving_model(), IDS[:1, :5]

    def hooks() -> list[Any]:
        steer = SteeringController("block:1", VECTOR, 5.0, tokens="generated")
        return [steer, ActivationStatistics("block:2"), ProjectionDetector("block:1", VECTOR, tokens="generated")]

    def readings(layers: Layers) -> list[Any]:
        return [(one.layer, one.name, str(one.value)) for one in layers.take_readings()]

    with attached(model, hooks()) as layers:
        alone, expected = generating(model, prompt), readings(layers)
    assert alone != generating(model, prompt)

    def streamed(layers: Layers) -> None:
        for _ in range(3):
            streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True, timeout=60)  # type: ignore[arg-type]
            thread = In(lambda streamer=streamer: generating(model, prompt, streamer=streamer), "served")
            text = "".join(streamer)
            assert thread.join() == alone
            assert [int(token) for token in text.split()] == alone[5:]
            assert readings(layers) == expected

    if how == "attached":
        with attached(model, hooks()) as layers:
            streamed(layers)
    else:
        lm = LanguageModel(model, Tokenizer())
        lm.layers.allow_stacking = True
        for hook in hooks():
            lm.layers.register_hook(None, hook)
        streamed(lm.layers)
        lm.layers.unregister_all_hooks()
    assert handles(model) == {}


@pytest.mark.documents("reliability/several-threads-run-one-steered-model-at-once")
def test_streams_of_several_threads_at_once() -> None:
    model = serving_model()
    prompts = [IDS[:1, :width] for width in (2, 5, 8)]
    with attached(model, SteeringController("block:1", VECTOR, 5.0, tokens="generated")):
        alone = [generating(model, prompt) for prompt in prompts]

        def stream(prompt: Tensor) -> list[int]:
            streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True, timeout=60)  # type: ignore[arg-type]
            thread = In(lambda: generating(model, prompt, streamer=streamer), "served")
            tokens = [int(token) for token in "".join(streamer).split()]
            assert thread.join()[-8:] == tokens
            return [*prompt[0].tolist(), *tokens]

        assert together([lambda prompt=prompt: stream(prompt) for prompt in prompts]) == alone


@pytest.mark.documents("reliability/each-thread-begins-its-own-batch")
def test_strengths_of_the_batch_are_those_of_the_thread() -> None:
    model = Model().eval()
    strengths = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-5.0, 0.0, 5.0])]
    with torch.no_grad(), attached(model, SteeringController("second", torch.ones(8), "batch")) as layers:

        def run(i: int) -> Tensor:
            layers.begin_batch(None, {"strength": strengths[i]})
            found: Tensor = model(IDS, attention_mask=MASKS[i])
            return found

        alone = [run(0), run(1)]
        with torch.no_grad(), stopped(model, torch.no_grad()(lambda: run(0))) as worker:
            assert torch.equal(run(1), alone[1])
            assert torch.equal(run(1), alone[1])
        assert torch.equal(worker.join(), alone[0])


class Checkpointed(nn.Module):
    """Runs a block again in backward."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.again, self.block = again, nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        x: Any = checkpoint(self.block, inputs_embeds, use_reentrant=False) if self.again else self.block(inputs_embeds)
        return x  # type: ignore[no-any-return]


@pytest.mark.documents("reliability/each-thread-begins-its-own-batch")
def test_a_recompute_uses_the_batch_of_its_own_pass() -> None:
    """One thread's backward comes after another one has begun its batch."""

    def gradients(again: bool) -> Tensor:
        model, x = Checkpointed(again), torch.ones(3, 8, 8, requires_grad=True)
        with attached(model, SteeringController("block.1", torch.ones(8), "batch")) as layers:
            layers.begin_batch(None, {"strength": torch.tensor([1.0, 2.0, 3.0])})
            loss = model(x, attention_mask=LEFT).square().sum()

            def other() -> None:
                layers.begin_batch(None, {"strength": torch.zeros(3)})
                with torch.no_grad():  # each thread numbers its own nodes: with gradients the recompute is refused
                    model(torch.ones(3, 8, 8), attention_mask=MASKS[1])

            assert In(other, "other").join() is None
            loss.backward()
        gradient = model.block[2].weight.grad  # of the layer that gets what was edited
        assert gradient is not None
        return gradient

    assert torch.equal(gradients(True), gradients(False))


@pytest.mark.documents("reliability/a-second-thread-begins-a-pass-while-a-detector-is-on")
@pytest.mark.parametrize("make", [ActivationStatistics, lambda at: ProjectionDetector(at, torch.ones(8))])
def test_a_detector_refuses_the_second_thread_and_the_first_is_read_exactly(make: Any) -> None:
    def readings(layers: Layers) -> list[Any]:
        return [(one.name, str(one.value)) for one in layers.take_readings()]

    model = Model().eval()
    with torch.no_grad(), attached(model, make("second")) as layers:
        model(IDS, attention_mask=LEFT)
        expected = readings(layers)
        with stopped(model, torch.no_grad()(lambda: model(IDS, attention_mask=LEFT))) as worker:
            with pytest.raises(HookError) as raised:
                model(IDS, attention_mask=MASKS[1])
            assert isinstance(raised.value.original_error, ThreadConflict)
            assert "thread 'MainThread' began a pass while thread 'worker' was in one" in str(raised.value)
        assert isinstance(worker.join(), Tensor)
        assert readings(layers) == expected
        for name in ("one", "another"):  # by turns is fine
            In(torch.no_grad()(lambda: model(IDS, attention_mask=LEFT)), name).join()
        assert float(dict(readings(layers))["mean"]) == pytest.approx(float(dict(expected)["mean"]), rel=1e-12)


@pytest.mark.documents("reliability/a-second-thread-begins-a-pass-while-a-detector-is-on")
@pytest.mark.parametrize("policy", ["disable", "warn"])
def test_a_second_thread_is_refused_as_the_policy_says(policy: str) -> None:
    model, detector = Model().eval(), ActivationStatistics("second", on_error=policy)
    with torch.no_grad(), attached(model, detector):
        work = stopped(model, torch.no_grad()(lambda: model(IDS, attention_mask=LEFT)))
        with work as worker, told(r"ThreadConflict: thread 'MainThread' began a pass", RuntimeWarning):
            found = model(IDS, attention_mask=MASKS[1])
        assert isinstance(worker.join(), Tensor) and detector.enabled is (policy == "warn")
    with torch.no_grad():
        assert torch.equal(found, model(IDS, attention_mask=MASKS[1]))


@pytest.mark.documents("reliability/a-second-thread-begins-a-pass-while-a-detector-is-on")
def test_the_second_of_two_calls_of_generate_is_refused_and_the_first_goes_on() -> None:
    """Between the passes of the first call, too: its sums would be mixed token by token."""
    model = serving_model()
    inside, go = threading.Event(), threading.Event()

    class Waits:
        def put(self, value: Any) -> None:  # between two passes
            inside.set()
            assert go.wait(60)

        def end(self) -> None:
            pass

    with attached(model, ActivationStatistics("block:1")):
        alone = generating(model, IDS[:1])
        first = In(lambda: generating(model, IDS[:1], streamer=Waits()), "first")
        assert inside.wait(60)
        with pytest.raises(HookError, match="while thread 'first' was in one"):
            generating(model, IDS[1:2])
        go.set()
        assert first.join() == alone
        assert generating(model, IDS[:1]) == alone


@pytest.mark.documents("reliability/a-second-thread-begins-a-pass-while-a-detector-is-on")
def test_the_first_call_of_generate_goes_on_beside_a_second_one_that_is_left_out() -> None:
    model = serving_model()
    inside, go = threading.Event(), threading.Event()

    def wait(*args: Any) -> None:
        if threading.current_thread().name == "second":
            inside.set()
            assert go.wait(60)

    model.model.layers[0].register_forward_pre_hook(wait)

    threads: list[In] = []

    class StartsAnother:
        def put(self, value: Any) -> None:
            if not threads:
                threads.append(In(lambda: generating(model, IDS[1:2]), "second"))
                assert inside.wait(60)

        def end(self) -> None:
            go.set()

    def readings() -> list[Any]:
        return [(one.name, str(one.value)) for one in layers.take_readings()]

    with attached(model, ActivationStatistics("block:1", on_error="warn")) as layers:
        alone, other = generating(model, IDS[:1]), generating(model, IDS[1:2])
        layers.take_readings()
        generating(model, IDS[:1])
        expected = readings()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            assert generating(model, IDS[:1], streamer=StartsAnother()) == alone
            found = readings()
            assert threads[0].join() == other
    said = {str(one.message).partition(" began")[0] for one in caught}
    assert found == expected and all("'second'" in text for text in said) and said


class Inner(nn.Module):
    """Runs a model of its own again in backward, whose calls mark passes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, x: Tensor) -> Tensor:
        found: Any = checkpoint(self.model, IDS, use_reentrant=False)
        return found.sum() * x  # type: ignore[no-any-return]


@pytest.mark.documents("reliability/a-second-thread-begins-a-pass-while-a-detector-is-on")
def test_a_recompute_is_not_a_pass_beside_another_threads() -> None:
    model = Inner()
    counts = Counts("model.second")
    with attached(model, counts):
        loss = model(torch.ones(()))
        with stopped(model.model, torch.no_grad()(lambda: model(torch.ones(())))) as worker:
            loss.backward()
        assert isinstance(worker.join(), Tensor)
    assert counts.count == 2


@pytest.mark.documents("reliability/a-second-thread-begins-a-pass-while-a-detector-is-on")
def test_a_condition_is_not_decided_by_another_threads_projections() -> None:
    model = Model().eval()
    detector = ProjectionDetector("first", torch.ones(8))
    steer = SteeringController("second", torch.ones(8), 5.0, when=detector.above(0.0))
    with torch.no_grad(), attached(model, [detector, steer]):
        alone = model(IDS, attention_mask=LEFT)
        work = stopped(model, torch.no_grad()(lambda: model(IDS, attention_mask=LEFT)))
        with work as worker, pytest.raises(MiCrowError):
            model(IDS.flip(0), attention_mask=MASKS[1])
        assert torch.equal(worker.join(), alone)


class Counts(Detector):
    """Counts in a way that loses counts when two threads are in it at once."""

    def __init__(self, at: str) -> None:
        super().__init__(at)
        self.count = 0

    def observe(self, x: Tensor, ctx: Any) -> None:
        count = self.count
        threading.Event().wait(0.001)
        self.count = count + 1


@pytest.mark.documents("reliability/a-detectors-layer-is-called-outside-a-pass-from-several-threads")
@pytest.mark.filterwarnings("ignore:.*the model around it was not called")
def test_direct_calls_of_a_layer_are_seen_one_after_the_other() -> None:
    model, counts = Model(), Counts("first")
    with attached(model, counts):
        together([lambda: [model.first(torch.ones(2, 8)) for _ in range(20)] for _ in range(4)])
    assert counts.count == 80


@pytest.mark.documents("reliability/hooks-come-off-while-another-thread-is-in-a-pass")
@pytest.mark.parametrize("make", [lambda: SteeringController("second", torch.ones(8)), lambda: Counts("second")])
def test_the_end_of_a_block_in_the_middle_of_another_threads_pass(make: Any) -> None:
    model = Model()
    with stopped_in_a_block(model, make()) as raised:
        pass
    assert "comes off while thread 'worker' is in the middle of a pass" in str(raised[0])
    assert isinstance(raised[0].original_error, ThreadConflict) and handles(model) == {}


@contextmanager
def stopped_in_a_block(model: Model, hook: Any) -> Iterator[list[Any]]:
    """Leave an `attached` block while a thread is in the middle of its pass, and keep the error."""
    raised: list[Any] = []
    ended = threading.Event()
    entered = threading.Event()

    def block() -> None:
        with attached(model, hook):
            entered.set()
            assert ended.wait(60)

    owner = In(block, "owner")
    assert entered.wait(60)
    with stopped(model, lambda: model(IDS)):
        ended.set()
        raised.append(owner.join())
    yield raised


@pytest.mark.documents("reliability/hooks-are-put-on-while-another-thread-is-in-a-pass")
@pytest.mark.parametrize("edits", [True, False])
def test_hooks_that_are_put_on_in_the_middle_of_another_threads_pass(edits: bool) -> None:
    model = Model()
    hook: Any = FunctionController("second", lambda x: x * 2) if edits else Counts("second")
    with stopped(model, lambda: model(IDS)) as worker:
        layers = Layers(model)
        layers.register_hook(None, hook)
    found = worker.join()
    assert isinstance(found, HookError) and isinstance(found.original_error, ThreadConflict)
    assert "put the hook on while thread 'worker' was in the middle of a pass" in str(found)
    model(IDS)  # the next pass is a whole one
    layers.unregister_all_hooks()


@pytest.mark.documents("reliability/another-batch-begins-while-a-thread-is-in-a-pass")
def test_a_pass_goes_on_with_the_mask_and_the_batch_it_began_with() -> None:
    model = Model().eval()
    seen: list[Any] = []
    note = FunctionController("second", lambda x: x)
    note.edit = lambda x, ctx: seen.append((ctx.batch, ctx.facts.mask))  # type: ignore[method-assign]
    with attached(model, note) as layers:
        layers.begin_batch(None, "first")
        both = [lambda mask=mask: model(IDS, attention_mask=mask) for mask in MASKS]
        with stopped(model, lambda: [call() for call in both]) as worker:
            layers.begin_batch(None, "second")
        assert len(worker.join()) == 2
        model(IDS, attention_mask=MASKS[1])
        In(both[1], "worker").join()
    assert [batch for batch, _ in seen] == ["first", "second", "second", "second"]
    assert torch.equal(seen[0][1], LEFT) and torch.equal(seen[1][1], MASKS[1])


@pytest.mark.documents("reliability/a-thread-was-interrupted-in-a-pass")
@pytest.mark.parametrize("lives_on", [True, False])
def test_a_pass_that_was_interrupted_refuses_nobody(lives_on: bool) -> None:
    """torch reports no end of a call that a Ctrl-C ended, so it looks as if the thread were still in it."""
    model, go = Model().eval(), threading.Event()

    def stop() -> None:
        if threading.current_thread().name == "interrupted":
            raise KeyboardInterrupt

    def run() -> str:
        try:
            model(IDS)
        except KeyboardInterrupt:
            done.set()
            assert not lives_on or go.wait(60)
        return "over"

    model.between.stop = stop
    done = threading.Event()
    counts = Counts("second")
    with attached(model, counts) as layers:
        thread = In(run, "interrupted")
        assert done.wait(60)
        if not lives_on:
            thread.join()
        model(IDS)
        layers.check_threads()
        go.set()
        assert thread.join() == "over"
    assert counts.count == 1


@pytest.mark.documents("reliability/threads-share-a-graph-of-torch-compile")
def test_hooks_in_a_graph_refuse_a_second_thread() -> None:
    """Without compiling: `graphs` says that the layer is in a graph."""
    model = Model().eval()
    layers = Layers(model, graphs={model.second: model.second})
    layers.register_hook("second", SteeringController(None, torch.ones(8)))
    layers.hold_traced()
    work = stopped(model, lambda: model(IDS, attention_mask=LEFT))
    with work as worker, pytest.raises(ThreadConflict, match=r"in a graph of torch\.compile"):
        model(IDS, attention_mask=LEFT)
    assert isinstance(worker.join(), Tensor)
    layers.unregister_all_hooks()


@pytest.mark.documents("reliability/a-hook-fails-in-one-of-two-threads")
def test_an_error_reaches_the_thread_of_its_pass_and_no_other() -> None:
    model = Model().eval()

    def edit(x: Tensor) -> Tensor:
        if threading.current_thread().name == "worker":
            raise ValueError("only here")
        return x * 2

    with torch.no_grad(), attached(model, FunctionController("second", edit)):
        alone = model(IDS)
        with stopped(model, lambda: model(IDS)) as worker:
            assert torch.equal(model(IDS), alone)
        found = worker.join()
    assert isinstance(found, HookError) and "only here" in str(found)
