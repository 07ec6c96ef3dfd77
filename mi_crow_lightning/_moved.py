"""Names that moved or are gone, this package's own and those of mi-crow: they work, or the error says what to use.

An import from an old place, or a class path in a configuration file, gives the module of today itself, so that a class
is one class whichever way it was reached.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any, NoReturn, TypeVar

    _C = TypeVar("_C", bound=type)

__all__ = [
    "ELSEWHERE",
    "GONE",
    "GONE_NAMES",
    "INTO_A_CALLBACK",
    "MOVED",
    "answer_of",
    "answers_for_old_names",
    "install",
]

_PACKAGE = __name__.rpartition(".")[0]

MOVED = {
    "hooks.implementations.function_controller": "hooks.controllers.function",
    "hooks.implementations.layer_activation_detector": "hooks.detectors.layer_activation",
    "language_model.layers": "hooks.layers",
    "metrics.directions": "metrics.class_directions",
    "metrics.effects": "metrics.changes",
    "vectors.contrast_detector": "hooks.detectors.contrast",
}
"""Old name of a module, and its name today, within the package."""

_FOLDERS = frozenset({"hooks.implementations"})  # packages that hold nothing but old names

_OWN_DETECTOR = "write a Detector whose observe(x, ctx) keeps what you need, on the layer that has it"
_INPUTS = "inference.execute_inference returns the encodings; store.put keeps one of them"
_OUTPUTS = "inference.execute_inference returns the output; a LayerActivationDetector on 'lm_head' keeps the logits"
_NO_SAE = "there are no sparse autoencoders here; SteeringVector.from_sae reads decoder rows in SAELens' format"
_TEXTS = "give the texts themselves, such as dataset['text'], to"
_STORE = "write to ctx.store in a detector's observe, or to its self.store in a Trainer"

GONE = {
    "datasets": "use any dataset or DataLoader",
    "hooks.implementations.model_input_detector": _INPUTS,
    "hooks.implementations.model_output_detector": _OUTPUTS,
    "hooks.utils": "use take_input, take_output, put_input and put_output of mi_crow_lightning.hooks.activations",
    "language_model.context": "a hook's self.context is a mi_crow_lightning.hooks.HookContext",
    "language_model.contracts": _STORE,
    "language_model.device_manager": "pass device=... to LanguageModel",
    "language_model.hook_metadata": "use layers.get_hooks() and layers.sites(hook)",
    "language_model.initialization": "use LanguageModel.from_huggingface, or LanguageModel(model, tokenizer)",
    "language_model.persistence": "save the model with save_pretrained, and load it with from_huggingface",
    "language_model.tokenizer": "use language_model.tokenize, or the tokenizer itself",
    "language_model.utils": "use language_model.device, and the model's output itself",
    "mechanistic": _NO_SAE,
    "store.store_dataloader": "use store.iterate",
    "utils": "use Python's logging and Lightning's seed_everything",
}
"""A module of mi-crow that has no counterpart, and what to use instead."""

GONE_NAMES = {
    "hooks": {"ModelInputDetector": _INPUTS, "ModelOutputDetector": _OUTPUTS},
    "Hook": {
        "get_torch_hook": "register the hook, Layers(model).register_hook(layer, hook), or use attached(model, hook)",
        "set_context": "Layers.register_hook gives a hook its context; a hook that is called directly needs none",
    },
    "Layers": {
        "context": "use root, language_model and store",
        "get_layer_names": "use list_layers()",
        "print_layer_names": "use list_layers()",
        "name_to_layer": "use list_layers(), or root.get_submodule(name)",
        "idx_to_layer": "use list_layers(), or root.get_submodule(name)",
        "register_forward_hook_for_layer": "use register_hook, or torch's own hooks",
        "register_pre_forward_hook_for_layer": "use register_hook with hook_type='pre_forward', or torch's own hooks",
    },
    "Inference": {
        "infer_dataset": f"{_TEXTS} infer_texts, or run a Trainer's predict with a HookCallback",
        "extract_logits": "use outputs.logits",
        "lm": "use the LanguageModel itself",
    },
    "Activations": {
        "context": "use the LanguageModel's model, tokenizer, store and device",
        "save_activations_dataset": f"{_TEXTS} save_activations",
    },
    "LanguageModel": {
        "context": "use the LanguageModel's model, tokenizer, store and device",
        "from_local": "use LanguageModel(model, tokenizer)",
        "from_local_torch": "use LanguageModel(model, tokenizer)",
        "get_input_tracker": _OWN_DETECTOR,
        "lm_tokenizer": "use tokenize(), or the tokenizer itself",
        "save_model": "save the model with save_pretrained",
    },
    "Store": {
        "dataset_prefix": "datasets are not kept in a store; use the dataset's save_to_disk",
        "model_prefix": "models are not kept in a store; use the model's save_pretrained",
    },
}
"""Names of mi-crow that have no counterpart, by the package or class that had them, and what to use instead."""

INTO_A_CALLBACK = (
    "a hook is not a callback by itself: put it into one, as in "
    "Trainer(callbacks=[HookCallback(detectors=[...], controllers=[...])])"
)
"""What a hook answers to a Trainer that takes it for a callback."""

ELSEWHERE = {
    "Hook": {
        # The first things that the Trainers of Lightning and of transformers ask of each of their callbacks.
        "state_key": INTO_A_CALLBACK,
        "on_init_end": INTO_A_CALLBACK.replace("HookCallback", "HookTrainerCallback"),
    },
}
"""Names that other classes have, by the class that is taken for one of them, and what to do instead."""

_ON_CLASSES = ("from_local", "from_local_torch")  # class methods


def answer_of(owner: str, name: str) -> str | None:
    """Return the message for a name that a package or class does not have here; ``None`` for names not known."""
    if name in ELSEWHERE.get(owner, {}):
        return f"{owner!r} has no {name!r}: {ELSEWHERE[owner][name]}"
    instead = GONE_NAMES.get(owner, {}).get(name)
    return f"{owner!r} has no {name!r} here, which is a name of mi-crow: {instead}" if instead is not None else None


def answers_for_old_names(cls: _C) -> _C:
    """Let instances of a class, and of those below it, answer for the names of mi-crow that it does not have."""

    def __getattr__(self: Any, name: str) -> Any:
        answer = answer_of(cls.__name__, name)
        if answer is not None:
            raise AttributeError(answer)
        of_base = getattr(super(cls, self), "__getattr__", None)  # a hook may be an nn.Module as well
        # Asking again raises the error of before, which may be that of a property.
        return of_base(name) if of_base is not None else object.__getattribute__(self, name)

    # Set here, not written in the class: there it would hide wrong names from type checkers.
    setattr(cls, "__getattr__", __getattr__)  # noqa: B010
    for name in _ON_CLASSES:
        if name in GONE_NAMES.get(cls.__name__, {}):
            setattr(cls, name, _GoneClassMethod(cls.__name__, name))
    return cls


class _GoneClassMethod:
    """A class method of mi-crow that is gone, which instances alone could not answer for."""

    def __init__(self, owner: str, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(answer_of(self._owner, self._name))


class _Moved:
    """A finder of modules with old names, and their loader."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for an old name; ``None`` for every other name.

        Raises:
            ModuleNotFoundError: it is a module of mi-crow that has no counterpart; the message says what to use.
        """
        if not name.startswith(f"{_PACKAGE}."):
            return None
        old = name.removeprefix(f"{_PACKAGE}.")
        if old in MOVED or old in _FOLDERS:
            return ModuleSpec(name, self, is_package=old in _FOLDERS)  # type: ignore[arg-type]  # a loader by its methods
        instead = GONE.get(old)
        if instead is not None:
            raise ModuleNotFoundError(f"there is no {name!r}, which is a module of mi-crow: {instead}", name=name)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make the module that `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of an old one; a folder of old names stays empty."""
        today = MOVED.get(module.__name__.removeprefix(f"{_PACKAGE}."))
        if today is not None:
            sys.modules[module.__name__] = importlib.import_module(f"{_PACKAGE}.{today}")


def install() -> None:
    """Make old names importable. The finder comes last, so a module that exists is always found first."""
    if not any(type(finder) is _Moved for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
