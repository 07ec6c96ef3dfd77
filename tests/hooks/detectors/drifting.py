"""Models with an adapter that can be switched off, and numpy's drift between two models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch
from torch import Tensor, nn

from tests.models import BLOCKS, WIDTH, llama


def adapted(seed: int = 0, dropout: float = 0.0, **changes: Any) -> Any:
    """A tiny Llama under PEFT's LoRA whose adapter does something."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=dropout)
    with warnings.catch_warnings():  # transformers 5 says so of what PEFT asks it
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = peft.get_peft_model(llama(**changes), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


class Adapter(nn.Module):
    """A low-rank change of a linear layer, as LoRA's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.on = base, True
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.up(self.down(x)) if self.on else y


class Net(nn.Module):
    """Blocks with batch normalisation, dropout and an adapter that can be switched off as PEFT's."""

    def __init__(self, drop: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.Sequential(Adapter(nn.Linear(8, 8)), nn.BatchNorm1d(8), nn.Dropout(drop)) for _ in range(3)
        )
        self.head = nn.Linear(8, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(x)
        return y

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        adapters = [one for one in self.modules() if isinstance(one, Adapter)]
        for one in adapters:
            one.on = False
        try:
            yield
        finally:
            for one in adapters:
                one.on = True


def hidden(model: Any, batch: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """The real tokens after each block ``(n, D)``, and their logits ``(n, V)``, seen by plain hooks."""
    found: list[Tensor] = []
    blocks = next(one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == BLOCKS)
    mask = batch["attention_mask"].bool()

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output).detach()[mask])

    handles = [block.register_forward_hook(keep) for block in blocks]
    with torch.no_grad():
        logits = model(**batch).logits[mask]
    for handle in handles:
        handle.remove()
    assert len(found) == BLOCKS and found[0].shape[1] == WIDTH
    return found, logits
