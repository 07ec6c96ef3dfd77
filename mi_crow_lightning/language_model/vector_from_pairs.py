"""A steering vector from pairs of texts, in one call: extraction, held-out scores and random controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from mi_crow_lightning._arguments import check_flag, one_of, whole_number
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.choices import GroupName, MethodName, VectorMethodName
from mi_crow_lightning.hooks.attaching import attached
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.detectors.contrast import ContrastDetector
from mi_crow_lightning.hooks.positions.rows import check_rows_are_samples
from mi_crow_lightning.hooks.tokens import Tokens, TokensLike
from mi_crow_lightning.language_model.contrast_pairs import Pair, contrast_pairs, split
from mi_crow_lightning.language_model.inference import evaluating
from mi_crow_lightning.language_model.language_model import LanguageModel
from mi_crow_lightning.language_model.loading import (
    check_tokenizer,
    given_or_loaded_model,
    given_or_loaded_tokenizer,
)
from mi_crow_lightning.language_model.screening_samples import tokens_of
from mi_crow_lightning.metrics.collectives import is_distributed
from mi_crow_lightning.metrics.separability import Separability
from mi_crow_lightning.vectors.extraction.held_out import HeldOut
from mi_crow_lightning.vectors.extraction.labels import facts_of
from mi_crow_lightning.vectors.extraction.row_means import RowMeans
from mi_crow_lightning.vectors.quality import LayerQuality
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["vector_from_pairs"]

_CONTROLS = 8


def vector_from_pairs(
    model: LanguageModel | nn.Module | str | Path,
    tokenizer: Any,
    pairs: Any,
    *,
    layers: Signature,
    method: VectorMethodName,
    tokens: TokensLike,
    held_out: Any,
    seed: int,
    batch_size: int,
    max_length: int | None,
    force: bool,
    progress: bool,
) -> SteeringVector:
    """Extract a vector and measure it: what `SteeringVector.from_pairs` does, and says of its arguments."""
    one_of("method", method, get_args(VectorMethodName))
    check_flag("force", force)
    check_flag("progress", progress)
    batch_size = whole_number("batch_size", batch_size, 1, "a whole number of pairs")
    max_length = max_length if max_length is None else whole_number("max_length", max_length, 1)
    if is_distributed():
        raise RuntimeError(
            "from_pairs reads all pairs in one process, and several ranks run: make the vector before they start, or "
            "use ContrastDetector in the Trainer, which shares the pairs out"
        )
    if not isinstance(tokenizer, (str, Path)):
        check_tokenizer(tokenizer)  # before the pairs, which stand in its place where it was forgotten
    made_of, scored_on = split(contrast_pairs("pairs", pairs), held_out, seed)
    reader = _Reader(model, tokenizer, batch_size, max_length, progress)
    by: MethodName = "mean_difference" if method == "mean" else method
    covariance: list[GroupName] = ["difference"] if by == "pca" else []
    detector = ContrastDetector(
        layers, method=by, tokens=tokens, covariance=covariance, keep_samples=by == "logistic", held_out=None
    )
    reader.read(made_of, detector, "extracting")
    vector = detector.vectors(force=force)
    scores = _Scores([vector, *vector.random_controls(_CONTROLS)], layers, tokens)
    if scored_on:
        reader.read(scored_on, scores, "scoring")
    return SteeringVector(vector, **vars(vector.origin), quality=_quality(detector, scores.table()))


def _quality(detector: ContrastDetector, scores: Sequence[Mapping[str, Separability]]) -> Iterator[LayerQuality]:
    for row in detector.reliability():
        quality = LayerQuality(
            row.layer,
            coherence=row.coherence,
            anti_steerable=row.anti_steerable,
            p_value=row.p_value,
            n=row.n,
            block=row.block,
        )
        of_layer = [of[row.layer] for of in scores if row.layer in of]
        if of_layer:
            own, *random = of_layer
            folded = [max(one.auroc, 1 - one.auroc) for one in random]
            random_auroc = sum(folded) / len(folded)
            quality = quality._replace(auroc=own.auroc, d_prime=own.d_prime, random_auroc=random_auroc, held_out=own.n)
        yield quality


class _Reader:
    """Runs pairs of texts through a model, for a detector."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int | None, progress: bool) -> None:
        self._lm = model if isinstance(model, LanguageModel) else None
        if self._lm is not None:
            model, tokenizer = self._lm.model, tokenizer if tokenizer is not None else self._lm.tokenizer
        self._tokenizer = given_or_loaded_tokenizer(tokenizer, model)
        if self._tokenizer is None:
            raise ValueError("texts need a tokenizer: pass one, from_pairs(model, tokenizer, pairs)")
        self._model = given_or_loaded_model(model, None)
        self._batch_size, self._max_length, self._progress = batch_size, max_length, progress

    def read(self, pairs: Sequence[Pair], detector: Detector, what: str) -> None:
        """Run the model on the pairs while the detector watches."""
        starts = range(0, len(pairs), self._batch_size)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(evaluating(self._model))
            if self._lm is not None:
                stack.enter_context(self._lm.layers.leaving_out(self._lm.layers.get_hooks()))
            layers = stack.enter_context(attached(self._model, detector))
            for start in tqdm(starts, desc=what, unit="batch", leave=False, disable=None if self._progress else True):
                batch = self._batch(pairs[start : start + self._batch_size])
                layers.begin_batch(None, batch)
                self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def _batch(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Return the rows of the pairs, padded on the right, where causal models of all kinds leave it out."""
        texts = [text for pair in pairs for text in pair]
        rows = tokens_of(texts, self._tokenizer, self._max_length)
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise ValueError(f"the text {text!r} has no tokens: leave its pair out")
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # (B, T)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        device = next((one.device for one in self._model.parameters()), torch.device("cpu"))
        number = torch.arange(len(rows))
        tensors = {"input_ids": ids, "attention_mask": mask, "label": 1 - number % 2, "pair": number // 2}
        return {name: value.to(device) for name, value in tensors.items()}


class _Scores(Detector):
    """A detector that projects held-out texts on several vectors, each along its own directions."""

    _called = "from_pairs"

    def __init__(self, vectors: Sequence[SteeringVector], layers: Signature, tokens: TokensLike) -> None:
        super().__init__(layers, on_error="raise")
        self._of_texts = Tokens.of(tokens)
        self._held_out = [HeldOut(vector) for vector in vectors]
        self._layers = list(vectors[0])
        self._batch: Any = None
        self._running: RowMeans | None = None

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        if self._batch is not ctx.batch:
            self._end_batch()
            self._batch, self._running = ctx.batch, RowMeans(facts_of(ctx.batch, "label", "pair", (0, 1)))
        check_rows_are_samples(x, ctx)
        assert self._running is not None, "made with the batch"
        self._running.add(ctx.layer, x, self._of_texts.mask(x, ctx))

    def _end_batch(self) -> None:
        running, self._running = self._running, None
        for layer, rows in running.rows().items() if running is not None else ():
            for held_out in self._held_out:
                held_out.add(layer, rows)

    def table(self) -> list[dict[str, Separability]]:
        """Return how well each vector separates the texts, by layer."""
        self._end_batch()
        found = [held_out.finish(self._layers, torch.device("cpu")) for held_out in self._held_out]
        return [{row.layer: row for row in rows} for rows in found]
