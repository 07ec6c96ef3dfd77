"""Running texts through a language model while its hooks watch or steer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mi_crow_lightning.language_model.language_model import LanguageModel

__all__ = ["Inference"]


class Inference:
    """Runs texts through a `LanguageModel`.

    Args:
        language_model: the model, its tokenizer and its layers.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        self._lm = language_model

    def execute_inference(
        self,
        texts: Sequence[str],
        tok_kwargs: Mapping[str, Any] | None = None,
        autocast: bool = False,
        autocast_dtype: torch.dtype | None = None,
        with_controllers: bool = True,
    ) -> tuple[Any, dict[str, Tensor]]:
        """One pass over the texts, padded to one batch, in evaluation and inference mode.

        Args:
            texts: the texts, ``B`` of them.
            tok_kwargs: for the tokenizer, over its defaults here (``padding=True``, ``truncation=True``).
            autocast: whether to compute in ``autocast_dtype``.
            autocast_dtype: torch's default for the device if left out.
            with_controllers: whether controllers act; detectors always do.

        Returns:
            What the model returned, and the encodings it was called with: ``input_ids`` and
            ``attention_mask``, each ``(B, T)``.

        Raises:
            TypeError, ValueError: ``texts`` is no sequence of strings, or empty.
            HookError: a hook failed; the pass went on, and its result is in ``outputs``.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts must be a list of strings, not {texts!r}")
        if not texts:
            raise ValueError("texts is empty: give at least one")
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
        """Switch the controllers off if they are not wanted, and those that were on back on afterwards."""
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
    """Evaluation mode for a while: each module gets back the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
