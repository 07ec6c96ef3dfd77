"""The figure of drift: its curves are the rows."""

from __future__ import annotations

import pytest

from mi_crow_lightning.errors import NothingToDraw
from mi_crow_lightning.references import DriftTable, LayerDrift

pytest.importorskip("matplotlib")


def row(layer: str, block: int, cosine: float) -> LayerDrift:
    return LayerDrift(layer, block, cosine, cosine - 0.1, 1.2, 0.8, 30.0 * block, 8)


def test_curves_are_the_rows_and_the_ring_is_the_layer_that_moved_most() -> None:
    table = DriftTable([row(f"model.layers.{i}", i, [0.9, 0.4, 0.7][i]) for i in range(3)])
    fig, ax = table.plot()
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert list(drawn["cosine"]) == [0.9, 0.4, 0.7] and list(drawn["linear CKA"]) == [0.8] * 3
    assert list(drawn["norm ratio"]) == [1.2] * 3 and list(fig.axes[-1].lines[0].get_ydata()) == [0, 30, 60]
    ring = next(line for line in ax.lines if line.get_fillstyle() == "none")
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([1], [0.4])
    assert ax.get_title(loc="left") == "moved most: model.layers.1"


def test_without_rows_nothing_is_drawn() -> None:
    with pytest.raises(NothingToDraw):
        DriftTable().plot()
    assert repr(DriftTable()) == "<drift: no layers>"
