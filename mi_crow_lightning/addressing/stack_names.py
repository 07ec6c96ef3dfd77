"""Names of stacks: which prefix of ``block:`` means which of a model's stacks of blocks.

Nothing here knows modules: a stack is the name of its list of blocks, such as ``"model.vision_tower.encoder.layers"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

__all__ = ["PREFIXES", "is_text", "language_model", "prefix_of", "stacks_of_prefix"]

PREFIXES: dict[str, tuple[str, ...]] = {
    "text": (
        *("language_model", "text_model", "text_encoder", "text_decoder", "text_tower", "text_backbone"),
        *("llm", "text"),
    ),
    "vision": (
        *("vision_model", "vision_tower", "vision_encoder", "*_vision_model", "visual", "vision", "vit"),
        *("image_model", "image_tower", "image_encoder", "image_embed"),
    ),
    "audio": ("audio_model", "audio_tower", "audio_encoder", "audio_embed", "audio", "speech_encoder"),
    "video": ("video_model", "video_tower", "video_encoder"),
    "connector": ("qformer", "projector", "*_projector", "connector", "perceiver_resampler", "resampler"),
    "encoder": ("encoder", "*_encoder"),
    "decoder": ("decoder", "*_decoder"),
}
"""The modules that each prefix means: those that hold the stack, by name; ``*`` is any text."""

# A stack has at most one of each: of a decoder that holds an encoder, the outer name counts.
_EXCLUSIVE = (("text", "vision", "audio", "video", "connector"), ("encoder", "decoder"))
_FEEDING = frozenset({"vision", "audio", "video", "connector"})
_LANGUAGE = frozenset({"language_model", "llm", "text_decoder"})


def stacks_of_prefix(stacks: Sequence[str], prefix: str) -> list[str]:
    """Return the stacks that a prefix fits: one of `PREFIXES`, or a part of the stack's own name by whole segments.

    Examples:
        >>> stacks = ["model.vision_tower.encoder.layers", "model.language_model.layers"]
        >>> stacks_of_prefix(stacks, "vision"), stacks_of_prefix(stacks, "language_model")
        (['model.vision_tower.encoder.layers'], ['model.language_model.layers'])
    """
    if prefix in stacks:
        return [prefix]
    if prefix in PREFIXES:
        return [stack for stack in stacks if prefix in _kinds(stack)]
    inside = [stack for stack in stacks if stack.startswith(f"{prefix}.")]
    return inside or [stack for stack in stacks if f".{prefix}." in f".{stack}."]


def prefix_of(stack: str, stacks: Sequence[str]) -> str:
    """Return a short prefix that means this one of the stacks alone.

    Examples:
        >>> stacks = ["text_model.encoder.layers", "vision_model.encoder.layers"]
        >>> [prefix_of(stack, stacks) for stack in stacks]
        ['text', 'vision']
    """
    segments = stack.split(".")
    parts = (
        ".".join(segments[start : start + length])
        for length in range(1, len(segments) + 1)
        for start in range(len(segments) - length + 1)
        if not segments[start].isdigit()  # a number alone says little
    )
    return next(prefix for prefix in (*_kinds(stack), *parts) if stacks_of_prefix(stacks, prefix) == [stack])


def language_model(stacks: Sequence[str], decoders: Iterable[str]) -> str | None:
    """Return the stack of the language model that the other stacks feed with images or sound, if it is that clear.

    Two equal stacks, as CLIP's, have no language model among them.

    Args:
        stacks: all stacks of the model.
        decoders: those of them whose blocks are layers of a decoder.
    """
    decoding = set(decoders)
    text = [stack for stack in stacks if _writes_text(stack) or (stack in decoding and is_text(stack))]
    feeding = [stack for stack in stacks if _FEEDING.intersection(_kinds(stack))]
    return text[0] if len(text) == 1 and len(feeding) == len(stacks) - 1 else None


def is_text(stack: str) -> bool:
    """Return whether a stack's name says that it reads or writes text."""
    return "text" in _kinds(stack)


def _writes_text(stack: str) -> bool:
    return is_text(stack) and not _LANGUAGE.isdisjoint(stack.split("."))


def _kinds(stack: str) -> list[str]:
    """Return the prefixes that a stack has by its name, from the outermost module that says it."""
    segments = stack.split(".")
    found = (next(_kinds_among(segments, kinds), None) for kinds in _EXCLUSIVE)
    return [kind for kind in found if kind is not None]


def _kinds_among(segments: Sequence[str], kinds: Sequence[str]) -> Iterator[str]:
    for segment in segments:
        for kind in kinds:
            if any(fnmatchcase(segment, name) for name in PREFIXES[kind]):
                yield kind
