"""Texts of two classes for tiny models, a module that only runs them, and their vectors in numpy."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.models import VOCABULARY

LENGTH = 7


class Reader(pl.LightningModule):
    """Every stage runs the model on the tokens of the batch; the model is as it comes, in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def read(self, batch: dict[str, Tensor]) -> None:
        self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        self.read(batch)
        return []  # Lightning warns of None

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.read(batch)

    test_step = validation_step


def texts(pairs: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of pairs: positive, negative, ...; the classes prefer other tokens, and lengths differ."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(2 * pairs):
        label = 1 - i % 2
        low, high = (3, VOCABULARY // 2 + 8) if label else (VOCABULARY // 2 - 8, VOCABULARY)
        ids = torch.randint(low, high, (3 + i % (LENGTH - 2),), generator=generator)
        rows.append({"ids": ids, "label": label, "pair": i // 2})
    return rows


def batches(rows: list[dict[str, Any]], side: str = "left", pairs_in_batch: int = 2) -> DataLoader[Any]:
    """Padded batches of whole pairs; the last one is smaller where the number is not even."""
    size = 2 * pairs_in_batch
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return DataLoader([_batch(part, side) for part in parts], batch_size=None)  # type: ignore[arg-type]


def _batch(rows: list[dict[str, Any]], side: str) -> dict[str, Tensor]:
    ids, mask = torch.zeros(2, len(rows), LENGTH, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row["ids"])
        place = slice(LENGTH - n, None) if side == "left" else slice(0, n)
        ids[i, place], mask[i, place] = row["ids"], 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "label": torch.tensor([row["label"] for row in rows]),
        "pair": torch.tensor([row["pair"] for row in rows]),
    }


@torch.no_grad()
def by_hand(model: nn.Module, loader: DataLoader[Any], layers: list[str], tokens: str = "all") -> dict[str, np.ndarray]:
    """The representation of every row at each layer, (N, D) float64: a plain hook, and a loop over rows."""
    seen: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    running: dict[str, Any] = {}

    def keep(layer: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            x = (output if isinstance(output, Tensor) else output[0]).double().numpy()
            for row, mask in zip(x, running["mask"], strict=True):
                real = row[mask.numpy().astype(bool)]
                seen[layer].append(real[-1] if tokens == "last" else real.mean(0))

        return hook

    model = model.eval()
    handles = [model.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    for batch in loader:
        running["mask"] = batch["attention_mask"]
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    return {layer: np.stack(rows) for layer, rows in seen.items()}


def labels(loader: DataLoader[Any]) -> np.ndarray:
    return torch.cat([batch["label"] for batch in loader]).numpy()
