"""A LightningModule around a causal language model: fit trains it, predict generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning._arguments import is_finite, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.language_model.generated import GeneratedText, records_of
from mi_crow_lightning.language_model.generation import Generation
from mi_crow_lightning.language_model.loading import given_or_loaded_model, given_or_loaded_tokenizer
from mi_crow_lightning.language_model.marked_texts import marked_texts
from mi_crow_lightning.language_model.plain_values import plain_entries
from mi_crow_lightning.language_model.positions import positions_of, takes_positions, with_positions
from mi_crow_lightning.language_model.shown_texts import ShownTexts
from mi_crow_lightning.language_model.sweep import checked_sweep, expanded, strengths_of
from mi_crow_lightning.language_model.swept_vectors import SweptVector, along, checked_vectors
from mi_crow_lightning.language_model.text_module import TextModule
from mi_crow_lightning.language_model.texts import (
    check_batch,
    check_left_padding,
    labels_of,
)

__all__ = ["CausalLMModule"]

_NOT_FOR_THE_MODEL = ("label", "labels", "layers", "pair", "strength", "vector")


class CausalLMModule(TextModule):
    """A LightningModule that trains a causal language model and generates with it.

    A batch is a list of texts, or a mapping with ``input_ids`` and ``attention_mask``, each ``(B, T)``. In fit it may
    also hold ``labels``. All entries except ``labels``, ``strength``, ``vector``, ``layers``, ``label`` and ``pair`` go
    to the model.

    - **fit** and **validate** log the mean loss of the predicted tokens as ``train/loss`` and ``val/loss``; **test**
      logs it as ``test/loss``. Padding never counts, on either side.
    - **predict** returns a list of `GeneratedText` for each batch. With ``generation=False`` it runs the model once on
      each batch, for detectors, and returns an empty list.

    Arguments that are plain values become hyperparameters, those of a subclass too. Modules, tokenizers, datasets and
    other objects do not, under any name: pass them again to ``load_from_checkpoint``.

    Args:
        model: a causal language model of transformers, or its name or folder, see `load_model`. A model that is
            entirely in evaluation mode, as ``from_pretrained`` leaves it, is put into training mode when a fit
            starts. A model that is partly in evaluation mode stays as it is.
        tokenizer: its tokenizer, or where to load it from; by default the one of a model given by name.
        generation: a ``GenerationConfig``, or arguments of ``model.generate`` by name. Set ``max_new_tokens``: the
            default of transformers is 20. ``False`` for a predict that only runs the model.
        sweep: strengths. Each prompt is generated once with each strength, in one batch, by controllers with
            ``strength="batch"``.
        vectors: vectors by name, or lists of them, that all of this runs along, one after the other, in place of those
            of these controllers: ``{"joy": vector, "random": vector.random_controls(8)}``.
        lr: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        warmup_steps: steps in which the learning rate rises to ``lr``; after them it stays there.
        max_length: most tokens of a text; longer texts are cut. By default no text is cut.
        log_text: how many prompts of a predict run to show with their texts, one column per strength, in the
            loggers that take text (TensorBoard, W&B).
        model_params: arguments of ``from_pretrained`` for a model given by name.

    Raises:
        TypeError, ValueError: an argument is not one of those named above.

    Examples:
        >>> import lightning.pytorch as pl
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, eos_token_id=None, **sizes))
        >>> module = CausalLMModule(model, generation={"max_new_tokens": 3, "do_sample": False})
        >>> prompts = torch.utils.data.DataLoader([{"input_ids": torch.tensor([5, 7, 9])}] * 4, batch_size=2)
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> batches = trainer.predict(module, prompts)
        >>> [[len(text.token_ids) for text in batch] for batch in batches]
        [[3, 3], [3, 3]]
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        tokenizer: Any = None,
        *,
        generation: Any = None,
        sweep: Sequence[float] | None = None,
        vectors: Mapping[str, Any] | None = None,
        lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        max_length: int | None = None,
        log_text: int = 0,
        model_params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check_numbers(lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps, log_text=log_text)
        if generation is False and log_text:
            raise ValueError(f"log_text={log_text} shows generated texts, and generation=False makes none")
        self.generation = Generation(generation) if generation is not False else None
        self._sweep = checked_sweep(sweep)
        self._vectors = checked_vectors(vectors)
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.max_length = max_length if max_length is None else whole_number("max_length", max_length, 1)
        self.model = given_or_loaded_model(model, model_params)
        self.tokenizer = given_or_loaded_tokenizer(tokenizer, model)
        self._shown = ShownTexts(log_text)
        generation = False if self.generation is None else self.generation.hyperparameters()
        sweep = self.sweep
        places = {"model": model, "tokenizer": tokenizer}
        others = [name for name, place in places.items() if not isinstance(place, (str, Path))]
        self.save_hyperparameters(ignore=["vectors", *others])

    def _set_hparams(self, hp: Any) -> None:
        """Keep only plain values, in whichever way Lightning collected them: also those of a subclass."""
        # Not in save_hyperparameters, which a subclass may call again, and which copies all that is set here.
        hp = self._to_hparams_dict(hp)
        super()._set_hparams(plain_entries(hp) if isinstance(hp, dict) else hp)

    # Fit, validate, test.

    def setup(self, stage: str) -> None:
        """Put a model that is entirely in evaluation mode into training mode before a fit."""
        # Not in on_fit_start: the Trainer's model summary, which shows the mode, comes before it.
        if stage == "fit" and not any(module.training for module in self.model.modules()):
            self.model.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, _ = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self._evaluate("val/loss", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self._evaluate("test/loss", batch)

    def _evaluate(self, name: str, batch: Any) -> Tensor:
        loss, predicted = self._loss(batch)
        if not predicted:
            raise ValueError(
                "no token of the batch can be predicted: its labels are -100 except at first tokens. Give at least one "
                "later token of the batch a label"
            )
        # Weighted, so that the epoch's value is the mean over all its tokens, whatever the sizes of its batches.
        self.log(name, loss, prog_bar=True, on_epoch=True, sync_dist=True, batch_size=int(predicted))
        return loss

    def _loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the predicted tokens, and their number."""
        check_batch(batch)
        inputs, labels = _inputs(batch), labels_of(batch)
        if labels.shape[1] < 2:
            raise ValueError("every text of the batch is a single token, so nothing can be predicted: use longer texts")
        if "position_ids" not in inputs and "attention_mask" in inputs and takes_positions(self.model):
            inputs["position_ids"] = positions_of(inputs["attention_mask"])
        loss = getattr(self.model(**inputs, labels=labels), "loss", None)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"{type(self.model).__name__} returned no loss: use a causal model of transformers, which returns one"
            )
        return loss, (labels[:, 1:] != -100).sum()

    def configure_optimizers(self) -> Any:
        """Return AdamW over the parameters that take gradients. Override this to use another optimizer."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("no parameter of the model takes gradients, so nothing can be trained: unfreeze some")
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        if not self.warmup_steps:
            return optimizer
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    # Predict.

    def on_predict_start(self) -> None:
        if self.generation is not None and not callable(getattr(self.model, "generate", None)):
            raise TypeError(f"{type(self.model).__name__} has no generate(): predict needs a model that generates")
        self._find_readers()
        if self._vectors is not None and self._shown.prompts:
            raise ValueError(
                f"log_text={self._shown.prompts} shows texts with one column for each strength, and there are several "
                "vectors: leave log_text or vectors out"
            )
        self._shown.begin(self.trainer)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[GeneratedText]:
        """Generate from a batch of prompts, padded on the left.

        Returns:
            Records in one list: by vector, where several are swept, then by prompt, then by strength, then by returned
            sequence.

        Raises:
            TypeError, ValueError: the batch holds no tokens, or is padded on the right; or no controller reads the
                strengths.
        """
        check_batch(batch)
        if self.generation is not None:
            check_left_padding(batch)
        if self.sweep is None:
            return self._named(self._predict(batch, strengths_of(batch), 1, dataloader_idx), batch, SweptVector())
        self._refuse_unread(batch)
        prompts, records = len(batch["input_ids"]), []
        for swept in self._along:
            with along(self._readers, swept), expanded(batch, self.sweep):
                found = self._predict(batch, self.sweep * prompts, len(self.sweep), dataloader_idx)
            records += self._named(found, batch, swept)
        return records

    def _named(self, records: list[GeneratedText], batch: Any, swept: SweptVector) -> list[GeneratedText]:
        """Return the records of a batch with the names of the vectors that they were steered along."""
        vectors = self._vectors_of(batch, swept)
        return [
            record._replace(vector=vectors[record.row].name, is_random=vectors[record.row].is_random)
            for record in records
        ]

    def on_predict_epoch_end(self) -> None:
        self._shown.write(self.trainer, self.sweep)

    def on_predict_end(self) -> None:
        self._readers = []

    def _predict(
        self, batch: Mapping[str, Any], strengths: list[float] | None, strengths_per_prompt: int, dataloader_idx: int
    ) -> list[GeneratedText]:
        """Generate from each row of the batch, or only run the model on it."""
        if self.generation is not None:
            return self._generate(batch, strengths, strengths_per_prompt, dataloader_idx)
        self.model(**with_positions(self.model, _inputs(batch)))
        return []

    def _generate(
        self, batch: Mapping[str, Any], strengths: list[float] | None, strengths_per_prompt: int, dataloader_idx: int
    ) -> list[GeneratedText]:
        model: Any = self.model
        generation = self.generation
        assert generation is not None, "else predict only runs the model"
        with self._shown.following(self, dataloader_idx) as followed:
            result = model.generate(**_inputs(batch), **generation.arguments(model, self.tokenizer))
        sequences = result if isinstance(result, Tensor) else result.sequences
        texts = records_of(
            sequences,
            batch,
            self.tokenizer,
            strengths=strengths,
            strengths_per_prompt=strengths_per_prompt,
            cut=lambda new: generation.cut(new, model, self.tokenizer),
        )
        shown = self._shown.add(texts, dataloader_idx)
        if followed is not None:
            drafts, others = generation.runs_drafts(model), generation.why_other_rows_run(model)
            touched = followed.of(sequences, batch["input_ids"].shape[1], drafts, others)
            self._shown.add_rows(marked_texts(shown, sequences, batch, touched, self.tokenizer), dataloader_idx)
        return texts


def _inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        whole = name in ("warmup_steps", "log_text")
        if whole:
            whole_number(name, value, 0)
        elif not is_finite(value) or value < 0:
            raise ValueError(f"{name}={shown(value)} must be a number, 0 or more")
