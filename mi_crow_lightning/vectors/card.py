"""The model card of a steering vector on the Hugging Face Hub: what it is, what was measured of it, how to use it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from mi_crow_lightning._shown import shortened
from mi_crow_lightning._tables import count, legible
from mi_crow_lightning.vectors.origin import Origin
from mi_crow_lightning.vectors.quality import LayerQuality, QualityTable

__all__ = ["card_of"]

_LIBRARY = "mi-crow-lightning"
_TAGS = ("steering-vector", "activation-steering", "interpretability", _LIBRARY)
_COLUMNS = {
    "layer": "layer",
    "norm": "norm",
    "auroc": "AUROC",
    "random_auroc": "AUROC of random directions",
    "d_prime": "d'",
    "coherence": "coherence",
    "anti_steerable": "wrong way",
    "p_value": "p-value",
}
_LEGEND = """\
- **AUROC**: how often a held-out positive text lies further along the direction than a negative one. 1 is perfect, 0.5
  is chance. **d'**: how far apart the two classes lie, in standard deviations.
- **AUROC of random directions**: the same for directions drawn at random, each in the better of its two signs; the mean
  of several. What they reach as well is not due to the direction.
- **coherence**: the mean cosine of the pairs' differences with the direction. **wrong way**: the share of pairs whose
  difference points against that of the others.
- **p-value**: how often the same differences with signs flipped at random are as long."""


def card_of(
    repo_id: str,
    norms: Mapping[str, float],
    origin: Origin,
    quality: QualityTable,
    *,
    base_model: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Return the text of a ``README.md``, with its metadata in YAML first.

    Args:
        repo_id: the repository, ``"owner/name"``.
        norms: the norm of the direction of each layer.
        origin: where the vector comes from.
        quality: what was measured of it.
        base_model: the name of the model on the Hub; by default the origin's, if that is ``"owner/name"``.
        license: an identifier such as ``"apache-2.0"``.
        tags: more tags.
    """
    base_model = base_model or (origin.model if origin.model.count("/") == 1 else None)
    parts = [
        _metadata(base_model, license, tags),
        f"# {_plain(repo_id.rpartition('/')[2])}",
        _introduction(norms, origin, base_model),
        "## Use it",
        _snippet(repo_id, base_model or origin.model, quality),
        "## Where it comes from",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _facts(norms, origin))]),
        "## How far to rely on it",
        *_measured(norms, quality),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(base_model: str | None, license: str | None, tags: Sequence[str]) -> str:
    from huggingface_hub import ModelCardData

    all_tags = list(dict.fromkeys([*_TAGS, *tags]))
    data = ModelCardData(library_name=_LIBRARY, base_model=base_model, license=license, tags=all_tags)
    return f"---\n{data.to_yaml()}\n---"


def _introduction(norms: Mapping[str, float], origin: Origin, base_model: str | None) -> str:
    name = base_model or origin.model
    of = f" of [{_plain(name)}](https://huggingface.co/{name})" if base_model else f" of {_code(name)}" if name else ""
    return (
        f"A steering vector, made with mi-crow-lightning: a direction for each of {count(len(norms), 'layer')}{of}. "
        "Added to the activations there, it moves what the model writes towards the positive texts that it was made "
        "from; subtracted, away from them."
    )


def _snippet(repo_id: str, model: str, quality: QualityTable) -> str:
    layer = "vector.best_layer()" if quality else "vector.layers[-1]"
    load = f"lm = LanguageModel.from_huggingface({json.dumps(model)})"
    return "\n".join(
        [
            "```python",
            "from mi_crow_lightning import LanguageModel, SteeringController, SteeringVector, attached",
            "",
            load if model else 'lm = LanguageModel.from_huggingface("...")  # the model that it was made from',
            f"vector = SteeringVector.from_hub({json.dumps(repo_id)}).fitted_to(lm.model)",
            f'steer = SteeringController({layer}, vector, strength=1.0, tokens="generated")',
            "with attached(lm.model, steer):",
            '    ids = lm.model.generate(**lm.tokenize(["I think that"]), max_new_tokens=20)',
            "print(lm.tokenizer.decode(ids[0], skip_special_tokens=True))",
            "```",
        ]
    )


def _facts(norms: Mapping[str, float], origin: Origin) -> Iterator[tuple[str, str]]:
    layers = list(norms)
    yield "model", _code(origin.model) if origin.model else "not known"
    ends = list(dict.fromkeys([_code(layers[0]), _code(layers[-1])]))
    yield "layers", f"{len(layers)}: {' to '.join(ends)}"
    yield "method", _code(origin.method) if origin.method else "not known"
    if origin.tokens:
        yield "tokens that were read", _code(origin.tokens)
    if origin.samples:
        yield "texts it was made from", ", ".join(f"{_code(name)}: {number}" for name, number in origin.samples.items())
    for name, value in origin.metadata.items():
        yield _plain(name), _code(str(value))


def _measured(norms: Mapping[str, float], quality: QualityTable) -> Iterator[str]:
    if not quality:
        yield "Nothing was measured of it. Compare it with random vectors of equal norm, `vector.random_controls(8)`."
        return
    yield _best(quality.best())
    wanted = [name for name in _COLUMNS if name in ("layer", "norm") or any(_known(row, name) for row in quality)]
    lines = ["| " + " | ".join(_COLUMNS[name] for name in wanted) + " |", "|" + "---|" * len(wanted)]
    for row in quality:
        cells = {"layer": _code(row.layer), "norm": f"{norms[row.layer]:.3g}"}
        numbers = {name: f"{getattr(row, name):.3g}" for name in wanted if name not in cells}
        lines.append("| " + " | ".join((cells | numbers)[name] for name in wanted) + " |")
    yield "\n".join(lines)
    yield _LEGEND
    yield (
        "None of this says that the direction is about what you mean, or that it steers. Measure that, and compare it "
        "with random vectors of equal norm, `vector.random_controls(8)`."
    )


def _best(row: LayerQuality) -> str:
    text = f"Best at {_code(row.layer)}"
    if _known(row, "auroc"):
        text += f": AUROC {row.auroc:.3g} on {count(row.held_out, 'held-out text')}"
    if _known(row, "random_auroc"):
        text += f", where random directions reach {row.random_auroc:.3g}"
    text += f". It was made of {count(row.n, 'pair')}"
    if _known(row, "anti_steerable"):
        text += f"; {row.anti_steerable:.0%} of them point the wrong way"
    return f"{text}."


def _known(row: LayerQuality, name: str) -> bool:
    return not math.isnan(getattr(row, name))


def _plain(text: str) -> str:
    """Return a text in one line that no cell of a table and no heading ends at."""
    return "".join(f"\\{one}" if one in "\\|[]<>*_`#" else one for one in legible(shortened(text), 200))


def _code(text: str) -> str:
    return f"`{legible(shortened(text), 200).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
