"""Other callbacks that change the weights: they are those of a run without ours, and readings are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

from tests.callback.plain_hooks import Reference, counts, in_order, means, watching
from tests.callback.runs import assert_bit_equal, data_of, fit, module_of, run
from tests.models import handles, trainer


def averaging() -> dict[str, Callable[[], pl.Callback]]:
    found: dict[str, Callable[[], pl.Callback]] = {"mean": WeightAveraging}
    if hasattr(lightning_callbacks, "EMAWeightAveraging"):
        found["ema"] = lambda: lightning_callbacks.EMAWeightAveraging(decay=0.5)
    return found


@pytest.mark.documents("compatibility/weightaveraging-ema-swa/detectors")
@pytest.mark.parametrize("order", ["ours first", "ours last"])
@pytest.mark.parametrize("which", averaging())
def test_weight_averaging(which: str, order: str) -> None:
    def trained(*ours: pl.Callback) -> tuple[dict[str, Any], Reference]:
        module, reference = module_of(), Reference()
        theirs = [averaging()[which](), reference]
        run("fit", trainer(*in_order(ours, theirs, order), max_epochs=2), module, data_of())
        assert not handles(module)
        return module.state_dict(), reference

    watch = watching()
    weights, reference = trained(watch)
    assert_bit_equal(weights, trained()[0])
    # Validation runs the averaged weights: the plain hook saw the same.
    assert [value for _, value in means(watch, "validate")] == pytest.approx(reference.validations, rel=1e-6)
    assert len(reference.validations) == 2
    fit(module_of(), data_of(), watch)


@pytest.mark.documents("compatibility/weightaveraging-ema-swa/detectors")
@pytest.mark.parametrize("order", ["ours first", "ours last"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.filterwarnings("ignore:Found .* in eval mode:UserWarning")
def test_stochastic_weight_averaging(kind: str, order: str) -> None:
    def trained(*ours: pl.Callback) -> dict[str, Any]:
        module = module_of(kind)
        theirs = [StochasticWeightAveraging(1e-2, swa_epoch_start=1, annealing_epochs=1)]
        fit(module, data_of(kind), *in_order(ours, theirs, order), max_epochs=3)
        assert not handles(module)
        return module.state_dict()

    watch = watching()
    assert_bit_equal(trained(watch), trained())
    # With batch norms an epoch without steps follows, for their running statistics: it is read as one more step.
    steps, a_batch = [step for step, _ in means(watch, "train")], counts(watch)[0]
    assert steps == list(range(15 + (kind == "cnn")))
    assert counts(watch) == [a_batch] * 15 + [5 * a_batch] * (kind == "cnn")
