"""CausalLMModule in fit, validate and test: against losses of unpadded rows in float64 and steps by hand."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from mi_crow_lightning import ActivationStatistics, CausalLMModule, HookCallback
from mi_crow_lightning.language_model import TextCollator
from tests.language_model.tiny import KINDS, TEXTS, model_of, texts_loader, tokens
from tests.models import trainer
from tests.tiny_gpt2 import save_gpt2

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def losses_by_hand(model: Any, texts: list[str]) -> list[Tensor]:
    """The losses of all predicted tokens, each text on its own, without padding."""
    model, encode = deepcopy(model).double().eval(), tokens()
    found = []
    for text in texts:
        ids = torch.tensor(encode(text)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        found.append(-logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]])
    return found


def loader(texts: list[str], side: str, batch_size: int = 2) -> DataLoader[Any]:
    collate = TextCollator(tokens(), padding_side=side)
    return DataLoader(texts, batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert trainer.callback_metrics["train/loss"] == outputs["loss"].detach()
        self.losses.append(outputs["loss"].item())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_texts_without_padding(kind: str, side: str) -> None:
    """In training of each batch, in evaluation of all tokens: the last batch is smaller than the others."""
    model, seen = model_of(kind), Losses()
    expected = losses_by_hand(model, TEXTS)
    module = CausalLMModule(model, tokens(), lr=0.0, weight_decay=0.0)
    run = trainer(seen)
    run.fit(module, loader(TEXTS, side), loader(TEXTS, side))
    by_batch = [torch.cat(expected[i : i + 2]).mean().item() for i in range(0, len(TEXTS), 2)]
    assert seen.losses == pytest.approx(by_batch, rel=1e-5)
    mean = torch.cat(expected).mean().item()
    assert mean != pytest.approx(sum(by_batch) / len(by_batch), rel=1e-4), "the mean of means would do"
    assert run.callback_metrics["val/loss"].item() == pytest.approx(mean, rel=1e-5)
    (tested,) = trainer().test(module, loader(TEXTS, side), verbose=False)
    assert tested == {"test/loss": pytest.approx(mean, rel=1e-5)}


def test_labels_of_the_batch_are_taken() -> None:
    model, batch = model_of("llama"), TextCollator(tokens())(TEXTS[:2])
    labels = batch["input_ids"].clone()
    labels[:, :-3] = -100
    expected = torch.cat([losses[-3:] for losses in losses_by_hand(model, TEXTS[:2])]).mean().item()
    data = DataLoader([{**batch, "labels": labels, "strength": 1.0}], batch_size=None)
    (found,) = trainer().validate(CausalLMModule(model), data, verbose=False)
    assert found["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_positions_of_the_batch_are_taken_and_a_batch_without_a_mask_is_all_text() -> None:
    model = model_of("gpt2")
    ids = torch.tensor([tokens()(TEXTS[1])["input_ids"]])
    shifted = torch.arange(ids.shape[1])[None] + 5
    with torch.no_grad():
        wanted = [model(input_ids=ids, labels=ids, **extra).loss.item() for extra in ({}, {"position_ids": shifted})]
    data = [{"input_ids": ids}, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": shifted}]
    module = CausalLMModule(model)
    for batch, loss in zip(data, wanted, strict=True):
        (found,) = trainer().validate(module, DataLoader([batch], batch_size=None), verbose=False)
        assert found["val/loss"] == pytest.approx(loss, rel=1e-6)


def test_a_step_over_two_micro_batches_is_that_of_their_mean_loss() -> None:
    model = model_of("llama")
    by_hand = deepcopy(model).train()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0.1)
    for texts in (TEXTS[:2], TEXTS[2:4]):
        batch = tokens()(texts, padding=True, return_tensors="pt", return_token_type_ids=False)  # on the right
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        (by_hand(**batch, labels=labels).loss / 2).backward()
    optimizer.step()
    run = trainer(accumulate_grad_batches=2, limit_val_batches=0)
    run.fit(CausalLMModule(model, lr=1e-3, weight_decay=0.1), loader(TEXTS[:4], "right"))
    assert run.global_step == 1
    for (name, found), wanted in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6, msg=name)


class Modes(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[tuple[str, list[bool]]] = []

    def _note(self, stage: str, pl_module: Any) -> None:
        self.seen.append((stage, [module.training for module in pl_module.model.modules()]))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._note("train", pl_module)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *rest: Any, **named: Any) -> None:
        self._note("validate", pl_module)


def test_a_model_in_evaluation_mode_is_trained_in_training_mode() -> None:
    model, modes = model_of("gpt2", dropout=0.1), Modes()
    assert not any(module.training for module in model.modules())
    watch = HookCallback(ActivationStatistics("block:*"))  # its warning of evaluation mode would be an error here
    module = CausalLMModule(model, tokens())
    trainer(modes, watch, num_sanity_val_steps=1).fit(module, texts_loader(), texts_loader(TEXTS[:2]))
    assert [stage for stage, _ in modes.seen] == ["validate", "train", "train", "train", "validate"]
    assert all(all(training) if stage == "train" else not any(training) for stage, training in modes.seen)
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:Found .* module\\(s\\) in eval mode at the start of training")  # Lightning's
def test_a_model_that_is_partly_in_evaluation_mode_stays_as_it_is() -> None:
    model, modes = model_of("gpt2"), Modes()
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    trainer(modes).fit(CausalLMModule(model, tokens()), texts_loader())
    assert all(training == before for _, training in modes.seen) and modes.seen


def test_the_learning_rate_warms_up() -> None:
    rates = []

    class Rate(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = CausalLMModule(model_of("llama"), tokens(), lr=0.8, warmup_steps=4)
    trainer(Rate(), max_epochs=2, limit_val_batches=0).fit(module, texts_loader())
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_only_parameters_that_take_gradients_are_trained() -> None:
    model = model_of("llama")
    model.requires_grad_(False)
    module = CausalLMModule(model, tokens(), lr=0.1)
    with pytest.raises(ValueError, match="no parameter of the model takes gradients"):
        trainer().fit(module, texts_loader())
    model.lm_head.requires_grad_(True)
    before = {name: value.clone() for name, value in model.named_parameters()}
    run = trainer()
    run.fit(module, texts_loader())
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"lm_head.weight"}
    assert sum(len(group["params"]) for group in run.optimizers[0].param_groups) == 1


def test_texts_are_cut_to_max_length() -> None:
    shapes = []

    class Shape(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            shapes.append(tuple(batch["input_ids"].shape))

    trainer(Shape()).fit(CausalLMModule(model_of("llama"), tokens(), max_length=4), texts_loader(TEXTS[:2]))
    assert shapes == [(2, 4)]


# Checkpoints.


def test_a_checkpoint_loads_into_a_model_of_the_same_folder(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "gpt2")
    config = GenerationConfig(max_new_tokens=3, do_sample=True, top_k=7)
    module = CausalLMModule(folder, generation=config, sweep=[0, 2], lr=0.1, model_params={"dtype": torch.float64})
    assert module.tokenizer.pad_token == "<|endoftext|>"
    run = trainer()
    run.fit(module, texts_loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = CausalLMModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert dict(loaded.hparams) == dict(module.hparams)
    assert (loaded.sweep, loaded.lr, loaded.hparams["model"]) == ([0.0, 2.0], 0.1, str(folder))
    assert loaded.hparams["generation"] == {"max_new_tokens": 3, "do_sample": True, "top_k": 7}
    assert loaded.tokenizer.get_vocab() == module.tokenizer.get_vocab() and "tokenizer" not in loaded.hparams
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    for found, wanted in zip(loaded.parameters(), module.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_a_tokenizer_from_a_place_of_its_own(tmp_path: Path) -> None:
    tokens().save_pretrained(tmp_path / "tokenizer")
    module = CausalLMModule(model_of("llama"), tmp_path / "tokenizer")
    assert module.tokenizer.pad_token == "<pad>"
    assert module.hparams["tokenizer"] == str(tmp_path / "tokenizer") and "model" not in module.hparams


def test_a_checkpoint_of_a_module_loads_beside_the_module(tmp_path: Path) -> None:
    module = CausalLMModule(model_of("llama"), tokens(), generation={"max_new_tokens": 3}, lr=0.1)
    assert set(module.hparams) == {
        "generation", "sweep", "lr", "weight_decay", "warmup_steps", "max_length", "log_text", "model_params"
    }  # fmt: skip
    run = trainer()
    run.fit(module, texts_loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    fresh = model_of("llama")
    loaded = CausalLMModule.load_from_checkpoint(
        tmp_path / "last.ckpt", weights_only=True, model=fresh, tokenizer=tokens()
    )
    assert loaded.generation.given == {"max_new_tokens": 3} and loaded.model is fresh
    for found, wanted in zip(fresh.parameters(), module.model.parameters(), strict=True):
        assert torch.equal(found, wanted)


# Wrong arguments and batches.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "model=3 must be a torch module, or the name or folder of one"),
        ({"model_params": {}}, ValueError, "model_params are for a model given by name, but this model is a module"),
        ({"lr": -1.0}, ValueError, "lr=-1.0 must be a number, 0 or more"),
        ({"lr": "1e-3"}, ValueError, "lr='1e-3' must be a number, 0 or more"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay=nan must be a number, 0 or more"),
        ({"warmup_steps": 0.5}, ValueError, "warmup_steps=0.5 must be a whole number, 0 or more"),
        ({"log_text": True}, ValueError, "log_text=True must be a whole number, 0 or more"),
        ({"generation": 40}, TypeError, "generation=40 must be a transformers GenerationConfig, or a mapping"),
        (
            {"generation": {"max_token": 4}},
            ValueError,
            "generation has 'max_token', which is not in GenerationConfig; closest: ",
        ),
        ({"sweep": "0, 2"}, TypeError, "sweep='0, 2' must be a list of strengths, e.g. [0, 2, 4]"),
        ({"sweep": torch.tensor(2.0)}, TypeError, "sweep=tensor(2.) must be a list of strengths, e.g. [0, 2, 4]"),
        ({"sweep": torch.ones(1, 1)}, ValueError, "sweep=[[1.0]] holds [1.0]: each strength must be a finite number"),
        ({"sweep": []}, ValueError, "sweep=[] must hold at least one strength, and each strength once"),
        ({"sweep": [0, 0.0]}, ValueError, "sweep=[0, 0.0] must hold at least one strength, and each strength once"),
        ({"sweep": [0, "2"]}, ValueError, "sweep=[0, '2'] holds '2': each strength must be a finite number"),
        ({"sweep": [0, float("inf")]}, ValueError, "sweep=[0, inf] holds inf: each strength must be a finite number"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        CausalLMModule(**{"model": model_of("llama"), **arguments})
    assert str(caught.value).startswith(message)


def test_encoder_decoder_models_are_refused() -> None:
    sizes = dict(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        CausalLMModule(T5ForConditionalGeneration(T5Config(**sizes)))


def test_a_missing_folder_is_told_as_one() -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder or GGUF file '\./nowhere'"):
        CausalLMModule("./nowhere")


def test_a_model_without_a_loss() -> None:
    class NoLoss(nn.Module):
        def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
            return input_ids

    data = DataLoader([{"input_ids": torch.ones(1, 3, dtype=torch.long)}], batch_size=None)
    with pytest.raises(TypeError, match="NoLoss returned no loss: use a causal model of transformers"):
        trainer().validate(CausalLMModule(NoLoss()), data, verbose=False)


def test_batches_with_nothing_to_predict() -> None:
    module = CausalLMModule(model_of("llama"))
    one_token = {"input_ids": torch.tensor([[5], [6]])}
    with pytest.raises(ValueError, match="every text of the batch is a single token"):
        trainer().fit(module, DataLoader([one_token], batch_size=None))
    masked = {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, -100]])}
    with pytest.raises(ValueError, match="no token of the batch can be predicted"):
        trainer().validate(module, DataLoader([masked], batch_size=None), verbose=False)


@pytest.mark.parametrize("stage", ["fit", "validate", "predict"])
@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "the batch is a Tensor: CausalLMModule takes a list of texts, or a mapping"),
        (
            {"ids": torch.ones(2, 3)},
            ValueError,
            "the batch must have a tensor 'input_ids' of shape (B, T); it holds ['ids']",
        ),
        (
            {"input_ids": torch.ones(3)},
            ValueError,
            "the batch must have a tensor 'input_ids' of shape (B, T); its 'input_ids' has shape (3,)",
        ),
    ],
)
def test_wrong_batches(batch: Any, error: type[Exception], message: str, stage: str) -> None:
    with pytest.raises(error) as caught:
        getattr(trainer(num_sanity_val_steps=0), stage)(
            CausalLMModule(model_of("llama")), DataLoader([batch], batch_size=None)
        )
    assert str(caught.value).startswith(message)


def test_texts_without_a_tokenizer() -> None:
    with pytest.raises(ValueError, match=r"texts need a tokenizer: pass one, e\.g\. CausalLMModule\(model, tokenizer"):
        trainer().predict(CausalLMModule(model_of("llama")), texts_loader())
