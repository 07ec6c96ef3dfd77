"""The coordinate check: do activations keep their size as a network gets wider? HookCallback is the instrument."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mi_crow_lightning as mcl
from examples.science.lab import QUIET

WIDTHS = (256, 512, 1024, 2048)
INPUTS, CLASSES, STEPS, RATE = 32, 10, 6, 1e-3


class Wide(L.LightningModule):
    """An MLP in the standard parametrisation, or in muP for Adam with a readout that begins at zero."""

    def __init__(self, width: int, mup: bool) -> None:
        super().__init__()
        self.mup, self.ratio = mup, width / WIDTHS[0]
        self.input, self.hidden = nn.Linear(INPUTS, width, bias=False), nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, CLASSES, bias=False)
        if mup:
            nn.init.zeros_(self.output.weight)
        self.readout = nn.Identity()  # where the multiplier of the output has been applied

    def forward(self, x: Tensor) -> Tensor:
        x = self.output(self.hidden(self.input(x).relu()).relu())
        return self.readout(x / self.ratio if self.mup else x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        slower = {"params": [self.hidden.weight], "lr": RATE / self.ratio if self.mup else RATE}
        return torch.optim.Adam([{"params": [self.input.weight, self.output.weight]}, slower], lr=RATE, eps=1e-12)


def sizes(width: int, mup: bool, seed: int) -> dict[str, float]:
    """Return the root mean square of each layer's output in the last step of a short training."""
    L.seed_everything(seed, verbose=False)
    x, y = torch.randn(64, INPUTS), torch.randint(CLASSES, (64,))
    module = Wide(width, mup)
    watch = mcl.HookCallback(
        mcl.ActivationStatistics(["input", "hidden", "readout"], statistics=["rms"], histogram=False), report="off"
    )
    trainer = L.Trainer(callbacks=watch, max_epochs=STEPS, log_every_n_steps=1, **QUIET)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=64))
    return {row.layer: row.value for row in watch.history() if row.step == STEPS - 1}


def run(seed: int, quick: bool) -> dict:
    """Return the sizes of activations by parametrisation, layer and width."""
    widths = WIDTHS[:3] if quick else WIDTHS
    measured = {name: [sizes(width, name == "muP", seed) for width in widths] for name in ("SP", "muP")}
    return {
        "seed": seed,
        "widths": list(widths),
        "rms": {name: {layer: [one[layer] for one in of] for layer in of[0]} for name, of in measured.items()},
    }
