"""One value for all layers of a hook, or one for each layer.

The prefix of a layer's name depends on the root (``model.layers.12`` in a model, ``model.model.layers.12`` in the
LightningModule around it), so a layer is looked up by its name, then by a name that ends the same way, then by its
block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import RegistrationError, VectorFileError
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.edits import rounded
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["Casts", "PerLayer", "Vector", "ends_alike", "loaded", "span_of"]

V = TypeVar("V")

_NUMBERS_OF_BLOCKS = (
    ". Numbers mean the blocks of one stack, and this layer is in no stack, or the hook's layers are in several: give "
    "the names of layers instead"
)

Vector: TypeAlias = str | Path | Tensor | Mapping[int, Tensor] | Mapping[str, Tensor]
"""What ``vector=`` may be: ``(D,)``; such vectors by layer; or the path of a file that `SteeringVector.save` wrote."""


class PerLayer(Generic[V]):
    """One value for all layers, or a mapping from layer to value.

    Args:
        given: the value, or a mapping whose keys are block indices or layer names, or the path of a steering
            vector's file.
        name: what messages call it.
        check: makes what is kept from one given value and its name, or raises.

    Attributes:
        model: name of the model that a `SteeringVector` was made from; empty for anything else.
        origin: the origin of a `SteeringVector`; ``None`` for anything else.
        is_random: whether it is a `SteeringVector` that is a random one, to compare with.
        file: the path that was given; ``None`` for anything else.

    Raises:
        TypeError, ValueError: a key does not name a layer, the mapping is empty, or ``check`` refuses a value.
        FileNotFoundError, VectorFileError: there is no such file, or it does not hold a steering vector.

    Examples:
        >>> values = PerLayer({"layers.1": 5, 2: 7}, "value", lambda value, name: value)
        >>> values.of("model.layers.1", 1), values.of("model.layers.2.mlp", 2)
        (5, 7)
    """

    def __init__(self, given: Any, name: str, check: Callable[[Any, str], V]) -> None:
        self.name = name
        self.value: V | dict[int | str, V]
        self.file = given if isinstance(given, (str, Path)) else None
        given = loaded(given, name)
        self.origin = given.origin if isinstance(given, SteeringVector) else None
        self.is_random = isinstance(given, SteeringVector) and given.is_random
        model = getattr(given, "model", "")
        self.model = model if isinstance(model, str) else ""
        if isinstance(given, Mapping):
            if not given:
                raise ValueError(f"{name} is an empty mapping: give a value for each layer, or one for all")
            self.value = {_layer(key, name): check(one, f"{name}[{shown(key)}]") for key, one in given.items()}
        else:
            self.value = check(given, name)
        self._by_end = _by_end(self.value) if isinstance(self.value, dict) else {}
        self._found: dict[tuple[str, int | None], int | str] = {}  # by layer and block; a pass asks again and again

    def at(self, ctx: HookContext) -> V:
        """Return the value of the layer that a hook is called at."""
        return self.of(ctx.layer, ctx.index)

    def of(self, layer: str, index: int | None) -> V:
        """Return the value of a layer.

        Args:
            layer: its name.
            index: the block that it is or lies in, if any.

        Raises:
            RegistrationError: there is none, or there are several; the message lists what there is.
        """
        if not isinstance(self.value, dict):
            return self.value
        if layer in self.value:
            return self.value[layer]
        key = self._found.get((layer, index))
        if key is None or key not in self.value:
            key = self._found[layer, index] = self._key_of(layer, index, self.value)
        return self.value[key]

    def _key_of(self, layer: str, index: int | None, value: dict[int | str, V]) -> int | str:
        keys = self._alike(layer, value)
        if not keys and index is not None and index in value:
            keys = [index]
        if len(keys) == 1:
            return keys[0]
        keys = [key for key in value if key in keys]  # in the order in which they were given
        listed = ", ".join(map(repr, list(keys or value)[:8])) + (", ..." if len(keys or value) > 8 else "")
        if keys:
            raise RegistrationError(f"{self.name} has several values for layer {layer!r}: those of {listed}")
        block = f" (block {index})" if index is not None else ""
        hint = "" if index is not None or not all(isinstance(key, int) for key in value) else _NUMBERS_OF_BLOCKS
        raise RegistrationError(f"{self.name} has nothing for layer {layer!r}{block}; it has: {listed}{hint}")

    def _alike(self, layer: str, value: dict[int | str, V]) -> list[int | str]:
        """Return the names that end as a layer's does, see `ends_alike`, without looking at all of them."""
        longer = self._by_end.get(layer, ())
        shorter = [end for end in _ends(layer) if end in value and end not in longer]
        return [*longer, *shorter]

    def move(self: PerLayer[Tensor], device: torch.device) -> None:
        """Bring tensors to a device: a graph of ``torch.compile`` would do so in each call."""
        if device.type != "mps":  # it has no float64
            with torch.inference_mode(False):
                moved = {key: one.to(device) for key, one in self._items()}
            self.value = moved if isinstance(self.value, dict) else moved[""]

    def _items(self) -> list[tuple[int | str, V]]:
        return list(self.value.items()) if isinstance(self.value, dict) else [("", self.value)]

    def describe(self, in_words: Callable[[list[V]], str]) -> str:
        """Return the values in a few words, for the ``repr`` of a hook.

        Args:
            in_words: describes all of the values together.
        """
        text = in_words([value for _, value in self._items()])
        return f"<{len(self.value)} layers, {text}>" if isinstance(self.value, dict) else f"<{text}>"

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse layers that there is no value for.

        Args:
            blocks: names of the layers, each with its block.

        Raises:
            RegistrationError: there is none, or there are several.
        """
        self._found.clear()
        for layer, index in blocks.items():
            self.of(layer, index)


def span_of(numbers: Iterable[float]) -> str:
    """Return a number, or the smallest and the largest of several.

    Examples:
        >>> span_of([3.0]), span_of([1, 2.5, 2])
        ('3', '1 to 2.5')
    """
    given = list(numbers)
    least, most = min(given), max(given)
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


def loaded(given: Any, name: str) -> Any:
    """Return ``given``; if it is a path, the `SteeringVector` in that file. Only here do hooks read files.

    Raises:
        FileNotFoundError, VectorFileError: there is no such file, or it does not hold a steering vector.
    """
    if not isinstance(given, (str, Path)):
        return given
    try:
        return SteeringVector.load(given)
    except (FileNotFoundError, VectorFileError) as error:
        raise type(error)(f"{name}: {error}") from error
    except (OSError, ValueError) as error:  # no file can have that name
        raise ValueError(f"{name}={shown(given)} is a string, and so the path of a file: {shown(error)}") from error


def _layer(key: Any, name: str) -> int | str:
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise TypeError(
            f"{name}: the key {shown(key)} does not name a layer; give the index of a block, or a layer's name"
        )
    return key


def ends_alike(one: object, other: str) -> bool:
    """Say whether one layer's name is the other, or its end by whole segments.

    Examples:
        >>> ends_alike("model.layers.2", "layers.2"), ends_alike("model.layers.12", "layers.2")
        (True, False)
    """
    return isinstance(one, str) and (f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}"))


def _ends(name: str) -> Iterator[str]:
    """Yield a layer's name, and its ends by whole segments."""
    segments = name.split(".")
    return (".".join(segments[start:]) for start in range(len(segments)))


def _by_end(keys: Iterable[int | str]) -> dict[str, list[int | str]]:
    """Return the names of layers by each of their ends."""
    found: dict[str, list[int | str]] = {}
    for key in keys:
        for end in _ends(key) if isinstance(key, str) else ():
            found.setdefault(end, []).append(key)
    return found


class Casts:
    """Tensors brought to the dtype and device of an activation, each once.

    They are ordinary tensors even if made in inference mode, so that the same ones serve prediction and training.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return ``tensor`` on the device of ``x``, in ``dtype`` or else that of ``x``.

        Raises:
            EditMismatch: that is a dtype of integers, and the tensor holds fractions.
        """
        if torch.compiler.is_compiling():
            return rounded(tensor, dtype or x.dtype).to(x.device)
        key = (id(tensor), dtype or x.dtype, x.device)
        if key not in self._made:
            with torch.inference_mode(False), torch.no_grad():
                # The tensor is kept beside its cast: its id then stays its own. Not every device has float64.
                self._made[key] = (tensor, rounded(tensor, dtype or x.dtype).to(x.device))
        return self._made[key][1]

    def clear(self) -> None:
        """Forget all casts."""
        self._made.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the casts: a copy makes its own."""
        return {"_made": {}}
