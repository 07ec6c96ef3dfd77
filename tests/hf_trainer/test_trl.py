"""TRL's trainers, where TRL is installed; see the page "Use transformers' Trainer, or TRL"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mi_crow_lightning import ActivationStatistics, HookTrainerCallback, Schedule, SummingDetector
from mi_crow_lightning.alarms import Alarm, load_snapshot, replay
from mi_crow_lightning.errors import SnapshotError
from mi_crow_lightning.hf_trainer.wrapped_methods import METHODS
from tests.hf_trainer.fits import weights
from tests.hf_trainer.test_alarms import Asked
from tests.models import handles
from tests.tiny_gpt2 import save_gpt2, tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own
OPTIONS: dict[str, Any] = dict(
    max_steps=4, logging_steps=2, per_device_train_batch_size=2, use_cpu=True, bf16=False, report_to="none"
)


def model(folder: Path) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(save_gpt2(folder / "gpt2"))  # where the reference model is read from too


def sft(folder: Path) -> Any:
    data = datasets.Dataset.from_list([{"text": "The quick brown fox " * n} for n in (1, 2, 3, 1, 2, 3, 2, 1)])
    config = trl.SFTConfig(output_dir=str(folder), max_length=32, **OPTIONS)
    words = tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return trl.SFTTrainer(
        model=model(folder), args=config, train_dataset=data, eval_dataset=data, processing_class=words
    )


def dpo(folder: Path) -> Any:
    rows = [{"prompt": "Hello, " * n, "chosen": "world!", "rejected": "the lazy dog."} for n in (1, 2, 1, 2, 3, 1)]
    data = datasets.Dataset.from_list(rows)
    config = trl.DPOConfig(output_dir=str(folder), max_length=32, **OPTIONS)
    words = tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return trl.DPOTrainer(
        model=model(folder), args=config, train_dataset=data, eval_dataset=data, processing_class=words
    )


class Counted(torch.nn.Module):
    """Counts the real tokens of each call of the model, from its attention mask, in training and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = {True: 0, False: 0}

    def forward_pre(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens[module.training] += int(kwargs["attention_mask"].sum())


class RealTokens(SummingDetector):
    """Counts the tokens that are not padding."""

    names, sums = ("tokens",), 1

    def measure(self, x: Any, mask: Any, ctx: Any) -> torch.Tensor:
        return torch.stack([x[..., 0].numel() * torch.ones(()) if mask is None else mask.sum()])

    def values(self, sums: Any) -> dict[str, float]:
        return {"tokens": float(sums[0])}


@pytest.mark.parametrize("make", [sft, dpo])
def test_a_watched_run_is_the_run_and_counts_its_tokens(make: Any, tmp_path: Path) -> None:
    plain = make(tmp_path)
    plain.train()
    runner = make(tmp_path)
    counted = Counted()
    handle = runner.model.register_forward_pre_hook(counted.forward_pre, with_kwargs=True)
    always = Schedule(stages=["train", "validate"])
    watch = HookTrainerCallback(
        [ActivationStatistics("block:*", schedule=always), RealTokens("block:1", name="real", schedule=always)],
        report="off",
    )
    with watch.attach(runner):
        runner.train()
        tokens = sum(row.value for row in watch.history() if row.name == "tokens")
        metrics = runner.evaluate()
    handle.remove()
    assert all(map(torch.equal, weights(plain.model).values(), weights(runner.model).values()))
    plain_loss, loss = ([row["loss"] for row in one.state.log_history if "loss" in row] for one in (plain, runner))
    assert plain_loss == loss and len(loss) == 2
    # TRL's own numbers stand where they stood.
    assert [sorted(row) for row in plain.state.log_history[:2]] == [sorted(row) for row in runner.state.log_history[:2]]
    assert tokens == counted.tokens[True] > 0 and metrics["eval_loss"] == plain.evaluate()["eval_loss"]
    assert {(row.stage, row.step) for row in watch.history()} == {("train", 2), ("train", 4), ("validate", 4)}
    left, theirs = ([key[:2] for key in handles(one.model)] for one in (runner, plain))  # TRL leaves hooks itself
    assert left == theirs and not any(name in vars(runner) for name in METHODS)


@pytest.mark.parametrize("make", [sft, dpo])
def test_alarms_see_the_loss_of_each_step_and_stop(make: Any, tmp_path: Path) -> None:
    runner = make(tmp_path)
    runner.args.logging_steps = 1
    rule = Asked("loss", at=3)
    alarm = Alarm(rule, ["snapshot", "stop"])
    with HookTrainerCallback(ActivationStatistics("block:*"), report="off", alarms=alarm).attach(runner):
        runner.train()
    logged = [row["loss"] for row in runner.state.log_history if "loss" in row]
    assert rule.seen == pytest.approx(logged, rel=1e-4) and len(logged) == 3
    (file,) = (tmp_path / "alarms").iterdir()
    if make is sft:
        labels = load_snapshot(file)["batch"]["labels"]  # the Trainer divides by all of them
        share = (labels[:, 1:] != -100).sum() / (labels != -100).sum()
        assert replay(file, model(tmp_path)).loss * share == pytest.approx(rule.seen[2], rel=1e-5)
        return
    with pytest.raises(SnapshotError, match=r"gives no loss for|does not take"):
        replay(file, model(tmp_path))
