"""The public names: honest, lazily loaded, and where users of mi-crow look for them."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import mi_crow_lightning

PACKAGES = [
    *("", ".alarms", ".callback", ".figures", ".hooks", ".language_model", ".loggers", ".metrics", ".report", ".store"),
    *(".hf_trainer", ".references", ".run_page", ".vectors"),
]
HEAVY = ("torch", "lightning", "transformers", "torchmetrics", "tensorboard", "safetensors", "numpy")


def package(name: str):
    return importlib.import_module(f"mi_crow_lightning{name}")


def stub(name: str) -> Path:
    """The table of a package's names: type checkers read it, and `_lazy.attach`."""
    return Path(package(name).__file__).with_suffix(".pyi")


def test_every_package_with_a_stub_is_tested():
    root = Path(mi_crow_lightning.__file__).parent
    stubs = {f".{'.'.join(file.parent.relative_to(root).parts)}".rstrip(".") for file in root.rglob("__init__.pyi")}
    attached = {
        f".{'.'.join(file.parent.relative_to(root).parts)}".rstrip(".")
        for file in root.rglob("__init__.py")
        if "attach(" in file.read_text(encoding="utf-8")
    }
    assert stubs == attached == set(PACKAGES)


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_unique_and_resolves(name):
    names = package(name).__all__
    assert len(names) == len(set(names))
    for public in names:
        value = getattr(package(name), public)
        assert getattr(value, "__name__", public) == public
        assert public in dir(package(name))


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_what_there_is_at_run_time(name):
    """``from module import name as name``, one a line: the form that hands a name on."""
    body = ast.parse(stub(name).read_text(encoding="utf-8")).body
    others = [ast.unparse(line) for line in body if not isinstance(line, ast.ImportFrom)]
    assert others == (["__version__: str"] if name == "" else [])
    handed_on = [(line.module, line.names) for line in body if isinstance(line, ast.ImportFrom)]
    for module, (alias,) in handed_on:
        assert alias.asname == alias.name
        assert getattr(package(name), alias.name) is getattr(importlib.import_module(module), alias.name)
    assert [alias.name for _, (alias,) in handed_on] == package(name).__all__


@pytest.mark.parametrize("name", PACKAGES)
def test_public_names_have_a_docstring(name):
    for public in package(name).__all__:
        value = getattr(package(name), public)
        assert value.__doc__ if callable(value) else value, public


@pytest.mark.parametrize("name", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package(name).no_such_name


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(name):
    script = f"import sys, mi_crow_lightning{name} as p; dir(p); print([m for m in {HEAVY!r} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_star_import_gives_all():
    namespace: dict[str, object] = {}
    exec("from mi_crow_lightning import *", namespace)
    assert set(mi_crow_lightning.__all__) <= set(namespace)


def test_the_root_holds_the_same_objects_as_the_packages():
    from mi_crow_lightning import errors, hooks, language_model, store, vectors

    for place in (hooks, language_model, store, errors, vectors):
        for name in set(place.__all__) & set(mi_crow_lightning.__all__):
            assert getattr(mi_crow_lightning, name) is getattr(place, name)


def test_what_users_of_mi_crow_expect_of_its_classes():
    from mi_crow_lightning.hooks import Controller, Detector, FunctionController, LayerActivationDetector
    from mi_crow_lightning.hooks.hook import Hook, HookError, HookType
    from mi_crow_lightning.store import LocalStore, Store

    assert all(issubclass(cls, Hook) for cls in (Controller, Detector, FunctionController, LayerActivationDetector))
    assert issubclass(LocalStore, Store) and issubclass(HookError, Exception)
    assert [kind.name for kind in HookType] == ["FORWARD", "PRE_FORWARD"]
    assert HookType.FORWARD == "forward"


def test_the_root_lists_the_version_but_does_not_export_it():
    assert "__version__" in dir(mi_crow_lightning) and "__version__" not in mi_crow_lightning.__all__


def test_the_version_is_that_of_the_installed_package():
    assert mi_crow_lightning.__version__ == importlib.metadata.version("mi-crow-lightning")
