"""Ten typical typos, each in the one line that is marked: a type checker finds them, and nothing runs this file.

What is a string to Python stays one to a type checker: a layer that is misspelt (``"blok:3"``) raises when the run
starts.
"""

from __future__ import annotations

import mi_crow_lightning as mcl
from mi_crow_lightning import (
    AblationController,
    ActivationStatistics,
    HookCallback,
    LayerActivationDetector,
    PredictionWriter,
    ProjectionDetector,
    Schedule,
    SteeringController,
    SteeringVector,
)


def steered(vector: SteeringVector) -> HookCallback:
    """Return a callback as a user writes it, but for the typos."""
    watch = HookCallback(
        detectors=[
            ActivationStatistics("block:*", statistics=["mean", "curtosis"]),  # typo: misspelt statistic
            LayerActivationDetector("block:3", schedule=Schedule(stages="eval")),  # typo: wrong stage
            ProjectionDetector(0.5, vector),  # typo: wrong type of layers
            mcl.WeightStatistic("block:*"),  # typo: misspelt class
        ],
        controllers=[
            SteeringController("block:3", vector, preserve_norms=True),  # typo: misspelt option
            SteeringController("block:4", vector, tokens="response"),  # typo: wrong choice of tokens
            AblationController("block:5", vector, strength="0.5"),  # typo: strength as a string
            SteeringController("block:6", strength=2.0),  # typo: missing argument
        ],
    )
    PredictionWriter("texts.jsonl", mode="append")  # typo: wrong mode
    watch.get_effects()  # typo: misspelt method
    return watch
