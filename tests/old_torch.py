"""What an old torch cannot do: tests of it are skipped by name, where `make test-oldest-torch` runs them.

A run that the package refuses because torch is too old for hooks in its graphs needs no entry here: its test is skipped
with that sentence. These are the others.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from mi_crow_lightning.hooks.compiled.torch_version import why_torch_is_too_old

__all__ = ["CANNOT", "pytest_runtest_call", "skip_what_it_cannot"]

_TRACED = "this torch cannot trace statistics into a graph"
_SUMS = (
    "fully_shard of this torch adds up the gradients of a CPU's ranks in place of averaging them, with or without hooks"
)

CANNOT = {
    "tests/metrics/one_pass/test_in_graph.py": {
        "test_measure_is_one_graph": _TRACED,
        "test_groups_without_a_mask": _TRACED,
        "test_a_hook_that_accumulates_is_compiled_once": _TRACED,
        "test_other_shapes_are_compiled_at_most_twice_more": _TRACED,
        "test_inference_first_and_training_after": _TRACED,
        "test_the_widths_must_be_known": _TRACED,
        "test_a_registered_detector_is_compiled_once": _TRACED,
    },
    "tests/hooks/controllers/test_integers.py": {
        "test_a_compiled_graph_refuses_integers": "the compiler of this torch replaces the errors that hooks raise",
    },
    "tests/callback/test_nodes.py": {"test_readings_of_two_nodes_are_those_of_all_data[fit-sharded]": _SUMS},
    "tests/callback/test_ranks.py": {
        "test_readings_of_a_steered_fit_and_predict_are_those_of_all_data[sharded]": _SUMS,
        "test_controllers_act_on_every_rank[sharded]": _SUMS,
    },
    "tests/callback/test_gradients_on_ranks.py": {
        "test_gradients_of_both_ranks_are_read_together[sharded]": _SUMS,
        "test_weights_are_those_of_a_plain_loop[sharded]": _SUMS,
    },
    "tests/hf_trainer/test_alarms.py": {
        "test_compiled_checkpointed_and_bf16_runs_name_the_layer_and_replay[torch_compile-torch_compile_backend]": (
            "the run is refused, which pytest.warns reports as a warning that did not come"
        ),
    },
    "tests/test_benchmarks.py": {"test_everything_runs": "rows of compiled models are among them"},
}
"""By file and by test, with or without its parameters: why not."""


def skip_what_it_cannot(items: list[pytest.Item]) -> None:
    """Mark the tests of `CANNOT`, if torch is as old as that."""
    if why_torch_is_too_old() is None:
        return
    for item in items:
        file, _, name = item.nodeid.partition("::")
        reasons = CANNOT.get(file, {})
        if reason := reasons.get(name) or reasons.get(name.partition("[")[0]):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Skip a test whose run is refused because torch is too old, with the sentence that refuses it."""
    too_old = why_torch_is_too_old()
    try:
        return (yield)
    except Exception as error:
        if too_old and too_old in str(error):  # also where a test expects another refusal, which comes after this one
            pytest.skip(too_old)
        raise
