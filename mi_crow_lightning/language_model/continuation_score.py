"""A LightningModule that measures how likely given words or texts are after prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mi_crow_lightning._arguments import one_of, whole_number
from mi_crow_lightning.language_model.continuations import Continuations, log_probabilities
from mi_crow_lightning.language_model.generated import decoded, prompts_of
from mi_crow_lightning.language_model.language_model import LanguageModel
from mi_crow_lightning.language_model.loading import given_or_loaded_model, given_or_loaded_tokenizer
from mi_crow_lightning.language_model.prompt_score import PromptScore
from mi_crow_lightning.language_model.sweep import checked_sweep, expanded, strengths_of
from mi_crow_lightning.language_model.swept_vectors import SweptVector, along, checked_vectors
from mi_crow_lightning.language_model.text_module import TextModule
from mi_crow_lightning.language_model.texts import check_batch, check_left_padding

__all__ = ["ContinuationScore"]

_REDUCTIONS = ("mean", "any")


class ContinuationScore(TextModule):
    """A LightningModule that measures the log-probability of given words or texts after prompts.

    A batch is what `CausalLMModule` takes: a list of texts, or ``input_ids`` and ``attention_mask``, each ``(B, T)``,
    padded on the left.

    - **predict** returns a list of `PromptScore` for each batch: by vector, where several are swept, then by prompt,
      then by strength. `sweep_table` makes a table of them.
    - **validate** and **test** log the mean over the prompts as ``val/score/<group>`` and, of two groups, the
      difference as ``val/score/gap``; in a sweep each ends in ``/strength_<s>``, of several vectors in
      ``/<vector>/strength_<s>``.

    The prompts run through the model, and then, on top of their key-value cache, the continuations of several tokens.
    So ``tokens="prompt"``, ``"generated"`` and ``"last"`` mean what they mean in ``generate``. The sum of a
    continuation's log-probabilities is not divided by its length: compare continuations of similar length.

    Args:
        model: a `LanguageModel`, a causal language model of transformers, or its name or folder.
        continuations: texts, or lists of token IDs, by the name of their group. A text begins with a space where the
            prompt does not end with one: it gets its tokens alone, without the prompt.
        tokenizer: the model's tokenizer; by default that of the `LanguageModel` or of the name.
        sweep: strengths. Each prompt runs once with each, by controllers with ``strength="batch"``.
        vectors: vectors by name, or lists of them, that all of this runs along, one after the other, in place of those
            of these controllers: ``{"joy": vector, "random": vector.random_controls(8)}``.
        reduce: a group's score: ``"mean"``, the mean of its log-probabilities; or ``"any"``, the log of the
            probability that any one of them follows.
        max_length: most tokens of a prompt; longer ones are cut. By default none is cut.

    Raises:
        TypeError, ValueError: an argument is not one of those named above.

    Examples:
        >>> import lightning.pytorch as pl
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, eos_token_id=None, **sizes))
        >>> module = ContinuationScore(model, {"even": [[2], [4]], "odd": [[3], [5, 1]]})
        >>> prompts = torch.utils.data.DataLoader([{"input_ids": torch.tensor([5, 7, 9])}] * 4, batch_size=4)
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> [scores] = trainer.predict(module, prompts)
        >>> len(scores), sorted(scores[0].scores)
        (4, ['even', 'odd'])
    """

    def __init__(
        self,
        model: LanguageModel | nn.Module | str | Path,
        continuations: Mapping[str, Sequence[Any]],
        tokenizer: Any = None,
        *,
        sweep: Sequence[float] | None = None,
        vectors: Mapping[str, Any] | None = None,
        reduce: Literal["mean", "any"] = "mean",
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, LanguageModel):
            model, tokenizer = model.model, tokenizer if tokenizer is not None else model.tokenizer
        self._sweep = checked_sweep(sweep)
        self._vectors = checked_vectors(vectors)
        self.reduce = one_of("reduce", reduce, _REDUCTIONS)
        self.max_length = max_length if max_length is None else whole_number("max_length", max_length, 1)
        self.tokenizer = given_or_loaded_tokenizer(tokenizer, model)
        self._continuations = Continuations(continuations, self.tokenizer)
        self.model = given_or_loaded_model(model, None)

    def on_predict_start(self) -> None:
        self._find_readers()

    on_validation_start = on_test_start = on_predict_start

    def on_predict_end(self) -> None:
        self._readers = []

    on_validation_end = on_test_end = on_predict_end

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[PromptScore]:
        """Score the continuations of a batch of prompts.

        Raises:
            TypeError, ValueError: the batch holds no tokens, or is padded on the right; no controller reads the
                strengths; or a continuation needs a cache that the model does not have.
        """
        return [record for swept in self._along for record in self._records(batch, swept)]

    def _records(self, batch: Any, swept: SweptVector) -> list[PromptScore]:
        """Return the scores along one vector."""
        with along(self._readers, swept):
            strengths, log_p = self._score(batch)
        groups = self._reduced(log_p)  # (B, S, groups)
        prompts = self._prompts(batch)
        records = [
            self._record(row, prompts[row], None if of_row is None else of_row[at], groups[row, at], log_p[row, at])
            for row, of_row in enumerate(strengths)
            for at in range(log_p.shape[1])
        ]
        vectors = self._vectors_of(batch, swept)
        return [
            record._replace(vector=vectors[record.row].name, is_random=vectors[record.row].is_random)
            for record in records
        ]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_means("val", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._log_means("test", batch)

    def _log_means(self, stage: str, batch: Any) -> None:
        for swept in self._along:
            with along(self._readers, swept):
                groups = self._reduced(self._score(batch)[1])
            self._log_groups(stage, groups, "" if swept.name is None else f"/{swept.name}")

    def _log_groups(self, stage: str, groups: Tensor, vector: str) -> None:
        """Log the mean over the prompts of each group's score, ``(B, S, groups)``."""
        for at in range(groups.shape[1]):
            end = vector if self.sweep is None else f"{vector}/strength_{self.sweep[at]:g}"
            scores = dict(zip(self._continuations.names, groups[:, at].mean(0), strict=True))
            if len(scores) == 2:
                first, second = scores.values()
                scores["gap"] = first - second
            tags = {f"{stage}/score/{name}{end}": value for name, value in scores.items()}
            self.log_dict(tags, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(groups))

    def _score(self, batch: Any) -> tuple[list[list[float] | None], Tensor]:
        """Return the strengths of each prompt, and the log-probabilities ``(B, S, K)``."""
        check_batch(batch)
        check_left_padding(batch)
        self._refuse_unread(batch)
        prompts, own = len(batch["input_ids"]), strengths_of(batch)
        with expanded(batch, self.sweep, self._continuations.copies):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if batch.get(name) is not None}
            log_p = log_probabilities(self.model, inputs, self._continuations).view(
                prompts, -1, len(self._continuations.all)
            )
        if self.sweep is not None:
            return [self.sweep] * prompts, log_p
        return [None if own is None else [own[row]] for row in range(prompts)], log_p

    def _reduced(self, log_p: Tensor) -> Tensor:
        """Return the score of each group, ``(B, S, groups)``."""
        found = []
        for name in self._continuations.names:
            of_group = log_p[..., [at for at, one in enumerate(self._continuations.all) if one.group == name]]
            found.append(of_group.mean(-1) if self.reduce == "mean" else of_group.logsumexp(-1))
        return torch.stack(found, -1)

    def _record(
        self, row: int, prompt: str | None, strength: float | None, groups: Tensor, log_p: Tensor
    ) -> PromptScore:
        scores = dict(zip(self._continuations.names, groups.tolist(), strict=True))
        gap = None
        if len(scores) == 2:
            first, second = scores.values()
            gap = first - second
        return PromptScore(prompt, strength, scores, gap, log_p.tolist(), row)

    def _prompts(self, batch: Mapping[str, Any]) -> list[str | None]:
        if self.tokenizer is None:
            return [None] * len(batch["input_ids"])
        return [decoded(self.tokenizer, ids) for ids in prompts_of(batch)]
