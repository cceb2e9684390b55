"""The distillation methods that STARK is compared with, or plugged into: PKD, CKD and DKD, as objectives.

Fine-tuning and KD are `distil.fine_tuning` and `distil.stark_kd`; TAKD is KD twice, with the assistants made here;
MetaKD and DynaBERT have files of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from kdutils import bert, distil, losses
from kdutils.teacher import Signals

BETA = 100.0  # PKD's weight, of its grid {10, 100, 500, 1000}; the one that TAKD's, MetaKD's and Pea-KD's codes use
WINDOW = 21  # tokens around the middle one that CKD's triples are taken from
CKD = {"rte": (3.0, 1.0, 10.0), "mrpc": (4.0, 1.0, 1.0), "sst2": (4.0, 100.0, 1000.0), "qnli": (3.0, 10.0, 1.0),
       "qqp": (2.0, 10.0, 10.0), "mnli": (4.0, 100.0, 1.0), "stsb": (1.0, 0.1, 0.1)}
ALPHA, GAMMA, TAU = 1.0, 8.0, 4.0  # DKD's: weights of the target and of the other classes (its beta), temperature
WARM_UP = 1 / 12  # share of the steps over which DKD's terms fade in: 20 of its 240 epochs


# ---------------------------------------------------------------------------------------------------------------- PKD


def pkd(teacher: Signals, pairs: Sequence[tuple[int, int]], tau: float, beta: float = BETA) -> distil.Plain:
    """Patient KD (Sun et al., 2019): `losses.stark` + beta MSE of unit-normalised [CLS] states of `pairs` of (student,
    teacher) layers, counted from 1; the MSE is a mean over batch, pairs and dimensions. Without a pair, as of a student
    of one layer, `distil.stark_kd`."""
    if not pairs:
        return distil.stark_kd(teacher, tau)
    ours, its = (bert.index(tuple(pair[side] for pair in pairs), teacher.logits.device) for side in (0, 1))

    def terms(batch, logits, states):
        told = teacher.at(batch["index"])
        made = losses.stark(logits, told.logits, batch["labels"], tau)
        patience = losses.patience(states[:, ours], told.states[:, its])
        return made | {"loss": made["loss"] + beta * patience, "patience": patience}

    return distil.Plain(terms, states=True)


# ---------------------------------------------------------------------------------------------------------------- CKD


def pair_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """CKD's pairs: how alike the items of one set are, in the student as in the teacher.

    `student`, `teacher` [..., n, d] may differ in d; `mask` [..., n] is true for real items. Each item's cosine
    similarities to the other real ones go through a softmax; the loss is KL(teacher || student), a mean over the items
    that have another one (0 where none has).
    """
    others = mask[..., None, :] & mask[..., :, None] & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    # masked at -1e4, not -inf: exp gives 0 all the same, and a row without any other item stays finite
    logs = [F.log_softmax((x @ x.mT).masked_fill(~others, -1e4), -1) for x in (F.normalize(student, dim=-1),
                                                                             F.normalize(teacher, dim=-1))]
    divergence = (logs[1].exp() * (logs[1] - logs[0])).sum(-1)
    rows = others.any(-1)
    return (divergence * rows).sum() / rows.sum().clamp(min=1)


def triple_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """CKD's triples: the cosine of the angle at item j between the directions to items i and k, all different and real
    and i, k within `WINDOW` items centred on j; the mean-squared error between student and teacher over all triples
    (0 where there is none). Shapes as in `pair_loss`."""
    near = torch.arange(-(WINDOW // 2), WINDOW // 2 + 1, device=mask.device)
    at = torch.arange(mask.shape[-1], device=mask.device)[:, None] + near
    there = (at >= 0) & (at < mask.shape[-1]) & (near != 0)
    at = at.clamp(0, mask.shape[-1] - 1)
    real = mask[..., at] & mask[..., None] & there
    valid = real[..., :, None] & real[..., None, :] & ~torch.eye(len(near), dtype=torch.bool, device=mask.device)
    squares = (_angles(student, at) - _angles(teacher, at)) ** 2
    return (squares * valid).sum() / valid.sum().clamp(min=1)


def _angles(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Cosines [..., n, w, w] of (x_i - x_j) and (x_k - x_j) for i, k in `at` [n, w], by the Gram matrix: the
    differences themselves would take d times the memory."""
    gram = x @ x.mT
    j = torch.arange(len(at), device=at.device)[:, None]
    to_j, own = gram[..., at, j], gram[..., j, j][..., None]
    inner = gram[..., at[:, :, None], at[:, None, :]] - to_j[..., None] - to_j[..., None, :] + own
    length = inner.diagonal(dim1=-2, dim2=-1).clamp(min=1e-6).sqrt()
    return inner / (length[..., None] * length[..., None, :])


def ckd(teacher, pairs: Sequence[tuple[int, int]], task: str, heat: float = 1.0, weight: float = 1.0) -> distil.Plain:
    """Contextual KD (Park et al., 2021): soft cross-entropy at T without T squared, which takes the place of the task's
    loss (a regression: MSE with the teacher), plus word relations (WR) and layer-transforming relations (LTR).

    WR compares the tokens of a row, within each matched layer (a mean over layers); LTR the matched layers of a token.
    Both are `pair_loss` and `triple_loss`. Matched are the embeddings and `pairs`, counted from 1. T and WR's weights
    are the official ones of `task` (MRPC's where there are none); LTR's are 1, as in the code, whose options for them
    are never read; `heat` multiplies T and `weight` all relations. The teacher is asked live: its token states are too
    many to keep.
    """
    tau, of_pairs, of_triples = CKD.get(task, CKD["mrpc"])
    tau = heat * tau
    layers = [(0, *(pair[side] for pair in pairs)) for side in (0, 1)]

    def terms(batch, logits, states):
        with torch.no_grad():
            told, its = bert.forward(teacher, batch, tokens=True)
        soft = F.mse_loss(logits, told) if batch["labels"].is_floating_point() else losses.soft_ce(logits, told, tau)
        sides = [x[:, bert.index(some, x.device)] for x, some in zip((states, its), layers, strict=True)]
        mask = batch["attention_mask"].bool()
        words = [x.flatten(0, 1) for x in sides], mask.repeat_interleave(len(layers[0]), 0)
        real_tokens = mask.nonzero(as_tuple=True)  # once: a GPU is waited for
        of_tokens = [x.transpose(1, 2)[real_tokens] for x in sides]
        depth = of_tokens, mask.new_ones(of_tokens[0].shape[:2])
        made = {"kd": soft}
        for name, ((ours, theirs), real) in {"wr": words, "ltr": depth}.items():
            made |= {f"{name}_pair": pair_loss(ours, theirs, real), f"{name}_triple": triple_loss(ours, theirs, real)}
        relations = of_pairs * made["wr_pair"] + of_triples * made["wr_triple"] + made["ltr_pair"] + made["ltr_triple"]
        return {"loss": soft + weight * relations} | made

    return distil.Plain(terms, tokens=True, whole=True)  # means over all tokens of a batch


# --------------------------------------------------------------------------------------------------------------- TAKD


def between(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """The layers of an assistant whose depth is half-way between the student's and the teacher's `depth`: the student's
    `layers` and others from the middle of the widest gaps. Where `layers` are the bottom ones, so are its own."""
    made, wanted = list(layers), (len(layers) + depth) // 2
    if made == list(range(1, len(made) + 1)):
        return tuple(range(1, wanted + 1))
    while len(made) < wanted:
        ends = [0, *made, depth + 1]
        low, high = max(pairwise(ends), key=lambda gap: gap[1] - gap[0])
        made = sorted([*made, (low + high) // 2])
    return tuple(made)


def inherit(assistant, own: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]):
    """The student inside a pruned assistant: a copy of it cut down from its `own` to the `wanted` units.

    Both are masks of (heads [layers, heads], neurons [layers, neurons]) over the unpruned model, `wanted` within `own`.
    """
    masks = ([inside[outside] for inside, outside in zip(*some, strict=True)] for some in zip(wanted, own, strict=True))
    return bert.prune(assistant, *masks)


# ---------------------------------------------------------------------------------------------------------------- DKD


def decoupled(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor,
              tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """TCKD and NCKD of logits [b, c] for true classes `labels` [b]: KL(t || s) over (true class, all others), and over
    the other classes among themselves; at temperature `tau`, means over the batch, without tau squared. With two
    classes NCKD is 0 and TCKD is plain KD's KL."""
    true, rest = labels[:, None], torch.arange(student.shape[1] - 1, device=labels.device)
    rest = rest + (rest >= true)  # the other classes of each row; a boolean mask would make a GPU wait

    def binary(z):
        logp = F.log_softmax(z / tau, -1)
        return torch.cat([logp.gather(1, true), logp.gather(1, rest).logsumexp(-1, keepdim=True)], -1)

    def others(z):
        return F.log_softmax(z.gather(1, rest) / tau, -1)

    tckd, nckd = (F.kl_div(a, b, log_target=True, reduction="batchmean")
                  for a, b in ((binary(student), binary(teacher)), (others(student), others(teacher))))
    return tckd, nckd


class DKD(distil.Plain):
    """Decoupled KD (Zhao et al., 2022): cross-entropy + warm (alpha TCKD + gamma NCKD) tau squared, where warm grows
    from 0 to 1 over the first `WARM_UP` of `steps`. Undefined for a regression, which gets MSE(y) + warm MSE(z_t)."""

    def __init__(self, teacher: Signals, steps: int, alpha: float = ALPHA, gamma: float = GAMMA, tau: float = TAU):
        super().__init__(self._terms)
        self.teacher, self.alpha, self.gamma, self.tau = teacher, alpha, gamma, tau
        self.warm_up, self.step = max(1.0, WARM_UP * steps), 0

    def _terms(self, batch, logits, states):
        self.step += 1
        warm = min(1.0, self.step / self.warm_up)
        told, labels = self.teacher.logits[batch["index"]], batch["labels"]
        task = losses.hard(logits, labels)
        if labels.is_floating_point():
            soft = F.mse_loss(logits, told)
            return {"loss": task + warm * soft, "kd": soft, "task": task}
        tckd, nckd = decoupled(logits, told, labels, self.tau)
        soft = (self.alpha * tckd + self.gamma * nckd) * self.tau**2
        return {"loss": task + warm * soft, "tckd": tckd, "nckd": nckd, "task": task}
