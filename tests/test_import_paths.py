"""Every import that a user may have written goes on working, wherever its module moves."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import mi_crow_lightning as mcl
from mi_crow_lightning._moved import GONE, GONE_NAMES, MOVED, _Moved, install

ROOT = Path(__file__).parents[1]

# What release 0.1.0 exported, or had a page in its API reference. Lines are added, never taken out.
TABLE = """
mi_crow_lightning: AblationController ActivationStatistics AllOf AnyOf CausalLMModule ClampController ContrastDetector
    Controller Detector FunctionController Hook HookCallback HookConflict HookContext HookError HookType LabelCollator
    LanguageModel LayerActivationDetector LayerNotFound Layers LocalStore LoggedSteps MiCrowError NeverFired Not
    PairCollator PatchController PredictionWriter ProjectionDetector Reading RegistrationError ScaleController
    Schedule Stage SteeringController SteeringVector TokenController Tokens attached by_strength
mi_crow_lightning.hooks: AblationController ActivationStatistics AllOf AnyOf ClampController Controller Detector
    FunctionController Hook HookContext HookError HookType LayerActivationDetector Layers LoggedSteps Moment Not
    PatchController ProjectionDetector Reading ScaleController Schedule Stage SteeringController TokenController
    Tokens attached
mi_crow_lightning.language_model: CausalLMModule GeneratedText Inference LanguageModel PredictionWriter TextCollator
    by_strength
mi_crow_lightning.loggers: DetectorReadings HistogramRow HistoryRow LoggedStep compact read_compact
    read_compact_histograms shown summary_writer tag write write_event write_layout write_scalars write_text_table
mi_crow_lightning.metrics: EDGES ROW_SIZE STATISTICS ActivationStatisticsMetric Group Histogram Row Summary
    channel_statistics empty_rows measure merge merge_all statistics summarize
mi_crow_lightning.report: Feature HookPlan HookedLayer RunReport Support
mi_crow_lightning.store: LocalStore Store
mi_crow_lightning.vectors: ContrastDetector LabelCollator PairCollator Separability SteeringVector from_sae
    from_steering_vectors model_name read_control_vector to_steering_vectors write_control_vector
mi_crow_lightning.callback: HookCallback
mi_crow_lightning.errors: ActivationError CaptureBudgetExceeded ConditionMismatch EditMismatch HookConflict HookError
    LayerNotFound MiCrowError NeverFired NoReport NoTensorFound NothingExtracted PatchMismatch RanElsewhere
    RegistrationError StoreKeyError StrengthMismatch TagConflict TokensUnknown VectorFileError VectorMismatch
    UnreadableActivation WrittenInPlace
mi_crow_lightning.hooks.hook: Hook HookError HookType
mi_crow_lightning.hooks.hook_type: HookType
mi_crow_lightning.hooks.detector: Detector
mi_crow_lightning.hooks.controller: Controller
mi_crow_lightning.hooks.tokens: AllOf AnyOf Not Tokens
mi_crow_lightning.hooks.schedules: EVALUATIONS AllOf AnyOf LoggedSteps Moment Not Schedule Stage When
mi_crow_lightning.hooks.edits: added mixed rounded with_norms_of
mi_crow_lightning.hooks.context: HookContext
mi_crow_lightning.hooks.reading: Reading
mi_crow_lightning.hooks.layers: Layers
mi_crow_lightning.hooks.attaching: attached
mi_crow_lightning.hooks.conditions: Condition
mi_crow_lightning.hooks.per_layer: PerLayer Vector
mi_crow_lightning.hooks.directions: check_width checked_vector orthonormal_basis unit_vector
mi_crow_lightning.hooks.activations: put_input put_output take_input take_output
mi_crow_lightning.hooks.effects: Effect
mi_crow_lightning.hooks.strengths: Strength Strengths
mi_crow_lightning.hooks.token_controller: TokenController
mi_crow_lightning.hooks.detectors.activation_statistics: ActivationStatistics
mi_crow_lightning.hooks.detectors.layer_activation: LayerActivationDetector
mi_crow_lightning.hooks.detectors.projection: ProjectionDetector
mi_crow_lightning.hooks.controllers.ablation: AblationController
mi_crow_lightning.hooks.controllers.clamp: ClampController
mi_crow_lightning.hooks.controllers.function: FunctionController
mi_crow_lightning.hooks.controllers.patch: PatchController
mi_crow_lightning.hooks.controllers.scale: ScaleController
mi_crow_lightning.hooks.controllers.steering: SteeringController
mi_crow_lightning.language_model.causal_lm: CausalLMModule
mi_crow_lightning.language_model.generated: GeneratedText by_strength
mi_crow_lightning.language_model.inference: Inference
mi_crow_lightning.language_model.language_model: LanguageModel
mi_crow_lightning.language_model.model_outline: ModelOutline outline
mi_crow_lightning.language_model.prediction_writer: PredictionWriter
mi_crow_lightning.language_model.sweep: expanded
mi_crow_lightning.language_model.texts: TextCollator
mi_crow_lightning.store.store: Store TensorMetadata
mi_crow_lightning.store.local_store: LocalStore
mi_crow_lightning.store.detector_store: DetectorStore TensorMetadata
mi_crow_lightning.vectors.contrast_detector: ContrastDetector
mi_crow_lightning.vectors.steering_vector: SteeringVector
mi_crow_lightning.metrics.effects: Change EffectSums EffectValues measure_change merge_changes
mi_crow_lightning.metrics.directions: mean_difference principal_difference scaled
mi_crow_lightning.vectors.collate: LabelCollator PairCollator
mi_crow_lightning.vectors.fit: model_name
mi_crow_lightning.vectors.formats.control_vector: read_control_vector write_control_vector
mi_crow_lightning.vectors.formats.sae_lens: from_sae
mi_crow_lightning.vectors.formats.steering_vectors: from_steering_vectors to_steering_vectors
"""

# Every public name of mi-crow 1.0.0.post10 in these packages. A line that ends in "-" has no counterpart, and the error
# says what to use.
OF_MI_CROW = """
mi_crow_lightning.hooks: Controller Detector FunctionController Hook HookError HookType LayerActivationDetector
mi_crow_lightning.hooks: ModelInputDetector ModelOutputDetector -
mi_crow_lightning.hooks.controller: Controller
mi_crow_lightning.hooks.detector: Detector
mi_crow_lightning.hooks.hook: HOOK_FUNCTION_INPUT HOOK_FUNCTION_OUTPUT Hook HookError HookType
mi_crow_lightning.hooks.implementations.function_controller: FunctionController
mi_crow_lightning.hooks.implementations.layer_activation_detector: LayerActivationDetector
mi_crow_lightning.hooks.implementations.model_input_detector: ModelInputDetector -
mi_crow_lightning.hooks.implementations.model_output_detector: ModelOutputDetector -
mi_crow_lightning.hooks.utils: apply_modification_to_output extract_tensor_from_input extract_tensor_from_output -
mi_crow_lightning.language_model: LanguageModel
mi_crow_lightning.language_model.activations: LanguageModelActivations
mi_crow_lightning.language_model.context: LanguageModelContext -
mi_crow_lightning.language_model.contracts: ModelMetadata -
mi_crow_lightning.language_model.device_manager: ensure_context_device normalize_device sync_model_to_context_device -
mi_crow_lightning.language_model.hook_metadata: collect_hooks_metadata -
mi_crow_lightning.language_model.inference: InferenceEngine
mi_crow_lightning.language_model.initialization: create_from_huggingface create_from_local_torch initialize_model_id -
mi_crow_lightning.language_model.language_model: LanguageModel
mi_crow_lightning.language_model.layers: LanguageModelLayers
mi_crow_lightning.language_model.persistence: load_model_from_saved_file save_model -
mi_crow_lightning.language_model.tokenizer: LanguageModelTokenizer -
mi_crow_lightning.language_model.utils: extract_logits_from_output extract_model_id get_device_from_model
    move_tensors_to_device -
mi_crow_lightning.store: LocalStore Store
mi_crow_lightning.store.local_store: LocalStore
mi_crow_lightning.store.store: Store TensorMetadata
mi_crow_lightning.store.store_dataloader: StoreDataloader -
mi_crow_lightning.utils: get_logger set_seed -
"""

# Every public attribute of its classes that have a counterpart; those of GONE_NAMES have none.
ATTRIBUTES_OF_MI_CROW = """
Hook: clear_captured context disable enable enabled get_captured get_torch_hook hook_type id layer_signature metadata
    process_activations set_context store target_dtype tensor_metadata
FunctionController: function modify_activations
HookType: FORWARD PRE_FORWARD
HookError: hook_id hook_type original_error
Activations: context save_activations save_activations_dataset
Inference: execute_inference extract_logits infer_dataset infer_texts lm
LanguageModel: activations clear_detectors context from_huggingface from_local from_local_torch
    get_all_detector_metadata get_input_tracker inference layers lm_tokenizer model model_id save_detector_metadata
    save_model store tokenize tokenizer
Layers: context disable_all_hooks disable_hook enable_all_hooks enable_hook get_controllers get_detectors get_hooks
    get_layer_names idx_to_layer name_to_layer print_layer_names register_forward_hook_for_layer register_hook
    register_pre_forward_hook_for_layer unregister_hook
Store: base_path dataset_prefix delete_run get_detector_metadata get_detector_metadata_by_layer_by_key get_run_batch
    get_run_metadata get_tensor iter_run_batch_range iter_run_batches list_run_batches model_prefix
    put_detector_metadata put_run_batch put_run_detector_metadata put_run_metadata put_tensor runs_prefix
"""

# What a LightningCLI wrote into the configuration of a run with every hook, schedule and choice of tokens.
OF_CONFIGURATIONS = """
mi_crow_lightning: AblationController ActivationStatistics AllOf AnyOf ClampController ContrastDetector
    FunctionController HookCallback LayerActivationDetector LoggedSteps Not PatchController ProjectionDetector
    ScaleController Schedule SteeringController Tokens
mi_crow_lightning.hooks.tokens: AllOf AnyOf Not
"""


def rows(table: str) -> list[tuple[str, list[str]]]:
    joined = re.sub(r"\n +", " ", table).strip().splitlines()
    return [(module, names.split()) for module, names in (line.split(": ") for line in joined)]


def imported(path: str) -> Any:
    """The module, or what lies in it, that a dotted path leads to."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


KEPT = [row for row in rows(OF_MI_CROW) if row[1][-1] != "-"]
LEFT_OUT = [(module, names[:-1]) for module, names in rows(OF_MI_CROW) if names[-1] == "-"]


@pytest.mark.parametrize(("module", "names"), [*rows(TABLE), *KEPT, *rows(OF_CONFIGURATIONS)])
def test_what_could_be_imported_can_be(module: str, names: list[str]) -> None:
    for name in names:
        namespace: dict[str, Any] = {}
        exec(f"from {module} import {name}", namespace)
        assert namespace[name] is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("module", "names"), LEFT_OUT)
def test_an_import_of_mi_crow_without_a_counterpart_says_what_to_use(module: str, names: list[str]) -> None:
    for name in names:
        with pytest.raises(ImportError, match=r"which is a (module|name) of mi-crow: \w+"):
            exec(f"from {module} import {name}")


def test_old_places_give_the_same_objects() -> None:
    from mi_crow_lightning.vectors.contrast_detector import ContrastDetector

    from mi_crow_lightning.store.detector_store import DetectorStore
    from mi_crow_lightning.store.store import Store

    assert ContrastDetector is mcl.ContrastDetector is mcl.vectors.ContrastDetector and DetectorStore is Store


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_is_the_module_of_today(old: str) -> None:
    today = importlib.import_module(f"mi_crow_lightning.{MOVED[old]}")
    spec = today.__spec__
    assert importlib.import_module(f"mi_crow_lightning.{old}") is today
    assert today.__spec__ is spec and today.__name__ == f"mi_crow_lightning.{MOVED[old]}"


def test_a_module_that_never_existed_is_still_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"mi_crow_lightning\.metrics\.effect'"):
        importlib.import_module("mi_crow_lightning.metrics.effect")


@pytest.mark.parametrize("gone", GONE)
def test_a_module_of_mi_crow_that_is_gone_says_what_to_use(gone: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=re.escape(GONE[gone])) as raised:
        importlib.import_module(f"mi_crow_lightning.{gone}")
    assert raised.value.name == f"mi_crow_lightning.{gone}"


@pytest.mark.parametrize("below", ["datasets.text_dataset", "mechanistic.sae.modules"])
def test_so_does_what_was_below_it(below: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="which is a module of mi-crow"):
        importlib.import_module(f"mi_crow_lightning.{below}")


@pytest.mark.parametrize("name", ["mechanistic", "hooks.utils", "store.store_dataloader"])
def test_modules_of_other_packages_are_not_answered_for(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"^No module named '{name.partition('.')[0]}'$"):
        importlib.import_module(name)
    finder = next(finder for finder in sys.meta_path if type(finder) is _Moved)
    assert finder.find_spec(name, None) is None


def test_modules_that_exist_are_found_before_old_names() -> None:
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before and [type(finder) is _Moved for finder in before].count(True) == 1
    assert before.index(PathFinder) < [type(finder) is _Moved for finder in before].index(True)


def test_the_folder_of_mi_crow_s_hooks_holds_no_second_copy_of_a_module() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mi_crow_lightning.hooks.implementations.hook")


def objects() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Identity())
    lm = mcl.LanguageModel(model, None)
    return {
        "Hook": mcl.LayerActivationDetector("0"),
        "FunctionController": mcl.FunctionController("0", torch.tanh),
        "HookType": mcl.HookType,
        "HookError": mcl.HookError("0", "forward", ValueError()),
        "Layers": lm.layers,
        "Activations": lm.activations,
        "Inference": lm.inference,
        "LanguageModel": lm,
        "Store": mcl.LocalStore(),
    }


ANSWERING = [owner for owner in objects() if owner in GONE_NAMES]


@pytest.mark.parametrize(("owner", "names"), rows(ATTRIBUTES_OF_MI_CROW))
def test_every_attribute_of_mi_crow_is_there_or_has_an_answer(owner: str, names: list[str]) -> None:
    thing = objects()[owner]
    gone = GONE_NAMES.get(owner, {})
    assert [name for name in names if not hasattr(thing, name)] == [name for name in names if name in gone]


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner in objects() for name in GONE_NAMES.get(owner, ())]
)
def test_an_attribute_of_mi_crow_says_what_to_use(owner: str, name: str) -> None:
    thing = objects()[owner]
    with pytest.raises(AttributeError, match=re.escape(GONE_NAMES[owner][name])):
        getattr(thing, name)
    assert not hasattr(thing, name)


def test_a_hook_that_a_trainer_gets_for_a_callback_says_where_hooks_go() -> None:
    with pytest.raises(AttributeError, match=r"'Hook' has no 'state_key': .* Trainer\(callbacks=\[HookCallback\("):
        pl.Trainer(accelerator="cpu", logger=False, callbacks=[mcl.ActivationStatistics("block:*")])
    said = r"'ActivationStatistics' object is not a list: a hook is not .* Trainer\(callbacks=\[HookCallback\("
    with pytest.raises(TypeError, match=said):
        pl.Trainer(accelerator="cpu", logger=False, callbacks=mcl.ActivationStatistics("block:*"))  # type: ignore[arg-type]
    hook = mcl.ActivationStatistics("block:*")
    assert not hasattr(hook, "state_key") and not isinstance(hook, Iterable)


def test_a_hook_that_transformers_gets_for_a_callback_says_where_hooks_go(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(AttributeError, match=r"'on_init_end': .* Trainer\(callbacks=\[HookTrainerCallback\("):
        Trainer(nn.Linear(1, 1), arguments, callbacks=[mcl.ActivationStatistics("block:*")])  # type: ignore[list-item]


def test_a_hook_that_is_a_list_as_well_keeps_its_items() -> None:
    class Both(mcl.Detector, nn.Sequential):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            mcl.Detector.__init__(self, "block:0")
            self.append(nn.Identity())

    assert isinstance(Both()[0], nn.Identity)


def test_a_class_method_of_mi_crow_says_what_to_use() -> None:
    with pytest.raises(AttributeError, match=r"use LanguageModel\(model, tokenizer\)"):
        mcl.LanguageModel.from_local("folder")  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", [mcl.Layers, mcl.Detector])
def test_a_class_without_the_method_says_nothing_of_it(cls: type) -> None:
    with pytest.raises(AttributeError, match=f"type object '{cls.__name__}' has no attribute 'from_local'"):
        _ = cls.from_local  # type: ignore[attr-defined]


class Broken(mcl.Detector):
    @property
    def width(self) -> int:
        raise AttributeError("no activation was seen")


class Learned(mcl.Detector, torch.nn.Module):
    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        mcl.Detector.__init__(self, "0")
        self.probe = torch.nn.Linear(2, 2)


def test_other_attributes_behave_as_without_answers() -> None:
    with pytest.raises(AttributeError, match="'Layers' object has no attribute 'no_such'"):
        _ = objects()["Layers"].no_such
    with pytest.raises(AttributeError, match="no activation was seen"):
        _ = Broken("0").width
    assert isinstance(Learned().probe, torch.nn.Linear)
    with pytest.raises(AttributeError, match="no_such"):
        _ = Learned().no_such


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").glob("*.[py]*"))]


def paths_in(page: Path) -> set[str]:
    return set(re.findall(r"\bmi_crow_lightning(?:\.[A-Za-z_]\w*)+\b(?!\.\w|/|\.py)", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", [page for page in PAGES if paths_in(page)], ids=lambda page: page.name)
def test_the_paths_of_the_documentation_and_the_examples_lead_somewhere(page: Path) -> None:
    for path in paths_in(page):
        imported(path)


def test_the_classes_that_a_cli_writes_are_those_of_before(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    from tests.callback.configured import cli, ours, vector_file, watch

    vector = str(vector_file(tmp_path))
    others = [ours("Schedule", epochs=1), ours("LoggedSteps"), ours("Not", schedule=ours("Schedule", epochs=0))]
    when = ours("AllOf", schedules=[ours("Schedule", stages="train"), ours("AnyOf", schedules=others)])
    choice, at = {"choices": ["last", ours("hooks.tokens.Not", choice={"ids": [1]})]}, "block:1"
    tokens = ours(
        "hooks.tokens.AllOf", choices=[ours("hooks.tokens.AnyOf", **choice), ours("Tokens", window=[-8, None])]
    )
    detectors = [
        ours("ActivationStatistics", at, schedule=when, tokens=tokens),
        ours("LayerActivationDetector", at),
        ours("ProjectionDetector", at, vector=vector),
        ours("ContrastDetector", at),
    ]
    controllers = [
        ours("AblationController", at, vector=vector),
        ours("ClampController", at, vector=vector, value=1.0),
        ours("FunctionController", at, function="torch.tanh"),
        ours("PatchController", at, source=vector),
        ours("ScaleController", at, factor=2),
        ours("SteeringController", at, vector=vector),
    ]
    with pytest.raises(SystemExit) as ended:
        cli(watch(detectors=detectors, controllers=controllers), "fit", "--print_config")
    assert not ended.value.code
    written = {path for path in re.findall(r"class_path: (\S+)", capsys.readouterr().out) if path.startswith("mi_crow")}
    assert written == {f"{module}.{name}" for module, names in rows(OF_CONFIGURATIONS) for name in names}
    for path in written:
        assert isinstance(imported(path), type)
