"""Strategies that do not show gradients or weights are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy

from mi_crow_lightning import ActivationStatistics, GradientStatistics, WeightStatistics
from mi_crow_lightning.report.refusals import strategy_refusals
from tests.models import trainer

HOOKS = (GradientStatistics("0"), WeightStatistics("0"), ActivationStatistics("0"))


def refused(strategy: type[Strategy], precision: Any) -> list[str]:
    """The refusals of a Trainer with the strategy, which Lightning makes on machines with a GPU alone."""
    runner = trainer()
    bare = strategy.__new__(strategy)
    bare._precision_plugin = precision
    runner._accelerator_connector.strategy = bare
    return strategy_refusals(runner, HOOKS)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, pytorch_lightning.strategies.FSDPStrategy])
def test_strategies_that_keep_weights_elsewhere_are_refused_for_weights(strategy: Any) -> None:
    (reason,) = refused(strategy, Precision())
    assert reason.startswith("WeightStatistics(layer_signature='0'): ")
    assert f"{strategy.__name__} keeps weights in a separate form" in reason
    assert "fully_shard" in reason


def test_deepspeed_in_half_precision_is_refused_for_gradients() -> None:
    of_gradients, of_weights = refused(DeepSpeedStrategy, MixedPrecision("16-mixed", "cpu"))
    assert of_gradients.startswith("GradientStatistics(layer_signature='0'): DeepSpeed multiplies the loss by a factor")
    assert of_weights.startswith("WeightStatistics(layer_signature='0'): DeepSpeedStrategy")
    (only,) = refused(FSDPStrategy, MixedPrecision("16-mixed", "cpu"))
    assert only.startswith("WeightStatistics")


def test_a_plain_trainer_is_not_refused() -> None:
    assert strategy_refusals(trainer(), HOOKS) == []
