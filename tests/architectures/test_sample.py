"""Thirty architectures that differ most; ``make sweep`` checks all of them."""

from __future__ import annotations

import pytest
import transformers

from tests.architectures.checks import outcomes
from tests.architectures.tiny_model import Architecture, architectures

SAMPLE = [
    "causal-bloom",
    "causal-deepseek_v3",
    "causal-deepseek_v4",  # four residual streams
    "causal-gemma3n_text",  # streams first
    "causal-gpt2",
    "causal-hrm_text",  # two stacks, each run several times
    "causal-jamba",  # blocks of two classes
    "causal-llama",
    "causal-mamba",
    "causal-nemotron_h",
    "causal-prophetnet",
    "causal-reformer",  # hands no mask on in generate
    "causal-rwkv",
    "causal-xlnet",  # tokens first
    "causal-zamba2",  # a shared block
    "masked-albert",  # one block, run again and again
    "masked-bert",
    "masked-fnet",  # takes no mask
    "masked-longformer",  # pads to its window
    "seq2seq-bart",
    "seq2seq-led",
    "seq2seq-t5",
    "image+text-llava",
    "image+text-mllama",  # cross-attention to pictures
    "image+text-qwen2_vl",
    "vision-convnext",
    "vision-pvt",  # lists in lists
    "vision-swin",
    "CTC-wav2vec2",
    "speech to text-whisper",
]
ALL = {str(architecture): architecture for architecture in architectures()}


@pytest.mark.parametrize("name", SAMPLE)
def test_nothing_is_silently_wrong(name: str) -> None:
    if name not in ALL:
        pytest.skip("this version of transformers does not have it")
    found = outcomes(ALL[name])
    assert {check: why for check, why in found.items() if why.startswith("wrong")} == {}
    if transformers.__version__ < "5" and "built" in found:
        pytest.skip(found["built"])  # configurations of some are made small for the newest version alone
    assert "built" not in found, found


@pytest.mark.parametrize("name", ["causal-gpt2", "causal-llama", "masked-bert"])
def test_the_usual_ones_are_exact_in_every_check(name: str) -> None:
    assert set(outcomes(ALL[name]).values()) == {"exact"}


def test_an_architecture_without_a_tiny_model_says_why() -> None:
    found = outcomes(Architecture("timm_wrapper", "vision", "TimmWrapperModel"))
    assert found["built"].startswith("not built: ImportError")
