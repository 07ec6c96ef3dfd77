"""Running texts through a language model while its hooks watch or steer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mi_crow_lightning._moved import answers_for_old_names
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.language_model.positions import with_positions
from mi_crow_lightning.language_model.stored_runs import batches_of, begin_run

__all__ = ["Inference", "evaluating"]


class TokenizingModel(Protocol):
    """The part of a `LanguageModel` that inference needs."""

    model: nn.Module
    layers: Layers
    store: Any
    model_id: str

    @property
    def device(self) -> torch.device:
        """The device that the texts are moved to."""

    def tokenize(self, texts: Sequence[str], **params: Any) -> dict[str, Tensor]:
        """Turn texts into one padded batch."""

    def save_detector_metadata(self, run_name: str, batch_idx: int | None, unified: bool = False) -> str:
        """Keep in the store what the detectors hold, and let them forget it."""

    def clear_detectors(self) -> None:
        """Let the detectors forget what they hold."""


@answers_for_old_names
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
            ``(B, T)``. Texts padded on the left are read with position IDs that do not count the padding.

        Raises:
            TypeError, ValueError: ``texts`` is not a sequence of strings, is empty, or has a text without any token.
            HookError: a hook failed. The pass went on, and the error's ``outputs`` holds its result.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts must be a list of strings, not {texts!r}")
        if not texts:
            raise ValueError("texts is empty: give at least one text")
        encodings = self._lm.tokenize(texts, **(tok_kwargs or {}))
        _check_each_has_tokens(texts, encodings)
        model, device = self._lm.model, self._lm.device
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast),
            evaluating(model),
            self._controllers(with_controllers),
        ):
            output = model(**with_positions(model, encodings))
            self._lm.layers.check_handles()
            return output, encodings

    def infer_texts(
        self,
        texts: Sequence[str],
        run_name: str | None = None,
        batch_size: int | None = None,
        tok_kwargs: Mapping[str, Any] | None = None,
        autocast: bool = False,
        autocast_dtype: torch.dtype | None = None,
        with_controllers: bool = True,
        clear_detectors_before: bool = False,
        save_in_batches: bool = True,
    ) -> tuple[Any, Any]:
        """Run texts through the model by batches, and keep what the detectors hold after each.

        All outputs are returned, so they must fit into memory together. `Activations.save_activations` keeps one batch.

        Args:
            texts: the texts.
            run_name: the run of the store, which must be new, to keep what the detectors hold. They then forget it.
                By default it stays where it is, and nothing is written.
            batch_size: texts in a batch; by default all are one batch.
            tok_kwargs: see `execute_inference`; so are ``autocast``, ``autocast_dtype`` and ``with_controllers``.
            autocast: see there.
            autocast_dtype: see there.
            with_controllers: see there.
            clear_detectors_before: whether the detectors first forget what they hold.
            save_in_batches: whether to keep it by batch, or all together: see `LanguageModel.save_detector_metadata`.

        Returns:
            The output and the encodings, see `execute_inference`. With more texts than ``batch_size``, a list of the
            outputs and a list of the encodings.

        Raises:
            TypeError, ValueError, HookError: see `execute_inference`. Also if there is no store for ``run_name``, or
                it has that run already.
        """
        size = batch_size if batch_size is not None else max(1, len(texts))
        batches = batches_of(texts, size)
        if clear_detectors_before:
            self._lm.clear_detectors()
        if run_name is not None:
            options = {"batch_size": size, "max_length": (tok_kwargs or {}).get("max_length")}
            begin_run(self._lm.store, run_name, self._lm.model_id, options)
        results = []
        for index, batch in enumerate(batches):
            results.append(self.execute_inference(batch, tok_kwargs, autocast, autocast_dtype, with_controllers))
            if run_name is not None:
                self._lm.save_detector_metadata(run_name, index, unified=not save_in_batches)
        if len(results) == 1:
            return results[0]
        outputs, encodings = zip(*results, strict=True)
        return list(outputs), list(encodings)

    def _controllers(self, wanted: bool) -> AbstractContextManager[None]:
        """Leave controllers out of this thread's passes, unless they are wanted."""
        layers = self._lm.layers
        return nullcontext() if wanted else layers.leaving_out(layers.get_controllers())


InferenceEngine = Inference  # its name in mi-crow


def _check_each_has_tokens(texts: Sequence[str], encodings: Mapping[str, Tensor]) -> None:
    """Refuse texts that have no token, before the model is called with them."""
    ids, mask = encodings["input_ids"], encodings.get("attention_mask")
    lengths = mask.sum(1).tolist() if mask is not None else [ids.shape[1]] * len(ids)
    empty = [place for place, length in enumerate(lengths) if not length]
    if empty:
        texts_said = ", ".join(f"{place} ({texts[place]!r})" for place in empty[:5])
        raise ValueError(f"texts without any token, at places {texts_said}: leave them out, or give each a word")


class _Evaluated:
    """The modules that were in training mode before a model was put into evaluation, and how many threads need it."""

    def __init__(self, model: nn.Module) -> None:
        self.training = [module for module in model.modules() if module.training]
        self.threads = 0


_evaluated: WeakKeyDictionary[nn.Module, _Evaluated] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and each module back into the mode it was in once no thread needs it."""
    with _lock:
        if model not in _evaluated:
            _evaluated[model] = _Evaluated(model)
            model.eval()
        _evaluated[model].threads += 1
    try:
        yield
    finally:
        with _lock:
            _evaluated[model].threads -= 1
            if not _evaluated[model].threads:
                for module in _evaluated.pop(model).training:
                    module.training = True
