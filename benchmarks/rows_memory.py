"""The memory held after a pass without gradients: activations that outlived their hook, and bytes."""

from __future__ import annotations

import gc
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from benchmarks import rivals
from benchmarks.cases import Case, Measured
from benchmarks.report import Section, Target
from benchmarks.rows_watching import SEEN, variants_of
from benchmarks.turns import Variant, take_turns
from mi_crow_lightning import ActivationStatistics, HookCallback

ALIVE, HELD = "activations alive", "kB"


class Probe(pl.Callback):
    """A callback that looks at the memory when the model returns, for each variant in its turn.

    Attributes:
        alive: for each pass, how many of the blocks' outputs are still alive.
        held: for each pass, the bytes of all tensors.
        peak: for each pass, the most bytes that the GPU had allocated since the batch began.
    """

    def __init__(self) -> None:
        self.alive: list[int] = []
        self.held: list[int] = []
        self.peak: list[int] = []

    def on_validation_batch_start(self, trainer: Any, module: Any, *batch: Any) -> None:
        outputs: list[StorageWeakRef] = []

        def note(block: nn.Module, args: Any, output: Any) -> None:
            outputs.append(StorageWeakRef(rivals.hidden_states(output).untyped_storage()))

        def over(model: nn.Module, args: Any, output: Any) -> None:
            self.alive.append(sum(not storage.expired() for storage in outputs))
            self.held.append(_bytes_of_tensors())
            self.peak.append(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)

        self._handles = [block.register_forward_hook(note) for block in rivals.blocks(module.model)]
        self._handles.append(module.model.register_forward_hook(over))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_validation_batch_end(self, *batch: Any) -> None:
        for handle in self._handles:
            handle.remove()


def _bytes_of_tensors() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):
            storage = thing.untyped_storage()
            storages[storage.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def memory(case: Case) -> Section:
    """Measure each variant in a separate run, so that memory kept from pass to pass counts."""
    model = case.make()
    module, batch = Measured(model), case.data(model.config.vocab_size)
    (_, *variants), missing = variants_of(
        {
            "hooks that do nothing": rivals.do_nothing,
            "copy to the CPU": lambda: rivals.copy_to_cpu(add_histogram=False),
            "mi-crow: capture": rivals.mi_crow_capture,
            SEEN: lambda: HookCallback(ActivationStatistics("block:*")),
        }
    )
    lines = []
    for variant in variants:
        probe = Probe()
        take_turns(case, module, batch, [Variant("bare"), variant], 1, "validate", probe)
        alive, held = probe.alive[-1] - probe.alive[0], probe.held[-1] - probe.held[0]
        lines.append({"": variant.name, ALIVE: str(alive), HELD: f"{held / 1000:.0f}"})
        if probe.peak[0]:
            lines[-1]["GPU's peak over bare"] = f"{probe.peak[-1] / probe.peak[-2]:.3f}"
    lines += [{"": line[""], ALIVE: line["step, ms"]} for line in missing]
    config: Any = model.config
    activation = case.batch * case.tokens * config.hidden_size * case.dtype.itemsize / 1000
    note = f"an activation has {activation:.0f} kB, all of them {config.num_hidden_layers * activation:.0f}"
    return Section(
        f"Held when a forward pass is over: {case.title}",
        "Beside the bare model; activations alive are outputs of blocks whose memory is not free again.",
        lines,
        [
            Target("activations that outlive their hook", alive, 0),
            Target(f"memory while watching {config.num_hidden_layers} layers", held / 1000, None, "kB", note),
        ],
    )
