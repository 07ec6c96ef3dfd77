"""What surrounds a hooked model in its process: workers, forks, tasks of asyncio, a dtype that changes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController
from mi_crow_lightning.hooks import Layers
from tests.callback.runs import OnEvent, assert_bit_equal, module_of, trainer
from tests.callback.test_checkpoints import Plain
from tests.models import WIDTH, Module, handles, llama, vector_data

pytestmark = pytest.mark.faults

EVERY = Schedule()


def watching() -> HookCallback:
    return HookCallback(
        ActivationStatistics("model.*", schedule=EVERY),
        SteeringController("model.3", torch.ones(WIDTH), 0.1, schedule=EVERY),
    )


def rows(watch: HookCallback) -> list[Any]:
    return [(row.stage, row.step, row.tag, row.value) for row in watch.history()]


def fitted(*callbacks: Any, **loading: Any) -> tuple[list[Any], dict[str, Tensor]]:
    """The readings and the weights of a fit of two epochs with a validation in each."""
    watch, module = watching(), Plain()
    x, y = zip(*vector_data(12), strict=True)
    data = TensorDataset(torch.stack(x), torch.stack(y))  # a spawned worker need not import the tests
    train = DataLoader(data, batch_size=4, **loading)
    spawns = loading.get("multiprocessing_context") == "spawn"  # one is slow enough
    validation = DataLoader(data, batch_size=4, **({} if spawns else loading))
    trainer(watch, *callbacks, max_epochs=2, num_sanity_val_steps=0).fit(module, train, validation)
    assert handles(module) == {}
    return rows(watch), dict(module.state_dict())


@pytest.mark.documents("reliability/data-loader-workers-that-are-forked-or-spawned-also-persistent-ones")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(("start", "persistent"), [("fork", False), ("fork", True), ("spawn", True)])
def test_workers_change_nothing(start: str, persistent: bool) -> None:
    loading = dict(num_workers=1, multiprocessing_context=start, persistent_workers=persistent)
    assert_bit_equal(list(fitted(**loading)), list(fitted()))


@pytest.mark.documents("reliability/the-process-forks-while-hooks-are-on")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_amid_a_batch_counts_nothing_here() -> None:
    """The child runs the hooked model and ends."""
    codes = []

    def fork(trainer: Any, module: Module, batch_idx: int) -> None:
        assert handles(module)
        if (pid := os.fork()) == 0:
            try:
                with torch.no_grad():
                    finite = bool(module.model(torch.ones(2, 8)).isfinite().all())
            finally:
                os._exit(0 if finite else 1)
        codes.append(os.waitpid(pid, 0)[1])

    forks = OnEvent("on_before_zero_grad", fork)
    assert_bit_equal(list(fitted(forks)), list(fitted()))
    assert codes and set(codes) == {0}


async def decoded(model: Any, ids: Tensor, mask: Tensor, turns: list[int], task: int) -> Tensor:
    """Five greedy tokens with a cache; the other task runs between two of them."""
    cache, new = None, ids
    for _ in range(5):
        out = model(input_ids=new, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache, new = out.past_key_values, out.logits[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
        turns.append(task)
        await asyncio.sleep(0)
    return ids


@pytest.mark.documents("reliability/two-tasks-of-asyncio-take-turns-with-one-hooked-model")
@pytest.mark.parametrize("tokens", ["all", "last", "prompt", "generated"])
@torch.no_grad()
def test_tasks_that_take_turns_do_not_mix(tokens: str) -> None:
    """Prompts of other lengths and paddings, steered at tokens that depend on the pass."""
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 64, (rows, width), generator=generator) for rows, width in ((2, 7), (3, 4))]
    masks = [torch.ones_like(ids) for ids in prompts]
    masks[0][0, :3] = 0

    async def both(model: Any, turns: list[int]) -> Sequence[Tensor]:
        pairs = enumerate(zip(prompts, masks, strict=True))
        return await asyncio.gather(*(decoded(model, ids, mask, turns, task) for task, (ids, mask) in pairs))

    def run(together: bool) -> tuple[list[Tensor], list[Any], list[int]]:
        model, turns = llama().eval(), []
        layers = Layers(model)
        steer = SteeringController("block:1", torch.linspace(-2, 2, WIDTH), 3.0, tokens=tokens)
        layers.register_hook(None, steer)
        layers.register_hook(None, statistics := ActivationStatistics("block:*", tokens=tokens))
        if together:
            texts = list(asyncio.run(both(model, turns)))
        else:
            pairs = zip(prompts, masks, strict=True)
            texts = [asyncio.run(decoded(model, ids, mask, turns, 0)) for ids, mask in pairs]
        return texts, [(one.layer, one.name, one.value) for one in statistics.readings()], turns

    (apart, read_apart, _), (joined, read_joined, turns) = run(together=False), run(together=True)
    assert turns == [0, 1] * 5
    assert_bit_equal(apart, joined)
    numbers = [[value for _, _, value in read if isinstance(value, float)] for read in (read_apart, read_joined)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, nan_ok=True) and len(numbers[0]) > 40


@pytest.mark.documents("reliability/the-model-changes-its-dtype-during-a-run")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_that_changes_during_a_run_is_followed(dtype: torch.dtype) -> None:
    module, watch = module_of().eval(), watching()
    x = torch.stack([one for one, _ in vector_data(16)])

    def move(trainer: Any, module: Module, batch_idx: int) -> None:
        if batch_idx == 2:
            module.to(dtype)

    module.predict_step = lambda batch, batch_idx: module.model(batch.to(next(module.parameters()).dtype))
    found = trainer(watch, OnEvent("on_predict_batch_start", move)).predict(module, DataLoader(x, batch_size=4))
    assert [one.dtype for one in found] == [torch.float32] * 2 + [dtype] * 2 and handles(module) == {}

    plain = module_of().eval().model
    plain[3].register_forward_hook(lambda module, args, out: out + (0.1 * torch.ones(WIDTH)).to(out.dtype))
    for batch, one in zip(x.split(4), found, strict=True):
        expected = plain.to(one.dtype)(batch.to(one.dtype))
        tolerance = {torch.bfloat16: 0.05}.get(one.dtype, 1e-6)
        torch.testing.assert_close(one, expected, rtol=tolerance, atol=tolerance)
    fired = {row.tag: row.value for row in watch.history()}
    assert next(value for tag, value in fired.items() if "steering_tokens" in tag) == 16
