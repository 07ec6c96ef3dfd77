"""Every public constructor with right arguments, and which values each argument may take."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import mi_crow_lightning as ours
from mi_crow_lightning import alarms, hooks, language_model, metrics
from mi_crow_lightning.hooks import HookType, tokens
from mi_crow_lightning.hooks.detectors.token_statistics import TOKEN_STATISTICS
from mi_crow_lightning.hooks.detectors.weight_statistics import WEIGHT_STATISTICS
from mi_crow_lightning.hooks.schedules import Stage, When
from mi_crow_lightning.metrics import STATISTICS
from mi_crow_lightning.store import Store
from tests.test_public_api import PACKAGES

Rule = Callable[[Any], bool]


class Constructor(NamedTuple):
    """A class or function, right arguments, and the rule of each argument that is tried with others."""

    make: Callable[..., Any]
    right: dict[str, Any]
    rules: dict[str, Rule]


# Rules: whether a value may be taken. A value that may be taken can be refused all the same, by name.


def one_of(*allowed: Any) -> Rule:
    return lambda value: isinstance(value, (str, type(None), Enum)) and value in allowed


def optional(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def whole(least: float, most: int = 2**63 - 1) -> Rule:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable() and len(value) <= 200


def is_tag(value: Any) -> bool:
    return is_line(value) and "/" not in value


def is_signature(value: Any) -> bool:
    several = value if isinstance(value, (list, tuple)) else [value]
    return len(several) > 0 and all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in several)


def is_local_path(value: Any) -> bool:
    return is_path(value) and "://" not in str(value)


def is_path(value: Any) -> bool:
    return isinstance(value, (str, PathLike)) and "\0" not in str(value)


def is_plain(value: Any, *dims: int) -> bool:
    if not isinstance(value, Tensor) or value.is_nested or value.is_quantized or value.layout != torch.strided:
        return False
    fits = value.dim() in (dims or range(65)) and value.numel() > 0 and value.is_floating_point()
    return fits and not value.is_meta and bool(value.isfinite().all())


def is_vector(value: Any) -> bool:
    return per_layer(value, lambda one: is_plain(one, 1))


def is_table(value: Any) -> bool:
    named = isinstance(value, Mapping) and len(value) > 0 and all(map(is_line, value))
    return named and all(map(is_vector, value.values()))


def per_layer(value: Any, rule: Rule) -> bool:
    if not isinstance(value, Mapping):
        return rule(value)
    keys = all(isinstance(key, (str, int)) and not isinstance(key, bool) for key in value)
    return keys and len(value) > 0 and all(map(rule, value.values()))


def is_stored(value: Any) -> bool:
    def one(part: Any) -> bool:
        return isinstance(part, Tensor) and part.dim() > 0 and part.numel() > 0 and part.is_floating_point()

    return per_layer(
        value, lambda own: one(own) or (isinstance(own, (list, tuple)) and len(own) > 0 and all(map(one, own)))
    )


def is_strength(value: Any) -> bool:
    if isinstance(value, Tensor):
        real = not value.is_nested and not value.is_quantized and not value.is_complex() and value.dtype != torch.bool
        return real and value.dim() == 1 and value.numel() > 0 and is_plain(value.float())
    return per_layer(value, is_number) or callable(value) or (isinstance(value, str) and value == "batch")


def is_store(value: Any) -> bool:
    return isinstance(value, Store)


def is_schedule(value: Any) -> bool:
    return isinstance(value, When)


def are_stages(value: Any) -> bool:
    given = [value] if isinstance(value, str) else value
    names = [stage.value for stage in Stage]
    several = isinstance(given, Iterable) and not isinstance(given, (Mapping, Tensor)) and bool(given)
    return several and all(isinstance(one, str) and one in names for one in given)


def are_indices(value: Any) -> bool:
    given = value if isinstance(value, Iterable) else [value]
    if isinstance(given, (str, Mapping)) or not len(list(given)):  # type: ignore[arg-type]
        return False
    return all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**63 for one in given)


def are_names(*allowed: str) -> Rule:
    def rule(value: Any) -> bool:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
            return False
        given = list(value)
        return all(isinstance(one, str) and one in allowed for one in given) and len(set(given)) == len(given)

    return rule


def are_tags(value: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return False
    return all(isinstance(one, str) and bool(one.strip()) for one in value)


def are_integers(value: Any) -> bool:
    def is_integer(one: Any) -> bool:
        number = one.tolist() if isinstance(one, (Tensor, np.generic)) else one
        return isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63

    given = value.tolist() if isinstance(value, np.ndarray) else value
    return isinstance(given, Iterable) and not isinstance(given, (str, bytes)) and all(map(is_integer, given))


def is_window(value: Any) -> bool:
    given = value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
    return isinstance(given, (list, tuple, range)) and len(given) == 2


def are_tokens(value: Any) -> bool:
    return isinstance(value, tokens.Tokens) or (
        isinstance(value, str) and value in ("all", "prompt", "generated", "last")
    )


def are_choices(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and all(map(are_tokens, value))


def is_any_collection(value: Any) -> bool:
    """Whether it is a collection of names; which of them mean something, the hooks say."""
    lone = isinstance(value, (str, bytes, Mapping))
    return isinstance(value, Iterable) and not lone and all(isinstance(one, str) for one in value)


def are_schedules(value: Any) -> bool:
    return isinstance(value, Iterable) and all(map(is_schedule, value))


def is_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype) or (isinstance(value, str) and hasattr(torch, value.removeprefix("torch.")))


def is_device(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return 0 <= value < 128
    return isinstance(value, (str, torch.device)) and str(value).partition(":")[0] in ("cpu", "cuda", "mps")


def is_module(value: Any) -> bool:
    return isinstance(value, nn.Module)


def is_any(value: Any) -> bool:
    return True


def are_classes(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, Mapping))


def are_directions(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and is_plain(v, 1) for k, v in value.items())
    )


def are_vectors(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(is_tag(k) and is_vector(v) for k, v in value.items())


def are_facts(*kinds: type) -> Rule:
    return lambda value: (
        isinstance(value, Mapping) and all(isinstance(k, str) and type(v) in kinds for k, v in value.items())
    )


def are_hooks(value: Any) -> bool:
    several = [value] if isinstance(value, hooks.Hook) else value
    return isinstance(several, Iterable) and all(isinstance(one, hooks.Hook) for one in several)


def are_alarms(value: Any) -> bool:
    several = [value] if isinstance(value, alarms.Alarm) else value
    if isinstance(several, str):
        return several == "default"
    return isinstance(several, Iterable) and all(isinstance(one, alarms.Alarm) for one in several)


def are_actions(value: Any) -> bool:
    names = ["log", "warn", "checkpoint", "switch off", "stop", "snapshot"]
    several = [value] if isinstance(value, (str, alarms.Action)) else value
    return isinstance(several, Iterable) and all(
        isinstance(one, alarms.Action) or (isinstance(one, str) and one in names) for one in several
    )


def are_patterns(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or are_tags(value)


def is_above(least: float, most: float = math.inf) -> Rule:
    return lambda value: is_number(value) and least <= value <= most


HOOK: dict[str, Rule] = {
    "layer_signature": optional(is_signature),
    "hook_type": one_of("forward", "pre_forward", *HookType),
    "hook_id": optional(is_line),
    "schedule": optional(is_schedule),
    "on_error": one_of(None, "raise", "disable", "warn"),
    "channels": optional(lambda value: whole(-64, 63)(value) and value != 0),
}
DETECTOR = HOOK | {"store": optional(is_store), "name": optional(is_tag), "before_edits": is_flag}
OF_STATISTICS = (
    DETECTOR
    | {"statistics": optional(are_names(*STATISTICS)), "histogram": is_flag, "per_channel": is_flag}
    | {"dead_threshold": lambda value: is_number(value) and value >= 0, "tokens": are_tokens}
)
EDIT = HOOK | {"strength": is_strength, "tokens": are_tokens, "when": optional(callable), "preserve_norm": is_flag}
V = torch.ones(4)
STAGES = {"stages": optional(are_stages)}
RULE = {"layers": are_patterns, "readings": are_patterns} | STAGES
LIMITS = {"above": optional(is_number), "below": optional(is_number), "patience": whole(1)}


def _of(base: type) -> type:
    """A class as a user writes one, by the name of its base, which is abstract."""
    return type(base.__name__, (base,), {})


def seen() -> hooks.Detector:
    return hooks.ActivationStatistics("0")


CONSTRUCTORS: dict[str, Constructor] = {
    "Alarm": Constructor(
        alarms.Alarm,
        {"rule": alarms.NonFinite()},
        {"rule": lambda value: isinstance(value, alarms.Rule), "actions": are_actions, "most": whole(1)}
        | {"name": optional(is_line)},
    ),
    "Rule": Constructor(_of(alarms.Rule), {}, RULE | {"memory": whole(1)}),
    "NonFinite": Constructor(alarms.NonFinite, {}, STAGES),
    "Threshold": Constructor(alarms.Threshold, {"readings": "rms", "above": 1.0}, RULE | LIMITS),
    "Drift": Constructor(alarms.Drift, {"below": 1.0}, RULE | LIMITS),
    "Jump": Constructor(
        alarms.Jump,
        {"readings": "rms"},
        RULE
        | {"window": whole(2), "warmup": whole(2, 20), "spreads": is_above(0), "factor": is_above(1)}
        | {"direction": lambda value: value is not None and one_of("up", "down", "both")(value)},
    ),
    "Trend": Constructor(
        alarms.Trend,
        {"readings": "rms"},
        RULE
        | {"window": whole(3), "agreement": is_above(0.5, 1), "factor": is_above(1)}
        | {"direction": lambda value: value is not None and one_of("up", "down", "both")(value)},
    ),
    "NormGrowth": Constructor(alarms.NormGrowth, {}, RULE | {"window": whole(2), "factor": is_above(1)}),
    "DeadShare": Constructor(
        alarms.DeadShare, {}, RULE | {"above": is_above(0, 1), "rise": optional(whole(1)), "window": whole(1)}
    ),
    "WithoutEffect": Constructor(alarms.WithoutEffect, {}, STAGES | {"patience": whole(1)}),
    "LogEvent": Constructor(alarms.LogEvent, {}, {}),
    "Warn": Constructor(alarms.Warn, {}, {}),
    "Stop": Constructor(alarms.Stop, {}, {}),
    "SaveCheckpoint": Constructor(alarms.SaveCheckpoint, {}, {"folder": optional(is_local_path)}),
    "Snapshot": Constructor(alarms.Snapshot, {}, {"folder": optional(is_local_path), "optimizer": is_flag}),
    "SwitchOff": Constructor(
        alarms.SwitchOff, {}, {"controllers": optional(lambda v: isinstance(v, str) or is_any_collection(v))}
    ),
    "Hook": Constructor(_of(hooks.Hook), {}, HOOK),
    "Detector": Constructor(_of(hooks.Detector), {}, DETECTOR),
    "Controller": Constructor(_of(hooks.Controller), {}, HOOK),
    "TokenController": Constructor(_of(hooks.TokenController), {}, EDIT),
    "VectorController": Constructor(
        _of(hooks.VectorController), {"layer_signature": "0", "vector": V}, EDIT | {"vector": is_vector}
    ),
    "SteeringController": Constructor(
        ours.SteeringController,
        {"layer_signature": "0", "vector": V},
        EDIT | {"vector": is_vector, "vectors": optional(is_table), "layers": one_of("batch", None)},
    ),
    "AblationController": Constructor(
        ours.AblationController,
        {"layer_signature": "0", "vector": V},
        EDIT | {"vector": lambda value: per_layer(value, lambda one: is_plain(one, 1, 2))},
    ),
    "ClampController": Constructor(
        ours.ClampController,
        {"layer_signature": "0", "vector": V, "value": None, "low": -5.0, "high": 5.0},
        EDIT | {"vector": is_vector, "low": optional(is_number), "high": optional(is_number)},
    ),
    "ClampController to a value": Constructor(
        ours.ClampController, {"layer_signature": "0", "vector": V, "value": 1.0}, {"value": is_number}
    ),
    "PatchController": Constructor(
        ours.PatchController, {"layer_signature": "0", "source": V}, EDIT | {"source": is_stored}
    ),
    "ScaleController": Constructor(
        ours.ScaleController, {"layer_signature": "0", "factor": 2.0}, EDIT | {"factor": is_number}
    ),
    "FunctionController": Constructor(
        ours.FunctionController, {"layer_signature": "0", "function": abs}, EDIT | {"function": callable}
    ),
    "SummingDetector": Constructor(_of(hooks.SummingDetector), {}, DETECTOR | {"tokens": are_tokens}),
    "StatisticsDetector": Constructor(_of(hooks.StatisticsDetector), {}, OF_STATISTICS),
    "ActivationStatistics": Constructor(ours.ActivationStatistics, {}, OF_STATISTICS),
    "GradientStatistics": Constructor(ours.GradientStatistics, {}, OF_STATISTICS),
    "TokenStatistics": Constructor(
        ours.TokenStatistics,
        {},
        DETECTOR | {"statistics": optional(are_names(*TOKEN_STATISTICS)), "tokens": are_tokens, "max_width": whole(1)},
    ),
    "WeightStatistics": Constructor(
        ours.WeightStatistics,
        {},
        {name: rule for name, rule in HOOK.items() if name not in ("hook_type", "channels")}
        | {"name": optional(is_tag), "statistics": optional(are_names(*WEIGHT_STATISTICS))},
    ),
    "LinearProbe": Constructor(
        ours.LinearProbe,
        {},
        DETECTOR
        | {"labels": lambda value: isinstance(value, str) or callable(value), "tokens": are_tokens, "auroc": is_flag}
        | {"classes": lambda value: whole(2, 10_000)(value) or are_classes(value), "per": one_of("sample", "token")}
        | {"lr": lambda value: is_number(value) and value > 0, "ignore_index": whole(-(2**63))},
    ),
    "LayerActivationDetector": Constructor(
        ours.LayerActivationDetector,
        {},
        DETECTOR
        | {"target_dtype": optional(is_dtype), "keep": one_of("last", "all"), "max_bytes": whole(1)}
        | {"device": optional(is_device), "tokens": optional(are_tokens)},
    ),
    "ProjectionDetector": Constructor(
        ours.ProjectionDetector, {"vector": V}, DETECTOR | {"vector": is_vector, "tokens": are_tokens}
    ),
    "ProjectionDetector by name": Constructor(ours.ProjectionDetector, {"vectors": {"a": V}}, {"vectors": are_vectors}),
    "TraitMonitor": Constructor(
        ours.TraitMonitor,
        {"vector": V},
        DETECTOR
        | {"vector": is_vector, "tokens": are_tokens, "baseline": lambda value: value is None}
        | {"schedule": lambda value: value is None},
    ),
    "TraitMonitor by name": Constructor(ours.TraitMonitor, {"vectors": {"a": V}}, {"vectors": are_vectors}),
    "DriftDetector": Constructor(
        ours.DriftDetector,
        {},
        DETECTOR
        | {"tokens": are_tokens, "stage": one_of("validate", "test", Stage.VALIDATE, Stage.TEST), "any_model": is_flag}
        | {"reference": lambda value: is_path(value) and bool(str(value))}
        | {"sketch_size": whole(2), "max_tokens": whole(1), "components": whole(1), "seed": whole(0)},
    ),
    "DriftReference": Constructor(ours.DriftReference, {"layers": {}, "matrices": {}}, {"samples": whole(0)}),
    "ContrastDetector": Constructor(
        ours.ContrastDetector,
        {},
        DETECTOR
        | {"method": one_of("mean_difference", "pca", "logistic"), "tokens": are_tokens, "classes": are_classes}
        | {"label": lambda value: isinstance(value, str) or callable(value), "keep_samples": is_flag}
        | {"pair": lambda value: isinstance(value, str) or callable(value), "max_bytes": whole(1)}
        | {"covariance": are_names("negative", "positive", "difference")}
        | {"stage": lambda value: one_of("predict", "test", *Stage)(value) and value != "train"}
        | {"held_out": one_of(None, "validate", "test", Stage.VALIDATE, Stage.TEST)},
    ),
    "Schedule": Constructor(
        ours.Schedule,
        {},
        {"stages": optional(are_stages), "epochs": optional(are_indices), "batches": optional(are_indices)}
        | dict.fromkeys(["every_n_epochs", "every_n_batches", "every_n_steps"], optional(whole(1, 2**63 - 1)))
        | dict.fromkeys(["start_step", "stop_step"], optional(whole(0, 2**63 - 1))),
    ),
    "AllOf": Constructor(ours.AllOf, {"schedules": [ours.Schedule()]}, {"schedules": are_schedules}),
    "AnyOf": Constructor(ours.AnyOf, {"schedules": [ours.Schedule()]}, {"schedules": are_schedules}),
    "Not": Constructor(ours.Not, {"schedule": ours.Schedule()}, {"schedule": is_schedule}),
    "LoggedSteps": Constructor(ours.LoggedSteps, {}, {"evaluations": is_flag}),
    "Tokens by name": Constructor(ours.Tokens, {}, {"which": one_of(None, "all", "prompt", "generated", "last")}),
    "Tokens at positions": Constructor(ours.Tokens, {}, {"positions": optional(are_integers)}),
    "Tokens in a window": Constructor(ours.Tokens, {}, {"window": optional(is_window)}),
    "Tokens": Constructor(ours.Tokens, {}, {"ids": optional(are_integers), "where": optional(callable)}),
    "tokens.AllOf": Constructor(tokens.AllOf, {"choices": ["all"]}, {"choices": are_choices}),
    "tokens.AnyOf": Constructor(tokens.AnyOf, {"choices": ["all"]}, {"choices": are_choices}),
    "tokens.Not": Constructor(tokens.Not, {"choice": "all"}, {"choice": are_tokens}),
    "HookCallback": Constructor(
        ours.HookCallback,
        {},
        {
            "detectors": optional(are_hooks),
            "controllers": optional(are_hooks),
            "root": optional(lambda v: isinstance(v, str)),
        }
        | {"name": optional(is_line), "log_every_n_steps": optional(whole(1)), "token_mask": optional(callable)}
        | {"scalars": lambda value: value is not None and one_of("auto", "all", "summary", "none")(value)}
        | {"monitor": are_tags, "prog_bar": is_any_collection, "report": optional(one_of("full", "short", "off"))}
        | {"log_hyperparams": is_flag, "page": is_flag, "per_dataloader": is_flag, "dry_run": is_flag}
        | {"history_size": optional(whole(1)), "alarms": are_alarms}
        | {"figures": lambda value: is_flag(value) or is_any_collection(value)},
    ),
    "HookTrainerCallback": Constructor(
        ours.HookTrainerCallback,
        {},
        {"detectors": optional(are_hooks), "controllers": optional(are_hooks), "history_size": optional(whole(1))}
        | {"alarms": are_alarms, "page": is_flag}
        | {"root": optional(lambda v: isinstance(v, str)), "name": optional(is_line), "token_mask": optional(callable)}
        | {"log_every_n_steps": optional(whole(1)), "report": optional(one_of("full", "short", "off"))}
        | {"scalars": lambda value: value is not None and one_of("auto", "all", "summary", "none")(value)},
    ),
    "Layers": Constructor(
        ours.Layers,
        {"root": nn.Linear(2, 2)},
        {
            "root": is_module,
            "allow_stacking": is_flag,
            "store": optional(is_store),
            "graphs": optional(are_graphs := (lambda v: isinstance(v, Mapping))),
        }
        | {"on_error": lambda value: callable(value) or (value is not None and HOOK["on_error"](value))},
    ),
    "LocalStore": Constructor(
        ours.LocalStore,
        {"base_path": "there"},
        {"base_path": is_path, "runs_prefix": is_text},
    ),
    "SteeringVector": Constructor(
        ours.SteeringVector,
        {"directions": {"h.0": V}},
        {
            "directions": are_directions,
            "samples": optional(are_facts(int)),
            "metadata": optional(are_facts(str, int, float, bool)),
        }
        | dict.fromkeys(["method", "model", "tokens"], lambda value: isinstance(value, str))
        | {"quality": lambda value: is_any_collection(value) and not list(value)},
    ),
    "PairCollator": Constructor(ours.PairCollator, {"tokenize": len}, {"tokenize": callable}),
    "LabelCollator": Constructor(ours.LabelCollator, {"tokenize": len}, {"tokenize": callable}),
    "PredictionWriter": Constructor(
        ours.PredictionWriter,
        {"path": "texts.jsonl"},
        {"path": is_path, "mode": lambda value: value is not None and one_of("x", "w", "a")(value)},
    ),
    "LanguageModel": Constructor(
        ours.LanguageModel,
        {"model": nn.Linear(2, 2), "tokenizer": None},
        {"model": is_module, "tokenizer": optional(callable), "store": optional(is_store)}
        | {"model_id": optional(is_text), "device": optional(lambda v: is_device(v) or str(v) == "meta")},
    ),
    "CausalLMModule": Constructor(
        ours.CausalLMModule,
        {"model": nn.Linear(2, 2)},
        {"model": is_module, "tokenizer": optional(callable), "model_params": lambda value: value is None}
        | {
            "generation": lambda value: value is None or value is False or isinstance(value, Mapping),
            "max_length": optional(whole(1)),
        }
        | dict.fromkeys(["lr", "weight_decay"], lambda value: is_number(value) and value >= 0)
        | dict.fromkeys(["warmup_steps", "log_text"], whole(0))
        | {"sweep": optional(lambda value: isinstance(value, (Iterable, Tensor)))},
    ),
    "ContinuationScore": Constructor(
        ours.ContinuationScore,
        {"model": nn.Linear(2, 2), "continuations": {"one": [[1]]}},
        {"model": is_module, "tokenizer": optional(callable), "max_length": optional(whole(1))}
        | {"continuations": lambda value: isinstance(value, Mapping), "reduce": one_of("mean", "any")}
        | {"sweep": optional(lambda value: isinstance(value, (Iterable, Tensor)))},
    ),
    "DataScreening": Constructor(
        ours.DataScreening,
        {"model": nn.Linear(2, 2), "layer": "0", "vector": V},
        {"model": is_module, "layer": is_signature, "vector": is_vector, "tokenizer": optional(callable)}
        | {"tokens": are_tokens, "max_length": optional(whole(1))},
    ),
    "DataScreening by name": Constructor(
        ours.DataScreening,
        {"model": nn.Linear(2, 2), "layer": "0", "vectors": {"a": V}},
        {"vectors": are_vectors},
    ),
    "TextCollator": Constructor(
        language_model.TextCollator,
        {"tokenizer": type("Tokenizer", (), {"pad_token": "p", "__call__": len})()},
        {"tokenizer": lambda value: hasattr(value, "pad_token"), "max_length": optional(whole(1))}
        | {"padding_side": lambda value: value is not None and one_of("left", "right")(value)},
    ),
    "ActivationStatisticsMetric": Constructor(
        metrics.ActivationStatisticsMetric,
        {"layers": 2},
        {
            "layers": lambda value: (
                whole(0, 10**6)(value) or (isinstance(value, Iterable) and all(isinstance(n, str) for n in value))
            )
        }
        | {"groups": lambda value: isinstance(value, metrics.Group), "sums": lambda value: isinstance(value, Iterable)},
    ),
    "Description": Constructor(
        metrics.Description,
        {"formula": "`M2 / n`", "unit": "none", "shows": "the power"},
        dict.fromkeys(["formula", "unit", "shows"], is_text),
    ),
    "Statistic": Constructor(
        metrics.Statistic,
        {"name": "mine", "value": len},
        {"name": lambda v: isinstance(v, str) and v.isidentifier(), "value": optional(callable)}
        | {
            "groups": lambda value: isinstance(value, metrics.Group),
            "sums": lambda value: isinstance(value, (tuple, list)),
            "description": optional(lambda value: isinstance(value, metrics.Description)),
        },
    ),
    "Sum": Constructor(
        metrics.Sum,
        {"name": "mine", "of": len},
        {"name": lambda value: isinstance(value, str) and value.isidentifier(), "of": callable}
        | {"merge": lambda value: isinstance(value, metrics.Merge)},
    ),
    "attached": Constructor(
        lambda **given: ours.attached(**given).__enter__(),
        {"model": nn.Sequential(nn.Identity(), nn.Identity()), "hooks": []},
        {"model": is_module, "hooks": are_hooks},
    ),
}

# Classes that are made by the package for its users, or that only hold what they are given.
RECORDS = {
    "Action", "Activations", "CompactRows", "DetectorReadings", "DriftTable", "EventRow", "Feature", "Firing",
    "GeneratedText", "Histogram", "HistogramRow", "HistogramTable", "HistoryRow", "HistoryTable", "HookContext",
    "HookPlan", "HookedLayer", "Inference", "LayerDrift", "LayerQuality", "LayerTable", "LoggedStep", "Merge",
    "ModelLayer", "Moment", "Page", "PromptScore", "QualityTable", "Reading", "Replay", "RunReport", "SampleDrift",
    "SampleTable", "ScreenedSample", "ScreeningTable", "Separability", "Store", "Summary", "TextRow", "TraitBase",
    "TraitBaseline",
}  # fmt: skip


def exported() -> set[str]:
    """The names of all public classes, without errors and enumerations."""
    names = set()
    for package in PACKAGES:
        module = importlib.import_module(f"mi_crow_lightning{package}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and not issubclass(value, (Exception, Enum)):
                names.add(name)
    return names


# Values that stand where they should not.


class Hostile:
    """An object that answers no question."""

    def __repr__(self) -> str:
        raise ArithmeticError("no repr")

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError("no comparison")

    def __bool__(self) -> bool:
        raise ArithmeticError("no truth")

    def __iter__(self) -> Any:
        raise ArithmeticError("no items")

    def __len__(self) -> int:
        raise ArithmeticError("no length")

    __hash__ = object.__hash__


def deep() -> list[Any]:
    inner: list[Any] = []
    for _ in range(3000):
        inner = [inner]
    return inner


def endless() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


STRANGE: dict[str, Callable[[], Any]] = {
    **{f"{value!r:.30}": (lambda value=value: value) for value in (
        None, True, False, 0, 1, -1, 3, 2**70, -(2**70), 10**400, 0.5, -0.5, 1e300, float("nan"), float("inf"), 1 + 2j,
        "", " ", "x", "no", "a\nb", "a/b", "\0", "mean", "fit", "0", b"x", [], [1], ["x"], ["mean", "mean"], [None],
        [2**70], [-1, 2.0], (), (1, 2), {}, {"x": 1}, {0: 1}, {1.5: 2}, {True: 1}, {"x": "y"}, set(), {1}, range(0),
        range(3), range(-2, 2), ..., int, print, Decimal("1.5"), Fraction(1, 3), Path("x"), Stage.TRAIN,
        HookType.FORWARD,
        np.float64(1.5), np.int64(3), np.bool_(True), torch.float32, torch.quint8, "meta", "cuda:99999", "float32",
    )},
    "many digits": lambda: 10**5000,
    "long text": lambda: "x" * 100_000,
    "half a pair": lambda: "\ud800",
    "long list": lambda: ["x" * 50] * 10_000,
    "long key": lambda: {"x" * 100_000: 5},
    "long numbers": lambda: list(range(10_000)),
    "generator": lambda: (value for value in ("mean", "std")),
    "deep": deep,
    "endless": endless,
    "hostile": Hostile,
    "hostile inside": lambda: [Hostile()],
    "hostile value": lambda: {"x": Hostile()},
    "object": object,
    "class": lambda: ours.ActivationStatistics,
    "module": lambda: nn.Linear(2, 2),
    "hook": seen,
    "hooks": lambda: [seen(), seen()],
    "schedule": ours.Schedule,
    "tokens": ours.Tokens,
    "array": lambda: np.ones(3),
    "strings": lambda: np.array(["mean", "std"]),
    "vector": lambda: torch.ones(3),
    "matrix": lambda: torch.ones(2, 2),
    "number": lambda: torch.tensor(2.0),
    "whole tensor": lambda: torch.tensor([1, 2]),
    "bool tensor": lambda: torch.tensor([True]),
    "empty tensor": lambda: torch.zeros(0),
    "nan tensor": lambda: torch.tensor([float("nan")]),
    "double": lambda: torch.tensor([1e300], dtype=torch.float64),
    "zero": lambda: torch.zeros(3),
    "learned": lambda: nn.Parameter(torch.ones(3)),
    "complex tensor": lambda: torch.ones(3, dtype=torch.complex64),
    "meta tensor": lambda: torch.ones(3, device="meta"),
    "sparse tensor": lambda: torch.ones(3).to_sparse(),
    "nested tensor": nested,
    "quantised tensor": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "meta by layer": lambda: {"h.0": torch.ones(3, device="meta")},
    "nested by layer": lambda: {"h.0": nested()},
    "vector by layer": lambda: {"h.0": torch.ones(3)},
    "sparse in a list": lambda: [torch.ones(1, 2, 3).to_sparse()],
}  # fmt: skip
