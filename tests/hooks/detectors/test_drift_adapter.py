"""Drift from the adapter switched off: the numbers, and a run that does not notice."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning import (
    DriftDetector,
    FunctionController,
    HookCallback,
    HookError,
    Layers,
    RegistrationError,
    Schedule,
)
from mi_crow_lightning.errors import NothingExtracted, ReferenceMismatch
from tests.counted import few_objects, tensors_alive
from tests.hooks.detectors.drifting import Adapter, Net, adapted, hidden
from tests.metrics.test_drift import numpy_change, softmax
from tests.models import (
    BLOCKS,
    WIDTH,
    Module,
    assert_same_handles,
    handles,
    llama,
    loader,
    token_data,
    trainer,
    vector_data,
)

SIZE = WIDTH  # of sketches: CKA and the angle are exact


def batch(rows: int = 4) -> dict[str, Tensor]:
    data = token_data(rows)
    return {name: torch.stack([row[name] for row in data]) for name in data[0]}


def drift_of(model: nn.Module, *batches: Any, **options: Any) -> DriftDetector:
    detector = DriftDetector("block:*", **{"sketch_size": SIZE, **options})
    layers = Layers(model)
    layers.register_hook(None, detector)
    for one in batches:
        model(**one)
    assert layers.take_readings()
    layers.unregister_all_hooks()
    return detector


def test_equal_to_numpy_between_two_models_in_float64() -> None:
    model, base = (
        adapted().double().eval(),
        llama().double().eval(),
    )  # two models, with the same weights but the adapter
    given = [batch(4), batch(7)]
    table = drift_of(model, *given, components=2).table()
    pairs = [(hidden(model, one), hidden(base, one)) for one in given]
    assert [row.block for row in table] == list(range(BLOCKS))
    for block, row in enumerate(table):
        x, y = (torch.cat([pair[side][0][block] for pair in pairs]).numpy() for side in (0, 1))
        assert row.tokens == len(x) < 11 * 7  # padding is left out
        for name, value in numpy_change(x, y, 2).items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-8, abs=1e-5 if name == "angle" else 0), name
        assert row.cosine < 0.999
    p, q = (softmax(torch.cat([pair[side][1] for pair in pairs]).numpy()) for side in (0, 1))
    assert table.logit_kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-8)


def test_an_adapter_that_does_nothing_moves_nothing() -> None:
    model = adapted().train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    table = drift_of(model, batch()).table()  # in training: attention's dropout draws the same masks in both passes
    assert all(row.cosine_min > 1 - 1e-6 and row.cka == pytest.approx(1) and row.norm_ratio == 1 for row in table)
    assert table.logit_kl == 0


def test_the_samples_that_moved_most_are_those_of_numpy() -> None:
    model, given = adapted().eval(), batch(6)
    table = drift_of(model, given).table()
    most = table.moved_most()
    on = hidden(model, given)[0][most.block]
    with model.disable_adapter():
        off = hidden(model, given)[0][most.block]
    rows = given["attention_mask"].nonzero()[:, 0]
    cosines = torch.cosine_similarity(on, off, dim=-1)
    means = torch.stack([cosines[rows == row].mean() for row in range(6)])
    drivers = table.drivers()
    assert [one.row for one in drivers] == means.argsort().tolist()
    assert [one.cosine for one in drivers] == pytest.approx(means.sort().values.tolist(), abs=1e-6)
    assert min(row.cosine for row in table) == most.cosine
    assert f"most at '{most.layer}'" in repr(table) and "<table" in table._repr_html_()
    assert list(table.to_pandas()["layer"]) == [row.layer for row in table]


def test_validation_in_inference_mode_gives_the_same_numbers() -> None:
    model = adapted()
    detector = DriftDetector("block:*", sketch_size=SIZE, on_error="raise")
    trainer(HookCallback(detector)).validate(Module(model).eval(), loader(token_data(6), 6), verbose=False)
    for row, other in zip(detector.table(), drift_of(model.eval(), batch(6)).table(), strict=True):
        assert row[2:] == pytest.approx(other[2:], rel=1e-5)


class Randomly(Module):
    """A module whose steps draw from every generator, so that a state that is left elsewhere shows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.drawn: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.drawn += [torch.rand(()).item(), random.random(), np.random.rand(), loss.item()]
        return loss + torch.rand(()) * loss


class Drawing(nn.Module):
    """A layer that draws from numpy and Python."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0.1 * random.random() + 0.1 * float(np.random.rand()))


def run(make: Any, data: Any, callback: pl.Callback | None, **options: Any) -> tuple[dict[str, Tensor], list[float]]:
    pl.seed_everything(3, verbose=False)
    module = Randomly(make())
    learns = [parameter.requires_grad for parameter in module.parameters()]
    before = handles(module)
    data = loader(data)
    trainer(*([callback] if callback else []), max_epochs=2, **options).fit(module, data, data)
    assert [parameter.requires_grad for parameter in module.parameters()] == learns
    assert_same_handles(before, module)
    return {name: value.clone() for name, value in module.state_dict().items()}, module.drawn


def with_frozen() -> Any:
    """PEFT's context would switch the gradients of this part of the adapter on again."""
    model = adapted(dropout=0.1, attention_dropout=0.2)
    next(parameter for name, parameter in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    return model


def with_checkpointing() -> Any:
    model = adapted()
    with warnings.catch_warnings():  # transformers 5 has another name for it
        warnings.simplefilter("ignore", FutureWarning)
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def drawing() -> nn.Module:
    net = Net()
    net.head = nn.Sequential(Drawing(), net.head)  # type: ignore[assignment]
    return net


CASES = {
    "dropout, BatchNorm, numpy": (drawing, vector_data, {}, "model.blocks.*"),
    "PEFT, dropouts, a frozen part": (with_frozen, token_data, {}, "block:*"),
    "autocast": (with_frozen, token_data, {"precision": "bf16-mixed"}, "block:*"),
    "checkpointing": (with_checkpointing, token_data, {}, "block:*"),
    "accumulation": (with_frozen, token_data, {"accumulate_grad_batches": 2}, "block:*"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*different dropout masks:UserWarning")
def test_the_run_is_bit_identical(case: str) -> None:
    make, data, options, layers = CASES[case]
    detector = DriftDetector(layers)
    plain, drawn = run(make, data(), None, **options)
    watched, drawn_beside = run(make, data(), HookCallback(detector), **options)
    assert drawn == drawn_beside
    assert plain.keys() == watched.keys() and all(torch.equal(plain[name], watched[name]) for name in plain)
    assert len(detector.table()) >= 3 and detector.table().moved_most().cosine < 1


def test_it_runs_a_second_pass_on_due_steps_alone_and_no_other_hook_sees_it() -> None:
    model = adapted()
    passes: list[bool] = []
    model.base_model.model.model.norm.register_forward_hook(lambda *call: passes.append(torch.is_grad_enabled()))
    seen = FunctionController("block:0", lambda x: x + 1.0, schedule=Schedule(stages="train"), hook_id="plus")
    callback = HookCallback(DriftDetector("block:*"), seen, log_every_n_steps=2)
    data = loader(token_data())
    trainer(callback, limit_val_batches=0).fit(Module(model), data, data)
    assert passes == [True, True, False, True, True, False, True]  # 5 steps, of which 2 are logged
    (effect,) = callback.effects()
    assert effect.fired == 5
    last = [row for row in callback.history() if row.name == "cosine" and row.step == 3]
    assert last and last[0].value < 0.9  # what the controller adds is not in the reference


def test_memory_is_flat() -> None:
    model = adapted()
    module, counts = Module(model), []

    class Count(pl.Callback):
        def on_train_batch_start(self, *event: Any) -> None:
            tensors = tensors_alive()
            counts.append((len(tensors), sum(one.numel() for one in tensors)))

    data = loader(token_data(40))
    watch = HookCallback(DriftDetector("block:*"))
    with few_objects():  # those of other tests may be lazy or nested
        trainer(Count(), watch, max_epochs=2, limit_val_batches=0).fit(module, data, data)
    assert len(counts) == 20
    assert len(set(counts[4:])) == 1, counts


def test_nothing_is_held_after_a_pass_that_breaks_off() -> None:
    model, detector = Net(), DriftDetector("blocks.*")
    layers = Layers(model)
    layers.register_hook(None, detector)
    model.head.register_forward_hook(lambda *call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.randn(4, 8))
    assert detector._calls.running is None
    model.head._forward_hooks.clear()
    model(torch.randn(4, 8))
    assert not detector._paired._held and {one.name for one in layers.take_readings()} >= {"cosine", "cka"}
    assert all(row.tokens == 4 for row in detector.table())


class InPlace(Net):
    """A model that writes to what its blocks return."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            x.mul_(2)
        y: Tensor = self.head(x)
        return y


class Writes(Net):
    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return super().forward(x)


def failing(model: nn.Module, *args: Any, layer: Any = "blocks.*", **kwargs: Any) -> BaseException:
    layers = Layers(model)
    layers.register_hook(None, DriftDetector(layer))
    with pytest.raises(HookError) as caught:
        model(*args, **kwargs)
    assert isinstance(caught.value.original_error, ReferenceMismatch)
    return caught.value.original_error


def test_what_cannot_be_compared_is_refused() -> None:
    assert "is written to after" in str(failing(InPlace(), torch.randn(4, 8)))
    assert "Writes writes to the tensors" in str(failing(Writes(), torch.randn(4, 8)))
    with_cache = adapted().eval()
    cache = with_cache(**batch()).past_key_values
    assert "past_key_values" in str(
        failing(with_cache, torch.ones(4, 1).long(), past_key_values=cache, layer="block:*")
    )
    merged = adapted()
    merged.merge_adapter()
    weights = copy.deepcopy(merged.state_dict())
    assert "is merged" in str(failing(merged, **batch(), layer="block:*"))
    assert all(torch.equal(weights[name], value) for name, value in merged.state_dict().items())
    with pytest.raises(RegistrationError, match="no module of the model offers"):
        Layers(llama()).register_hook(None, DriftDetector("block:*"))
    with pytest.raises(NothingExtracted):
        DriftDetector("block:*").table()


def test_layers_that_are_called_alone_are_refused() -> None:
    model = Net()
    layers = Layers(model)
    layers.register_hook(None, DriftDetector("blocks.*"))
    with pytest.raises(HookError, match="no module around it"):
        model.blocks[0][0].base(torch.randn(4, 8)), model.blocks[0](torch.randn(4, 8))


def test_noise_of_dropout_is_said_aloud() -> None:
    model = adapted(dropout=0.5, attention_dropout=0.3).train()
    with pytest.warns(UserWarning, match="different dropout masks"):
        drift_of(model, batch())
    drift_of(adapted(dropout=0.5, attention_dropout=0.0).train(), batch())  # the adapter's own: no warning
    drift_of(adapted(dropout=0.0, attention_dropout=0.3).train(), batch())  # the same masks: no warning


def test_passes_of_generate_are_left_out() -> None:
    callback = HookCallback(DriftDetector("block:*", schedule=Schedule(stages="predict")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback).predict(Module(adapted()), loader(token_data(4)))
    assert any("leaves out the passes of generate" in str(one.message) for one in caught)
    assert not callback.history()


def test_a_copy_is_of_no_run() -> None:
    model = adapted()
    detector = drift_of(model, batch())
    again = pickle.loads(pickle.dumps(detector))
    assert again.table() == detector.table() and drift_of(copy.deepcopy(model), batch(), name="x").table()


class Padded(nn.Module):
    """A language model that lays all tokens in one row before its adapter, or gives the last ``keep`` logits alone."""

    def __init__(self, flat: bool = False, keep: int = 0, classes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.inner, self.head = nn.Embedding(64, 8), Adapter(nn.Linear(8, 8)), nn.Linear(8, 64)
        self.flat, self.keep, self.classes = flat, keep, classes

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Any = None) -> Any:
        x = self.embedding(input_ids)  # (B, T, D)
        y = self.inner(x.flatten(0, 1)).view_as(x) if self.flat else self.inner(x)
        logits = self.head(y.mean(1) if self.classes else y[:, -self.keep :])
        return {"logits": logits, "loss": logits.sum()}

    disable_adapter = Net.disable_adapter


def both_ways(model: Any, data: dict[str, Tensor]) -> Tensor:
    """KL of each token's distribution from that with the adapter off, in float64."""
    with torch.no_grad():
        own = model(**data)["logits"].double()
        with model.disable_adapter():
            other = model(**data)["logits"].double()
    return (own.softmax(-1) * (own.log_softmax(-1) - other.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("flat", [False, True])
def test_logits_of_padding_do_not_count_whatever_the_form_of_the_layer(flat: bool) -> None:
    model, data = Padded(flat), batch(8)
    table = drift_at_inner(model, data)
    assert table.logit_kl == pytest.approx(
        both_ways(model, data)[data["attention_mask"].bool()].mean().item(), rel=1e-5
    )


def drift_at_inner(model: nn.Module, data: dict[str, Tensor]) -> Any:
    detector, layers = DriftDetector("inner", on_error="raise"), Layers(model)
    layers.register_hook(None, detector)
    model(**data)
    layers.take_readings()
    return detector.table()


def test_logits_of_some_tokens_or_of_samples() -> None:
    """Which tokens the logits are of is not known: where padding may be among them, they are left out."""
    data = batch(8)
    assert drift_at_inner(Padded(keep=3), data).logit_kl is None
    whole = {**data, "attention_mask": torch.ones_like(data["attention_mask"])}
    for model, given in ((Padded(keep=3), whole), (Padded(classes=True), data)):
        assert drift_at_inner(model, given).logit_kl == pytest.approx(both_ways(model, given).mean().item(), rel=1e-5)


def test_a_validation_between_two_batches_of_a_step_forgets_no_sample_of_it() -> None:
    """Four batches of four make a step; a validation follows the second, before the step is read."""
    data = token_data(16)
    detector = DriftDetector("block:*", tokens="all", on_error="raise", schedule=Schedule(stages=["train", "validate"]))
    rows = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 3:
                rows.extend(detector.table().samples)

    module = Module(adapted())
    runner = trainer(
        HookCallback(detector), Keep(), accumulate_grad_batches=4, val_check_interval=2, num_sanity_val_steps=0
    )
    runner.fit(module, loader(data), loader(data[:4]))
    assert {one.batch_idx for one in rows} == {0, 1, 2, 3}
