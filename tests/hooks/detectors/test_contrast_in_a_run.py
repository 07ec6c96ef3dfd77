"""ContrastDetector costs a run nothing that was not asked for, and its state travels: memory, copies, checkpoints."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from mi_crow_lightning import ContrastDetector, HookCallback, Layers
from mi_crow_lightning.errors import NothingExtracted
from mi_crow_lightning.hooks import Moment, Schedule, Stage
from mi_crow_lightning.vectors.extraction import kept_rows
from tests.callback.runs import OnEvent
from tests.hooks.detectors.contrasts import Reader, batches, texts
from tests.hooks.detectors.extracting import ALL, HELD_OUT, PAIRS, Generating, extract
from tests.models import BLOCKS, Module, llama, trainer


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if not parts and type(value).__module__.startswith("mi_crow_lightning.") and hasattr(value, "__dict__"):
        parts = [part for name, part in vars(value).items() if name not in ("_registry", "_context")]
    return [tensor for part in parts for tensor in tensors_in(part)]


def test_memory_does_not_grow_with_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_rows, "_MOST_ROWS", 2)  # what is kept to judge directions by: one batch
    sizes = []

    def measure(*_: Any) -> None:
        sizes.append(sum(tensor.numel() for tensor in tensors_in(detector._contrast)))

    detector = ContrastDetector("block:*", covariance=["difference"])
    run = trainer(HookCallback(detectors=detector), OnEvent("on_predict_batch_end", measure))
    run.predict(Reader(llama()), batches(texts(40)))
    assert len(sizes) == 20 and sizes[1] == sizes[-1] > BLOCKS * (32 * 32 + 3 * 32)


def test_a_pass_waits_for_no_number() -> None:
    # A fake tensor holds none: whatever asks for one raises.
    model = nn.Sequential(nn.Identity(), nn.Identity())
    detector, layers = ContrastDetector("block:*", **ALL), Layers(model)
    layers.register_hook(None, detector)
    with FakeTensorMode():
        for _ in range(3):
            mask = torch.ones(4, 5, dtype=torch.bool)
            batch = {"label": torch.randint(0, 2, (4,)), "pair": torch.randint(0, 2, (4,)), "attention_mask": mask}
            layers.begin_batch(Moment(Stage.PREDICT), batch)
            model(torch.randn(4, 5, 8))
    assert len(detector._contrast._extracting.moments) == 2


def test_predictions_are_bit_identical() -> None:
    model, loader, seen = llama(), batches(texts(PAIRS)), []
    for callbacks in ([], [HookCallback(ContrastDetector("block:*", **ALL))]):
        torch.manual_seed(0)
        seen.append((trainer(*callbacks).predict(Generating(model), loader), torch.get_rng_state()))
    (plain, state), (watched, same) = seen
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True)) and torch.equal(state, same)


def test_a_bare_loop() -> None:
    model, loader, other = llama().eval(), batches(texts(PAIRS)), batches(texts(HELD_OUT, seed=5))
    trained = ContrastDetector("block:*")
    extract(trained, model, loader), extract(trained, model, other, "validate")
    detector, layers = ContrastDetector("block:*"), Layers(model)
    layers.register_hook(None, detector)
    with torch.inference_mode():
        for batch in loader:
            layers.begin_batch(None, batch)
            model(batch["input_ids"], attention_mask=batch["attention_mask"])
    for layer, value in detector.vectors(force=True).items():
        assert torch.equal(value, trained.vectors(force=True)[f"model.{layer}"])
    with torch.inference_mode():
        for batch in other:
            layers.begin_batch(Moment(Stage.VALIDATE), batch)
            model(batch["input_ids"], attention_mask=batch["attention_mask"])
    assert len(detector.readings()) == 2 * BLOCKS
    assert [row.auroc for row in detector.separability()] == [row.auroc for row in trained.separability()]


def test_a_checkpoint_keeps_what_runs_gave(tmp_path: Path) -> None:
    model, loader, other = llama(), batches(texts(PAIRS)), batches(texts(HELD_OUT, seed=5))
    detector = ContrastDetector("block:*", **ALL)
    callback, module = HookCallback(detector, name="extract"), Reader(model)
    run = trainer(callback)
    run.predict(module, loader)
    run.validate(module, other, verbose=False)
    run.save_checkpoint(tmp_path / "last.ckpt")

    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["HookCallback[extract]"]
    again = HookCallback(ContrastDetector("block:*", **ALL), name="extract")
    again.load_state_dict(state)
    (loaded,) = again.detectors
    for method in ("mean_difference", "pca", "logistic"):
        assert loaded.vectors(method, force=True) == detector.vectors(method, force=True)
    assert loaded.reliability() == detector.reliability() and len(loaded.reliability()) == BLOCKS
    assert loaded.separability() == detector.separability()
    trainer(again).validate(module, other, verbose=False)
    assert loaded.separability() == detector.separability()
    fresh = ContrastDetector("block:*")
    fresh.load_state_dict(ContrastDetector("block:*").state_dict())
    with pytest.raises(NothingExtracted):
        fresh.vectors()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda detector: pickle.loads(pickle.dumps(detector))])
def test_a_copy_takes_the_vectors_along(again: Any) -> None:
    detector = ContrastDetector("block:*", **ALL)
    extract(detector, llama(), batches(texts(PAIRS)))
    copied = again(detector)
    assert copied.vectors("pca", force=True) == detector.vectors("pca", force=True) and not copied.registered


def test_a_schedule_of_ones_own() -> None:
    detector = ContrastDetector("block:1", schedule=Schedule(stages="predict", batches=[0, 1]))
    extract(detector, llama(), batches(texts(PAIRS)))
    assert detector.vectors().samples["pairs"] == 4
    assert repr(ContrastDetector("block:1").when()) == "Schedule(stages=['predict', 'validate'])"


def test_training_is_not_watched() -> None:
    loader = batches(texts(PAIRS))
    rows = [{k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")} for batch in loader]
    detector = ContrastDetector("block:1", schedule=Schedule())
    run = trainer(HookCallback(detector), limit_val_batches=0)
    data = DataLoader(rows, batch_size=None)
    run.fit(Module(llama()), data, data)
    with pytest.raises(NothingExtracted):
        detector.vectors()
