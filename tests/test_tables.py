"""Results as tables: lists that read well, on a terminal and in a notebook, and become DataFrames."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from mi_crow_lightning import ActivationStatistics, ContrastDetector, HookCallback, ScaleController
from mi_crow_lightning.hooks.effects import Effect, EffectTable
from mi_crow_lightning.loggers import HistoryRow, HistoryTable, read_compact
from mi_crow_lightning.metrics.separability import Separability, SeparabilityTable

COLUMNS = ["block", "run", "stage", "step", "layer", "name", "value", "tag"]
HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J\u202e" + "h." * 200


def rows(count: int, layers: int = 4) -> list[HistoryRow]:
    return [
        HistoryRow("train", i // layers, f"rms/h.{i % layers}", f"h.{i % layers}", "rms", i / 2, i % layers, "fit")
        for i in range(count)
    ]


class Stacked(pl.LightningModule):
    """Three blocks of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
        self.head = nn.Linear(3, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.head(self.blocks(batch)).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.head(self.blocks(batch))

    predict_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def data() -> Any:
    return torch.utils.data.DataLoader(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), batch_size=2)


def trainer(callback: HookCallback, logger: Any = False, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(
        accelerator="cpu", logger=logger, callbacks=[callback], max_epochs=2, log_every_n_steps=2, **quiet, **options
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[HookCallback, Path]:
    """Two fits and a predict of one callback, the first with a log."""
    watch = HookCallback(
        [ActivationStatistics("block:*"), ActivationStatistics("head", name="head", statistics=["rms"])],
        [ScaleController("block:1", 2.0, hook_id="twice")],
    )
    logger = TensorBoardLogger(tmp_path_factory.mktemp("logs"), name="mine")
    trainer(watch, logger).fit(Stacked(), data(), data())
    trainer(watch, limit_val_batches=0).fit(Stacked(), data(), data())
    trainer(watch).predict(Stacked(), data())
    return watch, Path(logger.log_dir)


def test_one_line_pivots_a_statistic(ran: tuple[HookCallback, Path]) -> None:
    watch, folder = ran
    for frame in (watch.history().to_pandas(), read_compact(folder).to_pandas().replace({"run": "version_0"}, "fit")):
        assert list(frame.columns) == COLUMNS
        chosen = frame.query(
            "run == 'fit' and stage == 'train' and name == 'rms' and tag.str.startswith('activations')"
        )
        pivoted = chosen.pivot(index="block", columns="step", values="value")
        assert pivoted.index.tolist() == [0, 1, 2] and pivoted.columns.tolist() == [1, 3, 5, 7]
        expected = {
            (row.layer, row.step): row.value
            for row in watch.history()
            if (row.run, row.stage, row.name) == ("fit", "train", "rms")
        }
        for block in range(3):
            for step in (1, 3, 5, 7):
                assert pivoted.loc[block, step] == pytest.approx(expected[f"blocks.{block}", step], rel=1e-6)


def test_a_row_knows_its_run_and_its_block(ran: tuple[HookCallback, Path]) -> None:
    watch, folder = ran
    frame = watch.history().to_pandas()
    assert frame.run.unique().tolist() == ["fit", "fit 2", "predict"]
    stages = {run: set(of_run.stage) for run, of_run in frame.groupby("run")}
    assert stages == {"fit": {"train", "validate"}, "fit 2": {"train"}, "predict": {"predict"}}
    assert not frame.duplicated(["run", "stage", "step", "tag"]).any()
    blocks = frame.drop_duplicates("layer").set_index("layer").block
    assert blocks.isna().to_dict() == {
        "blocks.0": False,
        "blocks.1": False,
        "blocks.2": False,
        "head": True,
        "twice/blocks.1": False,
    }
    assert blocks["twice/blocks.1"] == 1
    read = read_compact(folder).to_pandas()
    assert set(read.run) == {"version_0"}
    assert read.drop_duplicates("layer").set_index("layer").block.dropna().to_dict() == {
        "blocks.0": 0,
        "blocks.1": 1,
        "blocks.2": 2,
    }


def test_history_in_one_line(ran: tuple[HookCallback, Path]) -> None:
    history = ran[0].history()
    numbers = len(list(history))
    assert repr(history) == (
        f"<history of fit, fit 2 and predict: {numbers:,} numbers of train, validate and predict: 5 layers, "
        f"{len({row.name for row in history})} statistics, 5 steps from 1 to 7>"
    )
    assert repr(HistoryTable()) == str(HistoryTable()) == "<history: no numbers>"


def test_a_report_in_a_frame(ran: tuple[HookCallback, Path]) -> None:
    frame = ran[0].report().to_pandas()
    assert list(frame.columns) == ["block", "run", "layer", "hook", "module", "output", "stack"]
    of_block = frame[frame.block == 1]
    assert of_block.hook.tolist() == ["ScaleController 'twice'", "ActivationStatistics"]
    assert of_block.iloc[0][["run", "layer", "module", "output"]].tolist() == [
        "predict",
        "blocks.1",
        "Linear",
        "(..., 3)",
    ]
    assert len(frame) == 5 and set(frame["stack"].dropna()) == {"blocks"}


def test_effects_in_a_table(ran: tuple[HookCallback, Path]) -> None:
    effects = ran[0].effects()
    assert repr(effects) == "<effects in predict: twice at 1 layer, 8 tokens changed, by 1 of the activation at most>"
    (row,) = effects
    assert (row.block, row.run, row.stage) == (1, "predict", "predict")
    frame = effects.to_pandas()
    assert frame.iloc[0][["block", "run", "hook", "tokens"]].tolist() == [1, "predict", "twice", 8]
    assert list(frame.columns)[:5] == ["block", "run", "stage", "hook", "layer"]
    assert HookCallback().effects() == [] and repr(HookCallback().effects()) == "<effects: nothing was counted>"


def test_separability_in_a_table() -> None:
    class Labelled(Stacked):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.blocks(batch["x"])

        predict_step = validation_step

    def batches() -> Any:
        return torch.utils.data.DataLoader([{"x": torch.randn(3), "label": i % 2} for i in range(12)], batch_size=6)

    detector = ContrastDetector("block:*")
    callback, module = HookCallback(detector), Labelled()
    trainer(callback).predict(module, batches())
    trainer(callback).validate(module, batches(), verbose=False)
    found = detector.separability()
    assert [row.block for row in found] == [0, 1, 2] and all(isinstance(row, Separability) for row in found)
    frame = found.to_pandas()
    assert frame.block.tolist() == [0, 1, 2] and frame.auroc.tolist() == [row.auroc for row in found]
    assert repr(found).startswith(f"<separability at 3 layers: best {detector.best_layer()!r}, with auroc ")
    restored = ContrastDetector("block:*")
    state = pickle.loads(pickle.dumps(detector.state_dict()))
    restored.load_state_dict(state)
    assert restored.separability() == found
    restored.load_state_dict({**state, "scores": [row[:4] for row in state["scores"]]})  # as earlier releases wrote it
    assert restored.separability() == [row._replace(block=None) for row in found]


TABLES = [
    HistoryTable(rows(8)),
    EffectTable([Effect("a", "h.0", "predict", 3, 1, 0.1, 0.2, 0, 0, "predict")]),
    SeparabilityTable([Separability("h.0", 0.5, 4, 0.0, 0)]),
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: type(table).__name__)
def test_they_are_lists(table: Any) -> None:
    plain = list(table)
    assert table == plain and isinstance(table, list) and len(table) == len(plain)
    for again in (copy.copy(table), copy.deepcopy(table), pickle.loads(pickle.dumps(table)), table.copy()):
        assert again == plain and type(again) is type(table)
    assert type(table[:1]) is type(table) and table[:1] == plain[:1] and table[0] == plain[0]
    assert type(table + plain) is type(table) and table + plain == plain + plain
    assert "\n" not in repr(table) and len(repr(table)) < 200
    empty = type(table)()
    assert empty.to_pandas().dtypes.equals(table.to_pandas().dtypes)  # so that concatenating keeps them
    assert empty._repr_html_().count("<") == 2 and "\n" not in str(empty)


def test_only_the_first_and_last_rows_are_shown() -> None:
    table = HistoryTable(rows(1000))
    text, html = str(table).splitlines(), table._repr_html_()
    assert len(text) == 24 and max(map(len, text[2:])) <= 80
    assert text[13].split() == ["..."]
    assert [line.split()[-1] for line in (text[3], text[12], text[14], text[23])] == ["0", "4.5", "495", "499.5"]
    assert html.count("<tr>") == 22 and "<td>...</td>" in html
    assert "<td>499.5</td>" in html and "<th>tag</th>" not in html


def test_names_of_strangers_are_escaped_and_cut() -> None:
    table = HistoryTable([HistoryRow("train", 1, HOSTILE, HOSTILE, HOSTILE, math.nan, None, HOSTILE)])
    for text in (repr(table), str(table), table._repr_html_()):
        assert "\x1b" not in text and "\u202e" not in text and len(text) < 1200
    assert "<img" not in table._repr_html_() and "&lt;img" in table._repr_html_()
    assert table.to_pandas().layer[0] == HOSTILE


def test_a_hundred_thousand_rows_become_a_frame_in_less_than_a_second() -> None:
    table = HistoryTable(rows(100_000, layers=30))
    began = time.perf_counter()
    frame = table.to_pandas()
    assert time.perf_counter() - began < 1.0
    assert frame.shape == (100_000, 8)
    assert frame.dtypes.astype(str).tolist() == ["Int64", "str", "str", "int64", "str", "str", "float64", "str"]
    pd.testing.assert_frame_equal(frame[["step", "value"]], pd.DataFrame(list(table))[["step", "value"]])


@pytest.mark.parametrize("table", TABLES, ids=lambda table: type(table).__name__)
def test_without_pandas_an_error_names_the_extra(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_pandas\(\) needs pandas: pip install 'mi-crow-lightning\[pandas\]'"):
        table.to_pandas()
    assert table._repr_html_() and str(table)
