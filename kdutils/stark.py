"""STARK, the sparse teacher trick: knowledgeable scores, sparsification and automatic sparsity.

Three stages (Yang, Zhang and Song, 2022): distil a trial student from the dense teacher; score every head and neuron of
the teacher by how much it says (expressiveness) and by how much it says to that student (friendliness), and remove the
lowest; distil again, from the same student initialisation, with the sparse teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from kdutils import bert, losses
from kdutils.density import Peak, along_rank, ascending, first_peak

EPSILON = 1e-7  # added to each layer's norm, as in the official code
MATRICES = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "intermediate.dense", "output.dense")  # of a layer: W_Q, W_K, W_V, W_O, W_1, W_2
READINGS = ("A", "B", "C", "D")

Student = nn.Module | Callable[[dict], torch.Tensor]


@dataclass(frozen=True)
class Scores:
    """Scores of heads [layers, heads] and neurons [layers, neurons], each of l2 norm 1 within its layer."""

    head_expressiveness: torch.Tensor
    head_friendliness: torch.Tensor
    neuron_expressiveness: torch.Tensor
    neuron_friendliness: torch.Tensor

    def knowledgeable(self, lam: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
        """I = lam P + (1 - lam) Q of the heads and of the neurons; ValueError: lam outside [0, 1]."""
        _share("lam", lam)
        return (lam * self.head_expressiveness + (1 - lam) * self.head_friendliness,
                lam * self.neuron_expressiveness + (1 - lam) * self.neuron_friendliness)


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value}; allowed: 0 to 1")


def normalise(sums: torch.Tensor) -> torch.Tensor:
    """Rows of `sums` [layers, units] over their l2 norm (+1e-7)."""
    return sums / (sums.norm(dim=1, keepdim=True) + EPSILON)


# ----------------------------------------------------------------------------------------------------------- scores


def friendliness_loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, tau: float) -> torch.Tensor:
    """The distillation term that scores the teacher, a mean over the batch without tau squared: soft cross-entropy (not
    KL, whose gradient for the teacher vanishes where the two agree), or MSE for a regression.

    MSE is what the official code has, though its gradient vanishes at agreement as KL's does: a regression's
    friendliness is zero for a student that repeats its teacher (elsewhere the norm within the layer takes scale away).
    """
    if labels.is_floating_point():
        return nn.functional.mse_loss(student, teacher)
    return losses.soft_ce(student, teacher, tau)


@torch.inference_mode(False)
@torch.enable_grad()
def score(teacher, student: Student, batches: Iterable[dict],
          tau: float = 2.0) -> Scores:
    """Expressiveness P and friendliness Q of the teacher's heads and neurons.

    P_i = sum over batches |d L / d gate_i| where L is the batch-mean task loss, and Q_i
    the same with `friendliness_loss` at `tau` against the student's logits; the
    gradient goes through the teacher's logits only. Each is then divided by its l2 norm
    within the layer. A batch is a dict of `input_ids`, `attention_mask`,
    `token_type_ids` [b, t] and `labels` [b] (float: a regression). `student` is a model
    or a function batch -> logits. Both are read in eval mode and left as they were.
    ValueError: no batch, a pruned teacher, tau not positive, labels of another kind
    than the teacher's outputs, or a student whose logits have another shape than the
    teacher's.
    """
    p, q = _gated(teacher, batches, _task, _friendliness(student, tau))
    (p_heads, p_neurons), (q_heads, q_neurons) = p, q
    return Scores(p_heads, q_heads, p_neurons, q_neurons)


@torch.inference_mode(False)
@torch.enable_grad()
def expressiveness(teacher, batches: Iterable[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """P of the heads and of the neurons alone, as `score` gives it."""
    return _gated(teacher, batches, _task)[0]


def _gated(teacher, batches: Iterable[dict], *terms) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each loss term the normalised sensitivities to the gates of heads and of neurons."""
    gates = bert.Gates(teacher, requires_grad=True)
    try:
        found = _sensitivities(teacher, batches, [gates.heads, gates.neurons], terms)
    finally:
        gates.remove()
    return [(normalise(heads), normalise(neurons)) for heads, neurons in found]


def _task(batch: dict, logits: torch.Tensor) -> torch.Tensor:
    """The loss, of a batch and the teacher's logits on it, whose gradients are P."""
    return losses.hard(logits, batch["labels"])


def _friendliness(student: Student, tau: float) -> Callable[[dict, torch.Tensor], torch.Tensor]:
    """The loss whose gradients are Q."""
    if not tau > 0:
        raise ValueError(f"tau: got {tau}; allowed: above 0")

    def term(batch, logits):
        told = _logits(student, batch)
        if told.shape != logits.shape:
            raise ValueError(f"student: got logits of shape {tuple(told.shape)}; allowed: {tuple(logits.shape)}")
        return friendliness_loss(told, logits, batch["labels"], tau)

    return term


def _sensitivities(teacher, batches, of: list[torch.Tensor], terms, weigh: bool = False) -> list[list[torch.Tensor]]:
    """For each loss term the sums over batches of |gradient| (`weigh`: of |value x gradient|) with respect to `of`.

    One forward pass and one backward pass a term for each batch; no gradient is stored for anything else.
    """
    totals = [[torch.zeros_like(x, dtype=torch.float32) for x in of] for _ in terms]
    flags = {p: p.requires_grad for p in teacher.parameters()}
    wanted, seen = {id(x) for x in of}, 0
    with bert.in_mode(teacher, training=False):
        try:
            for p in flags:
                p.requires_grad_(id(p) in wanted)
            for batch in batches:
                batch = {name: _normal(value) for name, value in batch.items()}
                logits, _ = bert.forward(teacher, batch)
                _check(batch["labels"], logits)
                for i, term in enumerate(terms):
                    gradients = torch.autograd.grad(term(batch, logits), of, retain_graph=i + 1 < len(terms))
                    for total, x, gradient in zip(totals[i], of, gradients, strict=True):
                        total += (x.detach() * gradient if weigh else gradient).abs()
                seen += 1
        finally:
            for p, flag in flags.items():
                p.requires_grad_(flag)
    if not seen:
        raise ValueError("batches: got none; allowed: one or more")
    return totals


def _check(labels: torch.Tensor, logits: torch.Tensor) -> None:
    """Labels of another kind would be broadcast, or compared with the first output alone, without a word."""
    rows, outputs = logits.shape
    if labels.shape != (rows,) or labels.is_floating_point() != (outputs == 1):
        kind = "real" if outputs == 1 else "whole"
        got = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
        raise ValueError(f"labels: got {got}; allowed: {kind} numbers ({rows},) for a teacher of {outputs} output(s)")


def _normal(x):
    """A tensor that was made in inference mode as one that a backward pass may use."""
    return x.clone() if isinstance(x, torch.Tensor) and x.is_inference() else x


@torch.no_grad()
def _logits(student: Student, batch: dict) -> torch.Tensor:
    if not isinstance(student, nn.Module):
        return _normal(student(batch))
    with bert.in_mode(student, training=False):
        return bert.forward(student, batch)[0]


def random_scores(teacher, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The control: uniform scores of heads and neurons, drawn from `seed`."""
    (heads, neurons), generator = bert.widths(teacher), torch.Generator().manual_seed(seed)
    return torch.rand(heads, generator=generator), torch.rand(neurons, generator=generator)


# --------------------------------------------------------------------------------------------------- sparsification


def kept(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Mask of the units that stay when the round(sparsity * units) lowest of `scores`
    [layers, units] go, ranked over all layers together. Of equal scores the earlier one
    (lower layer, then lower number) goes first. ValueError: a sparsity outside [0, 1],
    or a score that is NaN, which would rank above all others."""
    _share("sparsity", sparsity)
    if scores.isnan().any():
        count = int(scores.isnan().sum())
        raise ValueError(f"scores: got NaN for {count} unit(s); allowed: numbers")
    order = scores.flatten().argsort(stable=True)
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[: round(sparsity * scores.numel())]] = False
    return mask.view_as(scores)


def sparsify(teacher, heads: torch.Tensor, neurons: torch.Tensor, sparsity: float | Sequence[float]):
    """A copy of the teacher without the `sparsity` share of heads and of neurons that score lowest (see `kept`).

    They are removed, not masked, so the copy is faster; a sub-layer that loses everything passes its input through. It
    is not fine-tuned. A pair of shares holds one for heads and one for neurons. ValueError: a pruned teacher, scores
    of another shape, those that `kept` refuses, or another number of shares.
    """
    for name, given, own in zip(("heads", "neurons"), (heads, neurons), bert.widths(teacher), strict=True):
        if given.shape != own:
            raise ValueError(f"{name}: got scores of shape {tuple(given.shape)}; allowed: {own}")
    shares = sparsity if isinstance(sparsity, Sequence) else (sparsity, sparsity)
    if len(shares) != 2:
        raise ValueError(f"sparsity: got {len(shares)} shares; allowed: one, or one for heads and one for neurons")
    made = bert.prune(teacher, kept(heads, shares[0]), kept(neurons, shares[1]))
    return made.to(teacher.classifier.weight.device)


def weight_matrices(model) -> list[list[nn.Parameter]]:
    """The six weight matrices (`MATRICES`) of each encoder layer."""
    return [[layer.get_submodule(name).weight for name in MATRICES] for layer in model.bert.encoder.layer]


@torch.inference_mode(False)
@torch.enable_grad()
def score_weights(teacher, student: Student, batches: Iterable[dict], tau: float = 2.0,
                  lam: float = 0.5) -> list[list[torch.Tensor]]:
    """Unstructured knowledgeable scores, one an element of `weight_matrices`.

    The element-wise twin of `score`: |w dL/dw| (the gradient of a gate of 1 on that weight) summed over batches, over
    its l2 norm across a layer's six matrices, for both losses, then lam P + (1 - lam) Q. ValueError: as `score`, but
    that pruned teachers are allowed, or lam outside [0, 1].
    """
    _share("lam", lam)
    layers = weight_matrices(teacher)
    flat = [w for layer in layers for w in layer]
    p, q = _sensitivities(teacher, batches, flat, (_task, _friendliness(student, tau)), weigh=True)
    made = []
    for start in range(0, len(flat), len(MATRICES)):
        part = slice(start, start + len(MATRICES))
        norms = [torch.stack([x.norm() for x in side[part]]).norm() + EPSILON for side in (p, q)]
        made.append([lam * a / norms[0] + (1 - lam) * b / norms[1] for a, b in zip(p[part], q[part], strict=True)])
    return made


def sparsify_weights(teacher, scores: list[list[torch.Tensor]], sparsity: float):
    """A copy of the teacher whose round(sparsity * elements) lowest-scoring weights, over all layers, are zero.
    ValueError: what `kept` refuses."""
    mask = kept(torch.cat([s.flatten() for layer in scores for s in layer])[None], sparsity)[0]
    made = copy.deepcopy(teacher)
    weights = [w for layer in weight_matrices(made) for w in layer]
    for weight, keep in zip(weights, mask.split([w.numel() for w in weights]), strict=True):
        weight.data.mul_(keep.view_as(weight))
    return made


# ------------------------------------------------------------------------------------------------- automatic sparsity


def density_peak(scores: Scores | torch.Tensor | np.ndarray, reading: str = "A",
                 bandwidth: float = 1.0) -> Peak:
    """The automatic sparsity: the share of units whose score is at most x1, the lowest
    local maximum (above 5 % of the highest) of a Gaussian kernel density of scores,
    with Scott's bandwidth times `bandwidth`.

    Readings of the poster's "first density peak of a sparsification sequence":
    A  the density of the heads' knowledgeable scores; the share of heads below its
       peak serves heads and neurons
    B  the density of the heads' P and Q pooled, whose first peak is the cluster of
       friendliness; the share as in A
    C  as A, for heads and neurons apart
    D  along the rank: the first peak of 1 / (gap between neighbours in the sorted
       sequence, smoothed over ranks). The curve has no margins, so its ends are no
       peaks, unless it has no other: then its highest point, x1 an end
    `scores` is a `Scores`, or the sequence itself (any shape; A and D). ValueError: an
    unknown reading, a bandwidth that is not positive, a sequence given to B or C, or
    one without two different values or with one not finite.
    """
    if reading not in READINGS:
        raise ValueError(f"reading: got {reading!r}; allowed: {', '.join(READINGS)}")
    if not bandwidth > 0:
        raise ValueError(f"bandwidth: got {bandwidth}; allowed: above 0")
    if not isinstance(scores, Scores):
        if reading in "BC":
            one = f"one sequence for reading {reading}"
            raise ValueError(f"scores: got {one}; allowed: a Scores")
        peak = along_rank if reading == "D" else first_peak
        return peak(ascending(scores), bandwidth)
    heads, neurons = scores.knowledgeable()
    heads = ascending(heads)
    if reading == "B":
        both = torch.stack([scores.head_expressiveness, scores.head_friendliness])
        return first_peak(ascending(both), bandwidth, heads)
    if reading == "D":
        return along_rank(heads, bandwidth)
    found = first_peak(heads, bandwidth)
    if reading == "A":
        return found
    own = first_peak(ascending(neurons), bandwidth)
    return replace(found, neuron_sparsity=own.sparsity)
