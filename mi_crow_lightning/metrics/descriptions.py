"""The meaning of readings: formula, unit, and what they show, as markdown, for the charts of loggers.

The pages statistics.md and steering.md of the documentation show the same tables; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mi_crow_lightning._shown import shown

__all__ = [
    "DRIFTS",
    "EFFECTS",
    "HISTOGRAMS",
    "PROBES",
    "PROJECTIONS",
    "SEPARABILITIES",
    "STATISTICS_DESCRIBED",
    "TRAITS",
    "Description",
    "drift_text",
    "probe_text",
    "projection_text",
    "statistic_text",
    "trait_text",
]

_ELEMENTS = (
    "`x` runs over the finite elements of the tokens that count; there are `n` of them, in `N` tokens. Padding is left "
    "out."
)
_TEXTS = "`t` is the mean over a text's tokens of their projections on the unit vector; there are `n` texts."
_DRIFT = "`x` is a token, `y` the same token of the reference; there are `N` of them. Padding is left out."
_PROBE = "A row is a sample or a token whose label counts; in training it is scored before the probe learns from it."
_PROJECTION = "`p = x @ u` is the projection of a token `x` on the unit vector `u`; there are `N` tokens."


@dataclass(frozen=True)
class Description:
    """The meaning of a reading.

    Attributes:
        formula: the formula, with code in backticks.
        unit: the unit of the number.
        shows: what it says about a layer.

    Raises:
        TypeError: one of them is not a string.

    Examples:
        >>> Description("`sum(x) / n`", "activations", "a drift").text("mean")
        '**mean**: `sum(x) / n`. Unit: activations. It shows a drift.'
    """

    formula: str
    unit: str
    shows: str

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str):
                raise TypeError(f"{name}={shown(value)} must be a string")

    def text(self, name: str, symbols: str = "") -> str:
        """Return the description as one paragraph of markdown.

        Args:
            name: name of the reading.
            symbols: sentences on the symbols of the formula.
        """
        return f"**{name}**: {self.formula}. Unit: {self.unit}. It shows {self.shows}. {symbols}".rstrip()


STATISTICS_DESCRIBED: dict[str, Description] = {
    "mean": Description("`sum(x) / n`", "activations", "a drift away from zero; a growing bias"),
    "std": Description(
        "`sqrt(M2 / n)`, `M2 = sum((x - mean)**2)`",
        "activations",
        "the spread about the mean; near 0, all inputs look alike to the layer",
    ),
    "rms": Description(
        "`sqrt(sum(x**2) / n)`",
        "activations",
        "the size of the signal; across depth, where the residual stream explodes or fades",
    ),
    "min": Description("smallest `x`", "activations", "one-sided outliers, clipping"),
    "max": Description("largest `x`", "activations", "one-sided outliers, clipping"),
    "abs_max": Description(
        "largest `abs(x)`", "activations", "how near a narrow dtype is to overflow (float16 ends at 65504)"
    ),
    "token_norm_mean": Description(
        "mean over tokens of `sqrt(sum(x**2))`, over the token's channels",
        "activations",
        "the scale to choose a steering strength by",
    ),
    "token_norm_max": Description(
        "the largest over tokens of `sqrt(sum(x**2))`, over the token's channels",
        "activations",
        "whether a few tokens (often the first) have massive activations: it is then far above the mean",
    ),
    "zero_share": Description("number of `x == 0`, divided by `n`", "0 to 1", "sparsity after a ReLU or dropout"),
    "dead_share": Description(
        "share of channels with no `abs(x) > dead_threshold`", "0 to 1", "units that did nothing since the last reading"
    ),
    "kurtosis": Description(
        "`n * sum((x - mean)**4) / M2**2 - 3`",
        "none",
        "0 for a normal distribution; if large, a few large elements make up most of the variance, and coarse "
        "quantisation will hurt",
    ),
    "outlier_ratio": Description(
        "largest over median `r`, `r = sqrt(sum(x**2) / N)` of a channel",
        "none, at least 1",
        "channels that stand out; grows when a few dimensions dominate",
    ),
    "nonfinite_count": Description("number of NaN and infinite elements", "elements", "a problem if it is not 0"),
    "nonfinite_batch": Description(
        "index in its epoch of the first batch that held one",
        "batch",
        "where to look; reported only if there was one, and only in a Trainer",
    ),
}
"""The built-in statistics."""

HISTOGRAMS: dict[str, str] = {
    "histogram": f"The elements of the layer, in bins between powers of two. {_ELEMENTS}",
    "channel_rms": f"`r = sqrt(sum(x**2) / N)` of each channel, in bins between powers of two. {_ELEMENTS}",
}

PROJECTIONS: dict[str, Description] = {
    "mean": Description("`sum(p) / N`", "activations", "how much of the direction there is"),
    "std": Description("`sqrt(sum((p - mean)**2) / N)`", "activations", "how much it differs from token to token"),
    "min": Description("smallest `p`", "activations", "the lower end of the range that a clamp would work on"),
    "max": Description("largest `p`", "activations", "the upper end of that range"),
    "cosine": Description(
        "mean over tokens of `p / norm(x)`", "-1 to 1", "the same as the mean, independent of the length of activations"
    ),
}
"""The readings of a direction."""

TRAITS: dict[str, Description] = {
    "shift": Description(
        "`(mean - base mean) / base std`",
        "standard deviations over texts, in the base model",
        "how far held-out texts moved along the direction since the base model. It can overstate protection: read it "
        "beside a measure of expression",
    ),
    "mean": Description("`sum(t) / n`", "activations", "how much of the direction the texts have"),
    "std": Description("`sqrt(sum((t - mean)**2) / n)`", "activations", "how much it differs from text to text"),
}
"""The readings of a trait."""

SEPARABILITIES: dict[str, str] = {
    "norm": "**norm**: the length of the difference between the means of the two classes. Unit: activations.",
    "coherence": "**coherence**: the mean cosine of the differences of pairs with their mean. 1: all point the same "
    "way; of n random differences about 1 / sqrt(n).",
    "anti_steerable": "**anti_steerable**: the share of pairs whose own difference points against the mean of the "
    "others. Of random differences about one half.",
    "auroc": "**auroc**: the probability that a held-out sample of the positive class lies further along the layer's "
    "direction than one of the negative class. 0.5 is chance, 1 separates all.",
    "d_prime": "**d_prime**: the distance between the classes' means along the layer's direction, in standard "
    "deviations within the classes, of held-out samples.",
}
"""The readings of an extraction."""

DRIFTS: dict[str, Description] = {
    "cosine": Description(
        "mean of `x @ y / (norm(x) * norm(y))`", "-1 to 1", "by how much tokens turned; 1 is not at all"
    ),
    "cosine_min": Description("smallest such cosine", "-1 to 1", "the token that turned most"),
    "norm_ratio": Description("mean of `norm(x) / norm(y)`", "none", "whether activations grew or shrank"),
    "cka": Description(
        "`norm(X.T @ Y)**2 / (norm(X.T @ X) * norm(Y.T @ Y))`, Frobenius norms, of tokens less their mean",
        "0 to 1",
        "whether tokens lie to one another as before, however all of them are turned or scaled",
    ),
    "angle": Description(
        "largest principal angle between the spans of the leading components of `X` and `Y`",
        "degrees",
        "whether the directions with most variance are the same ones",
    ),
    "logit_kl": Description(
        "mean of `sum(p * (log(p) - log(q)))`, `p` of the model and `q` of the reference",
        "nats",
        "by how much next-token distributions changed",
    ),
}
"""How far activations and logits are from those of a reference."""

PROBES: dict[str, Description] = {
    "accuracy": Description(
        "rows whose most probable class is their label / rows",
        "0 to 1",
        "whether the layer holds the label; compare it with `majority`",
    ),
    "auroc": Description(
        "probability that a row of a class scores above one of another class, ties half; mean over classes",
        "0 to 1, chance is 0.5",
        "how well rows are ordered, however frequent the classes are",
    ),
    "majority": Description(
        "rows of the most frequent class / rows", "0 to 1", "the accuracy of always giving the same answer"
    ),
    "cross_entropy": Description(
        "mean of `-log(p)` of the label's class", "nats", "how sure the probe is where it is right"
    ),
}
"""How well a linear probe separates classes."""

EFFECTS: dict[str, str] = {
    "tokens": "**tokens**: tokens whose activation was changed.",
    "fired": "**fired**: calls of the layer in which at least one token was changed.",
    "mean_ratio": "**mean_ratio**: mean of `norm(change) / norm(activation)` over the changed tokens.",
    "max_ratio": "**max_ratio**: largest `norm(change) / norm(activation)` of the changed tokens.",
}
"""What a controller changed."""


def statistic_text(name: str, description: Description | None) -> str:
    """Return the text of a statistic or histogram; empty if nothing is known of it."""
    known = description or STATISTICS_DESCRIBED.get(name)
    return known.text(name, _ELEMENTS) if known is not None else HISTOGRAMS.get(name, "")


def projection_text(name: str, direction: str) -> str:
    """Return the text of a reading of a direction, which may have a name."""
    of = f" The direction is `{direction}`." if direction else ""
    known = PROJECTIONS.get(name)
    return known.text(name, f"{_PROJECTION}{of}") if known is not None else ""


def trait_text(name: str, direction: str) -> str:
    """Return the text of a reading of a trait, whose direction may have a name."""
    of = f" The direction is `{direction}`." if direction else ""
    known = TRAITS.get(name)
    return known.text(name, f"{_TEXTS}{of}") if known is not None else ""


def probe_text(name: str) -> str:
    """Return the text of a reading of `LinearProbe`."""
    known = PROBES.get(name)
    return known.text(name, _PROBE) if known is not None else ""


def drift_text(name: str) -> str:
    """Return the text of a reading of `DriftDetector`."""
    known = DRIFTS.get(name)
    return known.text(name, _DRIFT) if known is not None else ""
