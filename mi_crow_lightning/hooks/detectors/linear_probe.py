"""Linear probes that are trained while the model trains: which layers hold what the labels say, and from when on.

Each layer has a softmax regression on its detached activations (Alain and Bengio, 2016, arXiv 1610.01644), which takes
one step a training batch. It costs two products of ``(N, D)`` and ``(D, K)`` a layer and batch, and keeps about
``7 * K * D`` float64 numbers a layer, and for the area under the ROC curve 33 kB a layer and stage, of more than two
classes for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import check_flag, is_finite, listed, one_of
from mi_crow_lightning._saved_state import Check, each, is_count, names, numbers
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.choices import ProbeRows
from mi_crow_lightning.errors import HookStateError, NothingExtracted
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.options import DetectorOptions, Unpack
from mi_crow_lightning.hooks.positions.labelled import (
    Column,
    class_numbers,
    labelled_means,
    labelled_tokens,
    labels_of,
)
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import Schedule, Stage, When
from mi_crow_lightning.hooks.summing_detector import SummingDetector
from mi_crow_lightning.hooks.tokens import TokensLike
from mi_crow_lightning.metrics.class_scores import ClassScores
from mi_crow_lightning.metrics.collectives import Share, Shares, exchange, is_distributed
from mi_crow_lightning.metrics.descriptions import probe_text
from mi_crow_lightning.metrics.online_probes import PARTS, OnlineProbes
from mi_crow_lightning.vectors.fit import model_name
from mi_crow_lightning.vectors.steering_vector import SteeringVector
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["LinearProbe"]

_MOST_CLASSES = 10_000
_FEW = 8  # rows: fewer may be of one class by chance
_NAMES = ("accuracy", "auroc", "majority", "cross_entropy")


class LinearProbe(SummingDetector):
    """Trains a linear probe at each layer while the model trains, and reads how well it separates the classes.

    The probe is a softmax regression on standardised activations, trained by Adam from weights of zero: one step after
    each training batch, with accumulated gradients after each micro-batch. Nothing of it reaches the model: losses,
    gradients and random numbers are those of a run without it. Over several ranks there is one probe, trained on the
    rows of all. What it learned goes on in later runs on the same layers, and is kept in checkpoints.

    The readings of each layer, of training and of each evaluation:

    - ``accuracy``, and ``auroc``: the area under the ROC curve; of more than two classes, the mean of each against the
      rest. In training each row is scored before the probe learns from it. In validation nothing is learned: that is
      the number to report, if its samples are others than those of training.
    - ``majority``: the accuracy of always answering with the most frequent class, which a probe must exceed.
    - ``cross_entropy``: the mean of ``-log(p)`` of the label's class, in nats.

    Args:
        layer_signature: which layers.
        labels: key of the labels in the batch, or a function from the batch to them: ``(B,)``, or ``(B, T)`` with
            ``per="token"``.
        classes: how many classes there are, labelled from 0, or the labels that occur: numbers or names.
        tokens: which positions are read; ``"last"`` is each row's last real token.
        per: ``"sample"`` for one row a sample, the mean over its chosen tokens; ``"token"`` for each chosen token.
        lr: Adam's learning rate, for standardised features.
        ignore_index: the label of samples or tokens that do not count.
        auroc: whether to read ``auroc``, of scores rounded to 1 %; it takes 33 kB a layer, and with more than two
            classes for each of them.
        **options: ``name``, ``before_edits``, see `Detector`; ``hook_type``, ``hook_id``, ``schedule``, ``on_error``,
            see `Hook`.

    Raises:
        TypeError, ValueError: an argument is not one of those named above.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model, probe = nn.Sequential(nn.Identity()), LinearProbe("0", lr=0.1)
        >>> layers = Layers(model)
        >>> _ = layers.register_hook(None, probe)
        >>> for _ in range(3):
        ...     layers.begin_batch(None, {"label": tensor([1, 0, 1, 0])})
        ...     _ = model(tensor([[3.0, 1.0], [1.0, 2.0], [4.0, 2.0], [0.0, 1.0]]))
        ...     probe.reset()
        ...     probe.step()
        >>> _ = model(tensor([[3.0, 1.0], [1.0, 2.0], [4.0, 2.0], [0.0, 1.0]]))
        >>> [(reading.name, reading.value) for reading in probe.readings()][:3]
        [('accuracy', 1.0), ('auroc', 1.0), ('majority', 0.5)]
    """

    by_block = ("accuracy", "auroc")
    names = _NAMES

    def __init__(
        self,
        layer_signature: Signature | None = None,
        *,
        labels: Column = "label",
        classes: int | Sequence[Any] = 2,
        tokens: TokensLike = "all",
        per: ProbeRows = "sample",
        lr: float = 1e-3,
        ignore_index: int = -100,
        auroc: bool = True,
        **options: Unpack[DetectorOptions],
    ) -> None:
        super().__init__(layer_signature, tokens=tokens, **options)
        if not isinstance(labels, str) and not callable(labels):
            raise TypeError(
                f"labels={shown(labels)} must be a key of the batch, or a function from the batch to labels"
            )
        self.labels = labels
        self.classes = _classes(classes)
        self.per = one_of("per", per, ("sample", "token"))
        if not is_finite(lr) or lr <= 0:
            raise ValueError(f"lr={shown(lr)} must be a positive number: Adam's learning rate")
        self.lr = float(lr)
        if not _is_int64(ignore_index) or ignore_index in self.classes:
            raise ValueError(f"ignore_index={shown(ignore_index)} must be a whole number, not one of the classes")
        self.ignore_index = ignore_index
        self.auroc = check_flag("auroc", auroc)
        self._scores = ClassScores(len(self.classes), self.auroc)
        self.sums = 1 + self._scores.size  # the first counts rows whose label is of no class
        self._probes: OnlineProbes | None = None
        self._probed: list[str] = []  # the layers of the probes
        self._learned: dict[str, Any] = {}  # from a checkpoint, until the layers are known
        self._model = ""
        self._warned_of: set[str] = set()

    def _facts(self) -> Iterator[tuple[str, str]]:
        if self.labels != "label":
            yield "labels", shown(self.labels, 80)
        yield "classes", shown([*self.classes], 80)
        if self.per != "sample":
            yield "per", repr(self.per)
        if not self.tokens._is_all:
            yield "tokens", cut(self.tokens._text, 80)
        yield from super()._facts()

    def default_schedule(self) -> When:
        """Return every batch of training, validation and test."""
        return Schedule(stages=[Stage.TRAIN, Stage.VALIDATE, Stage.TEST])

    @property
    def tag_prefix(self) -> str:
        """First part of the tags of its readings."""
        return self.name or "probe"

    def reading_names(self) -> tuple[str, ...]:
        """Return the names of the readings."""
        return tuple(name for name in self.names if self.auroc or name != "auroc")

    def _described(self, name: str) -> str:
        return probe_text(name)

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make new sums, and probes; those that learned at the same layers go on."""
        super().prepare(layers, device)
        if self._learned:
            self._refuse_other_probes(self._learned)
        before = self._learned or self._state_of_probes()
        self._probes = OnlineProbes(len(layers), len(self.classes), self.lr, device)
        if before["probed"] == layers:
            self._probes.load(before["probes"])
        self._probed, self._learned = list(layers), {}
        self._warned_of.clear()

    def forget(self) -> None:
        """Forget what was learned: the probes start from zero again."""
        self._learned = {}
        if self._probes is not None:
            self._probes = OnlineProbes(len(self._probed), len(self.classes), self.lr, self._probes.device)

    def measure(self, x: Tensor, mask: Tensor | None, ctx: HookContext) -> Tensor:
        """Score the rows of ``x``, and in training add them to what the next step learns from.

        Raises:
            ValueError: the batch has no labels, or they do not fit ``x``.
            TokensUnknown: the rows of ``x`` are not those of the batch.
        """
        assert self._probes is not None, "probes are made at registration"
        label = class_numbers(labels_of(ctx.batch, self.labels), self.classes, self.ignore_index)
        to_rows = labelled_means if self.per == "sample" else labelled_tokens
        rows, label = to_rows(x, mask, label, ctx)
        layer, self._model = self._layers[ctx.layer], self._model or model_name(ctx.model)
        self._probes.widen(layer, rows.shape[-1])
        logits = self._probes.logits(layer, rows)
        of_none = (label == -2).sum()
        label = label.clamp(min=-1).to(logits.device)
        if ctx.stage in (None, Stage.TRAIN):
            self._probes.learn(layer, rows, label, logits)
        scores = self._scores.sums(logits, label, self._probes.bias(layer))
        return torch.cat([of_none[None].to(scores), scores])

    # Learning: the sums of a batch of all ranks, then a step.

    def share_batch(self) -> Shares:
        """Share what this rank saw in the batch, to be added to what the other ranks saw; then take the step."""
        assert self._probes is not None, "probes are made at registration"
        batch = yield Share(self._probes.batch, lambda ranks: ranks.sum(0))
        self._probes.step(batch)

    def step(self) -> None:
        """End a batch: take one step at each layer that saw a row. All ranks must call it.

        A `HookCallback` calls it after each training batch. In another loop call it yourself.
        """
        if self._probes is not None and is_distributed():
            exchange([self.share_batch()])
        elif self._probes is not None:
            self._probes.step()  # an exchange would wait for the device

    def values(self, sums: Tensor) -> Mapping[str, float]:
        """Return the readings of one layer by name.

        Raises:
            ValueError: labels were of no class.
        """
        if of_none := int(sums[0]):
            raise ValueError(
                f"{of_none} labels are of no class: the classes are {shown([*self.classes], 200)}, and "
                f"ignore_index={self.ignore_index} does not count. Give classes= as they stand in the labels"
            )
        return self._scores.values(sums[1:])

    def readings(self) -> Iterator[Reading]:
        """Give the readings of every layer that saw a labelled row in the running stage."""
        steps = self._probes.steps.tolist() if self._probes is not None else []
        for layer, row, taken in zip(self._layers, self.over_ranks(), steps, strict=True):
            found = self._read(row)
            if row[0] and not found:
                self._warn_once("labels", f"{self!r} saw tokens at {layer!r}, and no label that counts.")
            elif found and not taken and self._stage_key not in ("", Stage.TRAIN.value):
                self._warn_once("untrained", f"{self!r} has not been trained at {layer!r}: it has no reading there.")
                continue
            elif found and found["majority"] == 1 and row[2] >= _FEW:
                self._warn_once(
                    "constant", f"{self!r}: all labels of a reading are of one class, so that there is nothing to tell."
                )
            for name in self.reading_names():
                if name in found:
                    yield Reading(layer, name, found[name])

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned_of:
            self._warned_of.add(kind)
            warn(message, NothingSeenWarning, stacklevel=3)

    def vectors(self, positive: Any = None) -> SteeringVector:
        """Return the directions that the probes found, one for each layer, towards a class.

        A direction is that of the probe's weights, in units of the activations, and as long as the means of the classes
        are apart along it: strength 1 moves the mean of the other classes to that of this one. The weights separate
        the classes; the difference of the class means, which `ContrastDetector` gives, is often better to steer along.

        Args:
            positive: the class; ``None`` for the last.

        Raises:
            NothingExtracted: the probes were not trained.
            RanElsewhere: the run took place in other processes, as with ``ddp_spawn``.
            ValueError: there is no such class.
        """
        if self._spawned_runs is not None:
            self._spawned_runs.refuse("LinearProbe")
        number = len(self.classes) - 1
        if positive is not None:
            one_of("positive", positive, self.classes)
            number = self.classes.index(positive)
        found = self._probes.directions(number) if self._probes is not None else []
        directions = {layer: one for layer, one in zip(self._probed, found, strict=False) if one is not None}
        if not directions:
            raise NothingExtracted(f"{self!r} has no vectors: {self._why_nothing('a fit must train the probes first')}")
        facts = {} if self.hook_type is HookType.FORWARD else {"hook_type": self.hook_type.value}
        return SteeringVector(
            directions,
            method="linear_probe",
            model=self._model,
            tokens=self.tokens._text,
            metadata={"positive": str(self.classes[number]), **facts},
        )

    # What a checkpoint keeps.

    _results = ("probed", "probes")

    def state_dict(self) -> dict[str, Any]:
        """Return the switch, the probes, and what was summed up in training since the last readings."""
        return {**super().state_dict(), **(self._learned or self._state_of_probes())}

    def _state_of_probes(self) -> dict[str, Any]:
        if self._probes is None or not self._probes.width:
            return {"probed": [], "probes": {}}
        return {"probed": self._probed, "probes": self._probes.state()}

    def _state_form(self) -> dict[str, Check]:
        return super()._state_form() | {"probed": names, "probes": _checked_probes}

    def _check_together(self, fields: dict[str, Any]) -> None:
        super()._check_together(fields)
        self._refuse_other_probes(fields)

    def _refuse_other_probes(self, fields: Mapping[str, Any]) -> None:
        layers, probes = fields["probed"], fields["probes"]
        if probes and probes["weight"].shape[:2] != (len(layers), len(self.classes)):
            found = tuple(probes["weight"].shape[:2])
            raise ValueError(f"probes are of (layers, classes) = {found}, not {(len(layers), len(self.classes))}")
        if probes and self._layers and layers != list(self._layers):
            raise HookStateError(
                f"{shown(self)}: the checkpoint's probes are of the layers {shown(layers, 400)}, and the detector has "
                f"{shown([*self._layers], 400)}: give it the same, or another hook_id"
            )

    def _load(self, fields: dict[str, Any]) -> None:
        super()._load(fields)
        self._load_results(fields)

    def _load_results(self, fields: dict[str, Any]) -> None:
        """Take over the probes of a checkpoint that has some."""
        self._refuse_other_probes(fields)
        if not fields["probes"]:
            return
        if self.registered and self._probes is not None:
            self._probes.load(fields["probes"])
        else:  # `prepare` takes them up
            self._learned = {name: fields[name] for name in self._results}

    def _of_what(self) -> dict[str, list[str]]:
        return {"layers": list(self._layers), "classes": [repr(one) for one in self.classes]}

    def _row_shape(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        return (1 + self.sums,)


def _is_int64(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _classes(classes: Any) -> tuple[Any, ...]:
    if isinstance(classes, int) and not isinstance(classes, bool):
        if not 2 <= classes <= _MOST_CLASSES:
            raise ValueError(f"classes={shown(classes)} must be from 2 to {_MOST_CLASSES:,}, or the labels that occur")
        return tuple(range(classes))
    given = [] if isinstance(classes, str) else listed("classes", classes, "classes", "('sad', 'happy')")
    known = all(isinstance(one, str) for one in given) or all(isinstance(one, bool) or is_finite(one) for one in given)
    if len(given) < 2 or not known or len(set(given)) < len(given):
        raise ValueError(
            f"classes={shown(classes)} must be how many there are, or two or more different labels, all numbers or all "
            "names"
        )
    return tuple(given)


def _checked_probes(name: str, value: Any) -> dict[str, Tensor]:
    """Return the probes of a checkpoint; an empty mapping is of probes that saw nothing."""
    found = each(name, value, lambda part, one: one)
    if not found:
        return {}
    if found.keys() != set(PARTS):
        raise ValueError(f"{name} must have {', '.join(PARTS)}, not {shown([*found], 200)}")
    weight = numbers(f"{name}['weight']", found["weight"], None, None, None)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(PARTS[:4], tuple(weight.shape))
    shapes |= {"squares": (len(weight), weight.shape[2] - 1), "steps": (len(weight),), "widths": (len(weight),)}
    for part, shape in shapes.items():
        numbers(f"{name}[{part!r}]", found[part], *shape)
    if not all(map(is_count, (found["steps"], found["widths"], found["moments"][..., 0]))):
        raise ValueError(f"{name} has counts that are not finite, or below 0")
    return found
