"""Linear probes at every block, in turns with the bare training step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.cases import Case, Measured
from benchmarks.report import Section
from benchmarks.turns import Variant, take_turns
from mi_crow_lightning import HookCallback, LinearProbe

NEVER = 10**9


def sample_labels(batch: Any) -> Tensor:
    """Label each text by its first token."""
    labels: Tensor = batch["input_ids"][:, 0] % 2
    return labels


def token_labels(batch: Any) -> Tensor:
    """Label each token."""
    labels: Tensor = batch["input_ids"] % 2
    return labels


def probing(case: Case, rounds: int) -> Section:
    """Measure training steps in which every block has a probe, which learns at each."""
    model = case.make()
    probes = {
        "a row a text": LinearProbe("block:*", labels=sample_labels),
        "a row a token": LinearProbe("block:*", labels=token_labels, per="token", name="tokens"),
    }
    watched = {f"LinearProbe, {name}": [HookCallback(one, log_every_n_steps=NEVER)] for name, one in probes.items()}
    variants = [Variant("bare"), *(Variant(name, callbacks) for name, callbacks in watched.items())]
    take_turns(case, Measured(model), case.data(model.config.vocab_size), variants, rounds)
    kept = sum(part.numel() * part.element_size() for part in probes["a row a text"].state_dict()["probes"].values())
    return Section(
        f"Linear probes of two classes at every block, a training step: {case.title}",
        f"{rounds} rounds after warming up; the probes learn from every step. They keep {kept / 2**20:.1f} MiB.",
        [variant.line(variants[0], case.on_cpu) for variant in variants],
        [],
    )
