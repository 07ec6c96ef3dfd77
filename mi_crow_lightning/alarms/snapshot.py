"""The action that writes a snapshot: what is needed to run the failing pass again, on one process."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import check_flag
from mi_crow_lightning._warned import warn
from mi_crow_lightning.alarms.actions import Action, AlarmedRun, file_stem, free_path, local_folder
from mi_crow_lightning.alarms.firing import Firing
from mi_crow_lightning.alarms.snapshot_file import FORMAT, plain, save_snapshot
from mi_crow_lightning.warnings import AlarmWarning

__all__ = ["Snapshot"]


class Snapshot(Action):
    """Writes the failing pass to a file, for ``python -m mi_crow_lightning replay``.

    The file holds the batch and the random states from before the pass, the weights and buffers, the first layer that
    is not finite, and the last readings. The rank that fails writes it. While such an alarm is on, batches are kept
    until their optimizer step, by reference: a step that writes to its batch changes what is written. Only training has
    snapshots. Weights that are sharded over ranks are left out. A file that is there stays: the new one gets ``-v1``
    behind its name.

    An alarm that fires on readings fires after the optimizer step; the snapshot then has the weights from after it, and
    says so.

    Args:
        folder: where to, see `SaveCheckpoint`.
        optimizer: whether the state of the optimizers is written too, mostly twice the size of the weights.

    Raises:
        TypeError, ValueError: an argument has a value that makes no sense for it.
    """

    needs_batch = True

    def __init__(self, folder: str | PathLike[str] | None = None, optimizer: bool = False) -> None:
        self.folder = None if folder is None else local_folder(folder)
        self.optimizer = check_flag("optimizer", optimizer)

    def act(self, firing: Firing, run: AlarmedRun) -> None:
        """Write it, on the rank that fails."""
        if (firing.rank or 0) != run.rank:
            return
        kept = run.before_pass.of(firing.batch_idx) if run.before_pass is not None else None
        if kept is None:
            warn(
                f"{firing}. No snapshot is written: only a training batch is kept until its step.",
                AlarmWarning,
                stacklevel=6,
            )
            return
        left_out: list[str] = []
        model = _tensors(run.module.state_dict(keep_vars=True), "model", left_out)
        names = {name for name, _ in run.module.named_buffers()}
        buffers = _tensors(kept.buffers, "buffers", left_out)
        content = {
            "format": FORMAT,
            "alarm": {**firing._asdict(), "layers": list(firing.layers)},
            "batch": plain(kept.batch, "batch", left_out),
            "batch_class": f"{type(kept.batch).__module__}.{type(kept.batch).__qualname__}",
            "random": plain(kept.random, "random", left_out),
            "model": {name: tensor for name, tensor in model.items() if name not in names},
            "buffers": buffers,
            "evaluating": [name for name, one in run.module.named_modules() if not one.training],
            "optimizers": self._optimizers(run, left_out),
            "precision": run.watched.precision,
            "layers": list(run.layers),
            "root": run.root,
            "readings": [list(one) for one in run.last_readings()],
            "weights": "before the step" if firing.before_step else "after the step",
            "versions": {"torch": str(torch.__version__), **run.watched.versions},
            "left_out": left_out,
        }
        folder = Path(self.folder) if self.folder is not None else run.folder()
        path = free_path(folder, f"{file_stem(firing)}-rank{run.rank}", ".pt")
        save_snapshot(content, path)
        lacks = f" (left out: {', '.join(left_out[:5])})" if left_out else ""
        warn(
            f"{firing}. A snapshot of the pass is in {str(path)!r}{lacks}. To run it again: python -m "
            f"mi_crow_lightning replay {path} --model package.module:function",
            AlarmWarning,
            stacklevel=6,
        )

    def _optimizers(self, run: AlarmedRun, left_out: list[str]) -> list[Any]:
        if not self.optimizer:
            return []
        return [plain(one.state_dict(), "optimizer", left_out) for one in run.watched.optimizers]


def _tensors(state: Mapping[str, Any], what: str, left_out: list[str]) -> dict[str, Tensor]:
    """Return the plain tensors of a state on the CPU; what is something else, such as a share of one, is left out."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            left_out.append(f"{what}[{name}] ({type(value).__name__})")
        elif (tensor := plain(value, f"{what}[{name}]", left_out)) is not None:
            found[name] = tensor
    return found
