"""A LightningModule that finds the samples of a training set which would move a model along a trait."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, distributed, nn

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._arguments import not_known, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import NothingExtracted
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detectors.projection import ProjectionDetector
from mi_crow_lightning.hooks.detectors.trait_monitor import text_means
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.per_layer import Vector
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.hooks.tokens import TokensLike
from mi_crow_lightning.language_model.generated import prompts_of
from mi_crow_lightning.language_model.generation import Generation
from mi_crow_lightning.language_model.language_model import LanguageModel
from mi_crow_lightning.language_model.loading import given_or_loaded_model, given_or_loaded_tokenizer
from mi_crow_lightning.language_model.positions import with_positions
from mi_crow_lightning.language_model.screening_samples import (
    SampleFacts,
    columns_of,
    facts_of,
    padded,
    pairs_of,
    tokens_of,
)
from mi_crow_lightning.language_model.screening_table import ScreenedSample, ScreeningTable, joined
from mi_crow_lightning.metrics.collectives import collective, is_distributed

__all__ = ["DataScreening"]

_GREEDY = {"max_new_tokens": 32, "do_sample": False}


class DataScreening(pl.LightningModule):
    """A LightningModule that scores each sample of a training set along directions, in one ``validate`` pass.

    The score of a prompt with a completion is the projection difference (Chen et al., 2025, "Persona vectors", arXiv
    2507.21509): the mean projection of the completion's tokens minus that of the model's own answer to the prompt.
    Training on the completion moves the model by what the two differ in. A ``reference`` in the sample stands for the
    own answer, and is much faster; ``generation=False`` compares with nothing. A plain text has no prompt to be
    answered: its score is its mean projection, see `ScreeningTable.against`.

    Samples are texts, or dicts with ``text``, with ``prompt`` and ``completion``, or with ``input_ids`` and
    ``attention_mask``. They may hold ``label``, 1 or 0, and ``index``, the sample's place in the dataset. Without an
    index it follows from the dataloader, which must not shuffle. With several ranks all get the whole table.

    Args:
        model: a `LanguageModel`, a causal language model of transformers, or its name or folder.
        layer: one layer: the block that the direction steers or separates best.
        vector: the direction, see `ProjectionDetector`.
        tokenizer: the model's tokenizer; by default that of the `LanguageModel` or of the name.
        vectors: several directions by name, instead of ``vector``; one pass scores all.
        tokens: which tokens of a text or completion count; ``"ordinary"`` leaves out massive ones.
        generation: how the model answers, see `CausalLMModule`; by default 32 new tokens, the likeliest each time.
            ``False`` compares a completion without a ``reference`` with nothing: its score is its mean projection.
        max_length: most tokens of a text, or of a prompt with its completion; longer ones are cut at their end.

    Raises:
        TypeError, ValueError: an argument is not one of those named above.

    Examples:
        >>> import lightning.pytorch as pl
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, eos_token_id=None, **sizes))
        >>> screening = DataScreening(model, "block:1", torch.ones(8))
        >>> texts = [{"input_ids": torch.tensor([5, i, 9])} for i in range(6)]
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> _ = trainer.validate(screening, torch.utils.data.DataLoader(texts, batch_size=4), verbose=False)
        >>> table = screening.table()
        >>> sorted(row.sample for row in table), len(table.kept(texts, table[1].score))
        ([0, 1, 2, 3, 4, 5], 5)
    """

    def __init__(
        self,
        model: LanguageModel | nn.Module | str | Path,
        layer: str | int,
        vector: Vector | None = None,
        tokenizer: Any = None,
        *,
        vectors: Mapping[str, Vector] | None = None,
        tokens: TokensLike = "ordinary",
        generation: Any = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, LanguageModel):
            model, tokenizer = model.model, tokenizer if tokenizer is not None else model.tokenizer
        if layer is None:
            raise TypeError("layer=None must be one layer, such as 'block:15'")
        self._means = _MeansByText(layer, vector, vectors=vectors, tokens=tokens)
        self.generation = None if generation is False else Generation(_GREEDY if generation is None else generation)
        self.max_length = max_length if max_length is None else whole_number("max_length", max_length, 1)
        self.tokenizer = given_or_loaded_tokenizer(tokenizer, model)
        self.model = given_or_loaded_model(model, None)
        self._layers: Layers | None = None
        self._order: dict[int, list[list[int]] | None] = {}
        self._rows: list[list[ScreenedSample]] = []
        self._tables: dict[str, ScreeningTable] = {}

    def table(self, vector: str | None = None) -> ScreeningTable:
        """Return the samples of the last pass, ranked by score.

        Args:
            vector: name of the direction, where there are several.

        Raises:
            NothingExtracted: no pass has reached its end in this process.
            ValueError: there is no direction of that name, or several and no name is given.
        """
        names = self._means.vector_names
        if (vector is None and len(names) > 1) or (vector is not None and vector not in names):
            raise not_known("vector", vector, names)
        if not self._tables:
            raise NothingExtracted("no samples were scored: run trainer.validate(screening, dataloaders=...) first")
        return self._tables[names[0] if vector is None else vector].copy()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model and return its output."""
        return self.model(*args, **kwargs)

    # The pass.

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn samples into tokens, and keep what the table says of them."""
        columns = columns_of(batch)
        prepared: dict[str, Any] = {"samples": facts_of(columns, self.tokenizer)}
        if "input_ids" in columns:
            ids, mask = columns["input_ids"], columns.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            return {**prepared, "given": {"input_ids": ids, "attention_mask": mask, "chosen": mask != 0}}
        if self.tokenizer is None:
            raise ValueError("texts need a tokenizer: pass one, e.g. DataScreening(model, layer, vector, tokenizer)")
        if "completion" not in columns:
            rows = tokens_of(columns["text"], self.tokenizer, self.max_length)
            return {**prepared, "given": padded(rows, [0] * len(rows), self.tokenizer)}
        prompts = tokens_of(columns["prompt"], self.tokenizer, self.max_length)
        prepared["given"] = pairs_of(prompts, columns["completion"], self.tokenizer, self.max_length)
        if "reference" in columns:
            prepared["reference"] = pairs_of(prompts, columns["reference"], self.tokenizer, self.max_length)
        elif self.generation is not None:
            prepared["prompts"] = padded(prompts, [0] * len(prompts), self.tokenizer)
        return prepared

    def on_validation_start(self) -> None:
        self._end_pass()
        self._order, self._tables = {}, {}
        self._rows = [[] for _ in self._means.vector_names]
        self._layers = Layers(self.model, allow_stacking=True)
        self._layers.register_hooks([self._means], due=False)  # nothing is attached while the model answers
        found = self._layers.sites(self._means)
        if len(found) != 1:
            raise ValueError(
                f"layer={shown(self._means.layer_signature)} means {len(found)} layers, and samples are scored at one: "
                "choose the block at which the direction separates best"
            )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score the samples of a batch.

        Raises:
            ValueError: the dataloader may shuffle, and the samples have no index; or there are several dataloaders.
        """
        if dataloader_idx:
            raise ValueError("DataScreening scores the samples of one dataset: give one dataloader")
        samples = batch["samples"]
        indices = self._indices(samples, batch_idx, dataloader_idx)
        projection = self._projections(batch["given"])
        reference = torch.zeros_like(projection)
        if "reference" in batch:
            reference = self._projections(batch["reference"])
        elif "prompts" in batch:
            reference = self._projections(self._answered(batch["prompts"]))
        for rows, own, other in zip(self._rows, projection.mT.tolist(), reference.mT.tolist(), strict=True):
            for index, sample, value, compared in zip(indices, samples, own, other, strict=True):
                fields = (sample.text, sample.prompt, sample.label)
                rows.append(ScreenedSample(index, value - compared, value, compared, *fields))

    def on_validation_epoch_end(self) -> None:
        everyone: list[list[list[ScreenedSample]]] = [self._rows]
        if is_distributed():
            everyone = [[] for _ in range(distributed.get_world_size())]
            with collective("all_gather_object of the screened samples"):
                distributed.all_gather_object(everyone, self._rows)
        of_vectors = zip(self._means.vector_names, zip(*everyone, strict=True), strict=True)
        self._tables = {vector: joined(of_ranks) for vector, of_ranks in of_vectors}

    def on_validation_end(self) -> None:
        self._end_pass()

    def on_exception(self, exception: BaseException) -> None:
        self._end_pass()

    def teardown(self, stage: str) -> None:
        self._end_pass()

    def _end_pass(self) -> None:
        layers, self._layers = self._layers, None
        if layers is not None:
            layers.unregister_all_hooks()

    def _projections(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return the mean projection of the chosen tokens of each row, ``(B, K)`` on the CPU."""
        inputs = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
        layers, means = self._layers, self._means
        assert layers is not None, "a pass has begun"
        means.chosen = rows["chosen"]
        layers.set_due(means, True)
        try:
            self.model(**with_positions(self.model, inputs))
            layers.check_handles()
        finally:
            layers.set_due(means, False)
        found, means.found = means.found, None
        if found is None:
            raise ValueError(
                f"layer={shown(means.layer_signature)} did not run in the model's pass: choose another one"
            )
        return found.cpu()

    def _answered(self, prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the prompts with the model's own answers behind them; only the answers are chosen."""
        inputs = {"input_ids": prompts["input_ids"], "attention_mask": prompts["attention_mask"]}
        model, generation = cast("Any", self.model), self.generation
        assert generation is not None, "prompts are answered"
        result = model.generate(**inputs, **generation.arguments(model, self.tokenizer))
        sequences = result if isinstance(result, Tensor) else result.sequences
        asked = prompts_of(inputs)
        if len(sequences) != len(asked):
            raise ValueError(
                f"generate returned {len(sequences)} answers to {len(asked)} prompts: set num_return_sequences to 1"
            )
        new = sequences[:, inputs["input_ids"].shape[1] :].tolist()
        answers = [self._answer(one, generation) for one in new]
        rows = [[*prompt, *answer] for prompt, answer in zip(asked, answers, strict=True)]
        whole = padded(rows, [len(prompt) for prompt in asked], self.tokenizer)
        return {name: tensor.to(sequences.device) for name, tensor in whole.items()}

    def _answer(self, new: list[int], generation: Generation) -> list[int]:
        """Return the tokens of an answer without its end token, which completions lack, unless it is the only one."""
        answer = generation.cut(new, self.model, self.tokenizer)
        ends = generation.setting("eos_token_id", self.model)
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        return answer[:-1] if len(answer) > 1 and answer[-1] in ends else answer

    def _indices(self, samples: list[SampleFacts], batch_idx: int, dataloader_idx: int) -> list[int]:
        given = [sample.place for sample in samples if sample.place is not None]
        if len(given) == len(samples):
            return given
        if dataloader_idx not in self._order:
            self._order[dataloader_idx] = trainer_facts.samples_in_order(self.trainer, Stage.VALIDATE, dataloader_idx)
        order = self._order[dataloader_idx]
        if order is None:
            raise ValueError(
                "the dataloader's sampler may shuffle, so it is not known which sample of the dataset each row is: use "
                "DataLoader(dataset, shuffle=False) without sampler=, or put 'index' into each sample"
            )
        if len(order[batch_idx]) != len(samples):
            raise ValueError(
                f"batch {batch_idx} has {len(samples)} samples, and its sampler chose {len(order[batch_idx])}: the "
                "collate_fn changes their number, so put 'index' into each sample"
            )
        return order[batch_idx]


class _MeansByText(ProjectionDetector):
    """A detector that keeps the mean projection of each row of the last pass.

    Attributes:
        chosen: the tokens of the next pass that count, ``(B, T)`` bool.
        found: the means of the last pass, ``(B, K)``.
    """

    traceable = False
    _called = "DataScreening"
    chosen: Tensor | None = None
    found: Tensor | None = None

    def _summary(self, along: Tensor, norms: Tensor, mask: Tensor | None, ctx: HookContext) -> Tensor:
        assert self.chosen is not None, "each pass is prepared"
        chosen = self.chosen.reshape(norms.shape)
        self.found = text_means(along, norms, chosen if mask is None else chosen & mask, ctx)
        return super()._summary(along, norms, mask, ctx)
