"""Dropout that is cheap on a CPU, where PyTorch's takes longer than the matrix products of a small student."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32,
         torch.float64: torch.int64}  # integers as wide


class _ByteDropout(torch.autograd.Function):
    """Dropout whose mask costs one random byte an element, where PyTorch's draws a double. The rate is rounded to 1/256
    (0.1 becomes 26/256 = 0.1016)."""

    @staticmethod
    def forward(ctx, x, p):
        cut = round(p * 256)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64)
        words.random_(-(2**63), None)  # without bounds the sign bit stays 0, and every eighth byte is biased
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape).ge_(cut)
        bits = _BITS[x.dtype]  # 0 or 1 times the scale's bits: cheaper than a conversion to floats
        mask = kept.to(bits).mul_(torch.tensor(256 / (256 - cut), dtype=x.dtype).view(bits)).view(x.dtype)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Inverted dropout of `x` at rate `p`."""
    return F.dropout(x, p) if x.is_cuda else _ByteDropout.apply(x, p)


class Dropout(nn.Module):
    """A drop-in for nn.Dropout with the fast CPU mask."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p) if self.training and self.p else x


def fast_dropout(model: nn.Module) -> nn.Module:
    """Put `Dropout` in the place of every nn.Dropout, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, Dropout(child.p).train(child.training))
    return model
