"""LayerActivationDetector(tokens=...): the chosen tokens alone, row after row, without padding."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mi_crow_lightning import HookCallback, HookError, LayerActivationDetector, Layers, Tokens
from mi_crow_lightning.errors import CaptureBudgetExceeded, TokensUnknown
from tests.models import Module, llama

IDS = torch.tensor([[0, 0, 5, 7], [3, 4, 5, 6]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
LAYER = "model.layers.1"

CHOICES: dict[str, tuple[Any, list[list[int]]]] = {
    "all": ("all", [[0, 0, 1, 1], [1, 1, 1, 1]]),
    "last": ("last", [[0, 0, 0, 1], [0, 0, 0, 1]]),
    "a position": (Tokens(positions=[0]), [[0, 0, 1, 0], [1, 0, 0, 0]]),
    "an ID": (Tokens(ids=[5]), [[0, 0, 1, 0], [0, 0, 1, 0]]),
    "a function": (Tokens(where=lambda x, ctx: torch.ones(x.shape[:2], dtype=torch.bool)), MASK.tolist()),
    "joined": (Tokens("last") | Tokens(positions=[0]), [[0, 0, 1, 1], [1, 0, 0, 1]]),
    "none": (Tokens(ids=[15]), [[0] * 4, [0] * 4]),
}


def by_hand(model: nn.Module, **inputs: Tensor) -> Tensor:
    """The layer's output, from a hook of torch alone."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).detach().clone())

    handle = model.get_submodule(LAYER).register_forward_hook(note)
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen[0]


def watched(model: nn.Module, signature: Any = LAYER, **options: Any) -> LayerActivationDetector:
    detector = LayerActivationDetector(**options)
    Layers(model).register_hook(signature, detector)
    return detector


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("case", CHOICES)
def test_the_chosen_tokens_row_after_row(case: str, mode: Any) -> None:
    tokens, chosen = CHOICES[case]
    model = llama().eval()
    whole = by_hand(model, input_ids=IDS, attention_mask=MASK)
    detector = watched(model, tokens=tokens)
    with mode():
        model(IDS, attention_mask=MASK)
    wanted = [row[torch.tensor(of_row).bool()] for row, of_row in zip(whole, chosen, strict=True)]
    held, counts = detector.get_captured(), detector.metadata["tokens_per_row"]
    assert torch.equal(held, torch.cat(wanted)) and held.grad_fn is None and not held.is_inference()
    assert counts == [sum(of_row) for of_row in chosen] and detector.metadata["activations_shape"] == tuple(held.shape)
    assert all(torch.equal(a, b) for a, b in zip(held.split(counts), wanted, strict=True))


def test_padding_does_not_reach_the_readings() -> None:
    model = llama().eval()
    whole = by_hand(model, input_ids=IDS, attention_mask=MASK)
    detector = watched(model, tokens="all")
    model(IDS, attention_mask=MASK)
    values = {reading.name: reading.value for reading in detector.readings()}
    assert values["mean"] == pytest.approx(whole[MASK.bool()].double().mean().item())
    assert values["token_norm"] == pytest.approx(whole[MASK.bool()].double().norm(dim=-1).mean().item())


def test_each_call_of_several_layers_and_a_copy() -> None:
    model = llama().eval()
    detector = watched(model, "block:*", tokens="last", keep="all", device=None)
    for rows in (2, 1):
        model(IDS[:rows], attention_mask=MASK[:rows])
    assert [shape[0] for shape in detector.metadata["activations_shape"]["model.layers.3"]] == [2, 1]
    assert detector.metadata["tokens_per_row"]["model.layers.3"] == [[1, 1], [1]]
    detector.clear_captured()
    assert detector.metadata == {} and detector.get_captured() is None


def test_decode_steps_of_generate() -> None:
    model = llama(eos_token_id=None).eval()
    detector = watched(model, tokens="generated", keep="all")
    with torch.no_grad():
        model.generate(IDS, attention_mask=MASK, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert detector.metadata["tokens_per_row"] == [[0, 0], [1, 1], [1, 1]]


def test_the_budget_counts_the_chosen_tokens() -> None:
    model = llama().eval()
    size = 32 * 4
    watched(model, tokens="last", max_bytes=2 * size)
    model(IDS, attention_mask=MASK)
    model = llama().eval()
    watched(model, tokens="all", max_bytes=5 * size)
    with pytest.raises(HookError) as raised:
        model(IDS, attention_mask=MASK)
    assert isinstance(raised.value.original_error, CaptureBudgetExceeded)


class Flat(nn.Module):
    """Two layers, the second of which sees all tokens in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.flat, self.wide = nn.Embedding(16, 4), nn.Identity(), nn.Conv1d(4, 4, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        self.wide(x.transpose(1, 2))
        return self.flat(x.flatten(0, 1)).view_as(x)  # type: ignore[no-any-return]


def test_tokens_of_all_rows_in_one() -> None:
    model = Flat()
    detector = watched(model, "flat", tokens="all")
    x = model(IDS, attention_mask=MASK)
    assert torch.equal(detector.get_captured(), x[MASK.bool()]) and detector.metadata["tokens_per_row"] is None


@pytest.mark.parametrize(("layer", "tokens"), [("wide", "all"), ("wide", "last"), ("flat", "last")])
def test_what_is_not_a_sequence_is_refused_by_name(layer: str, tokens: str) -> None:
    model = Flat()
    watched(model, layer, tokens=tokens)
    with pytest.raises(HookError, match=f"'{layer}'"):
        model(IDS, attention_mask=MASK)


class Pooled(nn.Module):
    """A module whose layer sees latents, other tokens than those of the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.latents = nn.Embedding(16, 4), nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.latents(self.embed(input_ids)[:, :3])  # type: ignore[no-any-return]


def test_a_mask_of_other_tokens_is_refused_and_not_ignored() -> None:
    model = Pooled()
    detector = watched(model, "latents", tokens="all")
    for mask in (MASK, None):
        with pytest.raises(HookError, match=r"'latents'.*Without tokens= all of it is kept") as raised:
            model(IDS, attention_mask=mask)
        assert isinstance(raised.value.original_error, TokensUnknown)  # not the warning of a detector that counts all
    assert detector.get_captured() is None


def test_in_a_trainer_the_run_is_the_same_to_the_bit() -> None:
    def fitted(*callbacks: pl.Callback) -> list[Tensor]:
        torch.manual_seed(0)
        module = Module(llama())
        rows = [{"input_ids": ids, "attention_mask": mask} for ids, mask in zip(IDS, MASK, strict=True)]
        options = dict(
            log_every_n_steps=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer = pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=list(callbacks), **options)  # type: ignore[arg-type]
        loader = DataLoader(rows, batch_size=2)  # type: ignore[arg-type]
        trainer.fit(module, loader, loader)
        return [parameter.detach().clone() for parameter in module.parameters()]

    detector = LayerActivationDetector("block:*", tokens="last")
    watch = HookCallback(detectors=[detector])
    assert all(torch.equal(a, b) for a, b in zip(fitted(watch), fitted(), strict=True))
    assert {tuple(one.shape) for one in detector.get_captured().values()} == {(2, 32)}
    assert "last" in str(watch.report())


@pytest.mark.parametrize(("tokens", "error"), [("lst", ValueError), (3, TypeError)])
def test_wrong_choices(tokens: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="tokens="):
        LayerActivationDetector("0", tokens=tokens)
