"""`TraitMonitor`: the shift of held-out texts since the base model, against numpy in float64."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mi_crow_lightning import ActivationStatistics, HookCallback, Schedule, TraitMonitor
from mi_crow_lightning.errors import RegistrationError, VectorFileError
from mi_crow_lightning.hooks import Layers
from mi_crow_lightning.vectors import TraitBaseline
from tests.callback.runs import assert_bit_equal, data_of, fingerprint, module_of, told
from tests.hooks.detectors.projections import U, V
from tests.models import Module, llama, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create:UserWarning"),
]

LAYERS = [f"model.model.layers.{i}" for i in (1, 2)]
VECTORS = {"joy": V[0], "calm": {1: V[1], 2: V[2]}}
UNITS = {"joy": (U[0], U[0]), "calm": (U[1], U[2])}
NEUTRAL = data_of("llama")[:12]


def close(value: Any) -> Any:
    return pytest.approx(value, rel=1e-5, abs=1e-7)  # the model computes in float32


def monitor(**options: Any) -> TraitMonitor:
    return TraitMonitor("block:1-2", vectors=VECTORS, **{"tokens": "all", "hook_id": "traits", **options})


def read(watch: HookCallback, name: str = "shift", run: str = "") -> list[float]:
    return [row.value for row in watch.history() if row.name.endswith(name) and (not run or row.run == run)]


def text_projections(module: Module, rows: list[Any] = NEUTRAL) -> dict[tuple[str, str], np.ndarray]:
    """The mean projection of each text, by numpy in float64, from what plain hooks see."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.get_submodule(layer).register_forward_hook(lambda _, args, output, at=layer: seen.update({at: output}))
        for layer in LAYERS
    ]
    training = module.training
    module.eval()
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        module.model(**batch)
    module.train(training)
    for handle in handles:
        handle.remove()
    masks = batch["attention_mask"].bool().numpy()
    return {
        (layer, name): np.array(
            [x[mask].double().numpy() @ units[i] for x, mask in zip(seen[layer], masks, strict=True)], dtype=object
        )
        for i, layer in enumerate(LAYERS)
        for name, units in UNITS.items()
    }


def means(module: Module) -> dict[tuple[str, str], np.ndarray]:
    return {key: np.array([text.mean() for text in texts]) for key, texts in text_projections(module).items()}


def test_shift_is_that_of_numpy_in_units_of_the_base_models_spread_over_texts() -> None:
    module, watch = module_of("llama"), HookCallback(monitor())
    base = means(module)
    runner = trainer(watch, max_epochs=2)
    runner.validate(module, loader(NEUTRAL), verbose=False)
    assert read(watch) == [0.0] * 4
    for row in watch.detectors[0].baseline():
        texts = base[row.layer, row.vector]
        assert (row.texts, row.mean, row.std) == (12, close(texts.mean()), close(texts.std()))
    runner.fit(module, loader(data_of("llama")), loader(NEUTRAL))
    tuned = means(module)
    last = {row.tag: row.value for row in watch.history().to_pandas().tail(12).itertuples()}
    assert len(last) == 12
    for (layer, name), texts in tuned.items():
        shift = (texts.mean() - base[layer, name].mean()) / base[layer, name].std()
        assert last[f"trait_{name}_shift/val/{layer}"] == close(shift) and abs(shift) > 0.05
        assert last[f"trait_{name}_mean/val/{layer}"] == close(texts.mean())
        assert last[f"trait_{name}_std/val/{layer}"] == close(texts.std())
    assert len({row.step for row in watch.history() if row.run == "fit"}) == 2


def test_a_text_counts_once_whatever_its_length() -> None:
    layers = Layers(torch.nn.Sequential(torch.nn.Identity()))
    hook = TraitMonitor("0", torch.tensor([0.0, 1.0]), tokens="all")
    layers.register_hook("0", hook)
    x = torch.tensor([[[0.0, 2.0], [0.0, 4.0], [0.0, float("nan")]], [[0.0, 1.0]] * 3])
    layers.root(x)
    assert [(one.name, one.value) for one in hook.readings()] == [("shift", 0.0), ("mean", 2.0), ("std", 1.0)]


def test_a_fit_without_a_baseline_is_refused_before_it_begins() -> None:
    module, watch = module_of("llama"), HookCallback(monitor())
    before = fingerprint(module)["weights"]
    with pytest.raises(RegistrationError, match=r"has no baseline.*trainer.validate\(module.*baseline="):
        trainer(watch).fit(module, loader(NEUTRAL), loader(NEUTRAL))
    assert_bit_equal(before, fingerprint(module)["weights"])
    watch.detectors[0].disable()
    trainer(watch).fit(module, loader(NEUTRAL[:4]), loader(NEUTRAL[:4]))


def test_the_first_pass_stays_the_baseline_over_fits_copies_and_checkpoints(tmp_path: Path) -> None:
    module, hook = module_of("llama"), monitor()
    base = means(module)
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    watch = HookCallback(hook, name="watch")
    runner = trainer(watch, saver, enable_checkpointing=True)
    runner.validate(module, loader(NEUTRAL), verbose=False)
    runner.fit(module, loader(data_of("llama")), loader(NEUTRAL))
    copy = pickle.loads(pickle.dumps(hook))
    assert copy.baseline() == hook.baseline() and len(hook.baseline()) == 4

    again, resumed = module_of("llama"), HookCallback(monitor(), name="watch")
    trainer(resumed, max_epochs=2).fit(
        again, loader(data_of("llama")), loader(NEUTRAL), ckpt_path=tmp_path / "epoch=0.ckpt"
    )
    assert resumed.detectors[0].baseline() == hook.baseline()
    texts = means(again)
    shifts = [(texts[key].mean() - base[key].mean()) / base[key].std() for key in base]
    assert sorted(read(resumed)) == close(sorted(shifts))

    later = HookCallback(monitor(), name="watch")
    trainer(later).validate(module_of("llama"), loader(NEUTRAL), ckpt_path=tmp_path / "epoch=0.ckpt", verbose=False)
    assert read(later) == read(watch, run="fit")


def test_a_baseline_from_elsewhere_as_a_table_and_as_a_file(tmp_path: Path) -> None:
    module, hook = module_of("llama"), monitor()
    trainer(HookCallback(hook)).validate(module, loader(NEUTRAL), verbose=False)
    hook.baseline().save(tmp_path / "base.json")
    assert TraitBaseline.load(tmp_path / "base.json") == hook.baseline()
    found = []
    for given in (hook.baseline(), tmp_path / "base.json", str(tmp_path / "base.json")):
        watch, tuned = HookCallback(monitor(baseline=given)), module_of("llama")
        trainer(watch).fit(tuned, loader(data_of("llama")), loader(NEUTRAL))
        found.append(read(watch))
    assert found[0] == found[1] == found[2] and min(map(abs, found[0])) > 0
    bare = monitor(baseline=hook.baseline())  # on the model itself, names have another prefix
    layers = Layers(llama().eval())
    layers.register_hook(None, bare)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": "ordinary"}, "is of tokens='all', and this monitor reads tokens='ordinary'"),
        ({"vectors": {"joy": V[1], "calm": VECTORS["calm"]}}, "is of another direction than 'joy'"),
        ({"vectors": {"glee": V[0]}}, "has nothing of 'glee'"),
        ({"layer_signature": "block:0-1"}, r"calm.*has nothing for layer|has nothing of 'joy' at 'model.layers.0'"),
    ],
)
def test_a_baseline_of_something_else_is_refused(changed: dict[str, Any], message: str) -> None:
    hook = monitor()
    trainer(HookCallback(hook)).validate(module_of("llama"), loader(NEUTRAL), verbose=False)
    given = {"layer_signature": "block:1-2", "vectors": VECTORS, "tokens": "all", **changed}
    other = TraitMonitor(**given, baseline=hook.baseline())
    with pytest.raises(RegistrationError, match=message):
        Layers(llama()).register_hook(None, other)


def test_other_texts_cause_one_warning() -> None:
    module, watch = module_of("llama"), HookCallback(monitor())
    runner = trainer(watch, max_epochs=2)
    runner.validate(module, loader(NEUTRAL), verbose=False)
    with pytest.warns(UserWarning, match="is of 12 texts, and this validation had 8") as caught:
        runner.fit(module, loader(NEUTRAL), loader(NEUTRAL[:8]))
    assert sum("is of 12 texts" in str(one.message) for one in caught) == 1


def test_a_baseline_after_training_says_so() -> None:
    module, hook = module_of("llama"), monitor()
    hook.disable()
    runner = trainer(HookCallback(hook))
    runner.fit(module, loader(NEUTRAL), loader(NEUTRAL))
    hook.enable()
    with pytest.warns(UserWarning, match="took its baseline after 3 training steps"):
        runner.validate(module, loader(NEUTRAL), verbose=False)


def test_each_dataloader_has_its_own_base() -> None:
    class Two(Module):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.model(**batch)

    module, hook = Two(llama()), monitor()
    watch = HookCallback(hook, per_dataloader=True)
    runner = trainer(watch)
    runner.validate(module, [loader(NEUTRAL[:4]), loader(NEUTRAL)], verbose=False)
    assert read(watch) == [0.0] * 8
    assert [(row.dataloader, row.texts) for row in hook.baseline()] == [(0, 4)] * 4 + [(1, 12)] * 4
    runner.fit(module, loader(NEUTRAL), [loader(NEUTRAL[:4]), loader(NEUTRAL)])
    tags = [row.tag for row in watch.history() if row.run == "fit" and row.name == "joy_shift"]
    assert tags == [f"trait_joy_shift/val/{layer}/dataloader_idx_{i}" for i in (0, 1) for layer in LAYERS]
    alone = HookCallback(monitor(baseline=TraitBaseline(hook.baseline()[:4])), per_dataloader=True)
    with pytest.warns(RuntimeWarning, match="has a baseline, but not of dataloader 1"):
        trainer(alone).validate(module, [loader(NEUTRAL[:4]), loader(NEUTRAL)], verbose=False)


def test_it_leaves_a_run_as_it_is() -> None:
    def trained(*watch: Any) -> dict[str, Any]:
        module = module_of("llama")
        runner = trainer(*(HookCallback(one) for one in watch), num_sanity_val_steps=2)
        runner.validate(module, loader(NEUTRAL), verbose=False)
        torch.manual_seed(3)
        runner.fit(module, loader(data_of("llama")), loader(NEUTRAL))
        return fingerprint(module, runner)

    assert_bit_equal(trained(), trained(monitor(tokens="ordinary")))


def test_massive_tokens_are_left_out_by_default() -> None:
    class Massive(torch.nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            x = torch.ones(*input_ids.shape, 4)
            return x.masked_fill(input_ids[..., None] == 0, 1e4)

    hook = TraitMonitor("layer", torch.eye(4)[0])
    root = torch.nn.ModuleDict({"layer": Massive()})
    Layers(root).register_hook("layer", hook)
    root["layer"](torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    with pytest.raises(ValueError, match=r"projections of 2 texts of dataloader 0 on .* a standard deviation of 0"):
        list(hook.readings())
    assert not hook.baseline()


def test_wrong_arguments(tmp_path: Path) -> None:
    for schedule in (Schedule(), Schedule(stages=["train", "validate"])):
        with pytest.raises(ValueError, match=r"is due in train.*give Schedule\(stages='validate'"):
            monitor(schedule=schedule)
    monitor(schedule=Schedule(stages="validate", every_n_epochs=2))
    with pytest.raises(TypeError, match=r"baseline=5 must be a TraitBaseline"):
        monitor(baseline=5)
    with pytest.raises(ValueError, match="baseline is empty"):
        monitor(baseline=[])
    with pytest.raises(FileNotFoundError, match="no baseline at"):
        monitor(baseline=tmp_path / "none.json")
    for damage in ("[]", "{", '{"format": "x"}', '{"format": "mi-crow-lightning trait baseline", "version": 1}'):
        (tmp_path / "bad.json").write_text(damage)
        with pytest.raises(VectorFileError, match=r"bad\.json"):
            monitor(baseline=tmp_path / "bad.json")


def test_beside_another_detector_of_the_same_layers() -> None:
    watch = HookCallback([monitor(), ActivationStatistics("block:*")])
    trainer(watch).validate(module_of("llama"), loader(NEUTRAL), verbose=False)
    assert {row.tag.split("_")[0] for row in watch.history()} == {"trait", "activations"}


def test_it_needs_no_logged_training_step() -> None:
    module, watch = module_of("llama"), HookCallback(monitor())
    runner = trainer(watch, log_every_n_steps=50)
    runner.validate(module, loader(NEUTRAL), verbose=False)
    runner.fit(module, loader(NEUTRAL), loader(NEUTRAL))  # a warning that training shows no readings would be an error
    assert len(read(watch)) == 8


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning")
@pytest.mark.parametrize("changes", [dict(limit_val_batches=0), dict(check_val_every_n_epoch=3, max_epochs=2), None])
def test_a_fit_without_validation_says_that_no_shift_is_read(changes: dict[str, Any] | None) -> None:
    module, watch = module_of("llama"), HookCallback([monitor(), ActivationStatistics("block:*")])
    trainer(watch).validate(module, loader(NEUTRAL), verbose=False)
    batches = loader(NEUTRAL)
    with told(r"TraitMonitor\(.* reads in validation, and this fit has none"):
        trainer(watch, **(changes or {})).fit(module, batches, batches if changes else None)


def test_a_fit_that_comes_to_a_validation_says_nothing() -> None:
    module, watch, batches = module_of("llama"), HookCallback(monitor()), loader(NEUTRAL)
    trainer(watch).validate(module, batches, verbose=False)
    for every in (dict(check_val_every_n_epoch=2), dict(check_val_every_n_epoch=None, val_check_interval=5)):
        trainer(watch, max_epochs=2, **every).fit(module, batches, batches)
        assert len(read(watch, run="fit")) == 4
    switched_off = monitor(baseline=watch.detectors[0].baseline())  # type: ignore[attr-defined]
    switched_off.disable()
    trainer(HookCallback(switched_off), limit_val_batches=0).fit(module, batches, batches)
