"""Saving what layers give for many texts, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Protocol

import torch
from torch import Tensor

from mi_crow_lightning._moved import answers_for_old_names
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.detectors.layer_activation import LayerActivationDetector
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.tokens import TokensLike
from mi_crow_lightning.language_model.gathered import gathered
from mi_crow_lightning.language_model.inference import Inference
from mi_crow_lightning.language_model.stored_runs import batches_of, begin_run

__all__ = ["Activations"]

_MASKS, _MASK = "attention_masks", "attention_mask"


class RunningModel(Protocol):
    """The part of a `LanguageModel` that saving needs."""

    layers: Layers
    inference: Inference
    tokenizer: Any
    model_id: str
    store: Any


@answers_for_old_names
class Activations:
    """The way from a `LanguageModel`'s layers into its store.

    Args:
        language_model: the model, its tokenizer, its layers and its store.
    """

    def __init__(self, language_model: RunningModel) -> None:
        self._lm = language_model

    def save_activations(
        self,
        texts: Iterable[str],
        layer_signature: Signature,
        run_name: str | None = None,
        batch_size: int = 32,
        *,
        tokens: TokensLike | None = None,
        dtype: torch.dtype | str | None = None,
        max_length: int | None = None,
        autocast: bool = False,
        autocast_dtype: torch.dtype | None = None,
        with_controllers: bool = True,
        save_attention_mask: bool = False,
    ) -> str:
        """Run texts through the model by batches, and keep the activations of layers in the store.

        Batch ``i`` of the run holds ``"activations"`` of each layer, under the layer's full name: ``(B, T, D)`` with
        padding, or with ``tokens`` ``(N, D)`` without it. ``store.iterate(run, layer, "activations")`` gives them back
        in the order of the texts. No more than one batch is in memory.

        Args:
            texts: any number of texts; a generator is read batch by batch.
            layer_signature: the layers, see `Layers`; a list of several.
            run_name: the name of the run, which must be new; by default made from the time.
            batch_size: texts in a batch.
            tokens: which tokens to keep, see `Tokens`; by default all, padding included. How many are of each text is
                in the batch's metadata: ``store.get_detector_metadata(run, i)[0][layer]["tokens_per_row"]``.
            dtype: dtype of what is kept; by default the activation's own.
            max_length: the most tokens of a text.
            autocast: whether to compute in ``autocast_dtype``.
            autocast_dtype: by default torch's for the device.
            with_controllers: whether controllers act. An edited activation is kept as it was edited.
            save_attention_mask: whether to keep ``"attention_mask"`` ``(B, T)`` bool as well, under the name
                ``"attention_masks"``: True for tokens that are neither padding nor one of the tokenizer's special
                tokens.

        Returns:
            The name of the run.

        Raises:
            TypeError, ValueError: there is no store, it has the run already, or an argument is not as above.
            LayerNotFound, HookConflict: a layer does not exist, or another detector is on it.
            HookError: an activation could not be kept. The batches before it stay.

        Examples:
            >>> import tempfile
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
            >>> from mi_crow_lightning import LanguageModel, LocalStore
            >>> words = Tokenizer(models.WordLevel({"<pad>": 0, "rain": 1, "fell": 2}))
            >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
            >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
            >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_positions=4, n_embd=8, n_layer=2, n_head=2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     lm = LanguageModel(model, tokenizer, LocalStore(folder))
            ...     run = lm.activations.save_activations(["rain", "rain fell", "fell"], "block:1", batch_size=2)
            ...     [(batch, layer, x.shape) for batch, layer, key, x in lm.store.iterate(run)]
            [(0, 'transformer.h.1', torch.Size([2, 2, 8])), (1, 'transformer.h.1', torch.Size([1, 1, 8]))]
        """
        lm = self._lm
        batches = batches_of(texts, batch_size)
        run = run_name if run_name is not None else f"run_{datetime.now():%Y%m%d_%H%M%S}"
        chosen = None if tokens is None else repr(tokens)
        options = {"batch_size": batch_size, "max_length": max_length, "tokens": chosen}
        tok_kwargs = {} if max_length is None else {"max_length": max_length}
        detector = LayerActivationDetector(layer_signature, target_dtype=dtype, tokens=tokens)
        with self._registered(detector):
            begin_run(lm.store, run, lm.model_id, options)
            for index, batch in enumerate(batches):
                _, encodings = lm.inference.execute_inference(
                    batch, tok_kwargs, autocast, autocast_dtype, with_controllers
                )
                metadata, tensors = gathered(lm.layers, [detector])
                if save_attention_mask:
                    tensors[_MASKS] = {_MASK: _ordinary(encodings, lm.tokenizer)}
                lm.store.put_detector_metadata(run, index, metadata, tensors)
                detector.clear_captured()
        return run

    @contextmanager
    def _registered(self, detector: LayerActivationDetector) -> Iterator[None]:
        layers = self._lm.layers
        layers.register_hook(None, detector)
        try:
            yield
        finally:
            layers.unregister_hook(detector)


LanguageModelActivations = Activations  # its name in mi-crow


def _ordinary(encodings: dict[str, Tensor], tokenizer: Any) -> Tensor:
    """Return which tokens are neither padding nor special, ``(B, T)`` bool."""
    ids = encodings["input_ids"]
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, dtype=ids.dtype, device=ids.device))
    mask = encodings.get(_MASK)
    return ~special if mask is None else mask.bool() & ~special
