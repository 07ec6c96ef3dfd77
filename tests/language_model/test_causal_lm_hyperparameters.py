"""A subclass of CausalLMModule keeps plain values as hyperparameters, and no object under any name."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from transformers import GenerationConfig

from mi_crow_lightning import CausalLMModule
from tests.language_model.tiny import model_of, tokens


class Renamed(CausalLMModule):
    def __init__(self, lm: Any, beta: float = 0.1) -> None:
        super().__init__(lm, lr=0.5)
        self.beta = beta


class WithReference(CausalLMModule):
    def __init__(self, model: Any, reference: Any, beta: float = 0.1, **options: Any) -> None:
        super().__init__(model, **options)
        self.reference, self.beta = reference, beta


class WithSeveral(CausalLMModule):
    def __init__(self, model: Any, teachers: Any, beta: float = 0.1) -> None:
        super().__init__(model)
        self.teachers, self.beta = nn.ModuleList(teachers.values() if isinstance(teachers, dict) else teachers), beta


class SavesAgain(CausalLMModule):
    def __init__(self, lm: Any, words: Any, texts: Any, loss: Any, beta: float = 0.1) -> None:
        super().__init__(lm, words)
        self.save_hyperparameters()


class SavesByName(CausalLMModule):
    def __init__(self, lm: Any, beta: float = 0.1) -> None:
        super().__init__(lm)
        self.save_hyperparameters("lm", "beta")


class SavesADict(CausalLMModule):
    def __init__(self, lm: Any, beta: float = 0.1) -> None:
        super().__init__(lm)
        self.save_hyperparameters({"inner": {"lm": lm}, "beta": beta})


class Grandchild(Renamed):
    def __init__(self, network: Any, gamma: float = 0.3) -> None:
        super().__init__(network, beta=0.2)
        self.gamma = gamma


def lm() -> Any:
    return model_of("llama")


def data() -> TensorDataset:
    return TensorDataset(torch.zeros(2, 3))


MADE: dict[str, Callable[[], CausalLMModule]] = {
    "renamed": lambda: Renamed(lm(), beta=0.2),
    "a reference beside it": lambda: WithReference(lm(), lm(), beta=0.2, lr=0.5),
    "a list of modules": lambda: WithSeveral(lm(), [lm(), lm()], beta=0.2),
    "a dict of modules": lambda: WithSeveral(lm(), {"large": lm()}, beta=0.2),
    "saved again": lambda: SavesAgain(lm(), tokens(), data(), nn.functional.mse_loss, beta=0.2),
    "saved by name": lambda: SavesByName(lm(), beta=0.2),
    "saved as a dict": lambda: SavesADict(lm(), beta=0.2),
    "grandchild": lambda: Grandchild(lm()),
}
OBJECTS = {"lm", "model", "tokenizer", "reference", "teachers", "words", "texts", "loss", "inner", "network"}


def saved_hyperparameters(module: CausalLMModule, path: Path) -> dict[str, Any]:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    saved: dict[str, Any] = torch.load(path, weights_only=True)["hyper_parameters"]  # no class of anyone's in it
    return saved


@pytest.mark.parametrize("case", MADE)
def test_hyperparameters_are_plain_values(case: str, tmp_path: Path) -> None:
    module = MADE[case]()
    assert not OBJECTS & set(module.hparams) and not OBJECTS & set(module.hparams_initial)
    saved = saved_hyperparameters(module, tmp_path / "a.ckpt")
    assert saved["beta"] == 0.2 and saved == dict(module.hparams)


def test_a_subclass_loads_beside_its_objects(tmp_path: Path) -> None:
    module = WithReference(lm(), lm(), beta=0.2, lr=0.5)
    saved_hyperparameters(module, tmp_path / "a.ckpt")
    fresh, reference = lm(), lm()
    objects = dict(model=fresh, reference=reference)
    loaded = WithReference.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, **objects)
    assert (loaded.beta, loaded.lr) == (0.2, 0.5) and loaded.model is fresh and loaded.reference is reference
    with pytest.raises(TypeError, match="reference"):
        WithReference.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, model=fresh)


class Mode(str, enum.Enum):
    FAST = "fast"


def test_values_in_other_forms_become_plain_ones(tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=True)
    module = Settings(lm(), tmp_path, [np.float64(0.5), {Mode.FAST: (1, None)}], torch.ones(2), generation=config)
    saved = saved_hyperparameters(module, tmp_path / "a.ckpt")
    assert saved["folder"] == str(tmp_path) and saved["generation"] == {"max_new_tokens": 3, "do_sample": True}
    assert saved["nested"] == [0.5, {"fast": (1, None)}] and torch.equal(saved["weights"], torch.ones(2))


class Settings(CausalLMModule):
    def __init__(self, lm: Any, folder: Path, nested: Any, weights: torch.Tensor, generation: Any) -> None:
        super().__init__(lm, generation=generation)
