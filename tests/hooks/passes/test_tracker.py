"""One pass, one value: shared by its hooks, owned by its thread, and found again by a recompute in any thread."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks import Controller, Detector, Layers, Moment, Stage, SteeringController, Tokens
from tests.models import BLOCKS, WIDTH, llama

VECTOR = torch.linspace(-1, 1, WIDTH)
IDS = torch.arange(3, 27).reshape(3, 8)
LEFT = (torch.arange(8) >= torch.tensor([[0], [2], [5]])).long()


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What ``function`` returns, or raises, in another thread."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((True, function()))
        except BaseException as error:
            found.append((False, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    ((fine, value),) = found
    if not fine:
        raise value
    return value


class Counted(TorchDispatchMode):
    """Counts the operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Asks(Detector):
    """Asks for masks, and keeps them."""

    def __init__(self, *tokens: Tokens) -> None:
        super().__init__("block:*")
        self.tokens = tokens
        self.masks: list[Tensor | None] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.masks += [tokens.mask(x, ctx) for tokens in self.tokens]


def operations_of_an_alias() -> int:
    """Count them: one, or two with older versions of torch."""
    x = torch.zeros(1)
    with Counted() as counted:
        x.detach()
    return len(counted.names)


def operations(hooks: list[Detector], passes: int = 1) -> int:
    model = llama().eval()
    layers = Layers(model, allow_stacking=True)
    for hook in hooks:
        layers.register_hook(None, hook)
    with torch.no_grad(), Counted() as counted:
        for _ in range(passes):
            model(input_ids=IDS, attention_mask=LEFT)
    return len(counted.names)


@pytest.mark.parametrize("which", ["all", "last", "prompt"])
def test_masks_are_worked_out_once_a_pass_whatever_hooks_and_layers_there_are(which: str) -> None:
    choice = Tokens(which)
    bare = operations([])
    detach = BLOCKS * operations_of_an_alias()  # each hook gets one of each activation
    one = operations([Asks(choice)]) - bare - detach
    three = operations([Asks(choice, choice, Tokens("all")), Asks(choice), Asks(choice)]) - bare - 3 * detach
    assert 0 < one == three
    assert operations([Asks(choice)], passes=2) == 2 * operations([Asks(choice)]), "not kept for the next pass"


def test_hooks_of_one_pass_share_a_mask_and_those_of_the_next_do_not() -> None:
    model, asks = llama().eval(), Asks(Tokens("all"))
    Layers(model).register_hook(None, asks)
    model(input_ids=IDS, attention_mask=LEFT)
    model(input_ids=IDS, attention_mask=LEFT.flip(1))
    first, second = asks.masks[:BLOCKS], asks.masks[BLOCKS:]
    assert all(mask is first[0] for mask in first) and all(mask is second[0] for mask in second)
    assert torch.equal(first[0], LEFT.bool()) and torch.equal(second[0], LEFT.flip(1).bool())


def test_each_thread_has_its_own_pass() -> None:
    """Two threads are in one model at once, each with its own padding: both are steered as when alone."""
    model = llama().eval()
    Layers(model).register_hook("block:1", SteeringController(None, VECTOR, 3.0, tokens="last"))
    masks = [LEFT, LEFT.flip(1)]
    with torch.no_grad():
        alone = [model(input_ids=IDS, attention_mask=mask).logits for mask in masks]
    assert not torch.equal(*alone)
    together = threading.Barrier(2)
    model.model.layers[0].register_forward_pre_hook(lambda *_: (together.wait(60), None)[1])
    results: dict[int, Tensor] = {}

    def run(index: int) -> None:
        with torch.no_grad():
            results[index] = model(input_ids=IDS, attention_mask=masks[index]).logits

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(results[index], alone[index]) for index in range(2))


def test_generating_in_a_thread_is_as_generating() -> None:
    """As people serve: the prompt of one thread's ``generate`` is not that of another's."""
    model = llama().eval()
    model.generation_config.eos_token_id = None
    Layers(model).register_hook("block:1", SteeringController(None, VECTOR, 3.0, tokens="generated"))
    prompts = [dict(input_ids=IDS[:, :width], attention_mask=torch.ones_like(IDS[:, :width])) for width in (3, 8)]
    alone = [model.generate(**prompt, max_new_tokens=6, do_sample=False) for prompt in prompts]
    found: list[Tensor] = [torch.empty(0)] * 2

    def run(index: int) -> None:
        found[index] = model.generate(**prompts[index], max_new_tokens=6, do_sample=False)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))


def checkpointed(model: Any) -> Any:
    # The name in transformers 5, else that in 4.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    return model


def gradients(backward: Callable[[Callable[[], None]], Any] | None) -> list[Any]:
    """Of two steered passes and one backward pass, which ``backward`` runs; ``None``: without checkpointing."""
    model = llama(attention_dropout=0.0).train()
    if backward is not None:
        checkpointed(model)
    Layers(model).register_hook("block:1-2.mlp", SteeringController(None, VECTOR, 0.5, tokens="last"))
    losses = [model(input_ids=IDS, attention_mask=mask, labels=IDS).loss for mask in (LEFT, LEFT.flip(1))]
    (backward or (lambda function: function()))(sum(losses).backward)  # type: ignore[union-attr]
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("backward", [lambda function: function(), in_a_thread])
def test_a_recompute_finds_its_pass_in_whatever_thread_it_runs(backward: Any) -> None:
    assert all(torch.equal(*pair) for pair in zip(gradients(backward), gradients(None), strict=True))


def test_where_passes_of_two_threads_have_the_same_numbers_a_recompute_is_refused() -> None:
    """Each thread numbers its own autograd nodes from 0."""
    model = checkpointed(llama(attention_dropout=0.0).train())
    Layers(model).register_hook("block:1.mlp", SteeringController(None, VECTOR, 0.5, tokens="last"))
    losses = [
        in_a_thread(lambda mask=mask: model(input_ids=IDS, attention_mask=mask, labels=IDS).loss)
        for mask in (LEFT, LEFT.flip(1))
    ]
    with pytest.raises(TokensUnknown, match="it is not known which earlier pass that repeats"):
        sum(losses).backward()  # type: ignore[union-attr]


class FailsOnce(Controller):
    """Doubles the activation, and fails in one pass."""

    def __init__(self, failing: int | None) -> None:
        super().__init__("after.0", on_error="warn")
        self.failing, self.calls = failing, 0

    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        if not ctx.recomputing:
            self.calls += 1
            if self.calls - 1 == self.failing:
                raise ValueError("not in this pass")
        return x * 2


class Blocks(nn.Module):
    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        before = self.before(x)
        return checkpoint(self.after, before, use_reentrant=False) if self.checkpointed else self.after(before)  # type: ignore


class Twice(Blocks):
    """Calls its layers twice in a pass; between the two calls something may happen."""

    def __init__(self, checkpointed: bool, between: Callable[[], None]) -> None:
        super().__init__(checkpointed)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.between()
        return super().forward(x)


def test_where_a_hook_acted_in_one_of_two_calls_of_a_pass_a_recompute_is_refused() -> None:
    model = Twice(True, lambda: None)
    Layers(model).register_hook(None, FailsOnce(1))
    with pytest.warns(RuntimeWarning, match="not in this pass"):
        loss = model(torch.ones(2, 4)).sum()
    with pytest.raises(TokensUnknown, match=r"runs 'after.0' again, .* the layer was called several times"):
        loss.backward()


def test_a_hook_that_is_switched_off_between_two_calls_of_a_pass_is_not_repeated_in_both() -> None:
    hook = FailsOnce(None)
    model = Twice(True, hook.disable)
    layers = Layers(model)
    layers.register_hook(None, hook)
    layers.begin_batch(Moment(Stage.TRAIN))  # in which handles stay, for recomputes
    loss = model(torch.ones(2, 4)).sum()
    assert hook.calls == 1
    with pytest.raises(TokensUnknown, match=r"a hook on it was off or failed in some of them"):
        loss.backward()


def test_a_hook_that_failed_in_the_first_call_of_a_pass_is_repeated_in_none() -> None:
    def gradients(checkpointed: bool) -> list[Any]:
        model = Twice(checkpointed, lambda: None)
        Layers(model).register_hook(None, FailsOnce(0))
        with pytest.warns(RuntimeWarning, match="not in this pass"):
            model(torch.ones(2, 4)).sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(*pair) for pair in zip(gradients(True), gradients(False), strict=True))


class Masked(nn.Module):
    """A block behind the call of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        return self.block(inputs_embeds)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:.*the model around it was not called:UserWarning")
def test_another_thread_forgets_the_passes_of_an_earlier_batch() -> None:
    """Where a layer is called on its own after a new batch began, the mask of the batch before does not count."""
    model, asks, x = Masked(), Asks(Tokens("all")), torch.ones(3, 8, 2)
    layers = Layers(model)
    layers.register_hook("block", asks)
    begun, seen = threading.Event(), threading.Event()

    def run() -> None:
        model(x, attention_mask=LEFT)
        seen.set()
        begun.wait(60)
        model.block(x)

    thread = threading.Thread(target=run)
    thread.start()
    seen.wait(60)
    layers.begin_batch(None)
    begun.set()
    thread.join(60)
    assert torch.equal(asks.masks[0], LEFT.bool()) and asks.masks[1] is None


@pytest.mark.parametrize("failing", [None, 0, 1, 2])
def test_a_recompute_repeats_what_the_hook_did_in_its_own_pass(failing: int | None) -> None:
    """Not what it did in another pass of the batch: a hook that failed in one of three acts in the other two."""

    def gradients(checkpointed: bool) -> list[Any]:
        model = Blocks(checkpointed)
        Layers(model).register_hook(None, FailsOnce(failing))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            losses = [model(torch.full((2, 4), float(i))).square().sum() for i in range(3)]
        sum(losses).backward()  # type: ignore[union-attr]
        return [parameter.grad for parameter in model.parameters()]

    assert all(torch.equal(*pair) for pair in zip(gradients(True), gradients(False), strict=True))
