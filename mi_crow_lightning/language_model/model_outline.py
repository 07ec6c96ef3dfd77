"""The outline of a model that is given by name: what it is, and its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from mi_crow_lightning.language_model.tiny_calls import tiny_calls
from mi_crow_lightning.language_model.without_weights import make_blank, read_config
from mi_crow_lightning.report.imported_model import import_model, is_importable_name
from mi_crow_lightning.report.layer_table import LayerRow, layer_rows, layer_table, parameter_count
from mi_crow_lightning.report.output_shapes import output_shapes

__all__ = ["ModelOutline", "outline"]

_MOST_ON_CPU = 400_000_000
_FOUND_BY = {"fake": "of tensors without numbers", "cpu": "on the CPU"}


@dataclass(frozen=True)
class ModelOutline:
    """A model and its layers. ``str()`` gives a table.

    Attributes:
        model: as it was named.
        module: its class.
        parameters: how many numbers its weights have.
        inputs: the shapes of what it was given in a tiny pass, by name.
        shapes_found_by: ``"fake"`` tensors or the ``"cpu"``; ``None`` where output shapes are not known.
        shapes_unknown: why they are not.
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
        what = f"{self.module} ({self.model}): {self.parameters:,} parameters"
        if self.shapes_found_by is None:
            shapes = f"output shapes are not known: {self.shapes_unknown}"
        else:
            given = ", ".join(f"{name} {shape}" for name, shape in self.inputs.items())
            shapes = f"output shapes for {given}, by a forward pass {_FOUND_BY[self.shapes_found_by]}"
        return f"{what}\n{shapes}\n\n{layer_table(self.layers) if self.layers else 'it has no layers'}"


def outline(name: str, signature: str | None = None) -> ModelOutline:
    """The outline of a model.

    Args:
        name: a folder or a hub's name of a model of transformers, of which only the config is read, a GGUF file or
            a folder that holds one, or ``package.module:name`` of what gives an ``nn.Module``.
        signature: only the layers that it matches.

    Raises:
        LayerNotFound: ``signature`` matches none.
        OSError, ValueError: there is no such model, or it cannot be made.
    """
    model, on_cpu = _imported(name) if is_importable_name(name) else _blank(name)
    rows = layer_rows(model, signature)  # before the pass: a wrong signature is told at once
    shapes = output_shapes(model, tiny_calls, on_cpu)
    return ModelOutline(
        model=name,
        module=type(model).__name__,
        parameters=parameter_count(model),
        inputs=shapes.inputs,
        shapes_found_by=shapes.found_by,
        shapes_unknown=shapes.why_not,
        layers=tuple(replace(row, output_shape=shapes.by_layer.get(row.name)) for row in rows),
    )


def _imported(name: str) -> tuple[nn.Module, Callable[[], nn.Module]]:
    model = import_model(name).eval()
    return model, lambda: model


def _blank(name: str) -> tuple[nn.Module, Callable[[], nn.Module]]:
    config = read_config(name)
    model = make_blank(config)

    def on_cpu() -> nn.Module:
        if parameter_count(model) > _MOST_ON_CPU:
            raise ValueError(f"more than {_MOST_ON_CPU:,} parameters are not made up for this")
        return make_blank(config, "cpu")

    return model, on_cpu
