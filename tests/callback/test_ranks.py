"""Two processes: what they read, edit, keep and write is what one process on all data would, whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mi_crow_lightning.loggers import read_events
from tests.callback import program_ranks as script
from tests.callback.program_ranks import EMPTY, EVEN, LAYER, UNEVEN, evaluated, in_one, steered

RESETS = 2  # of two Metrics, `.to` the device of their own state: that counts as a copy where it is the CPU
ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.callback.program_ranks", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    process = start(str(folder))
    _, errors = process.communicate(timeout=200)
    (folder / "end.txt").write_text(f"{process.returncode}\n{errors}")
    assert len(list(folder.glob("?.pt"))) == 2, errors[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Any]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return steered(in_one)


def values(told: dict[str, Any], with_steps: bool = True) -> dict[Any, float]:
    return {(stage, step if with_steps else 0, tag): value for stage, step, tag, value in told["rows"]}


def assert_told(found: list[dict[str, Any]], expected: dict[str, Any], same_calls: bool) -> None:
    """Both ranks tell one thing, and it is that of one process."""
    assert {key: found[0][key] for key in expected} == {key: found[1][key] for key in expected}
    one, other = (values(told, with_steps=not same_calls) for told in (found[0], expected))
    # A joined training batch is one call of the layer, where two ranks make two.
    fired = {key for key in other if "steering_fired" in key[-1] and not same_calls}
    assert one.keys() == other.keys() and len(one) > 50
    for key in one.keys() - fired:
        assert one[key] == pytest.approx(other[key], rel=2e-4, abs=1e-6, nan_ok=True), key
    metrics = {tag: value for _, _, tag, value in found[0]["rows"]}
    single = {tag: value for tag, value in found[0]["metrics"].items() if "block:" not in tag}
    assert single == pytest.approx(metrics, rel=1e-6, nan_ok=True) and len(single) < len(found[0]["metrics"])
    for mine, its in zip(found[0]["effects"], expected["effects"], strict=True):
        assert mine[:4] == its[:4] and (mine[4] == its[4] or not same_calls)
        assert mine[5:8] == pytest.approx(its[5:8], rel=1e-5)


@pytest.mark.documents(
    "compatibility/ddp/detectors",
    "compatibility/modelparallelstrategy-with-fully-shard/detectors",
    "compatibility/modelparallelstrategy-with-fully-shard/logging",
)
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_readings_of_a_steered_fit_and_predict_are_those_of_all_data(
    ranks: list[Any], alone: dict[str, Any], strategy: str
) -> None:
    for run in ("fit", "predict"):
        found = [{key: rank[strategy][run][key] for key in ("rows", "metrics", "effects")} for rank in ranks]
        assert_told(found, {key: alone[run][key] for key in found[0]}, same_calls=run == "predict")


@pytest.mark.documents(
    "compatibility/ddp/controllers", "compatibility/modelparallelstrategy-with-fully-shard/controllers"
)
@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_controllers_act_on_every_rank(ranks: list[Any], alone: dict[str, Any], strategy: str) -> None:
    """Steered training gives the weights of one process, steered predictions are those of one."""
    for rank in ranks:
        assert_close(rank[strategy]["fit"]["weights"], alone["fit"]["weights"], rtol=1e-4, atol=1e-5)
    by_step = [
        logits for step in zip(*(rank[strategy]["predictions"] for rank in ranks), strict=True) for logits in step
    ]
    assert_close(by_step, alone["predictions"], rtol=1e-5, atol=1e-5)


@pytest.mark.documents(
    "compatibility/fewer-batches-on-one-rank-or-none/detectors",
    "compatibility/fewer-batches-on-one-rank-or-none/controllers",
    "compatibility/fewer-batches-on-one-rank-or-none/logging",
)
@pytest.mark.parametrize(("name", "sizes"), [("uneven", UNEVEN), ("empty", EMPTY)])
def test_ranks_with_fewer_batches_or_none(ranks: list[Any], name: str, sizes: Any) -> None:
    expected = evaluated(in_one, sizes)
    vectors = [rank[name].pop("vector") for rank in ranks]
    assert torch.equal(*vectors)
    assert_close(vectors[0], expected.pop("vector"))
    assert_told([rank[name] for rank in ranks], expected, same_calls=True)
    assert {step for _, step, _, _ in ranks[1][name]["rows"]} == {max(map(len, sizes))}


@pytest.mark.documents("compatibility/a-hook-fails-on-one-rank-on-error-disable/detectors")
def test_a_hook_that_failed_on_one_rank_is_off_on_all_which_all_say(ranks: list[Any]) -> None:
    on_0, on_1 = (rank["failing"] for rank in ranks)
    assert on_0["rows"] == on_1["rows"]
    assert not on_0["enabled"] and not on_1["enabled"]
    assert len(on_0["said"]) == 1 and "failed on another rank" in on_0["said"][0]
    assert len(on_1["said"]) == 1 and "ValueError: only here" in on_1["said"][0]
    steps = {tag: {step for stage, step, one, _ in on_0["rows"] if one == tag} for _, _, tag, _ in on_0["rows"]}
    assert steps[f"failing_mean/{LAYER}"] == {0}  # it failed before the second reading
    assert steps[f"activations_mean/{LAYER}"] == steps[f"projection_mean/{LAYER}"] == set(range(8))
    assert steps[f"activations_mean/val/{LAYER}"] == {3, 7}


def test_a_hook_that_is_disabled_on_one_rank_reads_the_others(ranks: list[Any]) -> None:
    along = projection_in_first_batch_of_rank_0()
    row = {tag: value for stage, step, tag, value in ranks[1]["failing"]["rows"] if (stage, step) == ("train", 0)}
    assert row[f"projection_mean/{LAYER}"] == pytest.approx(along, rel=1e-4)


@torch.no_grad()
def projection_in_first_batch_of_rank_0() -> float:
    module, seen = script.Ranked(EVEN), []
    batch = module.batches(0)[0]
    module.get_submodule(LAYER).register_forward_hook(lambda _, args, output: seen.append(output))
    module.predict_step(batch, 0)
    x = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return float((x[batch["attention_mask"].bool()] @ (script.V / script.V.norm())).mean())


@pytest.mark.documents(
    "compatibility/collectives-and-copies-in-a-logged-step/detectors",
    "compatibility/collectives-and-copies-in-a-logged-step/controllers",
)
def test_a_log_step_takes_one_collective_and_one_copy_for_all_detectors(ranks: list[Any]) -> None:
    for rank in ranks:
        few, many = rank["counted"]
        assert few == many
        assert few[0][0] == 2  # once, ranks tell each other how wide the layers are
        assert few[1:] == [(1, 1 + RESETS)] * 3


@pytest.mark.documents("compatibility/a-checkpoint-of-two-ranks/detectors")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create:UserWarning")
def test_a_checkpoint_holds_what_all_ranks_had_seen(folder: Path, ranks: list[Any]) -> None:
    for strategy in ("ddp", "sharded"):  # which loads it before hooks are registered, or after
        for rank in ranks:
            told = rank[strategy]["interrupted"]
            assert told["resumed"] == told["whole"] and told["whole"]["rows"]  # to the bit
    watch = script.watching()
    runner = in_one(watch, limit_val_batches=0, log_every_n_steps=4, max_steps=4)
    runner.fit(script.Ranked(EVEN, skip=2), ckpt_path=folder / "whole-2.ckpt")
    found, expected = script.told(watch, runner), ranks[0]["ddp"]["interrupted"]["whole"]
    assert [row[:3] for row in found["rows"]] == [row[:3] for row in expected["rows"]]
    fired = f"steering_fired/steer/{script.LAYER}"  # two batches on each of two ranks, and two here
    numbers = [[row[3] for row in told["rows"] if row[2] != fired] for told in (found, expected)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-6)
    assert [row[3] for row in found["rows"] if row[2] == fired] == [6]


@pytest.mark.documents("compatibility/ddp/logging")
def test_rank_0_writes(folder: Path) -> None:
    assert len(list(folder.rglob("events.out.tfevents*"))) == 1
    assert len(list(folder.rglob("metrics.csv"))) == 1
    events = [(row.step, row.text) for row in read_events(folder / "board" / "version_0")]
    assert events == [(batch, f"rank 0, batch {batch}") for batch in range(len(EVEN[0]))]


def test_leaving_ranks_out_is_refused(ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank["left out"].startswith("allow_zero_length_dataloader_with_multiple_devices=True: Lightning leaves")


@pytest.mark.documents("compatibility/tensor-parallelism/detectors", "compatibility/tensor-parallelism/controllers")
def test_layers_that_are_split_over_ranks_are_refused(ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank["split"].startswith("tensor_parallel_size=2: each process has all tokens of its group or a part of")


@pytest.mark.documents("compatibility/a-hook-fails-on-one-rank-on-error-raise/detectors")
def test_a_run_ends_on_all_ranks_when_a_hook_on_one_raises(folder: Path, tmp_path: Path) -> None:
    process = start(str(tmp_path), "0")  # on rank 0; on rank 1 that was how the other process ended
    _, errors = process.communicate(timeout=120)
    (tmp_path / "end.txt").write_text(f"{process.returncode}\n{errors}")
    for place in (tmp_path, folder):
        code, _, said = (place / "end.txt").read_text().partition("\n")
        assert code != "0" and "ValueError: only here" in said, said[-3000:]
        pids = [int(file.read_text()) for file in place.glob("*.pid")]
        assert len(pids) == 2 and all(map(ended, pids))


def ended(pid: int) -> bool:
    for _ in range(300):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return False
