"""What is wrong in a LightningCLI's YAML is told with the field's name, and what it may be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mi_crow_lightning import ProjectionDetector, SteeringController
from mi_crow_lightning.errors import VectorFileError

pytest.importorskip("jsonargparse")

from tests.callback.configured import cli, ours, scale, watch

HERE = "tests.callback.configured"

ERRORS = {
    "a wrong type": (scale(factor="two"), r'"factor":\s+Expected a <class .float.>. Got value: two'),
    "a list for one": (scale(factor=[2]), r'"factor":\s+Expected a <class .float.>'),
    "an unknown key": (scale(tockens="all"), "Option 'tockens' is not accepted"),
    "an unknown class": (ours("Scaler", 0), "module 'mi_crow_lightning' has no attribute 'Scaler'"),
    "a missing key": (ours("ScaleController", 0), "required: factor"),
    "no function": (ours("FunctionController", 0, function=f"{HERE}.NUMBER"), '"function":[^@]* 3'),
    "an unknown function": (ours("FunctionController", 0, function=f"{HERE}.none"), r'"function":[^@]*attribute .none'),
    "a strength that is none": (scale(strength="much"), '"strength":[^@]*Given value: much'),
    "a schedule that is none": (scale(schedule="train"), '"schedule":[^@]*train'),
    "tokens that are none": (
        scale(tokens="end"),
        r'"tokens":[^@]*Expected a typing\.Literal\[.all., .prompt.,[^@]*end',
    ),
    "an on_error that is none": (
        scale(on_error="cry"),
        r'"on_error":[^@]*Literal\[.raise., .disable., .warn.\][^@]*cry',
    ),
    "a statistic of tokens that is none": (
        ours("TokenStatistics", 0, statistics=["cosinus"]),
        r'"statistics":[^@]*Literal\[.abs_mean., [^@]*cosinus',
    ),
    "a stage that is none": (
        scale(schedule=ours("Schedule", stages="eval")),
        r'"stages":[^@]*Literal\[.train., .validate., [^@]*eval',
    ),
    "tokens joined as schedules": (
        scale(tokens=ours("AllOf", schedules=[])),
        '"tokens":[^@]*mi_crow_lightning.AllOf does not correspond to a subclass of Tokens',
    ),
}


@pytest.mark.documents("compatibility/a-wrong-configuration/detectors")
@pytest.mark.parametrize(("hook", "words"), ERRORS.values(), ids=ERRORS)
def test_errors_of_a_file_name_the_field(hook: dict[str, Any], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli(watch(controllers=[hook]), "fit")
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert '"controllers"' in told and re.search(words, told), told


@pytest.mark.documents("compatibility/a-wrong-configuration/controllers")
@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (ours("SteeringController", 0, vector="no.safetensors"), "vector: no steering vector at 'no.safetensors'"),
        (scale(hook_id=""), "hook_id='' must be a non-empty string"),
        (scale(strength=".nan"), "strength=nan must be a finite number"),
        (scale(schedule=ours("AllOf")), "AllOf() needs at least one schedule"),
        (scale(tokens=ours("hooks.tokens.AnyOf")), "AnyOf() needs at least one choice of tokens"),
    ],
)
def test_what_constructors_refuse_names_the_argument(hook: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        cli(watch(controllers=[hook]))
    assert words in str(caught.value)


def test_a_file_that_is_not_there_or_no_vector_is_told_with_the_field(tmp_path: Path) -> None:
    missing, other = tmp_path / "no.safetensors", tmp_path / "other.safetensors"
    other.write_bytes(b"what is this")
    with pytest.raises(FileNotFoundError, match=r"^vector: no steering vector at '.*no\.safetensors'"):
        SteeringController("block:1", missing)
    with pytest.raises(VectorFileError, match=r"^vectors\['joy'\]: '.*other\.safetensors' is not a readable"):
        ProjectionDetector("block:1", vectors={"joy": str(other)})
