"""Wrappers put segments of their own into names: these are left out, and a user's own segments are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from mi_crow_lightning.addressing.module_tree import ModuleTree, unwrapped
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.hooks import ActivationStatistics, Layers
from tests.models import BLOCKS, gpt2, llama, mlp, token_data


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


class BaseTuner(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class LoraModel(BaseTuner):
    """Named as peft names its classes: peft itself is not installed here."""


class PeftModel(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = LoraModel(model)


class PeftModelForCausalLM(PeftModel):
    pass


@pytest.mark.parametrize(
    "wrap",
    [
        compiled,
        AveragedModel,
        checkpoint_wrapper,
        nn.DataParallel,
        PeftModelForCausalLM,
        lambda m: AveragedModel(compiled(m)),
    ],
)
def test_a_wrapped_model_has_the_names_of_the_bare_one(wrap) -> None:
    bare = gpt2()
    wrapped = wrap(bare)
    tree = ModuleTree(wrapped)
    assert tree.names == ModuleTree(bare).names
    assert [match.name for match in resolve(tree, "block:*")] == [f"transformer.h.{i}" for i in range(BLOCKS)]
    assert [match.name for match in resolve(tree, "transformer.h.*")] == [f"transformer.h.{i}" for i in range(BLOCKS)]
    assert type(unwrapped(wrapped)) is type(bare)
    assert ModuleTree(nn.ModuleDict({"net": wrapped})).names == ["net", *(f"net.{name}" for name in tree.names)]


@pytest.mark.parametrize("wrap", [compiled, checkpoint_wrapper])
def test_wrapped_blocks_are_still_blocks(wrap) -> None:
    model = llama()
    plain = ModuleTree(model).names
    model.model.layers[1] = wrap(model.model.layers[1])
    tree = ModuleTree(model)
    assert tree.names == plain
    matches = resolve(tree, "block:*")
    assert [match.name for match in matches] == [f"model.layers.{i}" for i in range(BLOCKS)]
    # The name means the wrapper, so that a hook stands outside of what is compiled or run again.
    assert matches[1].module is model.model.layers[1]
    assert unwrapped(matches[1].module) is not matches[1].module
    assert [match.index for match in resolve(tree, "block:*.mlp")] == [0, 1, 2, 3]


def test_a_wrapped_stack_is_still_the_stack() -> None:
    model = nn.ModuleDict(
        {
            "stem": nn.Linear(2, 2),
            "body": compiled(nn.Sequential(*[nn.Linear(9, 9)] * 0, *(nn.Linear(9, 9) for _ in range(3)))),
        }
    )
    assert [match.name for match in resolve(ModuleTree(model), "block:*")] == ["body.0", "body.1", "body.2"]


def test_a_wrapped_sequential_counts_its_children() -> None:
    assert [match.name for match in resolve(ModuleTree(compiled(mlp())), "block:*")] == [str(i) for i in range(6)]


def test_a_hook_in_a_checkpoint_wrapper_sees_each_pass_once() -> None:
    model = llama().train()
    for i, block in enumerate(model.model.layers):
        model.model.layers[i] = checkpoint_wrapper(block)
    detectors = [ActivationStatistics(s, statistics=["mean"]) for s in ("block:*", "block:*.mlp")]
    layers = Layers(model, allow_stacking=True)
    for detector in detectors:
        layers.register_hook(None, detector)
    batch = torch.utils.data.default_collate(token_data(2))
    model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    real = int(batch["attention_mask"].sum())
    for detector in detectors:
        totals = [reading.value.total for reading in detector.readings() if reading.name == "histogram"]
        assert totals == [real * 32] * BLOCKS


class Own(nn.Module):
    """Names of a user's that wrappers have, too."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.ModuleDict({"model": nn.Linear(2, 2)})
        self.model = nn.ModuleDict({"module": nn.Linear(2, 2)})
        self.base_model = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_model(self.model["module"](self.module["model"](x)))


def test_a_users_own_names_stay() -> None:
    model = Own()
    assert ModuleTree(model).names == ["module", "module.model", "model", "model.module", "base_model"]
    assert unwrapped(model) is model
    assert ModuleTree(AveragedModel(model)).names == ModuleTree(model).names
    assert ModuleTree(PeftModel(model)).names == ModuleTree(model).names


def test_ancestors_are_those_of_every_use_innermost_first() -> None:
    shared = nn.Linear(2, 2)
    one, two = nn.ModuleDict({"a": shared}), nn.ModuleDict({"b": shared})
    root = nn.ModuleDict({"one": one, "two": two})
    assert ModuleTree(root).ancestors(shared) == [one, root, two]
    assert ModuleTree(root).ancestors(root) == []


def test_a_module_that_holds_itself_is_walked_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    model["a"].back = model
    assert ModuleTree(model).names == ["a"]
    del model["a"].back
