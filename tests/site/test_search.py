"""The site's own search finds the right page: what people type, and the page that answers it.

A new page gets a row. Where a row fails, the page does not use the words that people type: its title counts most, then
its first lines; `docs/search_weights.py` weighs folders.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ASK = Path(__file__).with_name("ask.js")
FIRST = 3  # results that fit on a screen

QUESTIONS: dict[str, str] = {
    # watch
    "which statistic shows dying units": "how-to/dead_units reference/statistics",
    "dead neurons": "how-to/dead_units",
    "lora fine-tune": "how-to/lora",
    "gradient norm": "how-to/gradients",
    "wandb.watch": "how-to/gradients how-to/wandb",
    "how far from the base model": "how-to/drift",
    "capture activations": "how-to/language_model",
    "linear probe": "how-to/probes",
    "attention head": "how-to/heads",
    "own detector": "how-to/own_hooks",
    "write my own statistic": "how-to/own_hooks reference/statistics",
    # log and show
    "log to wandb": "how-to/wandb",
    "log to mlflow": "how-to/wandb",
    "heatmap of layers over steps": "how-to/tensorboard_tab",
    "share results with a colleague": "how-to/run_page",
    "early stopping on a reading": "how-to/logging",
    # steer
    "how to steer only the answer": "how-to/steer_generated",
    "steer only generated tokens": "how-to/steer_generated",
    "how strong should I steer": "how-to/steering",
    "remove a refusal direction": "how-to/steering",
    "several strengths at once": "how-to/predict",
    "save a steering vector": "how-to/vectors",
    "load persona vectors": "how-to/vectors",
    "push a vector to the hub": "how-to/vectors",
    "steering vector from pairs": "how-to/vectors",
    "which layer should I steer": "how-to/vectors tutorials/extract_and_steer",
    # where it runs
    "install": "how-to/install",
    "HF trainer": "how-to/hf_trainer",
    "SFTTrainer": "how-to/hf_trainer",
    "two GPUs": "how-to/distributed",
    "fsdp deepspeed": "how-to/distributed",
    "resume from checkpoint": "how-to/resuming",
    "torch.compile": "how-to/compile",
    "without a Trainer": "how-to/loops how-to/language_model",
    "mi-crow migration": "how-to/migration how-to/migration_workflows",
    "which models are supported": "reference/models reference/architectures",
    # when something fails
    "find where NaN began": "how-to/find_nan",
    "loss is NaN": "how-to/find_nan",
    "errors of a hook": "how-to/reliability how-to/lightning reference/api/errors",
    "stop the run when something is wrong": "how-to/alarms",
    "silence warnings": "reference/warnings",
    # look up
    "what does it cost": "reference/performance",
    "how slow is it, overhead": "reference/performance",
    "name of a layer": "reference/addressing",
    "padding tokens attention mask": "reference/models how-to/lightning",
    "yaml configuration LightningCLI": "reference/configuration",
    "what is a hook": "explanation/hooks_fundamentals",
}


@pytest.fixture(scope="module")
def found(site: Path) -> dict[str, list[str]]:
    """The pages that the search finds for each question, the best first."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; it runs the search as a browser does")
    questions = json.dumps(list(QUESTIONS))
    answer = subprocess.run([node, ASK, site], input=questions, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return {
        question: [page.removesuffix(".html") for page in pages]
        for question, pages in json.loads(answer.stdout).items()
    }


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_right_page_is_among_the_first(found: dict[str, list[str]], question: str) -> None:
    right = QUESTIONS[question].split()
    assert set(right) & set(found[question][:FIRST]), f"found {found[question][:6]}"


def test_the_pages_of_the_table_exist(site: Path) -> None:
    pages = {page for pages in QUESTIONS.values() for page in pages.split()}
    assert [page for page in sorted(pages) if not (site / f"{page}.html").exists()] == []
