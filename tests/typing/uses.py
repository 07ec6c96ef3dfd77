"""Right uses, each of which a type checker takes and Python runs: what the types of arguments must not refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    AllOf,
    ClampController,
    ContrastDetector,
    Controller,
    Detector,
    DriftDetector,
    FunctionController,
    GradientStatistics,
    Hook,
    HookCallback,
    HookContext,
    HookType,
    LayerActivationDetector,
    LinearProbe,
    LoggedSteps,
    PatchController,
    PredictionWriter,
    ProjectionDetector,
    ScaleController,
    Schedule,
    Stage,
    SteeringController,
    SteeringVector,
    SummingDetector,
    TokenController,
    Tokens,
    TokenStatistics,
    TraitMonitor,
    WeightStatistics,
)
from mi_crow_lightning.alarms import Alarm, Jump, NonFinite, default_alarms
from mi_crow_lightning.choices import StageName, StatisticName, TokensName
from mi_crow_lightning.hooks.options import DetectorOptions, TokenOptions, Unpack
from mi_crow_lightning.metrics import STATISTICS, Statistic, register

if TYPE_CHECKING:
    from typing_extensions import Unpack as PlainUnpack  # of typing, from Python 3.11 on

vector = torch.ones(8)
by_layer = SteeringVector({"model.layers.1": vector})


class Counted(Detector):
    """A detector of a user's own that hands on what it does not know, untyped."""

    def __init__(self, layer_signature: str | int | None = None, *, most: int = 3, **options: Any) -> None:
        super().__init__(layer_signature, **options)
        self.most = most

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        self.most -= 1


class Typed(Detector):
    """The same, typed."""

    def __init__(
        self, layer_signature: str | None = None, *, most: int = 3, **options: PlainUnpack[DetectorOptions]
    ) -> None:
        super().__init__(layer_signature, **options)
        self.most = most


class Doubled(TokenController):
    """A controller of a user's own."""

    def __init__(self, layer_signature: str | None = None, **options: Unpack[TokenOptions]) -> None:
        super().__init__(layer_signature, **options)

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        return x + strength * x


class Halved(Controller):
    """A controller that takes what its base takes."""

    def edit(self, x: Tensor, ctx: HookContext) -> Tensor:
        return x / 2


class Largest(SummingDetector):
    """A detector that keeps the largest."""

    names, sums, merge = ("largest",), 1, "max"

    def measure(self, x: Tensor, mask: Tensor | None, ctx: HookContext) -> Sequence[Tensor]:
        return [x.amax()]


def above(x: Tensor, ctx: HookContext) -> Tensor:
    return x[..., 0] > 0


mean_of_squares = register(Statistic("mean_of_squares_in_uses", lambda s: s["mean"] ** 2 + s["m2"] / s["count"]))
chosen: list[StatisticName] = ["mean", "rms"]
stages: tuple[StageName, ...] = ("validate", "test")
where: TokensName = "generated"

DETECTORS: list[Hook] = [
    ActivationStatistics("block:*"),
    ActivationStatistics(["block:0", 1], statistics=["mean", "rms"], tokens="last", name="a"),
    ActivationStatistics(0, statistics=chosen, hook_type="pre_forward", hook_id="one", on_error="warn"),
    ActivationStatistics(0, statistics=[*STATISTICS, mean_of_squares], schedule=Schedule(stages="train")),
    ActivationStatistics(0, statistics=("std",), tokens=Tokens("prompt") & ~Tokens(ids={2}), channels=1),
    ActivationStatistics(0, hook_type=HookType.FORWARD, schedule=Schedule(stages=[Stage.TEST, "predict"])),
    GradientStatistics("block:*", statistics=["std"], histogram=False, schedule=LoggedSteps(evaluations=False)),
    WeightStatistics("block:*", statistics=["update_ratio"], name="w", on_error="disable"),
    TokenStatistics("block:*", statistics=["cosine", "effective_rank"], before_edits=True),
    ProjectionDetector("block:1", vector, tokens="ordinary", schedule=AllOf(Schedule(stages=stages), LoggedSteps())),
    ProjectionDetector("block:1", vectors={"joy": vector}, name="p"),
    LinearProbe("block:*", labels="y", classes=["a", "b"], per="token", lr=0.01, name="probe", tokens="last"),
    TraitMonitor("block:1", vector, schedule=Schedule(stages="validate"), hook_id=None),
    DriftDetector("block:*", "start", stage=Stage.TEST),
    ContrastDetector("block:*", method="pca", covariance=["difference"], stage="predict", held_out=None),
    LayerActivationDetector("block:1", keep="all", tokens=where, target_dtype="float16"),
    Counted("block:1", most=4, name="counted", schedule=None),
    Typed("block:1", most=4, name="typed", on_error="raise"),
    Largest("block:1", tokens="all", hook_id="largest"),
]

CONTROLLERS: list[Hook] = [
    Halved("block:0", may_skip=True),
    SteeringController("block:1", vector, 2.0, "generated", when=above, preserve_norm=True, may_skip=True),
    SteeringController("block:1", by_layer, strength="batch", tokens=Tokens(positions=[0, -1])),
    SteeringController("block:1", {"model.layers.1": vector}, strength=lambda ctx: 1.0, schedule=None),
    AblationController("block:1", vector, strength={1: 0.5}, on_error="raise"),
    ClampController("block:1", vector, high=1.0, tokens=Tokens(ids={3}) | Tokens("last"), channels=-1),
    FunctionController("block:1", torch.neg, hook_type="pre_forward", strength=torch.ones(2)),
    PatchController("block:1", vector, hook_id="patch", when=above),
    ScaleController("block:1", 0.5, tokens="prompt", preserve_norm=False),
    Doubled("block:1", strength=0.5, tokens="last"),
]

CALLBACKS = [
    HookCallback(DETECTORS[0], CONTROLLERS[1], scalars=["mean"], alarms="default", report="short"),
    HookCallback(
        DETECTORS, scalars="summary", alarms=[Alarm(Jump("rms", direction="up", stages=stages), ["warn", "stop"])]
    ),
    HookCallback([DETECTORS[3]], scalars=[mean_of_squares], alarms=default_alarms("log")),
    HookCallback(alarms=Alarm(NonFinite(stages="train"), "snapshot")),
    PredictionWriter("texts.jsonl", mode="w"),
]
