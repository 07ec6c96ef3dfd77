"""Two views of a sample are to have one representation: without a stopped gradient all samples get the same one."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mi_crow_lightning as mcl
from examples.science.lab import QUIET

FACTORS, INPUTS, WIDTH, EPOCHS = 16, 64, 64, 40


class Siamese(L.LightningModule):
    """An encoder and a predictor on vectors, as in SimSiam, with or without the stopped gradient."""

    def __init__(self, stops: bool) -> None:
        super().__init__()
        self.stops = stops
        self.encoder = nn.Sequential(nn.Linear(INPUTS, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, WIDTH))
        self.predictor = nn.Sequential(nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, WIDTH))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        one, other = (self.encoder(x + 0.3 * torch.randn_like(x)) for _ in range(2))
        return (self._distance(one, other) + self._distance(other, one)) / 2

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        target = other.detach() if self.stops else other
        return -nn.functional.cosine_similarity(self.predictor(one), target).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.encoder(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


def spread(x: Tensor) -> float:
    """Return the deviation of the samples' unit vectors over channels, times the root of the width: 1 if even."""
    return (nn.functional.normalize(x, dim=1).std(0).mean() * x.shape[1] ** 0.5).item()


def rank(x: Tensor) -> float:
    """Return the exponential of the entropy of the singular values (RankMe)."""
    values = torch.linalg.svdvals(x.double())
    share = values / values.sum() + 1e-7
    return (-(share * share.log()).sum()).exp().item()


def representation(stops: bool, seed: int, epochs: int) -> dict[str, float]:
    """Return spread and rank of what the encoder makes of samples that it has not seen."""
    L.seed_everything(seed, verbose=False)
    mixing = torch.randn(FACTORS, INPUTS) / FACTORS**0.5
    train, test = (torch.randn(count, FACTORS) @ mixing for count in (2048, 512))
    module = Siamese(stops)
    seen = mcl.LayerActivationDetector("encoder", schedule=mcl.Schedule(stages="validate"))
    trainer = L.Trainer(callbacks=mcl.HookCallback(seen, report="off"), max_epochs=epochs, log_every_n_steps=8, **QUIET)
    trainer.fit(module, DataLoader(TensorDataset(train), batch_size=128, shuffle=True, drop_last=True))
    trainer.validate(module, DataLoader(TensorDataset(test), batch_size=512), verbose=False)
    x = seen.get_captured()
    return {"spread": spread(x), "rank": rank(x)}


def run(seed: int, quick: bool) -> dict:
    """Return spread and rank with the stopped gradient and without it."""
    return {"seed": seed} | {
        name: representation(name == "with", seed, 8 if quick else EPOCHS) for name in ("with", "without")
    }
