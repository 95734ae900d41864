"""The measure of rounding, on sums whose exact value is known: in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from circuit_trace.hooks.rounding import difference, one_rounding, tolerance_of

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def summands(dtype: torch.dtype, n: int = 5) -> Tensor:
    """Some that nearly cancel, one huge position and one huge entry in all."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(n, 1, 6, 64, generator=generator)
    found[1] = -0.99 * found[0]
    found[:, :, 0] *= 30
    found[:, :, :, 3] *= 100
    return found.to(dtype)


def added(parts: Tensor, order: list[int]) -> Tensor:
    """One by one, rounded each time."""
    total = parts[order[0]]
    for number in order[1:]:
        total = total + parts[number]
    return total


@HALF
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 4, 0, 2, 1]])
def test_the_order_of_a_sum_is_one_rounding(dtype: torch.dtype, order: list[int]) -> None:
    parts = summands(dtype)
    found = difference(added(parts, order), parts.double().sum(0), *parts.double().square())
    assert 0 < found < one_rounding(dtype)


@HALF
@pytest.mark.parametrize("number", range(5))
def test_a_summand_that_is_too_large_is_more(dtype: torch.dtype, number: int) -> None:
    parts = summands(dtype)
    wrong = parts.clone()
    wrong[number] *= 1.1
    found = difference(added(wrong, list(range(5))), parts.double().sum(0), *parts.double() ** 2)
    assert found > 2 * one_rounding(dtype)


@HALF
def test_a_mistake_at_one_position_is_not_averaged_away(dtype: torch.dtype) -> None:
    parts = summands(dtype)
    right = added(parts, list(range(5)))
    wrong = right.clone()
    wrong[:, 4] *= 1.1
    assert difference(wrong, right, *parts.double().square()) > one_rounding(dtype)


def test_by_hand() -> None:
    ours, theirs = torch.tensor([[[3.0, 5.0]]]), torch.tensor([[[3.0, 4.0]]])
    assert difference(ours, theirs) == pytest.approx((0.5 * (1 / 4) ** 2) ** 0.5)
    squares = torch.tensor([[[0.0, 9.0]]])
    assert difference(ours, theirs, squares, None) == pytest.approx((0.5 * (1 / 5) ** 2) ** 0.5)
    assert difference(theirs, theirs) == 0


def test_what_cannot_be_compared() -> None:
    one = torch.ones(1, 2, 3)
    assert difference(one, torch.ones(1, 2, 4)) == float("inf")
    assert not difference(one * float("nan"), one) <= 1e9
    assert not difference(one * float("inf"), one) <= 1e9
    assert difference(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)) == 0


def test_what_is_allowed() -> None:
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    assert [one_rounding(dtype) for dtype in dtypes] == [1e-6, 1e-3, 1e-3, 2**-7]
    assert all(one_rounding(dtype) <= tolerance_of(dtype) for dtype in dtypes)
