"""Files of persona_vectors: rows become blocks, and whatever else a file holds is refused before it is unpacked."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from mi_crow_lightning import SteeringVector
from mi_crow_lightning.errors import VectorFileError
from mi_crow_lightning.vectors import read_persona_vector
from tests.models import BLOCKS, WIDTH, llama
from tests.strangers import damaged, outcome

pytestmark = pytest.mark.faults


def saved(value: Any, **options: Any) -> bytes:
    torch.save(value, buffer := io.BytesIO(), **options)
    return buffer.getvalue()


ROWS = torch.arange(12.0).view(4, 3)
WHOLE = saved(ROWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strangers")


def read(folder: Path, content: bytes) -> Exception | SteeringVector:
    (file := folder / "evil.pt").write_bytes(content)
    result = outcome(lambda: read_persona_vector(file), file, VectorFileError)
    if isinstance(result, SteeringVector):
        result.save(folder / "again.safetensors")
        assert SteeringVector.load(folder / "again.safetensors") == result
    return result


@pytest.mark.documents("reliability/a-file-of-persona-vectors-holds-something-else-or-is-damaged")
def test_row_l_is_the_output_of_block_l_minus_1(tmp_path: Path) -> None:
    model, ids = llama().eval(), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
        outputs = {}
        for i, block in enumerate(model.model.layers):
            block.register_forward_hook(lambda module, args, out, i=i: outputs.__setitem__(i, out))
        model(ids)
    torch.save(torch.stack([state[0].mean(0) for state in states]), tmp_path / "evil.pt")  # (L + 1, D)
    vector = read_persona_vector(tmp_path / "evil.pt").fitted_to(model)
    assert vector.layers == tuple(f"model.layers.{i}" for i in range(BLOCKS)) and vector.method == "persona_vectors"
    for i in range(BLOCKS - 1):  # the last one has the final norm in it
        assert torch.equal(vector[f"model.layers.{i}"], outputs[i][0].mean(0))
    named = read_persona_vector(tmp_path / "evil.pt", embedding="model.embed_tokens")
    assert torch.equal(named["model.embed_tokens"], states[0][0].mean(0)) and len(named) == BLOCKS + 1
    assert len(named["block:0"]) == WIDTH


@pytest.mark.fuzz
@pytest.mark.documents("reliability/a-file-of-persona-vectors-holds-something-else-or-is-damaged")
@settings(max_examples=100, deadline=None)
@given(damaged(WHOLE))
def test_damaged_bytes(folder: Path, content: bytes) -> None:
    read(folder, content)


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("run",)


def packed() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        with zipfile.ZipFile(io.BytesIO(WHOLE)) as whole:
            for name in whole.namelist():
                archive.writestr(name, whole.read(name))
        archive.writestr("archive/data/9", bytes(10**7))
    return buffer.getvalue()


@pytest.mark.documents("reliability/a-file-of-persona-vectors-holds-something-else-or-is-damaged")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a file that torch.save wrote"),
        (saved(ROWS, _use_new_zipfile_serialization=False), "is not a file that torch.save wrote"),
        (packed(), "packed: torch.save packs nothing"),
        (saved(Harmful()), "torch does not take it for a tensor (UnpicklingError)"),
        (saved({"evil": ROWS}), "holds a dict, and a tensor (L + 1, D) is needed"),
        (saved(torch.ones(3)), "holds torch.float32 of shape (3,), and floats (L + 1, D) are needed"),
        (saved(torch.ones(1, 3)), "of shape (1, 3)"),
        (saved(torch.ones(3, 3, dtype=torch.int64)), "holds torch.int64"),
        (saved(torch.ones(3, 3).to_sparse()), "holds a Tensor"),
        (saved(torch.full((3, 2), torch.nan)), "holds 2 non-finite values"),
        (saved(torch.ones(1, 1).expand(10**6, 10**6)), "claims the shape (1000000, 1000000), and has fewer numbers"),
        (saved("x" * 10**5), "describes its tensor in 1000"),
    ],
)
def test_files_that_hold_something_else(
    tmp_path: Path, content: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in str(read(tmp_path, content))
    assert capsys.readouterr().out == ""  # nothing of it ran


@pytest.mark.documents("reliability/a-file-of-persona-vectors-holds-something-else-or-is-damaged")
def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no persona vector at '.*evil\.pt'"):
        read_persona_vector(tmp_path / "evil.pt")
