"""Every situation of a fine-tuning run, on real models, against copies that plain torch hooks made."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule
from mi_crow_lightning.hooks import Layers
from tests.metrics.noted import Noted
from tests.metrics.reference import Recorder, assert_readings
from tests.models import Module, gpt2, llama, loader, token_data, trainer

# The models are tiny: more threads only wait for one another.
torch.set_num_threads(1)

WATCHED = ("block:*", "block:*.attn", "block:*.mlp")


def watched(model: nn.Module, *signatures: str) -> tuple[list[ActivationStatistics], dict[str, str]]:
    """Registered detectors, and the names of all their layers."""
    layers = Layers(model, allow_stacking=True)
    detectors = [ActivationStatistics(signature) for signature in signatures]
    for detector in detectors:
        layers.register_hook(None, detector)
    return detectors, {site.match.name: "" for detector in detectors for site in layers.sites(detector)}


def recorder(model: nn.Module, names: Any) -> Recorder:
    return Recorder({name: model.get_submodule(name) for name in names})


def readings(detectors: list[ActivationStatistics]) -> list[Any]:
    return [reading for detector in detectors for reading in detector.readings()]


def padded(side: str, count: int = 4) -> dict[str, Tensor]:
    batch = default_collate(token_data(count))
    return batch if side == "left" else {name: tensor.flip(1) for name, tensor in batch.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_padding_and_an_uneven_last_batch(make: Any, side: str) -> None:
    model = make().eval()
    detectors, names = watched(model, *WATCHED)
    reference = recorder(model, names)
    for count in (4, 4, 1):
        batch = padded(side, count)
        reference.mask = batch["attention_mask"].bool()
        model(**batch)
    assert len(names) == 12
    assert_readings(readings(detectors), reference.take())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("precision", ["float32", "autocast", "autocast16", "bfloat16"])
def test_checkpointing_of_transformers(reentrant: bool, precision: str) -> None:
    model = llama().train().to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    plain = copy.deepcopy(model)
    for module in (*model.modules(), *plain.modules()):
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    detectors, names = watched(model, *WATCHED)
    reference = recorder(plain, names)
    again = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: again.append(1))
    for side in ("left", "right"):
        batch = padded(side)
        reference.mask = batch["attention_mask"].bool()
        narrow = torch.float16 if precision == "autocast16" else torch.bfloat16
        with torch.autocast("cpu", narrow, enabled=precision.startswith("autocast")):
            plain(**batch)
            loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
    assert len(again) == 4  # it did run again
    assert_readings(readings(detectors), reference.take())


class ByHand(nn.Module):
    """Checkpoints its blocks itself, and calls the last of them twice."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)])
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.blocks, self.blocks[-1]):
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_by_hand_and_a_module_called_twice(reentrant: bool) -> None:
    model = ByHand(reentrant)
    names = [f"blocks.{i}{part}" for i in range(3) for part in ("", ".0", ".1")]
    detectors, _ = watched(model, *names)
    calls = []
    model.blocks[0][0].register_forward_pre_hook(lambda *_: calls.append(1))
    for count in (4, 2):
        x = torch.randn(count, 5, 6, generator=torch.Generator().manual_seed(count)).requires_grad_()
        model(x).sum().backward()
    assert len(calls) == 4
    reference = recorder(plain := copy.deepcopy(model), names)  # after a copy our handles do nothing
    for count in (4, 2):  # no backward, so no recompute
        plain(torch.randn(count, 5, 6, generator=torch.Generator().manual_seed(count)).requires_grad_())
    assert len(reference.seen["blocks.2"]) == 4
    assert_readings(readings(detectors), reference.take())


@pytest.mark.documents("compatibility/generate-with-its-caches-beams-and-samples/detectors")
def test_decode_steps() -> None:
    model = llama().eval()
    model.generation_config.eos_token_id = None
    detectors, names = watched(model, "block:*")
    batch = padded("left")
    reference = recorder(model, names)
    masks = iter([batch["attention_mask"].bool(), *[torch.ones(4, 1, dtype=torch.bool)] * 4])
    model.register_forward_pre_hook(lambda *_: setattr(reference, "mask", next(masks)))
    model.generate(**batch, max_new_tokens=5, do_sample=False)
    assert_readings(readings(detectors), reference.take())


def with_shared_blocks() -> nn.Module:
    """Blocks 1 and 3 are one module, which is called twice in a pass; the MLP of 0 and 2 is one module too."""
    model = llama(use_cache=False)
    stack = model.model.layers
    stack[3], stack[2].mlp = stack[1], stack[0].mlp
    return model


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_shared_modules_and_padding(side: str, accumulate: int) -> None:
    module = Module(with_shared_blocks())
    data = [{name: row[name] if side == "left" else row[name].flip(0) for name in row} for row in token_data(18)]
    names = [f"model.model.layers.{layer}" for layer in ("0", "1", "2", "0.mlp", "1.mlp")]
    detectors = [Noted("block:*"), Noted("model.model.layers.*.mlp")]
    seen = PerStep(names, accumulate, 5)
    runner = trainer(HookCallback(detectors), seen, limit_val_batches=0, accumulate_grad_batches=accumulate)
    runner.fit(module, loader(data), loader(data))
    assert len(seen.steps) == len(detectors[0].noted)
    counts = [sum(seen.steps[0][name]["histogram"]) for name in names]
    assert counts[1] == 2 * counts[0] and counts[3] == 2 * counts[0] == counts[4]  # they are called twice
    for blocks, mlps, expected in zip(*(detector.noted for detector in detectors), seen.steps, strict=True):
        assert_readings(blocks + mlps, expected)


class PerStep(pl.Callback):
    """Records what each optimizer step's batches gave, by the number of micro-batches in it."""

    def __init__(self, names: list[str], accumulate: int, batches: int) -> None:
        self.names = names
        self.ends = {i for i in range(batches) if (i + 1) % accumulate == 0 or i == batches - 1}
        self.steps: list[dict[str, dict[str, float]]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.recorder = recorder(pl_module, self.names)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.recorder.mask = batch["attention_mask"].bool()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.ends:
            self.steps.append(self.recorder.take())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.recorder.remove()


@pytest.mark.documents("compatibility/gradient-accumulation/detectors")
@pytest.mark.parametrize(("accumulate", "steps"), [(1, 5), (2, 3), (4, 2)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_one_reading_a_step_over_all_its_micro_batches(accumulate: int, steps: int, precision: Any) -> None:
    names = [f"model.model.layers.{i}" for i in range(4)]
    detector, seen = Noted("block:*"), PerStep(names, accumulate, 5)
    options = {"limit_val_batches": 0, "accumulate_grad_batches": accumulate, "precision": precision}
    runner = trainer(HookCallback(detector), seen, **options)
    runner.fit(Module(llama()), loader(token_data(18)), loader(token_data(4)))  # four batches of 4, one of 2
    assert len(detector.noted) == len(seen.steps) == steps
    for readings, expected in zip(detector.noted, seen.steps, strict=True):
        assert_readings(readings, expected)


class PerEvaluation(pl.Callback):
    """Records what the batches of each validation gave."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.epochs: list[dict[str, dict[str, Any]]] = []

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.recorder = recorder(pl_module, self.names)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *index: int) -> None:
        self.recorder.mask = batch["attention_mask"].bool()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.recorder.remove()
        self.epochs.append(self.recorder.take())


def test_an_evaluation_reads_all_its_batches() -> None:
    names = [f"model.model.layers.{i}" for i in range(4)]
    detector, seen = Noted("block:*", schedule=Schedule(stages="validate")), PerEvaluation(names)
    runner = trainer(HookCallback(detector), seen, max_epochs=2, val_check_interval=3, num_sanity_val_steps=0)
    runner.fit(Module(llama()), loader(token_data(20)), loader(token_data(10)))  # batches of 4, 4 and 2
    assert len(detector.noted) == len(seen.epochs) == 2
    for readings, expected in zip(detector.noted, seen.epochs, strict=True):
        assert_readings(readings, expected)


def test_the_first_batch_that_broke_is_told() -> None:
    class Breaks(Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx >= 3:
                handle = self.model.model.layers[2].mlp.register_forward_hook(lambda m, a, y: y / 0)
                with torch.no_grad():
                    self.model(**batch)
                handle.remove()
            return super().training_step(batch, batch_idx)

    watch = HookCallback(ActivationStatistics("block:*", statistics=["nonfinite_batch", "nonfinite_count"]))
    runner = trainer(watch, limit_val_batches=0, accumulate_grad_batches=5)
    runner.fit(Breaks(llama()), loader(token_data(20)), loader(token_data(4)))
    rows = {(row.layer[-1], row.name): row.value for row in watch.history()}
    assert rows["1", "nonfinite_count"] == 0 and rows["2", "nonfinite_count"] > 0 and rows["3", "nonfinite_count"] > 0
    assert {key: value for key, value in rows.items() if key[1] == "nonfinite_batch"} == {
        ("2", "nonfinite_batch"): 3,
        ("3", "nonfinite_batch"): 3,
    }
