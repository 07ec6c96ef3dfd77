"""The arguments for ``generate``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from transformers import GenerationConfig

from mi_crow_lightning._shown import shown

__all__ = ["Generation"]


class Generation:
    """Settings of ``generate``: a ``GenerationConfig``, or its arguments by name.

    Args:
        given: the settings. Arguments by name are those of ``model.generate(...)``: they override the model's own
            settings. A ``GenerationConfig`` is passed on as it is; transformers fills in what it leaves open from
            the model's own settings. ``None`` means the model's own settings alone.

    Raises:
        TypeError, ValueError: ``given`` is neither, or a name is not an argument of ``GenerationConfig``.

    Examples:
        >>> Generation({"max_new_token": 5})
        Traceback (most recent call last):
        ...
        ValueError: generation has 'max_new_token', which is not in GenerationConfig; closest: 'max_new_tokens', ...
    """

    def __init__(self, given: GenerationConfig | Mapping[str, Any] | None) -> None:
        if given is not None and not isinstance(given, (GenerationConfig, Mapping)):
            raise TypeError(
                f"generation={shown(given)} must be a transformers GenerationConfig, or a mapping of its arguments, "
                "e.g. {'max_new_tokens': 40}"
            )
        if isinstance(given, Mapping):
            _check_names(given)
        self.given = dict(given or {}) if not isinstance(given, GenerationConfig) else given

    def hyperparameters(self) -> dict[str, Any]:
        """Return the arguments by name, as plain values that a checkpoint can keep."""
        if not isinstance(self.given, GenerationConfig):
            return self.given
        return {name: value for name, value in self.given.to_diff_dict().items() if name in _names()}

    def arguments(self, model: Any, tokenizer: Any) -> dict[str, Any]:
        """Return the keyword arguments for ``model.generate``, apart from the batch.

        Where neither the settings nor the model name a padding token, it is the tokenizer's. ``stop_strings`` need
        the tokenizer, so it is passed with them.
        """
        extra = {"tokenizer": tokenizer} if self.setting("stop_strings", model) else {}
        pad = self._padding(model, tokenizer)
        if not isinstance(self.given, GenerationConfig):
            return {**self.given, **extra, **({} if pad is None else {"pad_token_id": pad})}
        config = copy.deepcopy(self.given)
        config.pad_token_id = pad
        return {"generation_config": config, **extra}

    def setting(self, name: str, model: Any) -> Any:
        """Return the value of one argument: the given one, else the model's own."""
        if isinstance(self.given, dict) and name in self.given:
            return self.given[name]
        given = getattr(self.given, name, None)
        return given if given is not None else getattr(getattr(model, "generation_config", None), name, None)

    def runs_drafts(self, model: Any) -> bool:
        """Return whether tokens may run that are then rejected, as in assisted generation."""
        return any(self.setting(name, model) for name in ("prompt_lookup_num_tokens", "assistant_early_exit"))

    def why_other_rows_run(self, model: Any) -> str | None:
        """Return why the rows that run are not those of the returned texts; ``None`` if they are."""
        beams = self.setting("num_beams", model) or 1
        return "beam search exchanges the rows that run with every token" if beams > 1 else None

    def _padding(self, model: Any, tokenizer: Any) -> Any:
        pad = self.setting("pad_token_id", model)
        return pad if pad is not None else getattr(tokenizer, "pad_token_id", None)

    def cut(self, new: list[int], model: Any, tokenizer: Any) -> list[int]:
        """Return the new tokens of a row without the padding after its end.

        Args:
            new: all tokens that ``generate`` returned after the prompt.
            model: the model that generated them.
            tokenizer: the one passed to `arguments`.
        """
        ends = self.setting("eos_token_id", model)
        ends = {ends} if isinstance(ends, int) else set(ends if ends is not None else [])
        first = next((i for i, token in enumerate(new) if token in ends), None)
        if first is not None:
            return new[: first + 1]
        if not ends or not self.setting("stop_strings", model):
            return new  # every row runs to the last column
        pad = self._padding(model, tokenizer)
        while new and new[-1] == pad:
            new = new[:-1]
        return new


def _names() -> set[str]:
    return {name for name in vars(GenerationConfig()) if not name.startswith("_") and name != "transformers_version"}


def _check_names(given: Mapping[str, Any]) -> None:
    known = _names()
    for name in given:
        if name not in known:
            closest = get_close_matches(str(name)[:80], known, n=3, cutoff=0.4) or sorted(known)[:20]
            raise ValueError(
                f"generation has {shown(name)}, which is not in GenerationConfig; closest: "
                f"{', '.join(map(repr, closest))}"
            )
