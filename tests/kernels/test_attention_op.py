"""The attention op against torch's own in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ditpress.errors import InputError
from ditpress.kernels import reference_attention
from ditpress.kernels.attention import attention
from ditpress.kernels.reference_attention import attention_reference

OP = torch.ops.ditpress.attention.default

MASKS = [None, (1, 1, 1, 9), (2, 1, 1, 9), (2, 3, 7, 9), (1, 3, 1, 1), (1, 1, 7, 1)]


def inputs(mask: tuple[int, ...] | None = None, spread: float = 1.0) -> tuple[Any, ...]:
    """Two samples, three heads of 8, seven queries, nine keys."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, tokens, 24, generator=generator) * spread for tokens in (7, 9, 9))
    added = None if mask is None else torch.randn(mask, generator=generator)
    return q, k, v, added, 3, 8**-0.5


def by_torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int, scale: float) -> Tensor:
    """In float64, whatever comes in."""
    split = (t.double().unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    added = None if mask is None else mask.double()
    y = F.scaled_dot_product_attention(*split, attn_mask=added, scale=scale)
    return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("mask", MASKS)
def test_float32_against_float64(mask: tuple[int, ...] | None) -> None:
    arguments = inputs(mask)
    y = attention(*arguments, False)
    torch.testing.assert_close(y.double(), by_torch(*arguments), rtol=1e-5, atol=1e-5)


def test_scores_that_would_overflow_exp() -> None:
    arguments = inputs(spread=30.0)
    y = attention(*arguments, False)
    torch.testing.assert_close(y.double(), by_torch(*arguments), rtol=1e-3, atol=1e-3)


def test_masked_keys_do_not_count() -> None:
    q, k, v, _, heads, scale = inputs()
    mask = torch.zeros(2, 1, 1, 9)
    mask[..., 4:] = -torch.inf
    y = attention(q, k, v, mask, heads, scale, False)
    torch.testing.assert_close(y, attention(q, k[:, :4], v[:, :4], None, heads, scale, False))


@pytest.mark.parametrize("mask", MASKS)
def test_bfloat16_rounds_what_the_definition_says(mask: tuple[int, ...] | None) -> None:
    """q, k, v and the unnormalised probabilities rounded, all else in float64; and close to no rounding."""
    q, k, v, added, heads, scale = arguments = inputs(mask)
    y = attention_reference(*arguments, True).double()
    q, k, v = (t.bfloat16().double().unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = scale * q @ k.transpose(2, 3) + (0 if added is None else added.double())
    p = (scores - scores.amax(-1, keepdim=True)).exp()
    exact = (p.float().bfloat16().double() @ v / p.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)
    # A probability on the border of two bfloat16 numbers may fall to either side: one such step of one key.
    assert float((y - exact).abs().max()) < 2.0**-8 * float(v.abs().max())
    assert float((y - exact).abs().median()) < 1e-4 * float(v.abs().max())
    plain = by_torch(*arguments)
    assert 1e-5 < float((y - plain).norm() / plain.norm()) < 0.01
    # The op rounds too, or, where the CPU has no such products, does not.
    op = attention(*arguments, True).double()
    error = min(float((op - truth).abs().max()) for truth in (exact, plain))
    assert error < 2.0**-8 * float(v.abs().max())


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = inputs((2, 3, 7, 9))
    whole = attention(*arguments, True)
    monkeypatch.setattr(reference_attention, "_CHUNK", 2 * 7 * 9)
    torch.testing.assert_close(attention(*arguments, True), whole, rtol=1e-6, atol=1e-6)


def test_views_and_empty_batches() -> None:
    q, k, v, mask, heads, scale = inputs()
    joined = torch.cat([k, v], dim=2)
    views = joined[..., :24], joined[..., 24:]
    assert torch.equal(
        attention(q, *views, mask, heads, scale, False), attention(q, k, v, mask, heads, scale, False)
    )
    assert attention(q[:0], k[:0], v[:0], None, heads, scale, True).shape == (0, 7, 24)
    assert attention(q[:, :0], k, v, None, heads, scale, True).shape == (2, 0, 24)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("mask", [None, (2, 1, 1, 9)])
def test_opcheck(mask: tuple[int, ...] | None, bf16: bool) -> None:
    torch.library.opcheck(OP, (*inputs(mask), bf16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 7, 24, dtype=torch.float64)}, "attention q is torch.float64"),
        ({"v": torch.zeros(9, 24)}, r"attention v is torch.float32 \[9, 24\]"),
        ({"k": torch.zeros(2, 8, 24)}, r"k is \[2, 8, 24\] and v \[2, 9, 24\]"),
        ({"k": torch.zeros(2, 0, 24), "v": torch.zeros(2, 0, 24)}, "S >= 1"),
        ({"heads": 5}, "5 heads do not divide the width 24"),
        ({"heads": 0}, "0 heads do not divide"),
        ({"scale": float("nan")}, "scale is nan, expected a finite number"),
        ({"mask": torch.zeros(9)}, r"mask is torch.float32 \[9\]"),
        ({"mask": torch.zeros(2, 1, 1, 8)}, r"each 1 or that of \[B, H, T, S\] = \[2, 3, 7, 9\]"),
        ({"mask": torch.ones(1, 1, 1, 9, dtype=torch.bool)}, "mask is torch.bool"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    names = ("q", "k", "v", "mask", "heads", "scale")
    arguments = dict(zip(names, inputs(), strict=True)) | {"bf16": False} | change
    for device in ("cpu", "meta"):
        on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        with pytest.raises(InputError, match=message):
            OP(**on_device)
