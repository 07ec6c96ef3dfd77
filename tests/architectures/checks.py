"""The checks of one architecture: statistics and edits against plain hooks of torch, in passes and in `generate`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from mi_crow_lightning import ActivationStatistics, SteeringController, attached
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.errors import MiCrowError
from tests.architectures.by_hand import EditedPasses, chosen_tokens, edited, edited_by_hand
from tests.architectures.case import Case, WrongStack
from tests.architectures.given import ROWS, SIDES, TARGETS, Given, is_two_sided, padding, words
from tests.architectures.layout import all_close, all_equal, channels_of, chosen_elements, tensors_in
from tests.architectures.shrunk import BOS, PAD
from tests.architectures.tiny_model import Architecture, NotBuilt, in_short

STRENGTH = 4.0
STRENGTHS = torch.tensor([0.0, 4.0, 2.0])
NEW = 4


class Wrong(AssertionError):
    """A result that differs from the reference, without a word."""


def statistics(case: Case, side: str) -> str:
    """Means and counts over real tokens in all blocks, and outputs equal to the bit."""
    call, names = case.given(side), case.blocks + case.encoder
    plain = case.outputs(call)
    with case.seen(names) as seen:
        same = case.outputs(call)
    if not all_equal(plain, same):
        return "not run: the model returns something else each time"
    detectors = [ActivationStatistics(name, statistics=["mean", "token_norm_mean"]) for name in names]
    with attached(case.model, detectors) as layers, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with _ours():
            watched = case.outputs(call)
        found = {(reading.layer, reading.name): reading for reading in layers.take_readings()}
    if not all_equal(plain, watched):
        raise Wrong("the model's outputs differ from those of a run without detectors")
    return _worst(_statistics_of(case, name, call, seen[name], found, said) for name in names)


def _statistics_of(case: Case, name: str, call: Given, seen: list[Tensor], found: Any, said: Any) -> str:
    if not seen:
        return "exact" if (name, "mean") not in found else f"warned: {name} never runs"
    real = case.real(name, call)
    parts = [chosen_elements(x, real) for x in seen]
    counted = int(sum(found[name, "histogram"].value.counts))
    if any(part is None for part in parts) and real is not None and not real.all():
        if counted < sum(x.numel() for x in seen):
            return f"not run: {name} has other tokens, {tuple(seen[0].shape)}, which the reference does not know"
        return _said(said, name, f"{name} has shape {tuple(seen[0].shape)}, and its reading counts every element")
    values = torch.cat(
        [(x if part is None else x[part]).double().flatten() for x, part in zip(seen, parts, strict=True)]
    )
    if counted != len(values):
        return _said(said, name, f"{name}: {counted} elements are counted, and {len(values)} are real")
    mean = found[name, "mean"].value
    if abs(mean - values.mean().item()) > 1e-5 * values.abs().mean().item() + 1e-7:
        return _said(said, name, f"{name}: the mean is {mean}, and should be {values.mean().item()}")
    return "exact"


def steered(case: Case, side: str, tokens: str, strength: Any = STRENGTH) -> str:
    """A block of each class: the model's outputs against those of the same edit by hand."""
    call = case.given(side)
    return _worst(_steered(case, name, call, tokens, strength) for name in case.steered)


def _steered(case: Case, name: str, call: Given, tokens: str, strength: Any) -> str:
    with case.seen([name]) as seen:
        plain = case.outputs(call)
    if not seen[name]:
        return "not run: the layer never runs"
    x = seen[name][0]
    real = case.real(name, call)
    everything = real is None or (tokens == "all" and bool(real.all()))
    chosen = None if everything else chosen_tokens(real, tokens)
    vector = torch.linspace(-1, 1, x.shape[channels_of(x)])
    hook = SteeringController(name, vector, strength, tokens=tokens)
    with warnings.catch_warnings(record=True) as said, attached(case.model, hook):
        warnings.simplefilter("always")
        with _ours(), case.seen([name]) as seen_after:
            after = case.outputs(call)
    places = chosen_elements(x, chosen)
    if places is None and not (x == seen_after[name][0]).all(channels_of(x)).any():
        return _said(said, name, f"{name} has shape {tuple(x.shape)}, and all of it was edited")
    if places is None:
        return f"not run: {name} has other tokens, {tuple(x.shape)}, which the reference does not know"
    with (
        edited_by_hand(case.model.get_submodule(name), lambda y: edited(y, chosen, vector, strength)),
        case.seen([name]) as by_hand,
    ):
        expected = case.outputs(call)
    first, first_by_hand = seen_after[name][0], by_hand[name][0]
    if not torch.equal(first[~places], x[~places]):
        return _said(said, name, f"{name}: other tokens than {tokens!r} changed")
    if not torch.allclose(first, first_by_hand, rtol=1e-5, atol=1e-6):
        return _said(said, name, f"{name}: the edit differs by {(first - first_by_hand).abs().max().item():.3g}")
    if not all_close(after, expected):
        return _said(said, name, f"{name}: the model's outputs differ from those of the edit by hand")
    return "exact" if not all_equal(plain, after) or not places.any() else "not run: the outputs do not depend on it"


def generated(case: Case, tokens: str, cached: bool) -> str:
    """Scores of `generate`, against a plain hook that counts the model's passes."""
    name = case.steered[0]  # what an edit does to the first block, all blocks after it show
    call = case.call("left") or case.given("none")
    inputs = {key: value for key, value in call.inputs.items() if not key.startswith("decoder_") and key != "use_cache"}
    prompt = torch.ones(ROWS, 1, dtype=torch.bool) if is_two_sided(case.model) else call.real
    options = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=cached, output_scores=True)
    options |= dict(num_beams=1, pad_token_id=PAD, bos_token_id=BOS, return_dict_in_generate=True)
    if is_two_sided(case.model):
        options |= dict(decoder_start_token_id=BOS)

    def scores() -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return torch.stack(case.model.generate(**inputs, **options).scores)

    with case.seen([name]) as seen:
        plain = scores()
    if not seen[name]:
        return "not run: the layer never runs"
    vector = torch.linspace(-1, 1, seen[name][0].shape[-1])
    by_hand = EditedPasses(prompt, tokens, vector, STRENGTH)
    with by_hand.counted(case.model, name), edited_by_hand(case.model.get_submodule(name), by_hand.edit):
        expected = scores()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with _ours(), attached(case.model, SteeringController(name, vector, STRENGTH, tokens=tokens)):
            found = scores()
    if by_hand.unknown:
        return _said(said, name, f"passes of unknown width {by_hand.unknown} were edited")
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(found)):
        return _said(said, name, "scores of generate differ in which are finite")
    if not torch.allclose(found[finite], expected[finite], rtol=1e-3, atol=1e-4):
        if not torch.equal(plain, scores()):
            return "not run: the model keeps a state, and returns something else each time"
        return _said(said, name, f"scores differ by {(found[finite] - expected[finite]).abs().max().item():.3g}")
    return "exact" if not torch.equal(plain, found) else "not run: the scores do not depend on the edit"


def trained(case: Case) -> str:
    """A checkpointed step: gradients with a detector and without, to the bit, and each element counted once."""
    model, call, name = case.model, case.given("none"), case.steered[-1]
    if not getattr(model, "supports_gradient_checkpointing", False):
        return "not run: the class does not support gradient checkpointing"
    inputs = {key: value for key, value in call.inputs.items() if key != "use_cache"}
    model.train()
    model.gradient_checkpointing_enable()
    found, counted = [], 0
    try:
        for hooks in ((), (), (ActivationStatistics(name),)):
            model.zero_grad()
            torch.manual_seed(0)
            numpy.random.seed(0)  # which masks frames in wav2vec2 and its kin
            with attached(model, hooks) as layers, case.seen([name]) as seen:
                loss = sum(x.double().pow(2).mean() for x in tensors_in(model(**inputs)) if x.requires_grad)
                once = sum(x.numel() for x in seen[name])
                loss.backward()
                histograms = [one.value for one in layers.take_readings() if one.name == "histogram"]
            counted = sum(int(sum(one.counts)) for one in histograms)
            found.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    finally:
        model.gradient_checkpointing_disable()
        model.eval()
        model.zero_grad()
    if not all_equal(found[0], found[1]):
        return "not run: the gradients are others each time"
    if not all_equal(found[0], found[2]):
        raise Wrong("gradients differ from those of a run without detectors")
    if counted != once:
        raise Wrong(f"{counted} elements are counted, and the forward pass has {once}")
    return "exact"


def labels_alone(case: Case) -> str:
    """A decoder that makes its inputs of the labels: statistics over the labels' real tokens."""
    call = case.given("none")
    real = padding("right", TARGETS)
    inputs = {key: value for key, value in call.inputs.items() if not key.startswith("decoder_")}
    inputs["labels"] = words(TARGETS).masked_fill(~real, -100)
    if "encoder-decoder" in case.model.config.model_type:  # it gives its decoder a mask, in which a start is added
        real = torch.cat([torch.ones(ROWS, 1, dtype=torch.bool), real[:, :-1]], 1)
    return _statistics_of_batch(case, Given(inputs, real, call.real_in_encoder))


def _statistics_of_batch(case: Case, call: Given) -> str:
    """Statistics of one layer, where the batch is what the model is called with."""
    name = case.steered[-1]
    with case.seen([name]) as seen:
        case.outputs(call)
    detector = ActivationStatistics(name, statistics=["mean"])
    with attached(case.model, detector) as layers, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        layers.begin_batch(None, call.inputs)
        with _ours():
            case.outputs(call)
        found = {(reading.layer, reading.name): reading for reading in layers.take_readings()}
    return _statistics_of(case, name, call, seen[name], found, said)


def roles(case: Case) -> str:
    """What ``block:*.attn`` and ``.mlp`` mean: layers of such a class, or a message with what there is."""
    found = []
    for role, kinds in (("attn", ("Attention", "Attn")), ("mlp", ("MLP", "Mlp", "FeedForward", "MoE", "Moe", "FFN"))):
        holders = [name for name in case.blocks if _has_child_like(case.model.get_submodule(name), kinds)]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                matched = [match.name for match in resolve(ModuleTree(case.model), f"{case.signature}.{role}")]
        except MiCrowError as error:
            if holders:
                found.append(f"missed: {case.signature}.{role}, in spite of {holders[0]}: {str(error)[:200]}")
            continue
        blocks = {name for name in case.blocks for one in matched if one.startswith(f"{name}.")}
        if missing := [name for name in holders if name not in blocks]:
            found.append(f"missed: {case.signature}.{role} leaves out {missing[0]}")
    return "; ".join(found) or "exact"


def nothing_left(case: Case) -> str:
    """No hook of anybody is on any module."""
    left = [name for name, m in case.model.named_modules() if any(map(_is_ours, _hooks_of(m)))]
    if left:
        raise Wrong(f"handles are left on {left[:3]}")
    return "exact"


def checks_of(case: Case) -> dict[str, Callable[[Case], str]]:
    """Return the checks of a model, by what they check."""
    sides = [side for side in SIDES if case.call(side) is not None]
    has_tokens = case.real(case.steered[0], case.given("none")) is not None
    found: dict[str, Callable[[Case], str]] = {"roles": roles}
    for side in sides:
        found[f"statistics, padding {side}"] = lambda case, side=side: statistics(case, side)
    for tokens in ("all", "last") if has_tokens else ("all",):
        for side in sides:
            found[f"steering {tokens}, padding {side}"] = lambda case, s=side, t=tokens: steered(case, s, t)
        found[f"steering {tokens} by sample"] = lambda case, t=tokens: steered(case, "none", t, STRENGTHS)
    if case.kind not in ("masked", "vision", "CTC", "other") and has_tokens:
        for tokens in ("all", "prompt", "generated", "last"):
            for cached in (True, False):
                how = "cache" if cached else "no cache"
                found[f"generate {tokens}, {how}"] = lambda case, t=tokens, c=cached: generated(case, t, c)
    if is_two_sided(case.model) and case.kind != "other":
        found["statistics, labels alone"] = labels_alone
    return found | {"checkpointed step": trained, "nothing left": nothing_left}


def outcomes(architecture: Architecture) -> dict[str, str]:
    """Return the outcome of each check: ``exact``, or ``refused``, ``warned``, ``wrong``, ``not run`` and why."""
    try:
        with _only_ours_are_heard():
            case = Case(architecture)
    except NotBuilt as error:
        return {"built": f"not built: {error}"}
    except WrongStack as error:
        return {"blocks": f"wrong: {error}"}
    except MiCrowError as error:
        return {"blocks": f"refused: {error}"}
    return {n: outcome(check, case) for n, check in checks_of(case).items()}


def outcome(check: Callable[[Case], str], case: Case) -> str:
    try:
        with _only_ours_are_heard():
            return check(case)
    except Wrong as error:
        return f"wrong: {error}"
    except MiCrowError as error:
        return f"refused: {in_short(error)}"
    except NotBuilt as error:
        return f"not run: {in_short(error)}"
    except Exception as error:  # the model itself cannot do this: with hooks of ours, or without?
        return f"not run: {type(error).__name__}: {in_short(error)}"


_ORDER = ("wrong", "refused", "warned", "missed", "not run", "exact")


def _worst(outcomes: Iterable[str]) -> str:
    """Return the outcome that says most; a wrong one was raised before."""
    return min(outcomes, key=lambda one: _ORDER.index(one.split(":")[0]), default="exact")


def _said(said: list[warnings.WarningMessage], name: str, why: str) -> str:
    """Return what a warning said of the layer or its padding, or raise that nothing did."""
    ours = [str(one.message) for one in said if name in str(one.message) or "padding" in str(one.message)]
    if ours:
        return f"warned: {ours[0][:400]}"
    raise Wrong(why)


def _has_child_like(block: nn.Module, kinds: tuple[str, ...]) -> bool:
    names = [type(child).__name__ for child in block.children() if "Cross" not in type(child).__name__]
    return any(kind in name for kind in kinds for name in names)


def _hooks_of(module: nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def _is_ours(hook: Any) -> bool:
    return "mi_crow_lightning" in (getattr(hook, "__module__", None) or type(hook).__module__ or "")


@contextmanager
def _ours() -> Iterator[None]:
    """Call what our hooks break by its name: the model ran without them."""
    try:
        yield
    except MiCrowError:
        raise
    except Exception as error:
        raise Wrong(f"with a hook, the model raises {type(error).__name__}: {in_short(error)}") from error


@contextmanager
def _only_ours_are_heard() -> Iterator[None]:
    """Silence the warnings of transformers and torch; a check records those of its hooks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
