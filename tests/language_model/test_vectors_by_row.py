"""Batches that name the vector of each row: the records have the name, and a sweep runs every cell in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mi_crow_lightning import (
    CausalLMModule,
    ContinuationScore,
    HookCallback,
    SteeringController,
    SteeringVector,
    by_vector,
    sweep_table,
)
from mi_crow_lightning.hooks import Detector, Schedule
from mi_crow_lightning.language_model import TextCollator
from tests.language_model.test_continuation_score import GROUPS, flat
from tests.language_model.test_swept_vectors import SWEEP, direction, vector
from tests.language_model.tiny import TEXTS, model_of, tokens
from tests.models import trainer

TABLE: dict[str, Any] = {"joy": vector(), "plain": direction(6), "random": vector().random_controls(1)[0]}
GREEDY = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}


def batches(name: str | None = None, prompts: list[str] = TEXTS[:2]) -> DataLoader:
    """Each prompt once along each vector, in one batch; or as many rows along one."""
    texts = [text for text in prompts for _ in TABLE]
    names = [one if name is None else name for _ in prompts for one in TABLE]
    return DataLoader([{**TextCollator(tokens())(texts), "vector": names}], batch_size=None)


def steer(**options: Any) -> SteeringController:
    return SteeringController("block:1", "batch", "batch", vectors=TABLE, **options)


class Edited(Detector):
    """What the steered block passes on."""

    def __init__(self) -> None:
        super().__init__("block:1", schedule=Schedule(stages="predict"))
        self.seen: list[torch.Tensor] = []

    def observe(self, x: torch.Tensor, ctx: Any) -> None:
        self.seen.append(x.clone())


def test_a_sweep_runs_all_vectors_and_strengths_in_one_batch_to_the_bit() -> None:
    """Beside a batch of the same shape that has one vector in all rows, and a controller with that vector."""
    model, together = model_of("llama"), Edited()
    score = ContinuationScore(model, GROUPS, tokens(), sweep=SWEEP)
    records = flat(trainer(HookCallback(together, steer())).predict(score, batches()))
    assert [(one.vector, one.strength) for one in records[: 3 * len(SWEEP)]] == [(n, s) for n in TABLE for s in SWEEP]
    for at, name in enumerate(TABLE):
        alone = Edited()
        single = SteeringController("block:1", TABLE[name], "batch")
        found = flat(trainer(HookCallback(alone, single)).predict(score, batches(name)))
        mine = [i for i, one in enumerate(records) if one.vector == name]
        assert [records[i].log_probs for i in mine] == [found[i].log_probs for i in mine]
        assert len(together.seen) == len(alone.seen) > 0
        assert len(together.seen[0]) % (3 * len(SWEEP)) == 0
        for one, other in zip(together.seen, alone.seen, strict=True):
            rows = one.reshape(2, 3, -1, *one.shape[1:])[:, at]
            assert torch.equal(rows, other.reshape(2, 3, -1, *other.shape[1:])[:, at])
    table = sweep_table(records)
    assert repr(table) == "<gap at 3 strengths of 2 vectors beside 1 random one: joy, plain>"
    (row, _) = table.dose_response()
    assert (row.vector, row.n) == ("joy", 2) and row.beyond_random is not None


@pytest.mark.parametrize("sweep", [None, [0.0, 6.0]])
def test_texts_have_the_name_of_their_vector(sweep: Any) -> None:
    module = CausalLMModule(model_of("llama"), tokens(), generation=GREEDY, sweep=sweep)
    steering = steer(tokens="generated") if sweep else SteeringController("block:1", "batch", 6.0, vectors=TABLE)
    found = by_vector(trainer(HookCallback(controllers=steering)).predict(module, batches()))
    assert {name: [one.is_random for one in of] for name, of in found.items()} == {
        name: [name == "random"] * (4 if sweep else 2) for name in TABLE
    }
    one = DataLoader([{**TextCollator(tokens())(TEXTS[:2]), "vector": "plain"}], batch_size=None)
    texts = flat(trainer(HookCallback(controllers=steering)).predict(module, one))
    assert {text.vector for text in texts} == {"plain"}
    along = [text.token_ids for text in found["plain"]]
    assert [text.token_ids for text in texts] == along


def test_a_sweep_over_vectors_takes_the_place_of_those_of_the_batch() -> None:
    model = model_of("llama")
    score = ContinuationScore(model, GROUPS, tokens(), sweep=SWEEP, vectors={"other": direction(9)})
    found = flat(trainer(HookCallback(controllers=steer())).predict(score, batches()))
    single = SteeringController("block:1", direction(9), "batch")
    wanted = flat(trainer(HookCallback(controllers=single)).predict(score, batches()))
    assert found == wanted and {one.vector for one in found} == {"other"}


def test_vectors_and_layers_of_the_batch_do_not_go_to_the_model() -> None:
    steering = SteeringController("block:*", "batch", 2.0, layers="batch")
    given = {**TextCollator(tokens())(TEXTS[:2]), "vector": torch.stack([direction(1), direction(2)]), "layers": [0, 2]}
    module = CausalLMModule(model_of("llama"), tokens(), generation=GREEDY)
    texts = flat(trainer(HookCallback(controllers=steering)).predict(module, DataLoader([given], batch_size=None)))
    assert [text.vector for text in texts] == [None, None]
    assert isinstance(TABLE["joy"], SteeringVector)
