"""What ContrastDetector refuses: batches, arguments, and methods that need what was not kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import ContrastDetector, HookCallback, HookError
from mi_crow_lightning.errors import CaptureBudgetExceeded
from tests.callback.runs import told
from tests.hooks.detectors.contrasts import batches, texts
from tests.hooks.detectors.extracting import ALL, PAIRS, Generating, extract
from tests.models import llama, trainer


def test_rows_without_a_chosen_token_are_left_out_and_told() -> None:
    model, loader = llama(), batches(texts(PAIRS))
    detector = ContrastDetector("block:1", tokens="generated")
    with (
        pytest.raises(HookError, match="there are 0 negative, 0 positive"),
        told("22 rows were left out: they hold no chosen token"),
    ):
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
        ({"label": ["joy"] * 4}, {}, r"label 'joy' is of neither class: the classes are 0 and 1; give classes="),
        ({}, {"classes": ("sorrow", "joy")}, r"the labels are a tensor, and the classes 'sorrow' and 'joy' are names"),
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
        ({"covariance": ["pairs"]}, "covariance='pairs' is not known: choose one of 'negative', 'positive'"),
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


def test_a_direction_that_is_not_finite_names_its_layer() -> None:
    model = llama()
    model.model.layers[2].register_forward_hook(lambda module, args, output: output * float("nan"))
    detector = ContrastDetector("block:*")
    extract(detector, model, batches(texts(PAIRS)))
    with pytest.raises(ValueError, match=r"the direction of 'model.model.layers.2' holds 32 non-finite values"):
        detector.vectors()
