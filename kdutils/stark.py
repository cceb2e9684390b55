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
    """For each loss term the normalised sensitivities to the gates of heads and of neurons.

    A loss reaches the gates only through the logits of its rows, and a softmax knows of c logits only c - 1 differences
    (a regression has its one output). So each row gets gates of its own and each difference one backward pass, whose
    gradients, a row each, serve all terms: a term's own is their sum, weighed by its slopes at the logits. With two
    classes both scores take one pass instead of two.
    """
    gates, shapes = bert.Gates(teacher), bert.widths(teacher)

    def gradients(batch):
        rows = len(batch["labels"])
        gates.heads, gates.neurons = (_ones(rows, shape, teacher) for shape in shapes)
        logits = _checked(teacher, batch)
        free = logits[:, 1:] - logits[:, :1] if logits.shape[1] > 1 else logits
        slopes = torch.stack([_slopes(term, batch, logits)[:, -free.shape[1] :] for term in terms])
        found = [torch.zeros(len(terms), *shape, device=logits.device) for shape in shapes]
        for i in range(free.shape[1]):
            by_row = torch.autograd.grad(free[:, i].sum(), [gates.heads, gates.neurons], retain_graph=True)
            for total, gradient in zip(found, by_row, strict=True):
                total += torch.einsum("tr,rlu->tlu", slopes[:, :, i], gradient)
        return found

    try:
        heads, neurons = _sums(teacher, batches, gradients)
    finally:
        gates.remove()
    return [(normalise(h), normalise(n)) for h, n in zip(heads, neurons, strict=True)]


def _ones(rows: int, shape: tuple[int, int], teacher) -> torch.Tensor:
    return torch.ones(rows, *shape, device=bert.device_of(teacher), requires_grad=True)


def _slopes(term, batch: dict, logits: torch.Tensor) -> torch.Tensor:
    """The gradient of a loss term with respect to the teacher's logits [rows, outputs]."""
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(term(batch, logits), logits)[0]


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


def _sums(teacher, batches, gradients: Callable[[dict], list[torch.Tensor]],
          of: Sequence[nn.Parameter] = ()) -> list[torch.Tensor]:
    """The sums over batches of the absolute values of `gradients(batch)`, with gradients of the teacher's own
    parameters for those in `of` alone."""
    totals: list[torch.Tensor] = []
    flags = {p: p.requires_grad for p in teacher.parameters()}
    wanted = {id(x) for x in of}
    with bert.in_mode(teacher, training=False):
        try:
            for p in flags:
                p.requires_grad_(id(p) in wanted)
            for batch in batches:
                found = gradients({name: _normal(value) for name, value in batch.items()})
                totals = totals or [torch.zeros_like(x) for x in found]
                for total, x in zip(totals, found, strict=True):
                    total += x.abs()
        finally:
            for p, flag in flags.items():
                p.requires_grad_(flag)
    if not totals:
        raise ValueError("batches: got none; allowed: one or more")
    return totals


def _checked(teacher, batch: dict) -> torch.Tensor:
    """The teacher's logits on a batch. Labels of another kind would be broadcast, or compared with the first output
    alone, without a word."""
    logits, labels = bert.forward(teacher, batch)[0], batch["labels"]
    rows, outputs = logits.shape
    if labels.shape != (rows,) or labels.is_floating_point() != (outputs == 1):
        kind = "real" if outputs == 1 else "whole"
        got = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
        raise ValueError(f"labels: got {got}; allowed: {kind} numbers ({rows},) for a teacher of {outputs} output(s)")
    return logits


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
    flat = [w for layer in weight_matrices(teacher) for w in layer]
    terms = _task, _friendliness(student, tau)

    def gradients(batch):
        logits = _checked(teacher, batch)
        found = [torch.autograd.grad(term(batch, logits), flat, retain_graph=term is _task) for term in terms]
        return [weight.detach() * gradient for one in found for weight, gradient in zip(flat, one, strict=True)]

    sums = _sums(teacher, batches, gradients, flat)
    p, q = sums[: len(flat)], sums[len(flat) :]
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
