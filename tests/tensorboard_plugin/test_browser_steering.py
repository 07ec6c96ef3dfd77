"""The Steering view in headless Chromium: effects over batches, totals, and texts with the tokens that were changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mi_crow_lightning import CausalLMModule, HookCallback, ScaleController, Schedule, SteeringController
from mi_crow_lightning.loggers import HistoryRow, TextRow, read_compact, read_texts
from tests.callback.runs import data_of, module_of, run
from tests.language_model.tiny import TEXTS, model_of, texts_loader, tokens
from tests.loggers.test_text_rows import ROW
from tests.models import WIDTH, trainer
from tests.tensorboard_plugin.browser import Browser, chromium
from tests.tensorboard_plugin.logs import write_run, write_shown
from tests.tensorboard_plugin.served import tensorboard
from tests.tensorboard_plugin.tab import Tab, violations

pytestmark = pytest.mark.browser

SWEEP = [-2.0, 0.0, 2.0]
HOSTILE = "<script>window.hit=1</script><img src=x onerror=window.hit=1>\u202egnp"
CARDS = "[...document.querySelectorAll('.card')]"


def predict(folder: Path) -> None:
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    generation = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
    module = CausalLMModule(model_of("llama"), tokens(), generation=generation, sweep=SWEEP, log_text=3)
    controllers = [
        SteeringController("block:1-3", vector, strength="batch", tokens="generated", hook_id="joy"),
        ScaleController("block:0", 1.5, tokens="prompt", hook_id="<b id=hit>scale</b>"),
    ]
    logger = TensorBoardLogger(folder, name="predicted", version="")
    trainer(HookCallback(controllers=controllers), logger=logger).predict(module, texts_loader(batch_size=1))
    logger.finalize("success")


def fit(folder: Path) -> None:
    steer = ScaleController("block:1", 1.1, hook_id="scale", schedule=Schedule(stages=["train", "validate"]))
    logger = TensorBoardLogger(folder, name="fitted", version="")
    run("fit", trainer(HookCallback(controllers=steer), logger=logger), module_of("llama"), data_of("llama"))
    logger.finalize("success")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    fit(folder)
    hostile = ROW._replace(prompt=HOSTILE, text=HOSTILE, tokens=(HOSTILE,) * 3, touched={HOSTILE: (True, False, None)})
    write_shown(folder / "hostile", [hostile._replace(unmarked={HOSTILE + "2": HOSTILE}, left_out=(200, 300))])
    write_run(folder / "numbers", range(3))
    predict(folder)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser"), height=1400) as browser:
        yield browser


@pytest.fixture(scope="module")
def served(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(log, tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture
def tab(page: Browser, served: str) -> Iterator[Tab]:
    """The tab; afterwards, nothing may have gone wrong in the page, nor been asked for elsewhere."""
    page.errors.clear()
    page.requests.clear()
    page.size(1280, 1400)
    yield Tab(page, served)
    assert not page.errors
    assert not [url for url in page.requests if not url.startswith((served, "about:", "data:", "blob:"))]
    assert page.run("window.hit") is None


def written(log: Path, name: str, place: str, step: int, prefix: str = "steering_by_batch") -> float:
    """A number of the event file."""

    def wanted(row: HistoryRow) -> bool:
        return (row.name, row.layer, row.step) == (name, place, step) and row.tag.startswith(f"{prefix}_{name}/")

    (found,) = filter(wanted, read_compact(log / "predicted"))
    return found.value


def readout(tab: Tab, chart: int) -> str:
    text: str = tab.run(f"document.querySelectorAll('.steering .readout')[{chart}].textContent")
    return text


def last_number(text: str) -> np.float32:
    return np.float32(text.split()[-1])


def test_the_keyboard_reads_the_numbers_of_the_event_file(tab: Tab, log: Path) -> None:
    tab.open(view="steering", run="predicted")
    assert "changed in predict, over 5 points" in tab.title
    layers = [f"model.model.layers.{i}" for i in (1, 2, 3)]
    titles = tab.run("[...document.querySelectorAll('.steering h3')].map((one) => one.textContent)")
    assert titles == ["<b id=hit>scale</b>: mean ratio", "joy: mean ratio"]  # in the order of the hooks' places
    for quantity, words in (("mean_ratio", "mean ratio"), ("max_ratio", "largest ratio"), ("tokens", "changed tokens")):
        tab.choose("Quantity", words)
        tab.run("document.querySelectorAll('.lines')[1].focus()")
        for keys, layer, batch in (
            (["Home"], 0, 1),
            (["ArrowRight", "ArrowDown"], 1, 2),
            (["End", "ArrowDown", "ArrowDown"], 2, 5),
            (["ArrowLeft", "ArrowUp"], 1, 4),
            (["Home"], 1, 1),
        ):
            for key in keys:
                tab.page.key(key)
            text = readout(tab, 1)
            assert text.startswith(f"batch {batch}, {layers[layer]}: ")
            assert last_number(text) == np.float32(written(log, quantity, f"joy/{layers[layer]}", batch))


def test_the_pointer_reads_the_line_that_is_nearest(tab: Tab, log: Path) -> None:
    tab.open(view="steering", run="predicted", quantity="mean_ratio")
    x, y, width, height = tab.run(
        "(({x, y, width, height}) => [x, y, width, height])"
        "(document.querySelectorAll('.steering .u-over')[1].getBoundingClientRect())"
    )
    left, top = tab.corner()
    numbers = {i: written(log, "mean_ratio", f"joy/model.model.layers.{i}", 3) for i in (1, 2, 3)}
    assert numbers[1] > 10 > 1 > numbers[2] > numbers[3]
    for below, wanted in ((0.02 * height, numbers[1]), (0.9 * height, numbers[2])):
        tab.page.mouse("mouseMoved", left + x + width / 2, top + y + below)
        text = readout(tab, 1)
        assert text.startswith("batch 3, ") and last_number(text) == np.float32(wanted)


def test_the_totals_are_those_of_the_whole_stage(tab: Tab, log: Path) -> None:
    tab.open(view="steering", run="predicted")
    head, *rows = tab.table(".totals")
    assert head == ["controller", "layer", "mean_ratio", "max_ratio", "tokens", "fired"] and len(rows) == 4
    for hook, layer, *numbers in rows:
        for name, number in zip(head[2:], numbers, strict=True):
            assert np.float32(number) == np.float32(written(log, name, f"{hook}/{layer}", 5, prefix="steering"))


def shown(tab: Tab) -> list[dict[str, Any]]:
    cards: list[dict[str, Any]] = tab.run(
        f"""{CARDS}.map((card) => ({{
            title: card.querySelector('h4').textContent,
            tokens: [...card.querySelectorAll('.token')].map((token) => token.textContent),
            changed: [...card.querySelectorAll('.token')].map((token) => token.tagName === 'MARK'),
            prompt: card.querySelectorAll('.token.prompt').length,
            unread: [...card.querySelectorAll('.token')].map((token) => token.classList.contains('unread')),
            text: card.textContent,
        }}))"""
    )
    return cards


def assert_card(card: dict[str, Any], row: TextRow, hooks: list[str]) -> None:
    marks = [[row.touched[hook][at] for hook in hooks] for at in range(len(row.tokens))]
    assert card["title"] == f"strength {row.strength:g}" and card["tokens"] == list(row.tokens)
    assert card["changed"] == [True in mark for mark in marks] and card["prompt"] == row.prompt_tokens
    assert card["unread"] == [True not in mark and None in mark for mark in marks]
    assert f"{sum(card['changed'])} of {len(row.tokens)} tokens changed" in card["text"]


def test_texts_stand_side_by_side_with_the_tokens_that_were_changed(tab: Tab, log: Path) -> None:
    rows = list(read_texts(log / "predicted"))
    tab.open(view="steering", run="predicted")
    hooks = ["joy", "<b id=hit>scale</b>"]
    for prompt in range(3):
        of_prompt = [row for row in rows if row.row == prompt]
        cards = shown(tab)
        assert len(cards) == len(SWEEP) == len(of_prompt) and of_prompt[0].prompt == TEXTS[prompt]
        for card, row in zip(cards, of_prompt, strict=True):
            assert_card(card, row, hooks)
        tops = tab.run(f"{CARDS}.map((card) => card.getBoundingClientRect().top)")
        assert len(set(tops)) == 1  # side by side
        if prompt < 2:
            tab.press("Next prompt")
    assert tab.run("[...document.querySelectorAll('button')].find((one) => one.textContent === 'Next prompt').disabled")
    for hook in hooks:
        tab.choose("Tokens changed by", hook)
        for card, row in zip(shown(tab), [row for row in rows if row.row == 2], strict=True):
            assert_card(card, row, [hook])
    tab.choose("Prompt", f"1: {TEXTS[0]}")
    assert_card(shown(tab)[0], rows[0], [hooks[1]])
    style = "((mark) => [getComputedStyle(mark).textDecorationLine])(document.querySelector('.card mark'))"
    assert tab.run(style) == ["underline"]  # not by its colour alone


def test_a_permalink_shows_the_same_again(tab: Tab) -> None:
    tab.open(view="steering", run="predicted")
    tab.choose("Quantity", "changed tokens")
    tab.press("Next prompt")
    tab.choose("Tokens changed by", "joy")
    before, address = shown(tab), tab.page.run("location.hash")
    tab.page.open(f"{tab.address}{address}")
    tab.ready()
    assert shown(tab) == before and "joy: changed tokens" in tab.run("document.body.textContent")


def test_hostile_texts_are_only_text(tab: Tab) -> None:
    tab.open(view="steering", run="hostile")
    (card,) = shown(tab)
    assert card["tokens"] == [HOSTILE] * 3 and card["changed"] == [True, False, False]
    for words in ("200 tokens before are left out", "300 tokens after are left out", f"{HOSTILE}2 changed: {HOSTILE}"):
        assert words in card["text"]
    assert tab.run("[window.hit, document.querySelectorAll('#hit, .card img, .card script').length]") == [None, 0]
    assert tab.run("document.querySelector('[aria-label=\"Effect\"]').hidden")


def test_runs_without_batches_or_controllers(tab: Tab) -> None:
    tab.open(view="steering", run="fitted")
    assert "in train, over 5 steps" in tab.title or "in validate" in tab.title
    runs = tab.run("[...document.querySelector('.steering select').options].map((one) => one.value)")
    assert runs == ["fitted", "hostile", "predicted"]
    tab.choose("Stage", "validate")
    assert "in validate, over 1 step." in tab.title
    assert tab.run("document.querySelector('[aria-label=\"Texts\"]').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_window_hides_nothing(dark: bool, tab: Tab) -> None:
    tab.page.size(400, 900)
    tab.open(view="steering", run="predicted")
    tab.page.run(f"document.body.classList.toggle('dark-mode', {str(dark).lower()})")
    tab.wait(f"document.documentElement.classList.contains('dark') === {str(dark).lower()}")
    assert tab.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    widths = tab.run(f"{CARDS}.map((card) => card.scrollWidth <= card.clientWidth + 2)")
    assert all(widths) and len(widths) == len(SWEEP)
    tab.page.run("document.body.classList.remove('dark-mode')")


def test_every_control_has_a_name_and_is_reached_by_tab(tab: Tab) -> None:
    tab.open(view="steering", run="predicted")
    names = tab.run(
        """[...document.querySelectorAll('.steering select, .steering button, .steering [tabindex="0"]')]
        .filter((one) => one.checkVisibility() && !one.disabled)
        .map((one) => one.getAttribute('aria-label') || (one.labels?.[0] ?? one).innerText.split('\\n')[0])"""
    )
    assert names[:3] == ["Run", "Stage", "Quantity"] and all(names)
    tab.run("document.querySelector('.steering select').focus()")
    reached = []
    for _ in names[1:]:
        tab.page.key("Tab")
        reached.append(tab.run("document.activeElement.tagName"))
    assert reached.count("SELECT") == 4 and reached.count("BUTTON") == 1 and reached.count("DIV") == 3


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_accessible(dark: bool, tab: Tab) -> None:
    tab.open(view="steering", run="predicted", prompt=1)
    assert not violations(tab, dark)
    tab.page.run("document.body.classList.remove('dark-mode')")
