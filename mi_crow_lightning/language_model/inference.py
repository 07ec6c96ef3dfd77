"""Running texts through a language model while its hooks watch or steer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.layers import Layers

__all__ = ["Inference"]


class TokenizingModel(Protocol):
    """The part of a `LanguageModel` that inference needs."""

    model: nn.Module
    layers: Layers

    @property
    def device(self) -> torch.device:
        """The device that the texts are moved to."""

    def tokenize(self, texts: Sequence[str], **params: Any) -> dict[str, Tensor]:
        """Turn texts into one padded batch."""


class Inference:
    """Inference with a `LanguageModel`: texts in, its outputs out.

    Args:
        language_model: the model, its tokenizer and its layers.
    """

    def __init__(self, language_model: TokenizingModel) -> None:
        self._lm = language_model

    def execute_inference(
        self,
        texts: Sequence[str],
        tok_kwargs: Mapping[str, Any] | None = None,
        autocast: bool = False,
        autocast_dtype: torch.dtype | None = None,
        with_controllers: bool = True,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run texts through the model in one pass, padded to one batch, in evaluation and inference mode.

        Args:
            texts: ``B`` texts.
            tok_kwargs: arguments of the tokenizer; they override ``padding=True`` and ``truncation=True``.
            autocast: whether to compute in ``autocast_dtype``.
            autocast_dtype: by default torch's for the device.
            with_controllers: whether controllers act; detectors always do.

        Returns:
            The model's output, and the encodings it was called with: ``input_ids`` and ``attention_mask``, each
            ``(B, T)``.

        Raises:
            TypeError, ValueError: ``texts`` is not a sequence of strings, or is empty.
            HookError: a hook failed. The pass went on, and the error's ``outputs`` holds its result.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts must be a list of strings, not {texts!r}")
        if not texts:
            raise ValueError("texts is empty: give at least one text")
        encodings = self._lm.tokenize(texts, **(tok_kwargs or {}))
        model, device = self._lm.model, self._lm.device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast),
            _evaluating(model),
            self._controllers(with_controllers),
        ):
            return model(**encodings), encodings

    @contextmanager
    def _controllers(self, wanted: bool) -> Iterator[None]:
        """Switch controllers off unless they are wanted, and afterwards switch on again those that were on."""
        off = [] if wanted else [hook for hook in self._lm.layers.get_controllers() if hook.enabled]
        for hook in off:
            hook.disable()
        try:
            yield
        finally:
            for hook in off:
                hook.enable()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and afterwards each module back into the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
