"""Tiny models with faults that begin at a step, and clean ones; the alarms that see them are the default ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from mi_crow_lightning import (
    ActivationStatistics,
    FunctionController,
    HookCallback,
    Schedule,
    SteeringController,
    WeightStatistics,
)
from mi_crow_lightning.alarms import Alarm, Firing, default_alarms
from tests.models import trainer

WIDTH, VOCABULARY, LENGTH, BATCH = 16, 24, 12, 16
AT = 25  # the step in which a fault begins
TRAIN = Schedule(stages="train")


class Block(nn.Module):
    """Attention and a ReLU network, each added to the stream."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.mask_all = heads, False
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.act, self.down = nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        mask = torch.zeros(t, t, device=x.device, dtype=x.dtype).masked_fill(torch.ones(t, t).triu(1) > 0, -math.inf)
        if self.mask_all:
            scores = (q @ k.transpose(-1, -2)) + torch.full_like(mask, -math.inf)
            mixed = scores.softmax(-1) @ v
        else:
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(self.act(self.up(self.norm2(x))))


class Decoder(nn.Module):
    def __init__(self, width: int = WIDTH, blocks: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def texts(seed: int, count: int = BATCH) -> Tensor:
    """Sequences in which a token mostly follows from the one before: (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(VOCABULARY, (count,), generator=generator)]
    for _ in range(LENGTH - 1):
        noise = torch.randint(VOCABULARY, (count,), generator=generator)
        rows.append(torch.where(torch.rand(count, generator=generator) < 0.1, noise, (3 * rows[-1] + 1) % VOCABULARY))
    return torch.stack(rows, 1)


class Batches:
    """As many batches as there are steps, each made from its number."""

    def __init__(self, steps: int, seed: int, make: Callable[[int], Any] = texts) -> None:
        self.steps, self.seed, self.make = steps, seed, make

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Any:
        return (self.make(1000 * self.seed + step) for step in range(self.steps))


class Trained(pl.LightningModule):
    """A model in training; ``fault`` is called before each step from step `AT` on."""

    def __init__(self, model: nn.Module, lr: float = 3e-3, fault: Fault | None = None, optimizer: Any = None) -> None:
        super().__init__()
        self.model, self.lr, self.fault, self.make = model, lr, fault, optimizer or torch.optim.AdamW
        self.now = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.now = self.fault is not None and batch_idx >= self.fault.at
        if self.now and self.fault is not None:
            batch = self.fault.act(self, batch, batch_idx) if self.fault.act is not None else batch
        if isinstance(batch, Tensor):
            output = self.model(batch[:, :-1])
            return cross_entropy(output.flatten(0, 1).float(), batch[:, 1:].flatten())
        x, y = batch
        return cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), lr=self.lr)


class Fault(NamedTuple):
    """A fault: how it is planted, where it must be named, by which alarms, and after how many steps at most."""

    layer: str
    alarms: tuple[str, ...]
    delay: int = 0
    act: Callable[[Trained, Any, int], Any] | None = None
    setup: Callable[[Trained], None] | None = None
    controllers: tuple[Callable[[], Any], ...] = ()
    half: bool = False
    lr: float = 3e-3
    at: int = AT


def out(block: int, change: Callable[[Tensor], Tensor], layer: str = "") -> Callable[[Trained], None]:
    """Plant a change of a layer's output."""

    def setup(module: Trained) -> None:
        target = module.get_submodule(f"model.blocks.{block}{layer}")
        target.register_forward_hook(lambda m, a, x: change(x) if module.now else None)

    return setup


def gradient(block: int, change: Callable[[Tensor], Tensor]) -> Callable[[Trained], None]:
    """Plant a change of the gradient at a layer's output."""

    def hook(module: Trained, x: Tensor) -> None:
        if module.now and x.requires_grad:
            x.register_hook(change)

    def setup(module: Trained) -> None:
        module.get_submodule(f"model.blocks.{block}").register_forward_hook(lambda m, a, x: hook(module, x))

    return setup


def once(change: Callable[[Trained], None]) -> Callable[[Trained, Any, int], Any]:
    """Change something at step `AT` alone, without gradients."""

    def act(module: Trained, batch: Any, index: int) -> Any:
        if index == AT:
            with torch.no_grad():
                change(module)
        return batch

    return act


def every(change: Callable[[Trained], None]) -> Callable[[Trained, Any, int], Any]:
    def act(module: Trained, batch: Any, index: int) -> Any:
        with torch.no_grad():
            change(module)
        return batch

    return act


def scale(name: str, factor: float) -> Callable[[Trained], None]:
    def change(module: Trained) -> None:
        module.get_parameter(f"model.{name}").mul_(factor)

    return change


def frozen(module: Trained) -> None:
    for parameter in module.get_submodule("model.blocks.2").parameters():
        parameter.register_hook(torch.zeros_like)
    group = module.trainer.optimizers[0]
    for parameter in module.get_submodule("model.blocks.2").parameters():
        group.state.pop(parameter, None)
    group.param_groups[0]["weight_decay"] = 0.0


def faster(module: Trained) -> None:
    module.trainer.optimizers[0].param_groups[0]["lr"] *= 100


def zero_block(module: Trained) -> None:
    for parameter in module.get_submodule("model.blocks.1.up").parameters():
        parameter.zero_()


def dead(module: Trained) -> None:
    module.get_parameter("model.blocks.2.up.bias").fill_(-1e3)


def mask_all(module: Trained) -> None:
    module.get_submodule("model.blocks.1").mask_all = True  # type: ignore[assignment]


def channel(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[..., :1]), x[..., 1:]], -1)


def poisoned(module: Trained, batch: Tensor, index: int) -> Tensor:
    return (batch[:, :1] + torch.arange(LENGTH)) % VOCABULARY if index == 60 else batch


def bad_weight(module: Trained) -> None:
    module.get_parameter("model.blocks.3.down.weight")[0, 0] = math.inf


def large_vector() -> Any:
    return SteeringController(
        "model.blocks.2", 40 * torch.ones(WIDTH), hook_id="other", schedule=Schedule(stages="train", start_step=AT)
    )


def idle() -> Any:
    schedule = Schedule(stages="train", start_step=AT)
    return FunctionController("model.blocks.1", lambda x: x + 0, hook_id="idle", schedule=schedule)


def growing(module: Trained) -> None:
    module.get_parameter("model.blocks.1.down.weight").mul_(2)


B = "model.blocks."
NAN, JUMP = ("non-finite",), ("jump", "norm growth")
FAULTS: dict[str, Fault] = {
    "NaN in a block, forward": Fault(f"{B}2", NAN, setup=out(2, lambda x: x * math.nan)),
    "one infinite value": Fault(f"{B}1", NAN, setup=out(1, lambda x: x.index_fill(0, torch.tensor([0]), math.inf))),
    "NaN in a block, backward": Fault(f"{B}2", NAN, setup=gradient(2, lambda g: g * math.nan)),
    "an infinite gradient": Fault(f"{B}0", NAN, setup=gradient(0, lambda g: g + math.inf)),
    "fp16 overflow": Fault(f"{B}2", NAN, act=once(scale("blocks.2.down.weight", 3e5)), half=True),
    "an infinite weight": Fault(f"{B}3", NAN, act=once(bad_weight)),
    "a wrong mask, which hides all": Fault(f"{B}1.act", NAN, act=once(mask_all)),
    "dead ReLU": Fault(f"{B}2.act", ("dead channels",), act=once(dead)),
    "dead channel": Fault(f"{B}1", ("dead channels",), 2, setup=out(1, channel)),
    "exploding norm": Fault(f"{B}1", JUMP, 6, act=every(growing)),
    "a norm that is 50 times as large": Fault(f"{B}2", JUMP, act=once(scale("blocks.2.down.weight", 50))),
    "collapsed representation": Fault(f"{B}1", JUMP, setup=out(1, lambda x: x.mean((0, 1), keepdim=True).expand_as(x))),
    "output turned to zero": Fault(f"{B}3", ("jump", "dead channels"), 2, setup=out(3, torch.zeros_like)),
    "loss spike by a poisoned batch": Fault("", ("loss spike",), act=poisoned, lr=1e-2, at=60),
    "a vector of another model": Fault(f"{B}2", ("edit too large", "jump"), controllers=(large_vector,)),
    "a controller without effect": Fault(f"{B}1", ("without effect",), 2, controllers=(idle,)),
    "learning rate x 100": Fault(f"{B}0", ("update jump",), act=once(faster)),
    "frozen block": Fault(f"{B}2", ("frozen weights",), 5, act=once(frozen)),
    "weights zeroed": Fault(f"{B}1.act", ("dead channels", "jump"), act=once(zero_block)),
    "exploding gradient": Fault(f"{B}2", ("gradient jump",), setup=gradient(2, lambda g: g * 1e4)),
}


def watching(*controllers: Any, layers: Any = ("model.blocks.*", "*.act"), alarms: Any = None) -> HookCallback:
    detectors = [ActivationStatistics(list(layers), histogram=False), WeightStatistics(layers[0], name="weights")]
    chosen = default_alarms("log") if alarms is None else alarms
    return HookCallback(detectors, list(controllers), alarms=chosen, log_every_n_steps=1, report="off")


def run_fault(fault: Fault, seed: int, alarms: list[Alarm] | None = None) -> list[Firing]:
    """Train with a fault; return what fired."""
    torch.manual_seed(seed)
    module = Trained(Decoder(), fault.lr, fault)
    if fault.half:
        module.make = lambda parameters, lr: torch.optim.SGD(parameters, lr=lr)  # type: ignore[assignment]
    if fault.setup is not None:
        fault.setup(module)
    watch = watching(*(make() for make in fault.controllers), alarms=alarms)
    options = dict(precision="16-true") if fault.half else {}
    runner = trainer(watch, **options)
    runner.fit(module, Batches(fault.at + 8, seed))
    return watch.fired()


def named(fault: Fault, fired: list[Firing]) -> bool:
    """Whether the first alarm is one of those that should fire, at the right layer and step."""
    first = fired[0] if fired else None
    right = first is not None and first.alarm in fault.alarms and first.layer == fault.layer
    return right and fault.at <= first.step <= fault.at + fault.delay and first.stage == "train"  # type: ignore[union-attr]


# Clean runs.


def points(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, 8, generator=generator)
    return x, (x[:, :4].argmax(1) + (torch.rand(BATCH, generator=generator) < 0.1).long()) % 4


def images(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (BATCH,), generator=generator)
    x = torch.randn(BATCH, 1, 8, 8, generator=generator)
    x[torch.arange(BATCH), 0, 2 * y] += 1.5
    return x, y


def mlp(act: type[nn.Module], width: int = 32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 4))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


CLEAN: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], float, Any, tuple[str, str]]] = {
    "decoder": (Decoder, texts, 3e-3, None, ("model.blocks.*", "*.act")),
    "wide decoder": (lambda: Decoder(32, 3), texts, 1e-3, None, ("model.blocks.*", "*.act")),
    "mlp, ReLU": (lambda: mlp(nn.ReLU), points, 3e-3, None, ("model.*", "model.1")),
    "mlp, GELU": (lambda: mlp(nn.GELU, 64), points, 1e-2, torch.optim.SGD, ("model.*", "model.1")),
    "cnn": (cnn, images, 1e-3, None, ("model.*", "model.2")),
}


def run_clean(kind: str, seed: int, steps: int = 200) -> list[Firing]:
    """Train without a fault; return what fired."""
    make, batches, lr, optimizer, layers = CLEAN[kind]
    torch.manual_seed(seed)
    weights = "model.blocks.*" if "blocks" in layers[0] else ["model.0", "model.3" if kind == "cnn" else "model.2"]
    detectors = [ActivationStatistics(list(dict.fromkeys(layers)), histogram=False)]
    watch = HookCallback(
        [*detectors, WeightStatistics(weights, name="weights")],
        alarms=default_alarms("log"),
        log_every_n_steps=1,
        report="off",
    )
    trainer(watch).fit(Trained(make(), lr, optimizer=optimizer), Batches(steps, seed, batches))
    return watch.fired()
