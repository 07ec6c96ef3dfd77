"""The words of the package: plain English in docstrings, comments and messages.

Docstrings of functions open with an imperative verb, those of classes and properties with a noun phrase, and none
with "What". Some words and phrases are never used: write the words beside them instead.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "mi_crow_lightning"

# Folders and files that are not yet written in plain English. Delete a line when its place is done.
STILL_TO_DO: tuple[str, ...] = ()

# Each pattern, and the words to use instead. They are searched in whole files, also inside of names such as `_told`.
AVOID = {
    r"tells|told": "reports, says, raises, warns, logs, shows",
    r"anew": "again, from scratch",
    r"of which": "from which, in which, whose",
    r"(of|on) (its|their|his|your) own": "its own, separate",
    r"so many": "as many, that many",
    r"all the same": "anyway, nevertheless",
    r"(?<!there\s)(is|are) no(?! longer| more)": "is not a, there is no",
}

# Openings of a function's docstring that are no imperative: the function is described, or a noun stands there.
_OTHER_WORDS = (
    "a all an and any anything as at before both by each either every everything first for from how if in into it its "
    "nothing of on one only or other our several some that the their there these they this those to two under what "
    "whatever when where whether which while who whose why with without"
)
_NOT_A_VERB = frozenset(_OTHER_WORDS.split())
_VERBS_THAT_END_IN_S = frozenset({"address", "bypass", "compress", "discuss", "express", "guess", "pass", "process"})
_PROPERTIES = ("property", "cached_property", "setter")


class Docstring(NamedTuple):
    place: str
    kind: str  # "module", "class", "function" or "property"
    text: str

    @property
    def opening(self) -> str:
        return self.text.split(maxsplit=1)[0] if self.text.strip() else ""


def files() -> list[Path]:
    done = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).parts
        if not any(parts[: len(Path(place).parts)] == Path(place).parts for place in STILL_TO_DO):
            done.append(file)
    return done


def kind_of(node: ast.AST) -> str:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    decorators = [ast.unparse(decorator).rpartition(".")[2] for decorator in getattr(node, "decorator_list", [])]
    return "property" if any(name in _PROPERTIES for name in decorators) else "function"


def docstrings(source: str, name: str = "") -> list[Docstring]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                place = f"{name}:{getattr(node, 'lineno', 1)} {getattr(node, 'name', '')}".rstrip()
                found.append(Docstring(place, kind_of(node), text))
    return found


def faults_of_opening(docstring: Docstring) -> list[str]:
    """What is wrong with the way a docstring opens; nothing is said of what no rule decides for certain."""
    word = docstring.opening.strip(".,:;").lower()
    if word == "what":
        return [f"{docstring.place}: opens with 'What'"]
    if docstring.kind == "function":
        third_person = word.isalpha() and word.endswith("s") and word not in _VERBS_THAT_END_IN_S
        if word in _NOT_A_VERB or third_person or not word.isalpha():
            return [f"{docstring.place}: opens with {docstring.opening!r}, not with an imperative verb"]
    return []


def faults_of_words(source: str, name: str = "") -> list[str]:
    found = []
    for pattern, instead in AVOID.items():
        for match in re.finditer(rf"(?<![a-z])({pattern})(?![a-z])".replace(" ", r"\s+"), source, re.IGNORECASE):
            line = source.count("\n", 0, match.start()) + 1
            found.append(f"{name}:{line}: {match[0]!r}; write: {instead}")
    return found


@pytest.mark.parametrize("file", files(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_docstrings_and_messages_are_plain_english(file):
    source, name = file.read_text(encoding="utf-8"), file.relative_to(PACKAGE).as_posix()
    faults = [fault for docstring in docstrings(source, name) for fault in faults_of_opening(docstring)]
    assert not [*faults, *faults_of_words(source, name)]


def test_places_still_to_do_exist():
    missing = [place for place in STILL_TO_DO if not (PACKAGE / place).exists()]
    assert not missing, f"delete from STILL_TO_DO: {missing}"


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ('"""What a module holds."""', ":1"),
        ('class A:\n    """What it is."""', ":1 A"),
        ('def f():\n    """Returns a tag."""', ":1 f"),
        ('def f():\n    """The tag of a reading."""', ":1 f"),
        ('def f():\n    """Whether it is on."""', ":1 f"),
        ('def f():\n    """``x + y``."""', ":1 f"),
        ('class A:\n    def f(self):\n        """A tag."""', ":2 f"),
    ],
)
def test_wrong_openings_are_found(source, place):
    found = [fault for docstring in docstrings(source) for fault in faults_of_opening(docstring)]
    assert len(found) == 1 and found[0].startswith(f"{place}: opens with")


@pytest.mark.parametrize(
    "source",
    [
        '"""Tags: the names of readings."""',
        'class A:\n    """The tag of a reading."""',
        'class A:\n    @property\n    def f(self):\n        """The tag."""',
        'class A:\n    @cached_property\n    def f(self):\n        """Every tag."""',
        'class A:\n    @f.setter\n    def f(self, tag):\n        """The tag."""',
        'def f():\n    """Pass the tag on."""',
        'def f():\n    """Return, for each name, its tag."""',
        "def f():\n    return 1",
    ],
)
def test_right_openings_are_left_alone(source):
    assert not [fault for docstring in docstrings(source) for fault in faults_of_opening(docstring)]


@pytest.mark.parametrize(
    "source",
    [
        "# the summary tells the mode",
        "self._told = set()",
        'raise ValueError("a hook of its own")',
        "# a graph of\nwhich nothing is known",
        "# compiled Anew",
        "# a schedule is no stage",
    ],
)
def test_words_to_avoid_are_found(source):
    (fault,) = faults_of_words(source)
    assert "; write: " in fault


@pytest.mark.parametrize(
    "source", ["stolen = untold", "its own file", "many so", "there is no layer", "it is no longer"]
)
def test_other_words_are_left_alone(source):
    assert not faults_of_words(source)
