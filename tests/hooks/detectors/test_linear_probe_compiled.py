"""`LinearProbe` in graphs of `torch.compile`: it learns and reads what it does outside of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mi_crow_lightning import HookCallback, LinearProbe
from tests.callback.test_checkpoints import Resumable
from tests.hooks.detectors.probing import Labelled, labelled_data
from tests.models import llama, loader, trainer


def fitted(backend: str, per: str) -> tuple[dict[str, float], LinearProbe]:
    labels, classes = ("label", 2) if per == "sample" else ("token_label", 5)
    probe = LinearProbe("block:*", labels=labels, classes=classes, per=per, lr=0.01)  # type: ignore[arg-type]
    watch, module = HookCallback(probe), Labelled(llama(num_hidden_layers=2, attention_dropout=0.0))
    if backend:
        module.model.compile(backend=backend, dynamic=False)
    data: list[Any] = labelled_data(16)
    runner = trainer(watch, num_sanity_val_steps=0, log_every_n_steps=2)
    runner.fit(module, Resumable(data, batch_size=4), loader(data[:8]))
    return {f"{row.tag} {row.step}": row.value for row in watch.history()}, probe


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(("backend", "per"), [("eager", "sample"), ("aot_eager", "token")])
def test_a_compiled_model_trains_the_same_probes(backend: str, per: str) -> None:
    torch._dynamo.reset()
    found, probe = fitted(backend, per)
    torch._dynamo.reset()
    expected, plain = fitted("", per)
    mine, theirs = probe._probes.state(), plain._probes.state()
    assert mine["steps"].tolist() == [4.0, 4.0] and torch.equal(mine["moments"][..., 0], theirs["moments"][..., 0])
    for name in ("moments", "squares", "weight"):
        assert (mine[name] - theirs[name]).abs().max() <= 1e-3 * theirs[name].abs().max(), name
    assert found.keys() == expected.keys() and len(found) == 2 * 4 * 3
    for tag, value in expected.items():
        assert found[tag] == pytest.approx(value, rel=1e-3, abs=0.02 if "auroc" in tag else 1e-6), tag
