"""ActivationStatistics on real models: numpy over exactly the tokens that count, each pass counted once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mi_crow_lightning.hooks import ActivationStatistics, Layers, Moment, Stage
from tests.metrics.reference import numpys
from tests.models import BLOCKS, WIDTH, bert, gpt2, llama, token_data


def batch_of(side: str) -> dict[str, Tensor]:
    batch = default_collate(token_data(4))
    return batch if side == "left" else {name: tensor.flip(1) for name, tensor in batch.items()}


def by_layer(detector: ActivationStatistics) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for reading in detector.readings():
        found.setdefault(reading.layer, {})[reading.name] = reading.value
    return found


def totals(detector: ActivationStatistics) -> list[float]:
    return [values["histogram"].total for values in by_layer(detector).values()]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_numpy_over_the_real_tokens_of_all_batches(make: Any, side: str) -> None:
    model, batch = make().eval(), batch_of(side)
    detector = ActivationStatistics("block:*")
    layers = Layers(model)
    layers.register_hook(None, detector)
    seen: dict[str, list[np.ndarray]] = {site.match.name: [] for site in layers.sites(detector)}
    for name, kept in seen.items():

        def keep(module: nn.Module, args: Any, output: Any, kept: list[np.ndarray] = kept) -> None:
            x = output if isinstance(output, Tensor) else output[0]
            kept += [x[row, column].detach().numpy() for row, column in batch["attention_mask"].nonzero().tolist()]

        model.get_submodule(name).register_forward_hook(keep)
    for _ in range(2):
        model(**batch)
    found = by_layer(detector)
    assert list(found) == list(seen) and len(seen) == BLOCKS
    for name, kept in seen.items():
        values = np.stack(kept)
        assert len(values) == 2 * batch["attention_mask"].sum()
        for statistic, expected in numpys(values.astype(np.float64)).items():
            assert found[name][statistic] == pytest.approx(expected, rel=1e-12, abs=1e-14), statistic
        bars = found[name]["histogram"]
        assert bars.total == values.size and sum(bars.counts) == values.size
        edges = np.array(bars.edges)
        assert list(bars.counts) == np.histogram(values.astype(np.float64), edges)[0].tolist()


def checkpoint_blocks(model: Any, reentrant: bool) -> None:
    # The name in transformers 5, else that in 4.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("hook_type", ["forward", "pre_forward"])
def test_a_recompute_is_not_counted(reentrant: bool, hook_type: str) -> None:
    model, batch = llama().train(), batch_of("left")
    checkpoint_blocks(model, reentrant)
    runs = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    layers = Layers(model, allow_stacking=True)
    detectors = [
        ActivationStatistics(signature, hook_type=hook_type)
        for signature in ("block:*", "block:*.attn", "block:*.mlp", "block:*.mlp.down_proj")
    ]
    for detector in detectors:
        layers.register_hook(None, detector)
    for step in (1, 2):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        width = {detector: 48 if "down" in str(detector.layer_signature) else WIDTH for detector in detectors}
        for detector in detectors:
            if hook_type == "forward":
                width[detector] = WIDTH
            expected = step * int(batch["attention_mask"].sum()) * width[detector]
            assert totals(detector) == [expected] * BLOCKS, detector
    assert len(runs) == 4  # it did run again


def test_decode_steps_are_counted() -> None:
    model, batch = llama().eval(), batch_of("left")
    model.generation_config.eos_token_id = None
    layers = Layers(model, allow_stacking=True)
    detectors = {which: ActivationStatistics("block:0", tokens=which) for which in ("all", "prompt", "generated")}
    for detector in detectors.values():
        layers.register_hook(None, detector)
    model.generate(**batch, max_new_tokens=5, do_sample=False)
    real = int(batch["attention_mask"].sum())
    counts = {which: totals(detector)[0] / WIDTH for which, detector in detectors.items()}
    assert counts == {"all": real + 4 * 4, "prompt": real, "generated": 4 * 4}


def test_stages_are_counted_apart() -> None:
    model, detector = nn.Sequential(nn.Identity()), ActivationStatistics("0", statistics=["mean"])
    layers = Layers(model)
    layers.register_hook(None, detector)
    for stage, value in ((Stage.TRAIN, 1.0), (Stage.VALIDATE, 5.0), (Stage.TRAIN, 3.0)):
        layers.begin_batch(Moment(stage), None)
        model(torch.full((2, 2), value))
    assert by_layer(detector)["0"]["mean"] == 2.0
    layers.begin_batch(Moment(Stage.VALIDATE), None)
    assert by_layer(detector)["0"]["mean"] == 5.0
    detector.reset()
    assert detector.readings() == []
    layers.begin_batch(Moment(Stage.TRAIN), None)
    assert totals(detector) == [8]


def test_what_is_chosen_is_what_is_read() -> None:
    detector = ActivationStatistics("0", statistics=["max", "mean"], histogram=False)
    model = nn.Sequential(nn.Identity(), nn.Identity())
    Layers(model).register_hook("block:*", detector)
    assert detector.readings() == []
    model(torch.tensor([[1.0, 2.0], [float("nan"), float("inf")]]))
    assert [(r.layer, r.name, r.value, r.kind) for r in detector.readings()] == [
        ("0", "max", 2.0, "scalar"),
        ("0", "mean", 1.5, "scalar"),
        ("1", "max", 2.0, "scalar"),
        ("1", "mean", 1.5, "scalar"),
    ]
    assert detector.reading_names() == ("max", "mean")


def test_a_channel_is_dead_by_the_threshold_and_since_the_last_reading() -> None:
    model = nn.Sequential(nn.Identity())
    detector = ActivationStatistics("0", statistics=["dead_share"], histogram=False, dead_threshold=0.5)
    Layers(model).register_hook(None, detector)
    for values in ([1.0, 0.0, -0.5, 0.0], [0.0, -0.6, 0.5, 0.0]):
        model(torch.tensor([values]))
    assert by_layer(detector)["0"] == {"dead_share": 0.5}
    detector.reset()
    model(torch.tensor([[0.0, 0.0, 0.0, 0.7]]))
    assert by_layer(detector)["0"] == {"dead_share": 0.75}
    with pytest.raises(ValueError, match=r"dead_threshold=-0\.1 must be 0 or a positive number"):
        ActivationStatistics("0", dead_threshold=-0.1)


def test_bf16_is_summed_in_float64() -> None:
    model, detector = nn.Sequential(nn.Identity()), ActivationStatistics("0", statistics=["mean", "std"])
    Layers(model).register_hook(None, detector)
    x = (torch.randn(64, 64, 64) + 100).bfloat16()
    model(x)
    expected = numpys(x.double().numpy().reshape(-1, 64))
    assert by_layer(detector)["0"]["mean"] == pytest.approx(expected["mean"], rel=1e-12)
    assert by_layer(detector)["0"]["std"] == pytest.approx(expected["std"], rel=1e-9)


def test_a_state_goes_on_before_or_after_registration() -> None:
    def run(detector: ActivationStatistics, value: float) -> None:
        model = nn.Sequential(nn.Identity())
        layers = Layers(model)
        layers.register_hook(None, detector)
        model(torch.full((2, 2), value))
        state.update(detector.state_dict())
        detector.readings() and found.append(by_layer(detector)["0"]["mean"])

    state: dict[str, Any] = {}
    found: list[float] = []
    run(ActivationStatistics("0"), 1.0)
    second = ActivationStatistics("0")
    second.load_state_dict(dict(state))
    run(second, 4.0)
    assert found == [1.0, 2.5]
    other = ActivationStatistics("block:*", hook_id="mine")
    other.load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"statistics are of the layers \['0'\], and the detector watches \['0', '1'\]"
    ):
        Layers(nn.Sequential(nn.Identity(), nn.Identity())).register_hook(None, other)


@pytest.mark.parametrize("wrong", [["mean", "median"], ["Mean"], [["mean"]]])
def test_unknown_statistics_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"statistics=.* is not known: choose one of 'mean', 'std', 'rms', 'min'"):
        ActivationStatistics("0", statistics=wrong)
