"""The outline of a model given by name: its class, its size and its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from mi_crow_lightning.addressing.sizes import size_of
from mi_crow_lightning.language_model.imported_model import import_model, is_importable_name
from mi_crow_lightning.language_model.without_weights import model_from_config, read_config
from mi_crow_lightning.report.layer_rows import LayerRow, layer_rows, layers_as_text
from mi_crow_lightning.report.output_shapes import output_shapes
from mi_crow_lightning.report.tiny_calls import tiny_calls

__all__ = ["ModelOutline", "outline"]

_MOST_ON_CPU = 400_000_000
_FOUND_BY = {"fake": "with tensors that hold no numbers", "cpu": "on the CPU"}


@dataclass(frozen=True)
class ModelOutline:
    """A model and its layers. ``str()`` returns a table.

    Attributes:
        model: the name that was asked for.
        module: name of its class.
        parameters: how many numbers its weights hold.
        inputs: the shapes of its inputs in a tiny pass, by name.
        shapes_found_by: ``"fake"`` (tensors that hold no numbers) or ``"cpu"``; ``None`` if the output shapes are not
            known.
        shapes_unknown: why the output shapes are not known.
        layers: its layers, or those that were asked for.
    """

    model: str
    module: str
    parameters: int
    inputs: dict[str, tuple[int, ...]]
    shapes_found_by: str | None
    shapes_unknown: str
    layers: tuple[LayerRow, ...]

    def __str__(self) -> str:
        title = f"{self.module} ({self.model}): {self.parameters:,} parameters"
        if self.shapes_found_by is None:
            shapes = f"output shapes are not known: {self.shapes_unknown}"
        else:
            given = ", ".join(f"{name} {shape}" for name, shape in self.inputs.items())
            shapes = f"output shapes for {given}, from a forward pass {_FOUND_BY[self.shapes_found_by]}"
        return f"{title}\n{shapes}\n\n{layers_as_text(self.layers) if self.layers else 'the model has no layers'}"


def outline(name: str, signature: str | None = None) -> ModelOutline:
    """Return the outline of a model.

    Args:
        name: a folder, or a name on the hub, of a transformers model (only its config is read); a GGUF file, or a
            folder that holds one; or ``package.module:name`` of an ``nn.Module``, or of a function or class that
            returns one.
        signature: only the layers that it matches; by default all.

    Raises:
        LayerNotFound: ``signature`` matches no layer.
        OSError, ValueError: there is no such model, or it cannot be made.
    """
    model, on_cpu = _imported(name) if is_importable_name(name) else _from_config(name)
    rows = layer_rows(model, signature)  # before the pass, so that a wrong signature is reported at once
    shapes = output_shapes(model, tiny_calls, on_cpu, signature)
    return ModelOutline(
        model=name,
        module=type(model).__name__,
        parameters=size_of(model),
        inputs=shapes.inputs,
        shapes_found_by=shapes.found_by,
        shapes_unknown=shapes.why_not,
        layers=tuple(replace(row, output_shape=shapes.by_layer.get(row.name)) for row in rows),
    )


def _imported(name: str) -> tuple[nn.Module, Callable[[], nn.Module]]:
    model = import_model(name).eval()
    return model, lambda: model


def _from_config(name: str) -> tuple[nn.Module, Callable[[], nn.Module]]:
    config = read_config(name)
    model = model_from_config(config)

    def on_cpu() -> nn.Module:
        if size_of(model) > _MOST_ON_CPU:
            raise ValueError(f"it has more than {_MOST_ON_CPU:,} parameters, too many to run on the CPU")
        return model_from_config(config, "cpu")

    return model, on_cpu
