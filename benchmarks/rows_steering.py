"""Steering one block while text is generated, in turns with the bare model and with other packages."""

from __future__ import annotations

import torch

from benchmarks import rivals
from benchmarks.cases import Case, Measured
from benchmarks.report import Section, Target
from benchmarks.rows_watching import variants_of
from benchmarks.turns import take_turns
from mi_crow_lightning import HookCallback, SteeringController

PROMPT = 16
ALL, GENERATED = "SteeringController, all tokens", "SteeringController, generated tokens"
LIMITS = {ALL: 0.003, GENERATED: 0.004}  # of a CPU's time


def steering(case: Case, rounds: int, new_tokens: int) -> Section:
    """Measure predicting batches of greedy text."""
    model = case.make()
    config = model.config
    model.generation_config.eos_token_id = None
    index = config.num_hidden_layers // 2
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(config.hidden_size, generator=generator)
    there = vector.to(case.device, case.dtype)
    steer = {tokens: SteeringController(f"block:{index}", vector, tokens=tokens) for tokens in ("all", "generated")}
    variants, missing = variants_of(
        {
            "plain torch hook": lambda: rivals.plain_steering(index, there),
            "steering-vectors": lambda: rivals.SteeringVectorsPatch(index, there),
            "mi-crow: FunctionController": lambda: rivals.mi_crow_steering(index, there),
            ALL: lambda: HookCallback(controllers=steer["all"]),
            GENERATED: lambda: HookCallback(controllers=steer["generated"]),
        }
    )
    module = Measured(model, new_tokens)
    take_turns(case, module, case.data(config.vocab_size, PROMPT), variants, rounds, "predict")
    bare, targets = variants[0], []
    for variant in variants[-2:]:
        value = variant.share().median if case.on_cpu else variant.ratio(bare).median
        limit, unit = (LIMITS[variant.name], "share") if case.on_cpu else (1.02, "ratio")
        tokens = variant.name.split(", ")[1]
        targets.append(Target(f"steering one block in generate, {tokens}; {case.name}", value, limit, unit))
    return Section(
        f"Generating {new_tokens} tokens after {PROMPT}, one block steered: {case.name}, batch of {case.batch}",
        f"{rounds} rounds.",
        [variant.line(bare, case.on_cpu) for variant in variants] + missing,
        targets,
    )
