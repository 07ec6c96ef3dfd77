"""ContrastDetector in a Trainer: what it extracts and scores is numpy's over all samples, collected by hand."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from mi_crow_lightning import ContrastDetector, HookCallback, HookError, Layers, SteeringVector
from mi_crow_lightning.errors import CaptureBudgetExceeded, NothingExtracted
from mi_crow_lightning.hooks import Moment, Schedule, Stage
from mi_crow_lightning.metrics.class_moments import GROUPS
from tests.callback.runs import OnEvent, told
from tests.hooks.detectors.contrasts import Reader, batches, by_hand, labels, texts
from tests.models import BLOCKS, Module, bert, gpt2, llama, trainer

PAIRS, HELD_OUT = 11, 5
ALL = dict(covariance=GROUPS, keep_samples=True)


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name.split(".")[-1].isdigit()][:BLOCKS]


def extract(detector: ContrastDetector, model: nn.Module, loader: Any, stage: str = "predict", **options: Any) -> Any:
    callback = HookCallback(detectors=detector)
    run = trainer(callback, **options)
    getattr(run, stage)(Reader(model), loader)
    return callback


def assert_directions(vector: SteeringVector, wanted: dict[str, np.ndarray], rtol: float = 1e-6) -> None:
    assert list(vector) == [f"model.{layer}" for layer in wanted]
    for layer, direction in wanted.items():
        atol = rtol * np.abs(direction).max()
        np.testing.assert_allclose(vector[f"model.{layer}"].numpy(), direction, rtol=rtol, atol=atol, err_msg=layer)


def scaled(unit: np.ndarray, delta: np.ndarray) -> np.ndarray:
    return unit * (unit @ delta) / (unit @ unit)


@pytest.mark.parametrize("tokens", ["all", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_the_difference_of_means_over_the_chosen_tokens(make: Any, side: str, tokens: str) -> None:
    model, loader = make(), batches(texts(PAIRS), side)
    detector = ContrastDetector("block:*", tokens=tokens)
    extract(detector, model, loader)
    label = labels(loader)
    rows = by_hand(model, loader, layers_of(model), tokens)
    wanted = {layer: x[label == 1].mean(0) - x[label == 0].mean(0) for layer, x in rows.items()}
    assert len(wanted) == BLOCKS
    vector = detector.vectors()
    assert_directions(vector, wanted)
    assert (vector.method, vector.model, vector.tokens) == ("mean_difference", type(model).__name__, tokens)
    assert dict(vector.samples) == {"0": PAIRS, "1": PAIRS, "pairs": PAIRS} and not vector.metadata


def test_the_principal_component_of_paired_differences() -> None:
    model, loader = llama(), batches(texts(PAIRS), pairs_in_batch=3)
    detector = ContrastDetector("block:*", method="pca", covariance=["difference"])
    extract(detector, model, loader)
    wanted = {}
    for layer, x in by_hand(model, loader, layers_of(model)).items():
        differences = x[0::2] - x[1::2]
        unit = np.linalg.svd(np.concatenate([differences, -differences]))[2][0]
        wanted[layer] = scaled(unit, differences.mean(0))
    assert_directions(detector.vectors(), wanted)
    assert detector.vectors().method == "pca" and detector.vectors("mean_difference").method == "mean_difference"


def test_the_logistic_probe_separates_what_it_was_fitted_on() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    detector = ContrastDetector("block:*", method="logistic", keep_samples=True)
    extract(detector, model, loader)
    vector, label = detector.vectors(), labels(loader)
    for layer, x in by_hand(model, loader, layers_of(model)).items():
        projections = x @ vector[f"model.{layer}"].double().numpy()
        assert projections[label == 1].min() > projections[label == 0].max()
        # Along the probe the vector is as long as the class means are apart.
        norm = vector.norms()[f"model.{layer}"]
        apart = projections[label == 1].mean() - projections[label == 0].mean()
        assert apart / norm == pytest.approx(norm, rel=1e-4)


def test_moments_are_numpys() -> None:
    model, loader = llama(), batches(texts(PAIRS), "right")
    detector = ContrastDetector("block:1", **ALL)
    extract(detector, model, loader)
    (x,) = by_hand(model, loader, ["model.layers.1"]).values()
    (found,) = detector.moments().values()
    for group, wanted in zip(GROUPS, (x[1::2], x[0::2], x[0::2] - x[1::2]), strict=True):
        assert found[group].n == PAIRS
        np.testing.assert_allclose(found[group].mean.numpy(), wanted.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[group].covariance.numpy(), np.cov(wanted.T), rtol=1e-7, atol=1e-12)


def test_a_vector_of_what_goes_into_a_layer_says_so() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    into, out = ContrastDetector("block:2", hook_type="pre_forward"), ContrastDetector("block:1")
    extract(into, model, loader), extract(out, model, loader)
    assert torch.equal(into.vectors()["model.model.layers.2"], out.vectors()["model.model.layers.1"])
    assert dict(into.vectors().metadata) == {"hook_type": "pre_forward"}


class Generating(Reader):
    """Predict generates, as an instruction-tuned model answers: the texts are what it generates."""

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return self.model.generate(**tokens, max_new_tokens=5, do_sample=False, eos_token_id=None)


def test_the_passes_of_a_batch_are_one_text() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    detectors = {which: ContrastDetector("block:2", tokens=which, name=which) for which in ("all", "generated")}
    generated = trainer(HookCallback(list(detectors.values()))).predict(Generating(model), loader)
    rows: dict[str, list[np.ndarray]] = {"all": [], "generated": []}
    kept: list[Tensor] = []
    model.model.layers[2].register_forward_hook(
        lambda module, args, output: kept.append(output if isinstance(output, Tensor) else output[0])
    )
    for batch, ids in zip(loader, generated, strict=True):
        new = ids.shape[1] - batch["input_ids"].shape[1]
        mask = torch.cat([batch["attention_mask"], torch.ones(len(ids), new, dtype=torch.long)], dim=1)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
        for x, real in zip(kept.pop().double().numpy(), mask.bool().numpy(), strict=True):
            rows["all"].append(x[:-1][real[:-1]].mean(0))  # the last token that is generated is not read again
            rows["generated"].append(x[-new:-1].mean(0))
    label = labels(loader)
    for which, detector in detectors.items():
        x = np.stack(rows[which])
        found = detector.vectors()["model.model.layers.2"].numpy()
        np.testing.assert_allclose(found, x[label == 1].mean(0) - x[label == 0].mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("signature", "scalars", "curves"), [("block:*", "summary", 2), ("block:*", "none", 0), ("*.?_proj", "all", 0)]
)
def test_there_is_one_curve_over_the_blocks_where_each_layer_is_in_one_of_its_own(
    signature: str, scalars: Any, curves: int, tmp_path: Path
) -> None:
    logger, callback = TensorBoardLogger(tmp_path), HookCallback(ContrastDetector(signature, **ALL), scalars=scalars)
    run, loader = trainer(callback, logger=logger), batches(texts(4))
    run.predict(Reader(llama()), loader)
    run.validate(run.lightning_module, loader, verbose=False)
    logger.finalize("success")
    tags = EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]
    assert len([tag for tag in tags if "/by_block/" in tag]) == curves and callback.history()


def by_rank(scores: np.ndarray, label: np.ndarray) -> float:
    positive, negative = scores[label == 1][:, None], scores[label == 0]
    return float((positive > negative).mean() + (positive == negative).mean() / 2)


@pytest.mark.parametrize("method", ["mean_difference", "pca", "logistic"])
def test_held_out_samples_are_scored_on_each_layers_direction(method: str, tmp_path: Path) -> None:
    model, loader, other = llama(), batches(texts(PAIRS)), batches(texts(HELD_OUT, seed=5), "right")
    detector = ContrastDetector("block:*", method=method, **ALL)
    callback = HookCallback(detectors=detector)
    logger = TensorBoardLogger(tmp_path)
    run = trainer(callback, logger=logger)
    run.predict(Reader(model), loader)
    run.validate(Reader(model), other, verbose=False)

    label, table = labels(other), {row.layer: row for row in detector.separability()}
    assert list(table) == list(detector.vectors())
    for layer, x in by_hand(model, other, layers_of(model)).items():
        projections = x @ detector.vectors()[f"model.{layer}"].double().numpy()
        row = table[f"model.{layer}"]
        assert (row.n, row.auroc) == (2 * HELD_OUT, pytest.approx(by_rank(projections, label), abs=1e-6))
        groups = projections[label == 1], projections[label == 0]
        spread = np.sqrt((groups[0].var() + groups[1].var()) / 2)
        assert row.d_prime == pytest.approx((groups[0].mean() - groups[1].mean()) / spread, rel=1e-4)
    assert len({row.auroc for row in table.values()}) > 1  # else this shows little
    best = table[detector.best_layer()]
    assert (best.auroc, best.d_prime) == max((row.auroc, row.d_prime) for row in table.values())

    logged = {(row.stage, row.name, row.layer): row for row in callback.history()}
    for layer, row in table.items():
        assert logged["validate", "auroc", layer].value == row.auroc
        assert logged["validate", "auroc", layer].tag == f"contrast_auroc/val/{layer}"
        assert logged["validate", "d_prime", layer].value == row.d_prime
        norm = detector.vectors("mean_difference").norms()[layer]
        assert logged["predict", "norm", layer].value == pytest.approx(norm, rel=1e-6)
        assert run.callback_metrics[f"contrast_auroc/val/{layer}"].item() == pytest.approx(row.auroc)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    assert {f"contrast_auroc/val/{layer}" for layer in table} <= set(events.Tags()["scalars"])
    for name in ("auroc", "d_prime"):
        curve = [(point.step, point.value) for point in events.Scalars(f"contrast_{name}/by_block/val")]
        assert curve == [(i, pytest.approx(getattr(row, name))) for i, row in enumerate(table.values())]
    assert "contrast_norm/by_block/predict" not in events.Tags()["scalars"]


def test_each_run_begins_anew_and_broken_off_ones_give_nothing() -> None:
    model, first, second = llama(), batches(texts(PAIRS)), batches(texts(4, seed=3))
    detector = ContrastDetector("block:1")
    with pytest.raises(NothingExtracted, match="has no vectors: predict on batches with labels must reach its end"):
        detector.vectors()
    extract(detector, model, first)
    one = detector.vectors()
    extract(detector, model, second)
    two = detector.vectors()
    assert one.samples["pairs"] == PAIRS and two.samples["pairs"] == 4

    def fail(*_: Any) -> None:
        raise RuntimeError("the run broke")

    run = trainer(HookCallback(detectors=detector), OnEvent("on_predict_epoch_end", fail))
    with pytest.raises(RuntimeError, match="the run broke"):
        # Our callback comes first, so its stage ends before the other one fails.
        run.predict(Reader(model), first)
    assert detector.vectors() == one
    other = ContrastDetector("block:1")
    broken = trainer(HookCallback(other), OnEvent("on_predict_batch_end", lambda t, m, i: fail() if i == 2 else None))
    with pytest.raises(RuntimeError, match="the run broke"):
        broken.predict(Reader(model), first)
    with pytest.raises(NothingExtracted):
        other.vectors()
    extract(other, model, first)
    assert other.vectors() == one


def test_scores_belong_to_the_last_extraction() -> None:
    model, loader, other = llama(), batches(texts(PAIRS)), batches(texts(HELD_OUT, seed=5))
    detector = ContrastDetector("block:1")
    unlabelled = [{k: v for k, v in batch.items() if k != "label"} for batch in other]
    with told(r"has no vectors to score in validate: run predict before it"):
        extract(detector, model, DataLoader(unlabelled, batch_size=None), "validate", logger=False)
    extract(detector, model, loader)
    with pytest.raises(NothingExtracted, match="since predict: run validate on labelled batches"):
        detector.separability()
    extract(detector, model, other, "validate")
    assert detector.separability()[0].n == 2 * HELD_OUT
    extract(detector, model, loader)
    with pytest.raises(NothingExtracted):
        detector.best_layer()


def test_other_stages() -> None:
    model, loader, other = llama(), batches(texts(PAIRS)), batches(texts(HELD_OUT, seed=5))
    detector = ContrastDetector("block:1", stage="validate", held_out="test")
    for stage, data in (("validate", loader), ("test", other), ("predict", other)):
        extract(detector, model, data, stage)
    assert detector.vectors().samples["pairs"] == PAIRS and detector.separability()[0].n == 2 * HELD_OUT
    alone = ContrastDetector("block:1", held_out=None)
    extract(alone, model, loader), extract(alone, model, other, "validate")
    with pytest.raises(NothingExtracted, match="held_out is None"):
        alone.separability()


def test_classes_by_name_and_columns_by_function() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    plain = ContrastDetector("block:1")
    extract(plain, model, loader)
    named = []
    for batch in loader:
        kinds = [("sorrow", "joy")[label] for label in batch.pop("label").tolist()]
        named.append({**batch, "kind": kinds, "of": batch.pop("pair").tolist()})
    detector = ContrastDetector(
        "block:1", classes=("sorrow", "joy"), label="kind", pair=lambda batch: torch.tensor(batch["of"])
    )
    extract(detector, model, DataLoader(named, batch_size=None))
    layer = "model.model.layers.1"
    assert torch.equal(detector.vectors()[layer], plain.vectors()[layer])
    assert dict(detector.vectors().samples) == {"sorrow": PAIRS, "joy": PAIRS, "pairs": PAIRS}
    swapped = ContrastDetector("block:1", classes=(1, 0))
    extract(swapped, model, batches(texts(PAIRS)))
    assert torch.equal(swapped.vectors()[layer], -plain.vectors()[layer])


def test_rows_without_a_chosen_token_are_left_out_and_told() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    detector = ContrastDetector("block:1", tokens="generated")
    with pytest.raises(HookError, match="there are 0 negative, 0 positive"), told("22 rows had none of the chosen"):
        extract(detector, model, loader)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"label": None},
            {},
            r"needs labels under 'label', and it has the keys \['attention_mask', 'input_ids', 'pair'\]",
        ),
        ({}, {"label": "kind"}, r"needs labels under 'kind'"),
        (
            {"label": torch.ones(4, 1)},
            {},
            r"the labels must be a tensor \(B,\) or a list, not a Tensor of shape \(4, 1\)",
        ),
        ({"label": "1010"}, {}, r"the labels must be a tensor \(B,\) or a list, not a str"),
        ({"label": torch.ones(3)}, {"pair": "no"}, r"activation of shape \(4, 7, 32\), and the batch has 3 labels"),
        ({"pair": torch.ones(3)}, {}, r"4 labels and 3 pair numbers"),
        ({"label": ["joy"] * 4}, {}, r"label 'joy' is of no class: the classes are 0 and 1; give classes="),
        ({}, {"classes": ("sorrow", "joy")}, r"the labels are a tensor, and the classes 'sorrow' and 'joy' have names"),
        ({"label": torch.tensor([0, 1, 2, 3])}, {}, r"12 rows have a label of neither class: give classes="),
        ({"label": torch.ones(4)}, {}, r"there are 0 negative, 24 positive"),
        ({"pair": torch.arange(4)}, {"method": "pca"}, r"of 12 negative and 12 positive vectors 0 of each are in one"),
        ({"pair": None}, {"method": "pca"}, r"both rows of a pair must be in one batch"),
    ],
)
def test_wrong_batches_are_refused(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    loader = [{**batch, **change} for batch in batches(texts(12))]
    given = DataLoader([{k: v for k, v in batch.items() if v is not None} for batch in loader], batch_size=None)
    with pytest.raises(HookError, match=message):
        extract(ContrastDetector("block:1", **{**ALL, **options}), llama(), given)


@pytest.mark.parametrize(
    ("model", "label", "message"),
    [
        (
            llama(),
            torch.tensor([0, 1, 2, 1]),
            r"1 held-out labels \(over all layers\) are of neither class: give classes=",
        ),
        (llama(), torch.ones(4), "'model.model.layers.1': both classes are needed, and of 4 samples 4 are positive"),
        (
            llama(hidden_size=16),
            torch.tensor([0, 1, 0, 1]),
            r"no direction of width 16 for 'model.model.layers.1'; those extracted are {'model.model.layers.1': 32}",
        ),
    ],
    ids=["another class", "one class", "another width"],
)
def test_wrong_held_out_batches_are_refused(model: nn.Module, label: Tensor, message: str) -> None:
    detector = ContrastDetector("block:1")
    extract(detector, llama(), batches(texts(4)))
    given = DataLoader([{**batch, "label": label} for batch in batches(texts(2))], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(HookError, match=message):
        extract(detector, model, given, "validate")


def test_more_rows_than_labels_are_refused() -> None:
    class Beams(Generating):
        def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.model.generate(batch["input_ids"], num_beams=2, max_new_tokens=2)

    with pytest.raises(HookError, match=r"with one row for each label \(in beam search there are more\)"):
        trainer(HookCallback(ContrastDetector("block:1"))).predict(Beams(llama()), batches(texts(4)))


def test_methods_that_need_what_was_not_kept() -> None:
    detector = ContrastDetector("block:1")
    extract(detector, llama(), batches(texts(PAIRS)))
    with pytest.raises(ValueError, match=r"was not kept: covariance=\['difference'\]"):
        detector.vectors("pca")
    with pytest.raises(ValueError, match=r"give keep_samples=True"):
        detector.vectors("logistic")
    with pytest.raises(ValueError, match=r"method='median' is not known: choose one of 'mean_difference', 'pca', 'log"):
        detector.vectors("median")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, "method='median' is not known"),
        ({"method": "pca"}, r"method='pca' needs covariance=\['difference'\]"),
        ({"method": "logistic"}, "method='logistic' needs keep_samples=True"),
        ({"covariance": "difference"}, "covariance='difference': choose a list of groups from 'negative', 'positive'"),
        ({"covariance": ["pairs"]}, r"covariance=\['pairs'\]: choose"),
        ({"classes": (1,)}, r"classes=\(1,\) must be two"),
        ({"classes": "ab"}, "classes='ab' must be two"),
        ({"classes": (1, 1)}, r"classes=\(1, 1\) must be two"),
        ({"max_bytes": 0}, "max_bytes=0 must be a whole number"),
        ({"stage": "train"}, "stage='train' is not known: choose one of 'predict', 'validate', 'test'"),
        ({"held_out": "train"}, "held_out='train' is not known: choose one of"),
        ({"held_out": "predict"}, "stage and held_out are both 'predict'"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastDetector("block:1", **options)


def test_samples_stop_at_their_budget() -> None:
    detector = ContrastDetector("block:1", keep_samples=True, max_bytes=4 * 33 * 10)
    with pytest.raises(HookError, match=r"would take 1,584 bytes, and max_bytes=1,320") as caught:
        extract(detector, llama(), batches(texts(PAIRS)))
    assert isinstance(caught.value.original_error, CaptureBudgetExceeded)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if not parts and type(value).__module__.startswith("mi_crow_lightning.") and hasattr(value, "__dict__"):
        parts = [part for name, part in vars(value).items() if name not in ("_registry", "_context")]
    return [tensor for part in parts for tensor in tensors_in(part)]


def test_memory_does_not_grow_with_the_samples() -> None:
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
    for layer, value in detector.vectors().items():
        assert torch.equal(value, trained.vectors()[f"model.{layer}"])
    with torch.inference_mode():
        for batch in other:
            layers.begin_batch(Moment(Stage.VALIDATE), batch)
            model(batch["input_ids"], attention_mask=batch["attention_mask"])
    assert len(detector.readings()) == 2 * BLOCKS
    assert [row.auroc for row in detector.separability()] == [row.auroc for row in trained.separability()]


def test_vectors_of_what_is_no_sequence() -> None:
    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[0])

    torch.manual_seed(0)
    x, y, module = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0]), Classifier()
    detector = ContrastDetector("net.0", label=lambda batch: batch[1], pair=lambda batch: None)
    trainer(HookCallback(detector)).predict(module, DataLoader([(x[:4], y[:4]), (x[4:], y[4:])], batch_size=None))
    out = module.net[0](x).detach()
    torch.testing.assert_close(detector.vectors()["net.0"], out[y == 1].mean(0) - out[y == 0].mean(0))
    assert dict(detector.vectors().samples) == {"0": 3, "1": 3, "pairs": 0}


def test_what_padding_holds_does_not_count() -> None:
    class Padded(nn.Module):
        """Gives NaN at padding, as attention over nothing does."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = nn.functional.one_hot(input_ids, 64).float()
            return self.inner(torch.where(attention_mask[..., None].bool(), x, float("nan")))

    detector = ContrastDetector("inner")
    trainer(HookCallback(detector)).predict(Reader(Padded()), batches(texts(PAIRS)))
    assert detector.vectors()["model.inner"].any()


def test_a_direction_that_is_not_finite_names_its_layer() -> None:
    model = llama()
    model.model.layers[2].register_forward_hook(lambda module, args, output: output * float("nan"))
    detector = ContrastDetector("block:*")
    extract(detector, model, batches(texts(PAIRS)))
    with pytest.raises(ValueError, match=r"the direction of 'model.model.layers.2' holds 32 non-finite values"):
        detector.vectors()


def test_tokens_in_one_row() -> None:
    class Flat(nn.Module):
        """Lays all tokens in one row for its inner layer, as mixtures of experts do."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Identity(), nn.Identity()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = nn.functional.one_hot(input_ids, 64).float()
            return self.outer(self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    detectors = [ContrastDetector(name, name=name) for name in ("inner", "outer")]
    trainer(HookCallback(detectors)).predict(Reader(Flat()), batches(texts(PAIRS)))
    inner, outer = (next(iter(detector.vectors().values())) for detector in detectors)
    assert torch.equal(inner, outer) and inner.any()


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
        assert loaded.vectors(method) == detector.vectors(method)
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
    assert copied.vectors("pca") == detector.vectors("pca") and not copied.registered


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
