"""Log-probabilities of given tokens from hidden states and the unembedding, without ever holding a row of the vocabulary's width.

log p(t) = z_t - log(sum over v of exp(z_v)), with z = cap(scale * (h . w_v + b_v)). The sum is built block by block of the vocabulary
with a running maximum (M. Milakov, N. Gimelshein, Online normalizer calculation for softmax, 2018), so what is held beside the
arguments does not grow with the vocabulary.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

__all__ = ["token_logprobs"]

_ROWS = 1024
"""Rows that are computed at once on a CPU."""
_CELLS = 1 << 21
"""Logits that are held at once on a CPU: 8 MiB."""

Tensor = Any


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    path: Literal["auto", "chunked", "triton"] = "auto",
) -> Tensor:
    """Return the natural logarithm of each target's probability: (n,) float32.

    `hidden` is (n, d), `weight` (v, d) and `bias` (v,), of one floating type and on one device; `targets` (n,) are integers. Logits
    are `scale` times the product, then `softcap * tanh(logits / softcap)` where one is given, and are summed in float32 whatever
    the type of the arguments. `auto` takes the Triton kernel for tensors on a GPU and the chunked one elsewhere. No gradients.
    Raises ValueError for shapes that do not fit and for targets outside the vocabulary.
    """
    _check(hidden, weight, targets, bias, softcap)
    with torch.no_grad():
        if path == "triton" or (path == "auto" and hidden.is_cuda):
            from ptk_kernels.logprob_triton import triton_logprobs

            return triton_logprobs(hidden, weight, targets, bias, scale, softcap)
        return _chunked(hidden, weight, targets, bias, scale, softcap)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden states {tuple(hidden.shape)} and unembedding {tuple(weight.shape)} do not fit")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"{tuple(targets.shape)} targets do not fit {tuple(hidden.shape)} hidden states")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"a bias of {tuple(bias.shape)} does not fit the unembedding {tuple(weight.shape)}")
    if softcap is not None and softcap <= 0:
        raise ValueError(f"a soft cap is above 0, not {softcap}")
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < len(weight)):
        raise ValueError(f"targets lie outside the vocabulary of {len(weight)}")


def _chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    vocabulary = len(weight)
    for start in range(0, len(hidden), _ROWS):
        rows = hidden[start : start + _ROWS].float()
        wanted = targets[start : start + _ROWS].long()
        width = min(vocabulary, max(1024, _CELLS // len(rows)))
        buffer = torch.empty(len(rows) * width, dtype=torch.float32, device=hidden.device)
        highest = torch.full((len(rows),), -torch.inf, device=hidden.device)
        total = torch.zeros(len(rows), device=hidden.device)
        target = torch.zeros(len(rows), device=hidden.device)
        for first in range(0, vocabulary, width):
            block = weight[first : first + width].float()
            logits = buffer[: len(rows) * len(block)].view(len(rows), len(block))
            torch.mm(rows, block.T, out=logits)
            if bias is not None:
                logits.add_(bias[first : first + width].float())
            if scale != 1.0:
                logits.mul_(scale)
            if softcap is not None:
                logits.div_(softcap).tanh_().mul_(softcap)
            here = (wanted >= first) & (wanted < first + len(block))
            found = logits.gather(1, (wanted - first).clamp(0, len(block) - 1)[:, None])[:, 0]
            target = torch.where(here, found, target)
            higher = torch.maximum(highest, logits.amax(1))
            total.mul_(torch.exp(highest - higher)).add_(logits.sub_(higher[:, None]).exp_().sum(1))
            highest = higher
        out[start : start + _ROWS] = target - highest - torch.log(total)
    return out
