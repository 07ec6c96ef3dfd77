"""The modules of the page as one script."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from mi_crow_lightning.run_page import bundle
from mi_crow_lightning.run_page.bundle import bundled, style
from mi_crow_lightning.tensorboard_plugin.assets import FILES


def names_of(script: str) -> set[str]:
    return set(re.findall(r"^const m_(\w+) = \(\(\) => \{$", script, re.MULTILINE))


def test_every_module_of_the_tab_is_in_the_page_but_those_around_it() -> None:
    of_the_tab = {re.sub(r"\W", "_", name.removesuffix(".js")) for name in FILES if name.endswith(".js")}
    assert names_of(bundled()) - {"page", "archive", "scheme"} == of_the_tab - {"index", "host"}


def test_nothing_in_it_ends_the_script_or_the_style() -> None:
    for text in (bundled(), style()):
        assert not re.search(r"</|<!--", text.replace("</>", ""))


def test_uplot_keeps_its_licence_and_loses_no_code() -> None:
    source = resources.files("mi_crow_lightning.tensorboard_plugin").joinpath("static/uplot/uPlot.esm.js").read_text()
    short = bundle._shortened(source)
    code = [line.strip() for line in re.sub(r"^/\*\n[\s\S]*?^\*/\n", "", source, flags=re.MULTILINE).splitlines()]
    assert [line for line in short.splitlines() if line] == [
        line for line in code if line and not line.startswith("//")
    ]
    assert short.startswith("/**\n* Copyright (c) 2025, Leon Sorokin\n") and len(short) < 0.9 * len(source)
    assert "`" not in source or not re.search(r"^[^`\n]*`[^`\n]*$", source, re.MULTILINE)  # else spaces would matter


def test_every_form_that_is_used_becomes_plain_code() -> None:
    modules = {}
    modules["a.js"] = (
        'import { one, two as other } from "./b.js";\nimport {\n  three,\n} from "./inner/c.js";\n'
        'import Whole from "./inner/c.js";\nexport const four = one + other + three + Whole;\n'
        "export async function five() {}\nexport class Six {}\n"
    )
    modules["b.js"] = 'import { three } from "./inner/c.js";\nexport function one() {}\nexport const two = three;\n'
    modules["inner/c.js"] = "const x = 3;\nexport const three = x;\nexport { x as default };\n"
    assert bundled("a.js", modules.__getitem__) == (
        "const m_inner_c = (() => {\nconst x = 3;\nconst three = x;\n\n\nreturn { default: x, three };\n})();\n"
        "const m_b = (() => {\nconst { three } = m_inner_c;\nfunction one() {}\nconst two = three;\n\n"
        "return { one, two };\n})();\n"
        "const m_a = (() => {\nconst { one, two: other } = m_b;\nconst { three, } = m_inner_c;\n"
        "const { default: Whole } = m_inner_c;\nconst four = one + other + three + Whole;\nasync function five() {}\n"
        "class Six {}\n\nreturn { four, five, Six };\n})();"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('import * as b from "./b.js";', "a.js has a form of import or export that bundle.py does not know: import *"),
        ("export default 3;", "does not know: export default 3;"),
        ("export let x = 3;", "does not know: export let"),
        ('const b = await import("./b.js");', "does not know: import("),
        ('import { x } from "./a.js";', "modules import in a circle: a.js -> a.js"),
    ],
)
def test_any_other_form_is_an_error(source: str, message: str) -> None:
    modules = {"a.js": f"{source}\n", "b.js": "export const x = 1;\n"}
    with pytest.raises(ValueError, match=re.escape(message)):
        bundled("a.js", modules.__getitem__)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=re.escape("there is no file 'none.js' of the page")):
        bundled("none.js")
