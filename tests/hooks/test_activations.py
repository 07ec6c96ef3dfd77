"""The activation is found in every container that a layer may return or be given, and put back in a copy."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from mi_crow_lightning.errors import NoTensorFound
from mi_crow_lightning.hooks.activations import put_input, put_output, take_input, take_output

Pair = namedtuple("Pair", ["values", "rest"])
X = torch.ones(2, 3)
NEW = torch.zeros(2, 3)
SCALAR = torch.tensor(0.5)
IDS = torch.tensor([[1, 2]])


@pytest.mark.parametrize(
    "output",
    [
        pytest.param(X, id="tensor"),
        pytest.param((X,), id="tuple"),
        pytest.param((SCALAR, X), id="loss first"),
        pytest.param((IDS, None, X), id="ids first"),
        pytest.param([X, "rest"], id="list"),
        pytest.param({"a": IDS, "b": X}, id="dict"),
        pytest.param(OrderedDict(a=1, b=X), id="ordered dict"),
        pytest.param(Pair(X, "rest"), id="namedtuple"),
        pytest.param(Pair(None, (IDS, [X])), id="nested"),
        pytest.param({"cache": torch.ones(9), "hidden_states": X}, id="preferred key"),
        pytest.param({"loss": torch.ones(1), "logits": X, "last_hidden_state": None}, id="preferred key is None"),
        pytest.param(CausalLMOutput(loss=SCALAR, logits=X), id="causal lm"),
        pytest.param(CausalLMOutput(loss=torch.ones(1), logits=X), id="causal lm, loss with a dimension"),
        pytest.param(BaseModelOutput(last_hidden_state=X, hidden_states=(torch.ones(9), X)), id="model output"),
    ],
)
def test_the_activation_is_found_and_replaced(output: Any) -> None:
    assert take_output(output) is X
    changed = put_output(output, NEW)
    assert type(changed) is type(output)
    assert take_output(changed) is NEW
    assert take_output(output) is X  # the original is as it was


def test_a_model_output_is_changed_by_key_and_by_attribute() -> None:
    states = (torch.ones(9), X)
    output = CausalLMOutput(loss=SCALAR, logits=X, hidden_states=states)
    changed = put_output(output, NEW)
    assert changed.logits is NEW and changed["logits"] is NEW and changed.to_tuple()[1] is NEW
    assert changed.loss is SCALAR and changed.hidden_states is states
    assert output.logits is X and output["logits"] is X
    assert list(changed) == list(output)


def test_only_integers_are_better_than_nothing() -> None:
    assert take_output((None, IDS)) is IDS
    assert take_output(IDS) is IDS
    assert take_output({"loss": SCALAR}) is SCALAR


def test_a_packed_sequence_keeps_its_sizes() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    output, state = nn.LSTM(2, 4)(packed)
    assert take_output((output, state)) is output.data
    changed, same = put_output((output, state), torch.zeros_like(output.data))
    assert torch.equal(changed.batch_sizes, output.batch_sizes) and same is state
    assert not changed.data.any() and output.data.any()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, r"output holds no tensor: it is an empty or opaque NoneType.*override _hook_fn"),
        ((), "an empty or opaque tuple"),
        (("a", 3), r"tuple \(0: str, 1: int\)"),
        ({"cache": None}, r"dict \('cache': NoneType\)"),
        (object(), "an empty or opaque object"),
    ],
)
def test_nothing_to_take_is_said_with_what_there_is(output: Any, message: str) -> None:
    for call in (take_output, lambda value: put_output(value, NEW)):
        with pytest.raises(NoTensorFound, match=message) as caught:
            call(output)
        assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {}),
        ((X, IDS), {"mask": SCALAR}),
        ((IDS, X), {}),
        ((), {"hidden_states": X}),
        ((), {"attention_mask": torch.ones(7), "hidden_states": X}),
        ((None,), {"states": (X,)}),
        (((X, IDS),), {}),
    ],
)
def test_inputs_are_found_by_position_then_by_keyword(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert take_input(args, kwargs) is X
    before = (args, dict(kwargs))
    new_args, new_kwargs = put_input(args, kwargs, NEW)
    assert take_input(new_args, new_kwargs) is NEW
    assert len(new_args) == len(args) and new_kwargs.keys() == kwargs.keys()
    assert take_input(*before) is X and kwargs.keys() == before[1].keys()


def test_token_ids_alone_are_an_input() -> None:
    assert take_input((IDS,), {}) is IDS
    assert put_input((IDS,), {"k": 1}, NEW) == ((NEW,), {"k": 1})


def test_no_input_is_said() -> None:
    with pytest.raises(NoTensorFound, match=r"layer's input holds no tensor: it is tuple \(0: tuple, 1: dict\)"):
        take_input((), {})


leaves = st.sampled_from([None, "text", 3, IDS, SCALAR]) | st.builds(lambda n: torch.ones(n + 1), st.integers(0, 2))
containers = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.tuples(inner, inner).map(lambda two: Pair(*two))
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)


def flat(value: Any) -> list[Any]:
    """The leaves of a container with their place, depth first: an independent walk."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flat(value[key])]
    if isinstance(value, (tuple, list)):
        return [leaf for child in value for leaf in flat(child)]
    return [value]


def shape(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value), {key: shape(child) for key, child in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value), [shape(child) for child in value]
    return None


@given(containers)
def test_of_any_nesting_one_leaf_changes_in_a_copy(value: Any) -> None:
    before, form = flat(value), shape(value)
    tensors = [i for i, leaf in enumerate(before) if isinstance(leaf, Tensor)]
    wanted = [i for i in tensors if before[i].is_floating_point() and before[i].dim()] or tensors
    if isinstance(value, Tensor):
        wanted = [0]
    if not wanted:
        with pytest.raises(NoTensorFound):
            take_output(value)
        return
    assert take_output(value) is before[wanted[0]]
    changed = put_output(value, NEW)
    after = flat(changed)
    assert shape(changed) == form and shape(value) == form
    assert all(a is b for a, b in zip(flat(value), before, strict=True))
    assert [i for i, (a, b) in enumerate(zip(after, before, strict=True)) if a is not b] == wanted[:1]
    assert after[wanted[0]] is NEW


def test_a_number_before_the_activation_is_not_it() -> None:
    t, x = torch.tensor(0.5), torch.ones(2, 3)
    assert take_input((t, x), {}) is x
    args, kwargs = put_input((t, x), {}, x * 10)
    assert args[0] is t and torch.equal(args[1], x * 10) and kwargs == {}
