"""The arithmetic of edits where numbers are zero."""

from __future__ import annotations

import pytest
import torch

from mi_crow_lightning.hooks.edits import with_norms_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_have_no_length_to_give_or_to_take(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    edited = x * torch.tensor([[1.0], [0.0], [2.0]], dtype=dtype) + torch.tensor([[1.0], [0.0], [0.0]], dtype=dtype)
    result = with_norms_of(x, edited)
    assert torch.equal(result.detach(), torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]], dtype=dtype))
    result.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
