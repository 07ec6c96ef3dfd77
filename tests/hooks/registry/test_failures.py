"""The error path: whatever a tensor or an error does when it is asked, the hook's own error is what is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks import ActivationStatistics, Controller, Detector, Layers
from tests.callback.runs import told


class Secretive(ValueError):
    """An error that raises when it is shown."""

    def __str__(self) -> str:
        raise RuntimeError("no message for you")

    __repr__ = __str__


class Unequal(ValueError):
    """An error that raises when it is compared."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")


class Shapeless(Tensor):
    """A tensor subclass that raises when it is asked for its shape."""

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        raise RuntimeError("no shape")


class Raises(Detector):
    """A detector that raises what a function makes."""

    def __init__(self, make: Callable[[], Exception], **options: Any) -> None:
        super().__init__("layer", **options)
        self.make = make

    def observe(self, x: Tensor, ctx: Any) -> None:
        raise self.make()


class RaisesInEdit(Controller):
    def __init__(self, make: Callable[[], Exception], **options: Any) -> None:
        super().__init__("layer", **options)
        self.make = make

    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        raise self.make()


class Host(nn.Module):
    """A model whose one layer returns what a function makes."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make = make
        self.layer = nn.Identity()

    def forward(self) -> Any:
        return self.layer(self.make())


def two_lengths(layout: torch.layout = torch.strided) -> Tensor:
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=layout)


TENSORS: dict[str, Callable[[], Any]] = {
    "plain": lambda: torch.ones(2, 3),
    "nested": two_lengths,
    "jagged": lambda: two_lengths(torch.jagged),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "without a shape": lambda: torch.ones(2, 3).as_subclass(Shapeless),
    "without numbers": lambda: torch.ones(2, 3, device="meta"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse")
@pytest.mark.documents("reliability/the-activation-has-no-shape-or-the-error-no-message")
@pytest.mark.parametrize("hook", [Raises, RaisesInEdit])
@pytest.mark.parametrize("error", [ValueError("broke"), Secretive("broke")], ids=["plain", "secretive"])
@pytest.mark.parametrize("kind", TENSORS)
def test_the_hook_s_own_error_is_raised(kind: str, error: Exception, hook: Any) -> None:
    model = Host(TENSORS[kind])
    Layers(model).register_hook(None, hook(lambda: error))
    with torch.no_grad(), pytest.raises(HookError) as raised:
        model()
    assert raised.value.original_error is error
    text = str(raised.value)
    assert type(error).__name__ in text and "at layer 'layer'" in text
    assert ("broke" in text) is (type(error) is ValueError)


@pytest.mark.parametrize("hook", [Raises, RaisesInEdit])
def test_a_tensor_that_is_not_yet_made_is_an_error_of_the_hook(hook: Any) -> None:
    model = Host(lambda: nn.UninitializedParameter(requires_grad=False))
    Layers(model).register_hook(None, hook(lambda: ValueError("not called")))
    with pytest.raises(HookError, match="at layer 'layer': ValueError: Attempted to use an uninitialized parameter"):
        model()
    model.make = TENSORS["plain"]  # nothing of the failed pass is left
    with pytest.raises(HookError, match="not called"):
        model()


def test_a_tensor_of_inference_mode_is_seen_once_outside_it() -> None:
    with torch.inference_mode():
        x = torch.ones(2, 3)
    model, detector = Host(lambda: x), ActivationStatistics("layer")
    Layers(model).register_hook(None, detector)
    model()
    values = {reading.name: reading.value for reading in detector.readings()}
    assert values["mean"] == 1 and detector.error is None


@pytest.mark.parametrize("make", [Secretive, Unequal])
def test_a_warning_of_such_an_error_ends_no_pass(make: type[Exception]) -> None:
    model, detector = Host(TENSORS["plain"]), Raises(lambda: make(), on_error="disable")
    Layers(model).register_hook(None, detector)
    with told(f"{make.__name__}", RuntimeWarning):
        assert torch.equal(model(), torch.ones(2, 3))
    assert not detector.enabled and detector.error is not None


def test_a_failure_that_led_to_another_is_forgotten_with_it() -> None:
    def chained() -> Exception:
        try:
            raise Unequal
        except Unequal as first:
            try:
                raise Unequal from first
            except Unequal as second:
                return second

    model, detector = Host(TENSORS["plain"]), Raises(chained, on_error="disable")
    Layers(model).register_hook(None, detector)
    with told("Unequal", RuntimeWarning):
        model()
    assert detector.error is not None
    error: BaseException | None = detector.error
    while error is not None:  # tracebacks would keep the activations of the pass
        assert error.__traceback__ is None
        error = error.__cause__


def test_a_message_that_cannot_be_shown_in_inference_mode() -> None:
    class Secret(RuntimeError):
        __str__ = Secretive.__str__

    model = Host(TENSORS["plain"])
    Layers(model).register_hook(None, Raises(lambda: Secret()))
    with torch.inference_mode(), pytest.raises(HookError, match="its __str__ raised RuntimeError") as raised:
        model()
    assert type(raised.value.original_error) is Secret
