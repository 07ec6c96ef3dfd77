"""A language model with its tokenizer, its layers and a way to run texts through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning._arguments import device_of
from mi_crow_lightning._moved import answers_for_old_names
from mi_crow_lightning._shown import shown
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.language_model.activations import Activations
from mi_crow_lightning.language_model.gathered import clear, gathered
from mi_crow_lightning.language_model.inference import Inference
from mi_crow_lightning.language_model.loading import check_tokenizer, load_model, load_tokenizer
from mi_crow_lightning.store.store import TensorMetadata

__all__ = ["LanguageModel"]


@answers_for_old_names
class LanguageModel:
    """A language model whose layers can be hooked outside a Trainer.

    Args:
        model: any module that takes ``input_ids`` and ``attention_mask``.
        tokenizer: its tokenizer, from transformers.
        store: where hooks may keep tensors, or ``None``.
        model_id: a name for the model; by default the one in its config.
        device: where to move the model; by default it stays where it is.

    Attributes:
        layers: the registry of hooks, see `Layers`.
        inference: the way to run texts, see `Inference`.
        activations: the way to save activations of many texts, see `Activations`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        store: Any = None,
        model_id: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={shown(model)} must be a torch module; from_huggingface(...) loads one by name")
        if model_id is not None and not isinstance(model_id, str):
            raise TypeError(f"model_id={shown(model_id)} must be a string")
        self.model = model if device is None else model.to(device_of("device", device, here=True))
        self.tokenizer = check_tokenizer(tokenizer)
        self.model_id = model_id or getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        self.layers = Layers(model, language_model=self, store=store)
        self.inference = Inference(self)
        self.activations = Activations(self)

    @classmethod
    def from_huggingface(
        cls,
        name_or_path: str | Path,
        store: Any = None,
        tokenizer_params: Mapping[str, Any] | None = None,
        model_params: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
    ) -> LanguageModel:
        """Load a model and its tokenizer with transformers.

        Args:
            name_or_path: a name on the hub, a folder, a GGUF file, or a folder that holds one.
            store: where hooks may keep tensors, or ``None``.
            tokenizer_params: arguments of the tokenizer's ``from_pretrained``.
            model_params: arguments of the model's ``from_pretrained``, e.g. ``{"dtype": torch.bfloat16}``.
            device: where to move the model; by default it stays where it is.

        Raises:
            OSError, ValueError: transformers cannot find the model, or does not recognise what it finds; or the
                folder holds several GGUF files.
        """
        model = load_model(name_or_path, **(model_params or {}))
        tokenizer = load_tokenizer(name_or_path, **(tokenizer_params or {}))
        return cls(model, tokenizer, store, model_id=str(name_or_path), device=device)

    @property
    def store(self) -> Any:
        """The store in which hooks may keep tensors, or ``None``."""
        return self.layers.store

    @store.setter
    def store(self, store: Any) -> None:
        self.layers.store = store

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def tokenize(self, texts: Sequence[str], **params: Any) -> dict[str, Tensor]:
        """Turn texts into one padded batch on the model's device.

        Args:
            texts: ``B`` texts.
            **params: arguments of the tokenizer; they override ``padding=True`` and ``truncation=True``.

        Returns:
            ``input_ids`` and ``attention_mask``, each ``(B, T)``, and whatever else the tokenizer returns.

        Raises:
            ValueError: there is no tokenizer, or it has no padding token and padding is on.
        """
        if self.tokenizer is None:
            raise ValueError("this LanguageModel has no tokenizer: pass one, LanguageModel(model, tokenizer)")
        params = {"padding": True, "truncation": True, "return_tensors": "pt", **params}
        if params["padding"] and self.tokenizer.pad_token is None:
            raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token, or pass padding=False")
        return {name: value.to(self.device) for name, value in self.tokenizer(list(texts), **params).items()}

    def get_all_detector_metadata(self) -> tuple[dict[str, dict[str, Any]], TensorMetadata]:
        """Return what the registered detectors hold: ``metadata`` and ``tensor_metadata``, by layer, then by key.

        Of a list of tensors, as ``keep="all"`` holds it, each has a key with its number: ``"activations_0"``.

        Raises:
            ValueError: two detectors hold the same key of the same layer.
        """
        return gathered(self.layers)

    def save_detector_metadata(
        self, run_name: str, batch_idx: int | None, unified: bool = False, clear_after_save: bool = True
    ) -> str:
        """Keep in the store what the registered detectors hold.

        Args:
            run_name: the run.
            batch_idx: the batch of the run.
            unified: whether to append it to the run as a whole, whatever the batch: see
                `Store.put_run_detector_metadata`.
            clear_after_save: whether the detectors then forget it.

        Returns:
            Where it is, relative to the store.

        Raises:
            ValueError: there is no store, or two detectors hold the same key of the same layer.
            StoreKeyError, TypeError, OSError: see `Store.put_detector_metadata`.
        """
        if self.store is None:
            raise ValueError("this LanguageModel has no store: LanguageModel(..., store=LocalStore('folder'))")
        held = self.get_all_detector_metadata()
        if unified:
            place: str = self.store.put_run_detector_metadata(run_name, *held)
        else:
            place = self.store.put_detector_metadata(run_name, batch_idx, *held)
        if clear_after_save:
            self.clear_detectors()
        return place

    def clear_detectors(self) -> None:
        """Let every registered detector forget its ``metadata`` and ``tensor_metadata``."""
        clear(self.layers)

    def __repr__(self) -> str:
        return f"LanguageModel({self.model_id!r}, {len(self.layers.get_hooks())} hooks)"
