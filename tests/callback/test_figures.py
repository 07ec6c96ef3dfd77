"""Figures of a run: from the callback, and as images in its loggers."""

from __future__ import annotations

import copy
import pickle
import warnings
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, SteeringController
from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.figures.images import heatmap_image
from mi_crow_lightning.figures.readings import Series
from mi_crow_lightning.loggers import read_compact, read_compact_histograms
from mi_crow_lightning.loggers.histogram_history import STEPS, HistogramHistory
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, module_of, run
from tests.figures.rows import rows
from tests.loggers.written import MIDDLE, drawn
from tests.models import WIDTH, Module, llama, loader, trainer

pyplot = pytest.importorskip("matplotlib.pyplot")

# TensorBoard's plugins bring their own copy of html5lib.
pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")

FIT = dict(log_every_n_steps=2, max_epochs=2)  # five steps an epoch


def watching(**options: Any) -> HookCallback:
    return HookCallback(ActivationStatistics("block:*", statistics=["mean", "rms"], schedule=Schedule()), **options)


def run_all(runner: Any, *stages: str) -> None:
    module = module_of("llama")
    for stage in stages:
        run(stage, runner, module, data_of("llama"))


def images(folder: str) -> dict[str, list[Any]]:
    found = EventAccumulator(folder, size_guidance={"images": 0})
    found.Reload()
    return {tag: found.Images(tag) for tag in found.Tags()["images"]}


class Album(Logger):
    """A logger of images, as Lightning's WandbLogger is one."""

    name, version = "album", 0

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.pages: list[tuple[str, tuple[int, int], int | None]] = []
        self.error = error

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        if self.error is not None:
            raise self.error
        self.pages += [(key, image.size, step) for image in images]


def test_the_heatmap_is_an_image_at_the_end_of_each_epoch(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    runner = trainer(watch := watching(figures=True), logger=logger, **FIT)
    run_all(runner, "fit", "test", "predict")
    found = images(logger.log_dir)
    assert {tag: [image.step for image in of_tag] for tag, of_tag in found.items()} == {
        "figures/activations_rms": [3, 9],
        "figures/val/activations_rms": [4, 9],
        "figures/test/activations_rms": [5],
        "figures/predict/activations_rms": [5],
    }
    from PIL import Image

    picture = Image.open(BytesIO(found["figures/activations_rms"][1].encoded_image_string))
    assert picture.size == (found["figures/activations_rms"][1].width, found["figures/activations_rms"][1].height)
    assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    assert not pyplot.get_fignums() and watch.figures is True


def test_a_logger_that_takes_images_gets_them_and_others_do_not(tmp_path: Path) -> None:
    album, table = Album(), CSVLogger(tmp_path)
    run_all(trainer(watching(figures=["mean", "rms"]), logger=[album, table], **FIT), "fit")
    assert [(key, step) for key, _, step in album.pages if "/val/" not in key] == [
        ("figures/activations_mean", 3),
        ("figures/activations_rms", 3),
        ("figures/activations_mean", 9),
        ("figures/activations_rms", 9),
    ]
    assert all(width == 750 for _, (width, _), _ in album.pages)


def test_without_figures_there_are_none(tmp_path: Path) -> None:
    album = Album()
    run_all(trainer(watching(), logger=album, **FIT), "fit")
    assert not album.pages


class TwoLoaders(Module):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.loss(batch)


def test_each_dataloader_has_its_image() -> None:
    album, data = Album(), data_of("llama")
    runner = trainer(watching(figures=True, per_dataloader=True), logger=album)
    runner.validate(TwoLoaders(llama()), [loader(data[:4]), loader(data[4:8])], verbose=False)
    assert [key for key, _, _ in album.pages] == [f"figures/val/activations_rms/dataloader_idx_{i}" for i in range(2)]


def test_images_do_not_change_a_run(tmp_path: Path) -> None:
    left = []
    for figures in (False, True):
        module, runner = module_of("llama"), trainer(watching(figures=figures), logger=Album(), **FIT)
        run("fit", runner, module, data_of("llama"))
        left.append(fingerprint(module, runner))
    assert_bit_equal(*left)


@pytest.mark.documents("reliability/an-image-of-figures-true-cannot-be-drawn-or-written")
def test_an_image_that_cannot_be_written_is_a_warning() -> None:
    runner = trainer(watch := watching(figures=True), logger=Album(OSError("no room for images")), **FIT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_all(runner, "fit")
    said = [str(one.message) for one in caught if "no more will be" in str(one.message)]
    assert len(said) == 1 and "OSError: no room for images" in said[0]
    assert runner.global_step == 10 and len({row.step for row in watch.history()}) == 6


def test_letters_that_no_font_has_make_no_warning() -> None:
    image = heatmap_image(
        rows(["\u5c42.0", "\u5c42.1", "$x$"], [1, 2]), Series("activations_rms", "rms", "train", None), {}
    )
    assert image.png.startswith(b"\x89PNG") and image.width == 750 and image.height > 200


def test_images_leave_pyplot_alone() -> None:
    mine, backend = pyplot.figure(), pyplot.get_backend()
    run_all(trainer(watching(figures=True), logger=Album(), **FIT), "fit", "predict")
    assert pyplot.get_fignums() == [mine.number] and pyplot.gcf() is mine and pyplot.get_backend() == backend


def test_a_statistic_that_nothing_reads_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"figures='rmss' is not known: choose one of 'mean', 'rms'\. Did you mean 'rms'\?"
    ):
        watching(figures=["rmss"])
    with pytest.raises(ValueError, match="figures='histogram' is not known"):
        watching(figures=["histogram"])
    with pytest.raises(TypeError, match="figures='rms' must be a list of statistics"):
        watching(figures="rms")


def test_copies_keep_the_option() -> None:
    watch = watching(figures=["rms"])
    for copied in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert copied.figures == ["rms"]
        album = Album()
        run_all(trainer(copied, logger=album), "validate")
        assert len(album.pages) == 1


def test_the_callback_plots_its_history(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    runner = trainer(watch := watching(), logger=logger, **FIT)
    run_all(runner, "fit")
    fig, ax = watch.plot("rms", stage="train")
    seen = {(row.layer, row.step): row.value for row in watch.history() if row.tag.startswith("activations_rms/model")}
    layers, steps = [f"model.model.layers.{i}" for i in range(4)], [1, 3, 5, 7, 9]
    expected = np.array([[seen[layer, step] for step in steps] for layer in layers])
    np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    fig.canvas.draw()
    (top,) = ax.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["epoch 1"]
    assert [line.get_xdata()[0] for line in ax.lines] == [1.5]
    for table in (watch.history(), read_compact(logger.log_dir)):
        again = table.plot("rms", stage="train")[1]
        np.testing.assert_allclose(again.images[0].get_array(), expected, rtol=1e-6)
    assert [line.get_xdata()[0] for line in again.lines] == [1.5]  # an event file holds the epochs too


def test_the_callback_plots_histograms_without_a_logger(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    runner = trainer(watch := watching(), logger=logger, **FIT)
    run_all(runner, "fit")
    _, ax = watch.plot_histogram(2, stage="train")
    of_layer = [row for row in read_compact_histograms(logger.log_dir) if row.layer.endswith("layers.2")]
    counts = np.array([row.counts for row in of_layer if row.stage == "train"]).T  # (bins, S)
    filled = np.flatnonzero(counts.sum(1))
    shares = (counts / counts.sum(0))[filled[0] : filled[-1] + 1]
    np.testing.assert_allclose(np.ma.filled(ax.images[0].get_array(), 0.0), shares, rtol=1e-12)
    _, again = read_compact_histograms(logger.log_dir).plot("layers.2", stage="train")
    np.testing.assert_array_equal(again.images[0].get_array(), ax.images[0].get_array())
    _, again = read_compact_histograms(logger.log_dir).table().plot("layers.2", stage="train")
    np.testing.assert_array_equal(again.images[0].get_array(), ax.images[0].get_array())
    with pytest.raises(ValueError, match="layer=9 is not among the layers"):
        watch.plot_histogram(9)


def test_the_callback_plots_effects() -> None:
    steer = SteeringController("block:1", vector=torch.ones(WIDTH))
    watch = HookCallback(controllers=[steer])
    run_all(trainer(watch), "predict")
    _, ax = watch.plot_effects()
    assert [bar.get_width() for bar in ax.containers[0]] == [effect.mean_ratio for effect in watch.effects()]


def test_nothing_to_plot_yet() -> None:
    watch = watching()
    for plot in (lambda: watch.plot("rms"), lambda: watch.plot_histogram(0), watch.plot_effects):
        with pytest.raises(NothingToDraw):
            plot()


def test_histograms_are_kept_of_a_bounded_number_of_steps() -> None:
    history = HistogramHistory()
    for step in range(1000):
        history.add("train", step, [drawn(MIDDLE, f"activations/h.{i}") for i in range(2)])
        assert len(history.rows()) <= 2 * STEPS
    steps = [row.step for row in history.rows()][::2]
    assert steps[-1] == 999 and {b - a for a, b in pairwise(steps[:-1])} == {16}
    assert all(row.counts == MIDDLE.counts and row.edges == MIDDLE.edges for row in history.rows())


def test_histograms_of_all_dataloaders_are_kept() -> None:
    history = HistogramHistory()
    for step in range(300):
        for i in range(2):
            history.add("validate", step, [drawn(MIDDLE, f"activations/val/h.0/dataloader_idx_{i}")])
    tags = [row.tag[-1] for row in history.rows()]
    assert tags.count("0") == tags.count("1") > 30
