"""One activation: every statistic and the histogram, beside a plain sum and a plain variance."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.report import Section, Target
from benchmarks.timing import seconds_of
from mi_crow_lightning.metrics import measure, statistics

SIZES = {
    "cpu": [((4, 64, 576), torch.float32), ((8, 512, 4096), torch.bfloat16)],
    "cuda": [((8, 128, 768), torch.bfloat16), ((4, 1024, 2048), torch.bfloat16), ((8, 2048, 4096), torch.bfloat16)],
    "quick": [((4, 8, 32), torch.float32)],
}


def one_tensor(device: torch.device, rounds: int, quick: bool) -> Section:
    """Measure the milliseconds of one call. The last size is the one with a target."""
    lines = []
    for shape, dtype in SIZES["quick" if quick else device.type]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        mask = torch.ones(shape[:2], dtype=torch.bool, device=device)
        took = seconds_of(
            {
                "x.sum()": x.sum,
                "torch.var_mean(x)": lambda x=x: torch.var_mean(x),
                "everything": lambda x=x: measure(x),
                "everything, with a mask": lambda x=x, mask=mask: measure(x, mask),
            },
            rounds,
            device,
        )
        base = {name: took[name] for name in ("x.sum()", "torch.var_mean(x)")}
        for name, seconds in took.items():
            lines.append(
                {
                    "": f"{shape} {str(dtype).removeprefix('torch.')}: {name}",
                    "ms": f"{seconds * 1000:.3g}",
                    **{f"over {other}": f"{seconds / by:.3g}" for other, by in base.items()},
                }
            )
    what = "one tensor, 13 statistics and histogram"
    over_var = took["everything"] / base["torch.var_mean(x)"]
    over_sum, on_cpu = took["everything"] / base["x.sum()"], device.type == "cpu"
    targets = [
        Target(f"{what}, over x.sum()", over_sum, None if on_cpu else 2.0, "ratio"),
        Target(f"{what}, over var_mean", over_var, 0.6 if on_cpu else None, "ratio"),
        Target(what, took["everything"] * 1000, 25 if on_cpu else None, "ms", f"{shape} {dtype}"),
    ]
    return Section("One activation, no Trainer", f"Medians of {rounds} calls.", lines, targets)


def accuracy(device: torch.device, quick: bool) -> Section:
    """Compare mean and standard deviation at |mean| / std = 100 with numpy's in float64."""
    worst = 0.0
    rows, width = (1_000 if quick else 100_000), 1_000
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) + 100).to(dtype)
        found = {name: value.item() for name, value in statistics(measure(x.to(device)).row).items()}
        exact = x.double().numpy()
        for name, value in (("mean", np.mean(exact)), ("std", np.std(exact))):
            worst = max(worst, abs(found[name] / float(value) - 1))
    elements = f"{rows * width:.0e} elements, float32 and bfloat16"
    return Section("Accuracy", targets=[Target(f"relative error of mean and std, {elements}", worst, 1e-5)])
