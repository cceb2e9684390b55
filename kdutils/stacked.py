"""Models of one shape as one model and one optimiser: every parameter gets a leading replica dimension R.

Batches of the replicas stand one after the other, [R * b, t]; matrix products become batched ones over R, a layer norm
or an embedding reads its replica's rows, and the rest of `bert.forward` does not notice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.bert.modeling_bert import BertEmbeddings

from kdutils import bert, distil
from kdutils.data import Encoded
from kdutils.profiles import Settings

ROWS = 32  # of each replica that `predict` asks at a time


class _Linear(nn.Linear):
    def forward(self, x):
        count = len(self.weight)
        flat = x.reshape(count, math.prod(x.shape[:-1]) // count, x.shape[-1])  # no -1: a sub-layer may have lost all
        made = torch.baddbmm(self.bias[:, None], flat, self.weight.mT)
        return made.view(*x.shape[:-1], made.shape[-1])


class _LayerNorm(nn.LayerNorm):
    def forward(self, x):
        flat = F.layer_norm(x, self.normalized_shape, eps=self.eps).view(len(self.weight), -1, x.shape[-1])
        return torch.addcmul(self.bias[:, None], flat, self.weight[:, None]).view_as(x)


class _Embedding(nn.Embedding):
    def forward(self, ids):
        count, size = self.weight.shape[:2]
        first = torch.arange(0, count * size, size, device=ids.device)  # of each replica's own rows
        return F.embedding((ids.view(count, -1) + first[:, None]).view_as(ids), self.weight.flatten(0, 1))


class _Embeddings(BertEmbeddings):
    def forward(self, inputs_embeds, token_type_ids):
        x, places = inputs_embeds + self.token_type_embeddings(token_type_ids), self.position_embeddings.weight
        x = x.unflatten(0, (len(places), -1)) + places[:, None, : x.shape[1]]
        return self.dropout(self.LayerNorm(x.flatten(0, 1)))


_CLASSES = {nn.Linear: _Linear, nn.LayerNorm: _LayerNorm, nn.Embedding: _Embedding, BertEmbeddings: _Embeddings}


def stack(students: Sequence[nn.Module], device: str | torch.device = "cpu") -> nn.Module:
    """One model of all `students` on `device`: their parameters stacked along a new first dimension, tied where theirs
    are tied (SPS). `bert.forward` takes it with batches [R * b, t]. ValueError: different shapes or tying, or gates."""
    shapes = [_shape(student) for student in students]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(f"students: got another shape or tying in number {i} than in 0; allowed: one for all")
    pack = copy.deepcopy(students[0])
    for parts in zip(pack.parameters(), *(s.parameters() for s in students), strict=True):
        parts[0].data = torch.stack([p.detach().to(device) for p in parts[1:]])
    for module in pack.modules():
        if module._forward_pre_hooks or module._forward_hooks:
            raise ValueError("students: got one with hooks (gates); allowed: students without")
        module.__class__ = _CLASSES.get(type(module), type(module))
    return pack.to(device)


def _shape(model) -> dict:
    """Each parameter's shape and the first name of the same parameter."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: (tuple(p.shape), first.setdefault(id(p), name)) for name, p in named}


def unstack(pack: nn.Module, students: Sequence[nn.Module]) -> None:
    """Write each replica's parameters back into its student."""
    with torch.no_grad():
        for parts in zip(pack.parameters(), *(s.parameters() for s in students), strict=True):
            for mine, value in zip(parts[1:], parts[0], strict=True):
                mine.copy_(value)


class Pack:
    """The stacked model, its half-precision copy where there is one, and its optimiser: fused AdamW or, for a parameter
    that does not take the same steps in every replica, the same update with rates [R] and counts of steps [R]."""

    def __init__(self, students, lrs: Sequence[float], settings: Settings, device, steps: int):
        from transformers import get_linear_schedule_with_warmup

        self.clip, self.lrs = settings.clip, torch.tensor(lrs, dtype=torch.float64, device=device)
        self.model = stack(students, device)
        self.worker = bert.cast(self.model, bert.compute_dtype(settings.precision, device))
        self.pairs = [] if self.worker is self.model else list(
            zip(self.model.parameters(), self.worker.parameters(), strict=True))
        groups = distil.decay_groups(self.model, settings.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=lrs[0], fused=True)
        self.schedule = get_linear_schedule_with_warmup(self.optimiser, round(settings.warmup * steps), steps)
        self.factor = self.schedule.lr_lambdas[0]
        self.decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        self.uneven: dict[int, tuple[torch.Tensor, ...]] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Clip each replica's gradients by its own global norm, step, and clear them."""
        for master, worker in self.pairs:
            master.grad = None if worker.grad is None else worker.grad.to(master.dtype)
            worker.grad = None
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if parameters:
            norms = torch.stack([torch.linalg.vector_norm(p.grad.flatten(1), dim=1) for p in parameters])
            share = (self.clip / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp_max(1.0)
            # what a loss does not reach has no gradient in a single run, and is passed over; here it has one of zeros
            reached = norms != 0
            even = (reached.all(1) & (self.lrs == self.lrs[0]).all()).tolist()
            for p, same, mask in zip(parameters, even, reached, strict=True):
                p.grad.mul_(_along(share, p))
                if not same or id(p) in self.uneven:
                    self._adamw(p, mask)
            self.optimiser.step()
            self.optimiser.zero_grad()
            if self.pairs:
                torch._foreach_copy_([w for _, w in self.pairs], [m for m, _ in self.pairs])
        self.schedule.step()

    def _adamw(self, p: torch.Tensor, mask: torch.Tensor) -> None:
        """AdamW's step for the replicas in `mask`; the optimiser then finds no gradient."""
        if id(p) not in self.uneven:
            state = self.optimiser.state.pop(p, None)
            moments = [state["exp_avg"], state["exp_avg_sq"]] if state else [torch.zeros_like(p) for _ in range(2)]
            self.uneven[id(p)] = *moments, torch.full_like(self.lrs, float(state["step"]) if state else 0.0)
        (mean, square, count), on = self.uneven[id(p)], mask.double()
        (beta, gamma), eps = self.optimiser.defaults["betas"], self.optimiser.defaults["eps"]
        count += on
        mean.lerp_(p.grad, _along(on * (1 - beta), p))
        square.lerp_(p.grad.square(), _along(on * (1 - gamma), p))
        lr, known = on * self.lrs * self.factor(self.schedule.last_epoch), count.clamp_min(1)
        p.mul_(_along(1 - lr * self.decay[id(p)], p))
        root = square.sqrt() / _along((1 - gamma**known).sqrt(), p) + eps
        p.sub_(_along(lr / (1 - beta**known), p) * mean / root)
        p.grad = None


def _along(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


@torch.inference_mode()
def predict(pack: nn.Module, count: int, data: Encoded) -> torch.Tensor:
    """Logits [R, n, outputs] of a pack of `count` replicas in eval mode, for every row of `data` in its order."""
    device, made = pack.classifier.weight.device, None
    pack.eval()
    for batch in data.batches(ROWS, device=device):
        index = batch["index"]
        logits = bert.forward(pack, {k: v.repeat(count, *[1] * (v.ndim - 1)) for k, v in batch.items()})[0]
        logits = logits.view(count, len(index), -1)
        made = logits.new_empty(count, len(data), logits.shape[-1]) if made is None else made
        made[:, index] = logits
    return made.cpu()


def estimate(student, rows: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that one replica needs to train in `dtype` on batches of `rows` rows of `width` tokens: weights, gradients
    and AdamW's moments (in bf16 also its copy of weights and gradients), and what the backward pass keeps."""
    half = dtype != torch.float32
    fixed = (20 if half else 16) * sum(p.numel() for p in student.parameters())
    hidden, layers = student.config.hidden_size, student.bert.encoder.layer
    kept = 5 * hidden * width  # floats a row
    for layer in layers:
        heads = layer.attention.self.num_attention_heads
        size = heads * layer.attention.self.attention_head_size
        asked = 1 if layer is layers[-1] else width  # the last layer is computed at [CLS] alone
        kept += width * (hidden + 2 * size)  # input, keys and values
        kept += asked * (2 * size + 4 * heads * width)  # query and context; scores, softmax, mask and product
        kept += asked * (9 * hidden + 2 * layer.intermediate.dense.out_features)  # two dropouts and norms; GELU
    return fixed + rows * kept * (2 if half else 4)
