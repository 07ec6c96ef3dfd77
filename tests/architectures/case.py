"""A tiny model, what it is called with, and the layers of it that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.addressing.main_stack import stacks_by_prefix
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import resolve
from mi_crow_lightning.errors import MiCrowError
from tests.architectures.given import Call, Given, calls_of, is_two_sided
from tests.architectures.layout import tensor_of, tensors_in
from tests.architectures.tiny_model import Architecture, NotBuilt, in_short, tiny_model


class WrongStack(AssertionError):
    """The signature of the main stack means other blocks."""


class Case:
    """A tiny model and the layers of it that are checked.

    Attributes:
        blocks: names of the main stack's blocks: those of the language model, the decoder or the only stack.
        signature: what means them, ``"block:*"`` or ``"decoder.block:*"``.
        encoder: names of the blocks of an encoder before it.
        steered: the first block of the main stack that runs, and the last of each class.

    Args:
        architecture: the class, and what it is called with.

    Raises:
        NotBuilt: there is no such model, or it does not run.
        LayerNotFound: it has no stack of blocks.
        WrongStack: its signature means other blocks.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.kind = architecture.kind
        self.model = tiny_model(architecture)
        self.call, ran = self._first_that_runs()
        self.blocks, self.signature = _main_blocks(self.model, ran)
        self.encoder = [name for names in _lists_of(self.model) for name in names if self._in_encoder(name)]
        running = [name for name in self.blocks if name in ran]
        last_of_class = {type(self.model.get_submodule(name)): name for name in running}
        self.steered = list(dict.fromkeys([*running[:1], *last_of_class.values()]))[:4]

    def given(self, side: str) -> Given:
        """Return the call with padding at a side.

        Raises:
            NotBuilt: the model's call has no padding there.
        """
        found = self.call(side)
        if found is None:
            raise NotBuilt(f"what the model is called with has no padding at the side {side!r}")
        return found

    def _first_that_runs(self) -> tuple[Call, set[str]]:
        """Return the first call that the model takes, and the names of the modules that run in it."""
        names, failed = [name for name, _ in self.model.named_modules()], ""
        for call in calls_of(self.model, self.kind):
            found = call("none")
            with self.seen(names) as seen:
                try:
                    assert found is not None
                    self.outputs(found)
                except Exception as error:
                    failed = failed or f"the model does not run: {type(error).__name__}: {in_short(error)[:200]}"
                    continue
            return call, {name for name, outputs in seen.items() if outputs}
        raise NotBuilt(failed or "no input for it is known")

    def real(self, name: str, call: Given) -> Tensor | None:
        return call.real_in_encoder if self._in_encoder(name) else call.real

    def outputs(self, call: Given) -> list[Tensor]:
        """Return all tensors that a pass returns."""
        torch.manual_seed(0)
        with torch.no_grad():
            return list(tensors_in(self.model(**call.inputs)))

    @contextmanager
    def seen(self, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
        """Yield the outputs of layers, as plain hooks that come last see them."""
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        with ExitStack() as stack:
            for name, outputs in found.items():
                stack.callback(self.model.get_submodule(name).register_forward_hook(_keeping(outputs)).remove)
            yield found

    def _in_encoder(self, name: str) -> bool:
        """Return whether a layer is in the encoder of a model with a decoder, and not in a tower of its encoder."""
        return is_two_sided(self.model) and _side(name) == "encoder" and not _is_of_other_modality(name)


def _main_blocks(model: Any, ran: set[str]) -> tuple[list[str], str]:
    """Return the blocks that are checked, and their signature: ``"block:*"``, or with their stack's prefix.

    Where several stacks run, the decoder's or the language model's are checked, not those of another modality.

    Raises:
        WrongStack: the signature means other blocks.
    """
    expected = [names for names in _lists_of(model) if ran & set(names)]
    expected = [names for names in expected if not _is_of_other_modality(names[0])] or expected
    if is_two_sided(model):
        expected = [names for names in expected if _side(names[0]) == "decoder"] or expected
    expected.sort(key=lambda names: "feature_extractor" in names[0])
    tree, signature = ModuleTree(model), "block:*"
    try:
        found = [match.name for match in resolve(tree, signature)]
    except MiCrowError:
        prefix_of = stacks_by_prefix(tree)
        stacks = [names[0].rpartition(".")[0] for names in expected]
        prefixes = [prefix_of[stack] for stack in stacks if stack in prefix_of]
        if not prefixes:
            raise
        signature = f"{prefixes[0]}.block:*"
        found = [match.name for match in resolve(tree, signature)]
    if expected and not any(set(found) & set(names) for names in expected):
        raise WrongStack(f"{signature} is {found[0]}, and the stack that runs is {expected[0][0]}")
    return found, signature


_OTHER_MODALITIES = ("vision", "visual", "image", "img", "audio", "speech", "qformer", "vit", "connector", "projector")


def _side(name: str) -> str:
    """Return ``"decoder"`` or ``"encoder"`` for a layer that lies in one; the decoder may be an encoder's class."""
    parts = name.split(".")
    return next((side for side in ("decoder", "encoder") if any(part.endswith(side) for part in parts)), "")


def _is_of_other_modality(name: str) -> bool:
    return any(word in name for word in _OTHER_MODALITIES)


def _lists_of(model: nn.Module) -> list[list[str]]:
    """Return the names in each list of two or more modules that does not lie in another one.

    A list of lists, as of stages, is none: nothing calls its children.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    lists = [name for name in lists if not isinstance(model.get_submodule(name)[0], nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [[f"{name}.{place}" for place, _ in model.get_submodule(name).named_children()] for name in outer]


def _keeping(outputs: list[Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        x = tensor_of(out)
        if x is not None:
            outputs.append(x.detach().clone())

    return hook
