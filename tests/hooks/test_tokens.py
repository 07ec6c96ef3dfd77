"""Choices of tokens: how they are written and joined, and what of a batch they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import HookError, TokensUnknown
from mi_crow_lightning.hooks import Layers, Tokens
from mi_crow_lightning.hooks.tokens import AllOf, AnyOf, Not
from tests.hooks.by_hand import Read, prompts
from tests.models import WIDTH, llama


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"which": "all", "ids": {3}}, ValueError, r"but got which and ids: combine two choices with & or \|"),
        ({"positions": []}, ValueError, r"positions=\[\] must be integers, at least one"),
        ({"positions": [1.5]}, ValueError, r"positions=\[1.5\] must be integers"),
        ({"positions": "12"}, ValueError, r"positions='12' must be integers"),
        ({"ids": [True]}, ValueError, r"ids=\[True\] must be integers"),
        ({"window": (3,)}, ValueError, r"window=\(3,\) must be \(start, stop\)"),
        ({"window": (4, 4)}, ValueError, r"window=\(4, 4\) is empty: start must be before stop"),
        ({"window": (-1, -3)}, ValueError, r"window=\(-1, -3\) is empty"),
        ({"where": 3}, TypeError, r"where=3 must be a function \(x, ctx\) -> mask \(B, T\)"),
        ({"which": "some"}, ValueError, "which='some' is not known"),
    ],
)
def test_wrong_choices_are_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Tokens(**given)


@pytest.mark.parametrize(
    "several",
    [torch.tensor([3, -1, 3]), np.array([3, -1], dtype=np.int16), [torch.tensor(3), np.int64(-1)], {-1, np.uint8(3)}],
)
def test_whole_numbers_of_torch_and_numpy_are_positions_and_ids(several: Any) -> None:
    for tokens in (Tokens(positions=several), Tokens(ids=several)):
        assert tokens.value == [-1, 3] and all(type(number) is int for number in tokens.value)


def test_the_ends_of_a_window_may_be_numpys() -> None:
    for window in [(np.int64(-8), None), (torch.tensor(-8), None), np.array([-8, -2]), torch.tensor([-8, -2])]:
        start, stop = Tokens(window=window).value
        assert (type(start), start) == (int, -8) and stop in (None, -2)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([1.0]), np.array([True]), torch.tensor([[1]]), torch.tensor(1), [torch.tensor([1])]]
)
def test_other_tensors_and_arrays_are_no_positions(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"positions=.* must be integers, at least one"):
        Tokens(positions=wrong)


def test_choices_join_by_class_as_they_do_by_sign() -> None:
    one, other = Tokens("prompt"), Tokens(ids=[2])
    assert repr(AllOf(one, other)) == repr(AllOf(choices=[one, other])) == repr(one & other)
    assert repr(AnyOf("prompt", choices=[AllOf(other, "last")])) == repr(one | (other & Tokens("last")))
    assert repr(Not("prompt")) == repr(~one)
    for join in (AllOf, AnyOf):
        with pytest.raises(ValueError, match=rf"{join.__name__}\(\) needs at least one choice of tokens"):
            join()
    for wrong in (lambda: AllOf(one, 3), lambda: AnyOf(choices=[one, 3]), lambda: Not(3)):
        with pytest.raises(TypeError, match=r"choices?=3 must be a name such as 'generated', or Tokens"):
            wrong()


def test_choices_join_with_choices_only() -> None:
    with pytest.raises(TypeError, match=r"Tokens\('all'\) & 'last': both sides must be Tokens"):
        Tokens("all") & "last"  # type: ignore[operator]


@pytest.mark.parametrize(
    "join",
    [
        lambda: Tokens("generated") and Tokens(ids={13}),
        lambda: Tokens("generated") or Tokens(ids={13}),
        lambda: not (Tokens("generated") & Tokens(ids={13})),
        lambda: not ~Tokens("generated"),
    ],
)
def test_words_drop_no_choice(join: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"tokens join with & \| ~: `and`, `or` and `not` would silently drop one"):
        join()


def test_a_choice_says_what_it_is() -> None:
    joined = ~(Tokens("prompt") | Tokens(positions=[6])) & Tokens(window=[None, 3])
    assert repr(joined) == "~(Tokens('prompt') | Tokens(positions=[6])) & Tokens(window=(None, 3))"


@pytest.mark.parametrize("mask", [torch.ones(3, 6), torch.ones(3, 5, dtype=torch.bool), None])
def test_a_mask_of_the_users_is_checked(mask: Any) -> None:
    model = llama().eval()
    Layers(model).register_hook(None, Read(Tokens(where=lambda x, ctx: mask)))
    with pytest.raises(HookError, match=r"where= must return a torch.bool mask \(batch, tokens\) = \(3, 6\), not"):
        model(**prompts())


def test_ids_need_token_ids() -> None:
    model = llama().eval()
    Layers(model).register_hook(None, Read(Tokens(ids=[4])))
    with pytest.raises(
        HookError, match=r"'model.layers.2': .* \(3, 6\), and the model was called with no token IDs"
    ) as caught:
        model(inputs_embeds=torch.randn(3, 6, WIDTH))
    assert isinstance(caught.value.original_error, TokensUnknown)


class AnyMask(nn.Module):
    """A model that takes masks of any kind."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Any) -> Tensor:
        hidden: Tensor = self.block(input_ids[..., None].float())
        return hidden


def test_of_masks_for_several_kinds_of_attention_the_full_one_is_read() -> None:
    model, batch, read = AnyMask(), prompts(), Read(Tokens("all"), "block")
    Layers(model).register_hook(None, read)
    masks = {"sliding_attention": None, "full_attention": batch["attention_mask"]}
    model(batch["input_ids"], masks)
    assert torch.equal(read.seen[0], batch["attention_mask"].bool())


def test_a_mask_that_cannot_be_read_is_refused() -> None:
    model = AnyMask()
    Layers(model).register_hook(None, Read(Tokens("all"), "block"))
    with pytest.raises(HookError, match="was called with is a set, which does not show the padding"):
        model(prompts()["input_ids"], set())
