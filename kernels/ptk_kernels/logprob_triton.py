"""The Triton kernel behind `token_logprobs`: every program goes over one part of the vocabulary for a few rows."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["triton_logprobs"]

_ROWS, _WIDTH, _DEPTH = 32, 128, 64
"""A program's tile: rows, entries of the vocabulary, features."""
_PROGRAMS = 512
"""The vocabulary is parted until there are about so many programs: few rows alone would leave most of a GPU idle."""


@triton.jit
def _partial(
    hidden,
    weight,
    bias,
    targets,
    highest_out,
    total_out,
    target_out,
    rows,
    vocabulary,
    depth,
    hidden_stride,
    weight_stride,
    part,
    scale,
    softcap,
    has_bias: tl.constexpr,
    has_cap: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_width: tl.constexpr,
    tile_depth: tl.constexpr,
):
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, vocabulary)
    wanted = tl.load(targets + row, mask=row < rows, other=-1)
    highest = tl.full((tile_rows,), float("-inf"), tl.float32)
    total = tl.zeros((tile_rows,), tl.float32)
    target = tl.zeros((tile_rows,), tl.float32)
    for start in range(first, last, tile_width):
        column = start + tl.arange(0, tile_width)
        logits = tl.zeros((tile_rows, tile_width), tl.float32)
        for at in range(0, depth, tile_depth):
            feature = at + tl.arange(0, tile_depth)
            left = tl.load(
                hidden + row[:, None].to(tl.int64) * hidden_stride + feature[None, :],
                mask=(row[:, None] < rows) & (feature[None, :] < depth),
                other=0.0,
            )
            right = tl.load(
                weight + column[:, None].to(tl.int64) * weight_stride + feature[None, :],
                mask=(column[:, None] < last) & (feature[None, :] < depth),
                other=0.0,
            )
            # Not TF32: its ten bits of mantissa would be seen in the third digit.
            logits = tl.dot(left, tl.trans(right), logits, input_precision="ieee")
        if has_bias:
            logits += tl.load(bias + column, mask=column < last, other=0.0).to(tl.float32)[None, :]
        logits *= scale
        if has_cap:
            logits = softcap * (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0)
        logits = tl.where(column[None, :] < last, logits, float("-inf"))
        target += tl.sum(tl.where(column[None, :] == wanted[:, None], logits, 0.0), axis=1)
        higher = tl.maximum(highest, tl.max(logits, axis=1))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(logits - higher[:, None]), axis=1)
        highest = higher
    place = tl.program_id(1) * rows + row
    tl.store(highest_out + place, highest, mask=row < rows)
    tl.store(total_out + place, total, mask=row < rows)
    tl.store(target_out + place, target, mask=row < rows)


def triton_logprobs(
    hidden: Any, weight: Any, targets: Any, bias: Any | None, scale: float, softcap: float | None, programs: int = _PROGRAMS
) -> Any:
    """Return the log-probability of each target: (n,) float32. Arguments as in `token_logprobs`, which checks them."""
    rows, vocabulary = len(hidden), len(weight)
    if rows == 0:
        return torch.empty(0, dtype=torch.float32, device=hidden.device)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    blocks = triton.cdiv(rows, _ROWS)
    parts = min(triton.cdiv(vocabulary, _WIDTH), max(1, programs // blocks))
    part = triton.cdiv(triton.cdiv(vocabulary, parts), _WIDTH) * _WIDTH
    parts = triton.cdiv(vocabulary, part)
    highest, total, target = torch.empty((3, parts, rows), dtype=torch.float32, device=hidden.device)
    _partial[(blocks, parts)](
        hidden,
        weight,
        weight if bias is None else bias.contiguous(),
        targets.to(torch.int64).contiguous(),
        highest,
        total,
        target,
        rows,
        vocabulary,
        hidden.shape[1],
        hidden.stride(0),
        weight.stride(0),
        part,
        scale,
        1.0 if softcap is None else softcap,
        has_bias=bias is not None,
        has_cap=softcap is not None,
        tile_rows=_ROWS,
        tile_width=_WIDTH,
        tile_depth=_DEPTH,
    )
    return target.sum(0) - torch.logsumexp(highest + torch.log(total), 0)
