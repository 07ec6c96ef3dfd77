"""Tiny real models, LightningModules around them, and their data: what the tests train, predict and break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

WIDTH = 32
BLOCKS = 4
VOCABULARY = 64
CLASSES = 5


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            **dict(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS),
            **dict(num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.1),
            **dict(pad_token_id=0, bos_token_id=1, eos_token_id=2),
            **changes,
        }
    )
    return LlamaForCausalLM(config)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=BLOCKS, n_head=4, n_positions=64, **tokens)
    )


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS, num_attention_heads=4)
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=CLASSES, **sizes))


def vit() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS, num_attention_heads=4)
    return ViTForImageClassification(
        ViTConfig(image_size=16, patch_size=8, num_labels=CLASSES, hidden_dropout_prob=0.1, **sizes)
    )


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
    )


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 144, CLASSES)
    )


class Module(pl.LightningModule):
    """A LightningModule around a model: every stage runs it, predict generates where the model can."""

    def __init__(self, model: nn.Module, new_tokens: int = 5) -> None:
        super().__init__()
        self.model = model.train()
        self.new_tokens = new_tokens

    def loss(self, batch: Any) -> Tensor:
        if isinstance(batch, dict):
            labels = {} if "labels" in batch else {"labels": batch["input_ids"]}
            loss: Tensor = self.model(**batch, **labels).loss
            return loss
        x, y = batch
        return cross_entropy(self.model(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if isinstance(batch, dict) and hasattr(self.model, "generate") and "input_ids" in batch:
            return self.model.generate(**batch, max_new_tokens=self.new_tokens, do_sample=False)
        return self.model(**batch) if isinstance(batch, dict) else self.model(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def token_data(count: int = 20, length: int = 7) -> list[dict[str, Tensor]]:
    """Token sequences of different lengths, padded on the left to ``length``."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(count):
        padding = i % 3
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        mask = torch.ones(length, dtype=torch.long)
        ids[:padding], mask[:padding] = 0, 0
        rows.append({"input_ids": ids, "attention_mask": mask})
    return rows


def class_token_data(count: int = 20) -> list[dict[str, Tensor]]:
    return [{**row, "labels": torch.tensor(i % CLASSES)} for i, row in enumerate(token_data(count))]


def image_dicts(count: int = 20) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return [{"pixel_values": image, "labels": torch.tensor(i % CLASSES)} for i, image in enumerate(images)]


def image_data(count: int = 20) -> list[tuple[Tensor, Tensor]]:
    return [(row["pixel_values"], row["labels"]) for row in image_dicts(count)]


def vector_data(count: int = 20) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, generator=generator), torch.tensor(i % CLASSES)) for i in range(count)]


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]], str]] = {
    # name: model, data, a signature of all its layers worth watching
    "llama": (llama, token_data, "block:*"),
    "gpt2": (gpt2, token_data, "block:*"),
    "bert": (bert, class_token_data, "block:*"),
    "vit": (vit, image_dicts, "block:*"),
    "mlp": (mlp, vector_data, "model.*"),
    "cnn": (cnn, image_data, "model.*"),
}


def loader(data: list[Any], batch_size: int = 4) -> DataLoader[Any]:
    """Batches in order: no shuffling, no workers."""
    return DataLoader(data, batch_size=batch_size)  # type: ignore[arg-type]


def trainer(*callbacks: pl.Callback, **changes: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU that leaves no files, unless ``changes`` say otherwise."""
    quiet: dict[str, Any] = dict(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **changes})


def handles(root: nn.Module) -> dict[tuple[str, str, int], Any]:
    """Every hook on every module, by module name, kind and ID; and instance attributes that shadow methods."""
    found: dict[tuple[str, str, int], Any] = {}
    for name, module in root.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            for hook_id, hook in getattr(module, kind).items():
                found[name, kind, hook_id] = hook
        for method in ("generate", "init_continuous_batching"):
            if method in module.__dict__:
                found[name, method, 0] = module.__dict__[method]
    return found


def assert_same_handles(before: dict[Any, Any], root: nn.Module) -> None:
    """The hooks on ``root`` are those of ``before``, by identity."""
    after = handles(root)
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)
