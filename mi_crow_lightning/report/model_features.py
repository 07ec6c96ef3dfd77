"""The features of a model that matter to hooks. "Supported" is what the tests run.

Optional libraries are recognised by the names of their classes: none is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.hooks.compiled.graphs import is_compiled
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.passes.token_module import virtual_tokens
from mi_crow_lightning.hooks.registry.rules import replicates
from mi_crow_lightning.report.feature import Feature, Support

__all__ = ["adapters", "attention_kernels", "checkpointing", "compilation", "quantisation", "replication"]

_KERNELS = ("eager", "sdpa")
_LEARNED_PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
_QUANTISED = ("bitsandbytes.", "torch.ao.nn.quantized.", "torchao.")


def compilation(model: nn.Module, layers: Layers, refused: Sequence[Exception], whole: bool = False) -> Feature:
    """Return what ``torch.compile`` compiled, and whether a hooked layer lies in it."""
    compiled = _compiled_names(model, whole)
    if not compiled:
        return Feature.unused("torch.compile")
    inside = any(layer in layers.graphs for layer in layers.hooked_modules())
    if refused:
        return Feature("torch.compile", _some(compiled), Support.REFUSED, str(refused[0]))
    traced = "hooks on layers inside are traced, and numbers are equal within rounding"
    note = traced if inside else "no hooked layer lies inside"
    return Feature("torch.compile", _some(compiled), Support.SUPPORTED, note)


def _compiled_names(model: nn.Module, whole: bool) -> list[str]:
    names = [name for name, module in ModuleTree(model).modules.items() if is_compiled(module)]
    return (["the LightningModule"] if whole or "" in names else []) + [name for name in names if name]


def checkpointing(model: nn.Module, fitting: bool, sets_mode: bool = False) -> Feature:
    """Return whether transformers, or a wrapper of torch, switched gradient checkpointing on.

    A model that calls ``torch.utils.checkpoint`` itself cannot be recognised; hooks work with it anyway.

    Args:
        model: the LightningModule, or the model of another Trainer.
        fitting: whether the run has backward passes.
        sets_mode: whether the Trainer puts all of the model into training mode for them.
    """
    name = "gradient checkpointing"
    transformers = [module for module in model.modules() if vars(module).get("gradient_checkpointing") is True]
    if not transformers and not any(_is_a(module, "CheckpointWrapper") for module in model.modules()):
        return Feature.unused(name)
    if not fitting:
        return Feature(name, "on", Support.SUPPORTED, "no effect outside fit")
    if not sets_mode and not all(module.training for module in transformers):
        note = "no effect in modules that are in evaluation mode: call .train() before fit"
        return Feature(name, "on", Support.DEGRADED, note)
    return Feature(name, "on", Support.SUPPORTED, "a layer's second run is not observed; edits are repeated in it")


def replication(model: nn.Module) -> list[Feature]:
    """Return ``nn.DataParallel`` if the model holds one: a Trainer itself uses none."""
    wrappers = [module for module in model.modules() if isinstance(module, nn.DataParallel)]
    if not wrappers:
        return []
    devices = f"{max(len(module.device_ids) for module in wrappers)} devices"
    if any(map(replicates, wrappers)):
        note = "hooks on the layers inside are refused: use the Trainer's strategy='ddp' instead"
        return [Feature("nn.DataParallel", devices, Support.REFUSED, note)]
    return [Feature("nn.DataParallel", devices, Support.SUPPORTED, "with one device or none it makes no copies")]


def adapters(model: nn.Module) -> Feature:
    """Return PEFT's adapters: on layers (LoRA and the like), or in front of the prompt (prompt tuning and the like)."""
    adapted = [module for module in model.modules() if _is_a(module, "BaseTunerLayer")]
    if adapted:
        kinds = [type(module).__module__.split(".")[-2] for module in adapted]
        support = Support.SUPPORTED if set(kinds) == {"lora"} else Support.UNTESTED
        note = "a hook on an adapted layer sees it with its adapter, a hook on its .base_layer without"
        return Feature("PEFT", f"{_counted(kinds)} layers", support, note)
    wrappers = [module for module in model.modules() if _is_a(module, "PeftModel")]
    learned = max(map(virtual_tokens, wrappers), default=0)
    if learned:
        config: Any = wrappers[0].active_peft_config
        kind, task = str(config.peft_type.value), config.task_type
        support = Support.SUPPORTED if kind in _LEARNED_PROMPTS and task == "CAUSAL_LM" else Support.UNTESTED
        note = "the learned tokens are the first positions of the prompt"
        return Feature("PEFT", f"{kind}, {learned} learned tokens", support, note)
    if wrappers:
        return Feature("PEFT", "no adapted layers", Support.UNTESTED)
    return Feature.unused("PEFT")


def quantisation(model: nn.Module) -> Feature:
    """Return the layers of quantisation libraries, and those with weights that are whole numbers."""
    kinds = _counted(type(module).__name__ for module in model.modules() if _is_quantised(module))
    if not kinds:
        return Feature.unused("quantisation")
    return Feature("quantisation", kinds, Support.UNTESTED)


def _is_quantised(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False)]
    return (
        f"{type(module).__module__}.".startswith(_QUANTISED)
        or any(type(weight).__module__.startswith("torchao.") for weight in own)
        or any(not (weight.is_floating_point() or weight.is_complex()) for weight in own)
    )


def attention_kernels(model: nn.Module) -> Feature:
    """Return the attention kernels of the transformers models in the model."""
    configs = (vars(module).get("config") for module in model.modules())
    kernels = {str(kernel) for config in configs if (kernel := getattr(config, "_attn_implementation", None))}
    if not kernels:
        return Feature.unused("attention kernel")
    support = Support.SUPPORTED if kernels.issubset(_KERNELS) else Support.UNTESTED
    return Feature("attention kernel", _some(sorted(kernels)), support)


def _is_a(module: nn.Module, class_name: str) -> bool:
    return any(cls.__name__ == class_name for cls in type(module).__mro__)


def _counted(kinds: Iterable[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in Counter(kinds).items())


def _some(names: list[str], at_most: int = 3) -> str:
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
