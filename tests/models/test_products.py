"""Whichever library multiplies, the product is the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vadtune.models import products
from vadtune.models.products import product, use_threads


@pytest.fixture(autouse=True, params=[False, True], ids=["torch", "openblas"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "by_openblas", lambda: request.param)


@pytest.mark.parametrize("b", [1, 32, 200])
@pytest.mark.parametrize("transposed", ["", "one", "other", "both"])
@pytest.mark.parametrize("given", ["", "bias", "out", "both"])
def test_products_of_every_layout_are_those_of_double_precision(b: int, transposed: str, given: str) -> None:
    def factor(rows: int, columns: int, turned: bool) -> Tensor:
        return torch.randn(3, columns, rows).mT if turned else torch.randn(3, rows, columns)

    torch.manual_seed(0)
    one = factor(b, 20, transposed in ("one", "both"))
    other = factor(20, 7, transposed in ("other", "both"))
    bias = torch.randn(3, 1, 7) if given in ("bias", "both") else None
    memory = torch.full((2, 3, b, 7), torch.nan)
    out = memory[1] if given in ("out", "both") else None
    found = product(one, other, bias, out)
    expected = one.double() @ other.double() + (0.0 if bias is None else bias.double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    if out is not None:
        assert found.data_ptr() == out.data_ptr()
        assert memory[0].isnan().all()


def test_threads_are_those_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
