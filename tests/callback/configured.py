"""What configuration files of the tests name: functions, a hook of a user's own, and a LightningCLI to read them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from mi_crow_lightning import Detector, HookCallback, SteeringVector
from mi_crow_lightning.hooks.per_layer import PerLayer
from tests.models import Module, llama, loader, token_data


class Configured(Module):
    def __init__(self, new_tokens: int = 5) -> None:
        super().__init__(llama(), new_tokens)


class Tokens20(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(token_data())

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Along(Detector):
    """A hook as docs/how-to/own_hooks.md has it: what it does not know goes on to the base class."""

    def __init__(self, layer_signature: str | int | None = None, *, most: float, **options: Any) -> None:
        super().__init__(layer_signature, **options)
        self.most = most

    def observe(self, x: Tensor, ctx: Any) -> None:
        pass


class Times(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


# Without annotations, as users write them.


def negated(x):
    return -x


def large(x, ctx):
    return x.abs().amax(-1) > 1


def warm_up(ctx):
    return min(1.0, (ctx.step + 1) / 10)


def not_padding(batch):
    return batch["input_ids"] != 0


NUMBER = 3

OPTIONS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
QUIET = {**OPTIONS, "enable_model_summary": False, "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}


def one(class_path: str, /, **init_args: Any) -> dict[str, Any]:
    """A class, as it stands in a configuration."""
    return {"class_path": class_path, "init_args": init_args}


def ours(name: str, /, *signature: Any, **init_args: Any) -> dict[str, Any]:
    """One of the package's classes; a hook with its layers first."""
    layers = {"layer_signature": signature[0]} if signature else {}
    return one(f"mi_crow_lightning.{name}", **layers, **init_args)


def watch(**arguments: Any) -> list[Any]:
    return [ours("HookCallback", **arguments)]


def scale(**init_args: Any) -> dict[str, Any]:
    return ours("ScaleController", **{"layer_signature": 0, "factor": 2, **init_args})


def parser() -> ArgumentParser:
    """What LightningCLI reads a Trainer's callbacks with."""
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--callback", type=pl.Callback)
    return made


def printed(callback: dict[str, Any]) -> str:
    """A callback of a configuration, read and written again as --print_config does: with all that is null."""
    reader = parser()
    return str(reader.dump(reader.parse_object({"callback": callback}), skip_unset=False))


def instance(text: str) -> Any:
    """The callback that a configuration means."""
    reader = parser()
    return reader.instantiate(reader.parse_string(text)).callback


def hook_callbacks(run: LightningCLI) -> list[HookCallback]:
    return [callback for callback in run.trainer.callbacks if isinstance(callback, HookCallback)]


def cli(callbacks: Any, *command: str) -> LightningCLI:
    """A LightningCLI with these callbacks, as they stand in a configuration; it runs ``command`` if there is one."""
    config = yaml.safe_dump({"trainer": {**QUIET, "callbacks": callbacks}})  # --config takes it as it takes a path
    before, sys.argv = sys.argv, ["cli.py", *command[:1], "--config", config, *command[1:]]
    try:
        options = {"seed_everything_default": False, "save_config_callback": None}
        return LightningCLI(Configured, Tokens20, run=bool(command), **options)
    finally:
        sys.argv = before


def contents(value: Any) -> Any:
    """Everything that an object is made of, to compare two by; but for IDs that were not given."""
    if isinstance(value, Tensor):
        return ("tensor", value.dtype, value.tolist())
    if isinstance(value, dict):
        return {key: contents(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return (type(value), [contents(one) for one in value])
    if hasattr(value, "__dict__") and not callable(value) and not isinstance(value, type):
        no_argument = {"_state_key", "_spawned_runs"}  # these tell callbacks and runs apart
        no_argument |= {"file"} if type(value) is PerLayer else set()  # where its numbers were read
        by_chance = no_argument if getattr(value, "_has_given_id", False) else {*no_argument, "id"}
        return (type(value), contents({k: v for k, v in vars(value).items() if k not in by_chance}))
    if isinstance(value, nn.Module):
        return (type(value), vars(value).get("factor"))
    return value


def vector_file(folder: Path) -> Path:
    """A steering vector for two blocks of the model, saved."""
    path = folder / "joy.safetensors"
    SteeringVector({f"model.layers.{i}": torch.arange(1, 33.0) + i for i in (1, 2)}, method="by hand").save(path)
    return path
