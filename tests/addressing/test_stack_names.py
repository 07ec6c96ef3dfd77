"""Names of stacks: every name of the table, the shortest prefix of a stack, and which one is a language model."""

from __future__ import annotations

from pathlib import Path

import pytest

from mi_crow_lightning.addressing.stack_names import PREFIXES, language_model, prefix_of, stacks_of_prefix


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_name_of_the_table_means_its_stack(prefix: str) -> None:
    for name in (name.replace("*", "some") for name in PREFIXES[prefix]):
        stacks = [f"model.{name}.layers", "model.other.layers"]
        assert stacks_of_prefix(stacks, prefix) == stacks[:1]
        assert stacks_of_prefix(["model.other.layers"], prefix) == []
        assert stacks_of_prefix(stacks, name) == stacks[:1]


def test_a_stack_that_shares_its_names_has_its_whole_name() -> None:
    stacks = ["decoder", "text_decoder.layers", "model.transformer.h", "transformer.h"]
    prefixes = [prefix_of(stack, stacks) for stack in stacks]
    assert prefixes == ["decoder", "text", "model", "transformer"]
    for stack, prefix in zip(stacks, prefixes, strict=True):
        assert stacks_of_prefix(stacks, prefix) == [stack]


@pytest.mark.parametrize(
    ("stacks", "decoders", "main"),
    [
        (["language_model.layers", "vision_tower.layers", "audio_tower.layers"], [], 0),
        (["vision_tower.layers", "text_model.layers"], [1], 1),
        (["vision_tower.layers", "text_model.layers"], [0], None),  # the text is only read
        (["language_model.layers", "student.layers"], [0, 1], None),  # what the other is for, nothing says
        (["language_model.encoder.layers", "language_model.decoder.layers", "vision_tower.layers"], [1], None),
        (["language_model.layers", "text_model.layers"], [], None),
        (["vision_tower.layers", "audio_tower.layers"], [0, 1], None),
        (["vision_tower.language_model.layers", "text_model.layers"], [], None),  # the outer name counts
    ],
)
def test_a_language_model_that_all_others_feed(stacks: list[str], decoders: list[int], main: int | None) -> None:
    found = language_model(stacks, [stacks[i] for i in decoders])
    assert found == (stacks[main] if main is not None else None)


def test_the_outer_name_counts() -> None:
    stacks = ["model.decoder.bert.encoder.layer", "model.encoder.vision_encoder.layers", "vision_tower.text.layers"]
    assert stacks_of_prefix(stacks, "decoder") == stacks[:1]
    assert stacks_of_prefix(stacks, "encoder") == stacks[1:2]
    assert stacks_of_prefix(stacks, "vision") == stacks[1:] and stacks_of_prefix(stacks, "text") == []


def test_the_page_lists_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "addressing.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `") and line.count("|") == 3]
    written = {
        prefix.strip(" `"): {name.strip(" `") for name in names.split(",")}
        for prefixes, meant in rows
        for prefix, names in zip(prefixes.split(","), meant.split(";"), strict=False)
    }
    assert {prefix: written.get(prefix) for prefix in PREFIXES} == {
        kind: set(names) for kind, names in PREFIXES.items()
    }


def test_a_prefix_has_no_number_alone() -> None:
    stacks = ["encoder.block.0", "encoder.block.1"]
    assert [prefix_of(stack, stacks) for stack in stacks] == ["block.0", "block.1"]


def test_a_path_from_the_root_comes_before_one_in_between() -> None:
    stacks = ["transformer.resblocks", "visual.transformer.resblocks"]  # those of open_clip
    assert stacks_of_prefix(stacks, "transformer") == stacks[:1]
    assert [prefix_of(stack, stacks) for stack in stacks] == ["transformer", "vision"]
    assert stacks_of_prefix(stacks, "resblocks") == stacks and stacks_of_prefix(stacks, "blocks") == []
