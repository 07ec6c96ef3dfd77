"""Fit or predict with hooks from a YAML file; a tiny model with random weights learns to count.

python examples/cli.py fit --config examples/config.yaml
python examples/cli.py predict --config examples/config.yaml
python examples/cli.py fit --config examples/config.yaml --print_config
"""

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import mi_crow_lightning as mcl


class TinyLlama(mcl.CausalLMModule):
    def __init__(self, width: int = 32, blocks: int = 4, lr: float = 1e-2):
        sizes = {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": blocks}
        config = LlamaConfig(vocab_size=64, num_attention_heads=4, eos_token_id=None, pad_token_id=0, **sizes)
        super().__init__(LlamaForCausalLM(config), generation={"max_new_tokens": 8, "do_sample": False}, lr=lr)


class Counting(L.LightningDataModule):
    """Rows such as 7, 8, 9, ...: fit trains on all of them, and predict continues their first four numbers."""

    def __init__(self, rows: int = 32, length: int = 12, batch_size: int = 8):
        super().__init__()
        self.rows, self.length, self.batch_size = rows, length, batch_size

    def loader(self, length):
        ids = 1 + torch.arange(self.rows)[:, None] % 40 + torch.arange(length)
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
        return DataLoader(rows, batch_size=self.batch_size)

    def train_dataloader(self):
        return self.loader(self.length)

    def val_dataloader(self):
        return self.loader(self.length)

    def predict_dataloader(self):
        return self.loader(4)


def fading(ctx):
    """Return a strength: 1 at the first generated token, and less at each further one."""
    return 1 / (1 + ctx.decode_step)


if __name__ == "__main__":
    cli = LightningCLI(TinyLlama, Counting)
    for hooks in (callback for callback in cli.trainer.callbacks if isinstance(callback, mcl.HookCallback)):
        print(*hooks.history()[-3:], *hooks.effects(), sep="\n")
