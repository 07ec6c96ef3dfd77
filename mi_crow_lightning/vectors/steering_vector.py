"""The steering vector: one direction per layer, with its origin written down."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning._arguments import check_flag, listed, unusable, whole_number
from mi_crow_lightning._foreign_files import LONGEST_NAME, MOST_TENSORS, one_error
from mi_crow_lightning._lazy import from_above
from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import shortened, shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.choices import VectorMethodName
from mi_crow_lightning.errors import VectorFileError, VectorMismatch
from mi_crow_lightning.vectors.card import card_of
from mi_crow_lightning.vectors.file import content_of, read, write
from mi_crow_lightning.vectors.fit import names_in
from mi_crow_lightning.vectors.hub import FILE, fetched, pushed
from mi_crow_lightning.vectors.origin import Origin, Value, check_facts
from mi_crow_lightning.vectors.quality import LayerQuality, QualityTable

__all__ = ["SteeringVector"]

_RANDOM = "random"
_EXTRACTION = "mi_crow_lightning.language_model.vector_from_pairs"
_MOST_CONTROLS = 2**32  # seeds between those of two calls


class SteeringVector(Mapping[str, Tensor]):
    """One direction for each layer, and where they come from. It never changes.

    A mapping from the layer's name to ``(D,)``, float32, on the CPU. Reading a direction copies it. Layers may differ
    in width. Vectors over the same layers add and subtract, and a number scales them.

    Args:
        directions: by name of the layer, ``(D,)`` each, of any floating-point dtype and on any device.
        method: how they were made.
        model: name of the model, as `model_name` gives it; empty when it is not known.
        tokens: which positions were read, as text.
        samples: how many samples, by class.
        metadata: anything else to keep: strings, numbers and booleans.
        quality: what was measured of it at its layers, see `LayerQuality`.

    Raises:
        TypeError, ValueError: an argument is not one of those named above, or a direction is not finite.

    Examples:
        >>> directions = {"h.0": torch.tensor([3.0, 4.0]), "h.1": torch.tensor([0.0, 2.0])}
        >>> vector = SteeringVector(directions, method="by hand")
        >>> vector
        SteeringVector(by hand, 2 layers 'h.0' to 'h.1', width 2, norm 2 to 5)
        >>> (2 * vector)["h.0"]
        tensor([6., 8.])
        >>> vector.normalise()["h.1"]
        tensor([0., 1.])
    """

    def __init__(
        self,
        directions: Mapping[str, Tensor],
        *,
        method: str = "",
        model: str = "",
        tokens: str = "",
        samples: Mapping[str, int] | None = None,
        metadata: Mapping[str, Value] | None = None,
        quality: Iterable[LayerQuality] = (),
    ) -> None:
        if not isinstance(directions, Mapping) or not directions:
            raise ValueError(f"directions={shown(directions)} must map at least one layer's name to a tensor (D,)")
        if len(directions) > MOST_TENSORS:
            raise ValueError(f"a vector may have {MOST_TENSORS} layers, and there are {len(directions)}")
        self._directions = {_checked_name(layer): _checked(layer, value) for layer, value in directions.items()}
        samples = {} if samples is None else check_facts("samples", samples, (int,))
        metadata = {} if metadata is None else check_facts("metadata", metadata, (str, int, float, bool))
        self._origin = Origin(method, model, tokens, samples, metadata)
        self._quality = _checked_quality(quality, self._directions)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in order."""
        return tuple(self._directions)

    @property
    def method(self) -> str:
        """The method that it was made by."""
        return self._origin.method

    @property
    def model(self) -> str:
        """Name of the model that it was made from; empty when it is not known."""
        return self._origin.model

    @property
    def tokens(self) -> str:
        """The positions that were read, as text."""
        return self._origin.tokens

    @property
    def samples(self) -> Mapping[str, int]:
        """The number of samples that it was made from, by class."""
        return MappingProxyType(self._origin.samples)

    @property
    def metadata(self) -> Mapping[str, Value]:
        """Anything else that is known."""
        return MappingProxyType(self._origin.metadata)

    @property
    def origin(self) -> Origin:
        """A copy of all of these facts together."""
        return replace(self._origin, samples=dict(self.samples), metadata=dict(self.metadata))

    @property
    def quality(self) -> QualityTable:
        """The table of what was measured at each layer, see `LayerQuality`; empty where nothing was.

        Scaling keeps it, and so do ``only`` and ``fitted_to``. A sum or a negative multiple is another direction.
        """
        return self._quality.copy()

    def best_layer(self) -> str:
        """Return the layer that separates held-out texts best, see `QualityTable.best`.

        Raises:
            ValueError: nothing was measured.
        """
        return self._quality.best().layer

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self._directions:
            raise KeyError(f"no direction for {layer!r}; this vector has {list(self._directions)}")
        return self._directions[layer].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._directions)

    def __len__(self) -> int:
        return len(self._directions)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        same_layers = self._directions.keys() == other._directions.keys() and self._origin == other._origin
        same_facts = same_layers and self._quality.to_text() == other._quality.to_text()  # there nan is nan
        return same_facts and all(torch.equal(self._directions[layer], other._directions[layer]) for layer in self)

    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None  # so that numpy leaves np.float32(2) * vector to __rmul__

    def only(self, *layers: str) -> SteeringVector:
        """Return the same vector at some of its layers, in the order given.

        Raises:
            KeyError: it has no such layer; the message lists those it has.
        """
        if missing := [layer for layer in layers if layer not in self._directions]:
            raise KeyError(f"no direction for {missing}; this vector has {list(self._directions)}")
        return self._renamed({layer: layer for layer in layers})

    def with_origin(self, **facts: Any) -> SteeringVector:
        """Return the same directions with other facts: ``method``, ``model``, ``tokens``, ``samples``, ``metadata``.

        Examples:
            >>> vector = SteeringVector({"h.0": torch.ones(2)}, method="by hand")
            >>> vector.with_origin(model="tiny").model
            'tiny'
        """
        return self._made(self._directions, replace(self._origin, **facts), self._quality)

    def norms(self) -> dict[str, float]:
        """Return the Euclidean norm of each layer's direction."""
        return {layer: value.double().norm().item() for layer, value in self._directions.items()}

    def normalise(self) -> SteeringVector:
        """Return the same directions with norm 1.

        Raises:
            ValueError: a direction is zero.
        """
        if zero := [layer for layer, norm in self.norms().items() if norm == 0]:
            raise ValueError(f"the direction of {', '.join(map(repr, zero))} is zero: it cannot be scaled to norm 1")
        return self._each(lambda value: value.double() / value.double().norm())

    def random_like(self, seed: int) -> SteeringVector:
        """Return random directions with the same norms, to compare the effect of a direction with that of its length.

        The same seed gives the same directions again, and each layer's does not depend on the other layers. The random
        numbers of the run do not change.

        Examples:
            >>> vector = SteeringVector({"h.0": torch.tensor([3.0, 4.0])})
            >>> round(vector.random_like(seed=0).norms()["h.0"], 6)
            5.0
        """
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed={seed!r} must be a whole number")
        norms = self.norms()
        directions = {layer: _random(f"{seed}:{layer}", len(self._directions[layer]), norms[layer]) for layer in self}
        origin = replace(self._origin, method=_RANDOM, samples={}, metadata={"seed": seed, "norms_of": self.method})
        return self._made(directions, origin)

    def random_controls(self, n: int = 8, seed: int = 0) -> list[SteeringVector]:
        """Return several vectors of `random_like`: what does as much as they do is not due to the direction.

        Their ``method`` is ``"random"``, by which a sweep and its figure know them. Of another seed all are other ones.

        Args:
            n: how many.
            seed: a whole number, 0 or more.

        Examples:
            >>> vector = SteeringVector({"h.0": torch.tensor([3.0, 4.0])})
            >>> controls = vector.random_controls(8)
            >>> len(controls), {round(control.norms()["h.0"], 6) for control in controls}
            (8, {5.0})
        """
        n, seed = whole_number("n", n, 1), whole_number("seed", seed, 0)
        return [self.random_like(seed * _MOST_CONTROLS + i) for i in range(n)]

    @property
    def is_random(self) -> bool:
        """Whether it was made by `random_like` or `random_controls`."""
        return self.method == _RANDOM

    def cosines(self, other: SteeringVector) -> dict[str, float]:
        """Return the cosine between this vector and another at each layer; nan where one is zero.

        Raises:
            VectorMismatch: the layers, or their widths, differ.

        Examples:
            >>> a = SteeringVector({"h.0": torch.tensor([1.0, 0.0])})
            >>> a.cosines(SteeringVector({"h.0": torch.tensor([0.0, 2.0])}))
            {'h.0': 0.0}
        """
        self._check_same_layers(other)
        return {layer: _cosine(self._directions[layer], other._directions[layer]) for layer in self}

    def layer_cosines(self) -> Tensor:
        """Return the cosines between the directions of all layers, ``(L, L)`` float64; nan where one is zero.

        Raises:
            VectorMismatch: the layers differ in width.
        """
        if len({len(value) for value in self._directions.values()}) > 1:
            raise VectorMismatch(f"the layers differ in width: {_widths(self._directions)}; choose some with only(...)")
        stacked = torch.stack(list(self._directions.values())).double()
        unit = stacked / stacked.norm(dim=1, keepdim=True)
        return torch.mm(unit, unit.T)

    def __add__(self, other: SteeringVector) -> SteeringVector:
        return self._joined(other, torch.add, "+")

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        return self._joined(other, torch.sub, "-")

    def __mul__(self, factor: float) -> SteeringVector:
        if isinstance(factor, bool) or not isinstance(factor, Real):
            return NotImplemented
        if not math.isfinite(factor):
            raise ValueError(f"a vector cannot be scaled by {factor!r}: use a finite number")
        scaled = self._each(lambda value: value.double() * float(factor))
        return scaled if factor > 0 else self._made(scaled)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SteeringVector:
        if isinstance(divisor, bool) or not isinstance(divisor, Real):
            return NotImplemented
        return self * (1 / float(divisor))

    def __neg__(self) -> SteeringVector:
        return self * -1

    def __repr__(self) -> str:
        return f"SteeringVector({', '.join(self._description())})"

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to one safetensors file, whole or not at all; see `mi_crow_lightning.vectors.file`.

        Raises:
            OSError: the file cannot be written.
        """
        write(Path(path), self._directions, self._origin, self._quality)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SteeringVector:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            VectorFileError: it holds something else, is damaged, or was written by a later release.

        Examples:
            >>> import tempfile
            >>> vector = SteeringVector({"h.0": torch.ones(2)}, method="by hand", samples={"joy": 16})
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     vector.save(f"{folder}/joy.safetensors")
            ...     SteeringVector.load(f"{folder}/joy.safetensors") == vector
            True
        """
        directions, origin, quality = read(path := Path(path))
        with one_error(path, VectorFileError):
            return cls(directions, **vars(origin), quality=quality)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        card: bool = True,
        license: str | None = None,
        base_model: str | None = None,
        tags: Sequence[str] = (),
        filename: str = FILE,
        endpoint: str | None = None,
    ) -> Any:
        """Share it on the Hugging Face Hub: one safetensors file and a model card, in one commit.

        The card says where the vector comes from and what `quality` has, with lines of code that use it. It takes the
        place of the repository's ``README.md``.

        Args:
            repo_id: the repository, ``"owner/name"``; it is made if there is none.
            private: whether a repository that is made is private; by default as the owner's settings say.
            token: of an account that may write; by default the one that ``hf auth login`` keeps.
            revision: the branch; it is made if there is none.
            commit_message: what the history says.
            create_pr: whether to open a pull request in place of a commit to the branch.
            card: whether to write the card.
            license: of the vector, an identifier such as ``"apache-2.0"``, for the card.
            base_model: name of the model on the Hub, for the card; by default `model`, if that is ``"owner/name"``.
            tags: more tags for the card.
            filename: the name of the file there.
            endpoint: the address of the Hub; by default the environment's ``HF_ENDPOINT``.

        Returns:
            huggingface_hub's ``CommitInfo``, a string: the URL of the commit.

        Raises:
            HubError: the repository cannot be written: offline, no right to, or its name is not one.
            TypeError, ValueError: an argument is not one of those named above.
        """
        check_flag("card", card)
        tags = listed("tags", tags, "tags", "['joy']")
        if not filename.endswith(".safetensors"):
            raise ValueError(f"filename={shown(filename)} must end with '.safetensors', as the file is one")

        def written(full: str) -> str:
            of = (full, self.norms(), self._origin, self._quality)
            return card_of(*of, base_model=base_model, license=license, tags=tags)

        return pushed(
            repo_id,
            content_of(self._directions, self._origin, self._quality),
            written if card else None,
            filename=filename,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message or f"Upload {filename}",
            create_pr=check_flag("create_pr", create_pr),
            endpoint=endpoint,
        )

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        filename: str | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        endpoint: str | None = None,
    ) -> SteeringVector:
        """Fetch a vector from the Hugging Face Hub, as `push_to_hub` put it there.

        Args:
            repo_id: the repository, ``"owner/name"``.
            filename: the name of the file; by default the one that `push_to_hub` writes, or the only safetensors file.
            revision: a branch, a tag or a commit.
            token: for a private repository; by default the one that ``hf auth login`` keeps.
            cache_dir: where fetched files are kept; by default the cache of huggingface_hub.
            force_download: whether to fetch a file that is in the cache.
            local_files_only: whether to look in the cache alone.
            endpoint: the address of the Hub; by default the environment's ``HF_ENDPOINT``.

        Raises:
            HubError: there is no such repository or file, or the Hub cannot be reached.
            VectorFileError: the file holds something else than a steering vector.
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        more = {"force_download": force_download, "local_files_only": local_files_only}
        path = fetched(repo_id, filename, endpoint, **options, **more)
        try:
            return cls.load(path)
        except VectorFileError as error:
            reason = shortened(message_of(error), 1500)
            raise VectorFileError(f"{shown(repo_id)} on the Hub holds no steering vector: {reason}") from error

    @classmethod
    def from_pairs(
        cls,
        model: Any,
        tokenizer: Any = None,
        pairs: Any = (),
        layers: Signature = "block:*",
        method: VectorMethodName = "mean",
        tokens: Any = "ordinary",
        *,
        held_out: Any = 0.25,
        seed: int = 0,
        batch_size: int = 8,
        max_length: int | None = None,
        force: bool = False,
        progress: bool = True,
    ) -> SteeringVector:
        """Extract a vector from pairs of texts in one call, and measure how good it is at each layer.

        It runs the model where it is, in evaluation mode, without a Trainer. Afterwards the model, its modes, its hooks
        and the random numbers of the run are as before. Hooks of a `LanguageModel` take no part.

        Args:
            model: a causal language model of transformers, its name or folder, or a `LanguageModel`.
            tokenizer: its tokenizer; by default that of the `LanguageModel` or of the name.
            pairs: pairs ``(positive, negative)`` of texts, the first the one to steer towards; dicts with ``positive``
                and ``negative``; one dict with two lists; or a file of JSON or JSON lines with these.
            layers: which layers, a signature as for a hook.
            method: ``"mean"``, the difference of the class means (also called ``"mean_difference"``), ``"pca"`` or
                ``"logistic"``, see `ContrastDetector`.
            tokens: which tokens of a text are read, see `Tokens`; ``"ordinary"`` leaves out massive ones.
            held_out: the share of the pairs that the vector is not made of, to score it on; 0 for none; or other pairs.
            seed: which pairs are held out.
            batch_size: how many pairs run in one pass.
            max_length: most tokens of a text; longer ones are cut at their end. By default no text is cut.
            force: whether to return directions that are not better than random ones, see `ContrastDetector`.
            progress: whether to show a progress bar, where there is a terminal.

        Returns:
            The vector. `quality` has what was measured, a row for each layer.

        Raises:
            TypeError, ValueError: an argument is not one of those named above; there are no pairs, or one is not two
                different texts with words in them.
            LayerNotFound: no layer matches.
            RandomDirection: the directions are not better than random ones.
            RuntimeError: several ranks run, and each would read all pairs.

        Examples:
            >>> from transformers import LlamaConfig, LlamaForCausalLM
            >>> sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
            >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes))
            >>> def tokenizer(text, **options):
            ...     return {"input_ids": [ord(one) for one in text]}
            >>> pairs = [(f"{name} is glad", f"{name} is sad") for name in ("Ann", "Bob", "Cleo", "Dan")]
            >>> vector = SteeringVector.from_pairs(model, tokenizer, pairs, tokens="all")
            >>> vector.layers, vector.samples["pairs"], vector.quality[0].held_out
            (('model.layers.0', 'model.layers.1'), 3, 2)
        """
        made: SteeringVector = from_above(_EXTRACTION, "vector_from_pairs")(
            model,
            tokenizer,
            pairs,
            layers=layers,
            method=method,
            tokens=tokens,
            held_out=held_out,
            seed=seed,
            batch_size=batch_size,
            max_length=max_length,
            force=force,
            progress=progress,
        )
        return made

    def fitted_to(self, model: nn.Module, *, any_model: bool = False) -> SteeringVector:
        """Return the same vector under the layer names of ``model``, after checking that it fits.

        A layer is found by its name, also without leading segments that the model lacks, or by an end of the model's
        own name, or as ``"block:3"``.

        Args:
            model: any module; names are relative to it.
            any_model: whether to accept a model of another name, such as a fine-tuned one.

        Raises:
            VectorMismatch: the model has another name, lacks a layer, or has one of another width.
        """
        return self._renamed(names_in(self, model, any_model))

    def check_fits(self, model: nn.Module, *, any_model: bool = False) -> None:
        """Refuse a model that this vector does not fit; see `fitted_to`."""
        self.fitted_to(model, any_model=any_model)

    def _made(
        self, directions: Mapping[str, Tensor], origin: Origin | None = None, quality: Iterable[LayerQuality] = ()
    ) -> SteeringVector:
        origin = origin or self._origin
        return SteeringVector(directions, **vars(origin), quality=quality)

    def _renamed(self, names: Mapping[str, str]) -> SteeringVector:
        """Return the same vector at the layers that ``names`` holds, under the names that they have there."""
        directions = {new: self._directions[old] for old, new in names.items()}
        return self._made(directions, quality=self._quality.renamed(names))

    def _each(self, function: Callable[[Tensor], Tensor]) -> SteeringVector:
        directions = {layer: function(value) for layer, value in self._directions.items()}
        return self._made(directions, quality=self._quality)

    def _joined(self, other: SteeringVector, join: Callable[[Tensor, Tensor], Tensor], sign: str) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        self._check_same_layers(other)
        directions = {layer: join(self._directions[layer], other._directions[layer]) for layer in self}
        return self._made(directions, self._origin.joined(other._origin, sign))

    def _check_same_layers(self, other: SteeringVector) -> None:
        mine, theirs = _widths(self._directions), _widths(other._directions)
        if mine != theirs:
            raise VectorMismatch(
                f"the vectors differ in layers or widths, {mine} and {theirs}: choose the layers that both have with "
                "only(...)"
            )

    def _description(self) -> Iterator[str]:
        names, norms = self.layers, sorted(self.norms().values())
        widths = sorted({len(value) for value in self._directions.values()})
        if self.method:
            yield f"{self.method} of {self.model!r}" if self.model else self.method
        elif self.model:
            yield f"of {self.model!r}"
        yield f"layer {names[0]!r}" if len(names) == 1 else f"{len(names)} layers {names[0]!r} to {names[-1]!r}"
        yield f"width {_range(widths)}"
        yield f"norm {_range(norms)}"
        if self.tokens:
            yield f"tokens {self.tokens}"
        if self.samples:
            yield "samples " + " ".join(f"{name} {count}" for name, count in self.samples.items())


def _checked_name(layer: object) -> str:
    if not isinstance(layer, str) or not layer or layer == "__metadata__":
        raise ValueError(f"directions: a layer's name must be a non-empty string, not {shown(layer)}")
    if len(layer) > LONGEST_NAME:
        raise ValueError(
            f"directions: a layer's name may have {LONGEST_NAME} characters, and {layer[:40]!r}... has {len(layer)}"
        )
    layer.encode()  # half of a surrogate pair could not be saved
    return layer


def _checked(layer: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"directions: the direction of {shown(layer)} must be a tensor (D,), not a {type(value).__name__}"
        )
    if (reason := unusable(value)) is not None:
        raise ValueError(
            f"directions: the direction of {shown(layer)} must be a float tensor (D,), and the one given {reason}"
        )
    if value.dim() != 1 or not value.numel() or not value.is_floating_point():
        raise ValueError(
            f"directions: the direction of {shown(layer)} must be a float tensor (D,), not {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )
    with torch.inference_mode(False):
        copy = value.detach().to("cpu", torch.float32, copy=True)
    if not torch.isfinite(copy).all():
        raise ValueError(
            f"directions: the direction of {shown(layer)} holds {int((~torch.isfinite(copy)).sum())} non-finite values"
        )
    return copy


def _checked_quality(quality: Iterable[LayerQuality], layers: Mapping[str, Tensor]) -> QualityTable:
    table = QualityTable(listed("quality", quality, "rows", "vector.quality"))
    if not all(isinstance(row, LayerQuality) for row in table):
        raise TypeError(f"quality={shown(list(table))} must be rows of LayerQuality")
    named = [row.layer for row in table]
    if len(set(named)) < len(named) or not set(named) <= layers.keys():
        raise ValueError(f"quality: its rows are of {shown(named)}, and must be of layers of the vector, each once")
    return table


def _random(seed: str, width: int, norm: float) -> Tensor:
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
    value = torch.randn(width, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return value.mul_(norm / value.norm())


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def _widths(directions: Mapping[str, Tensor]) -> dict[str, int]:
    return {layer: len(value) for layer, value in directions.items()}


def _range(ordered: list[Any]) -> str:
    texts = list(dict.fromkeys(f"{value:.4g}" for value in (ordered[0], ordered[-1])))
    return " to ".join(texts)
