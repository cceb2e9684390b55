"""STARK, the sparse teacher trick: knowledgeable scores, sparsification and automatic sparsity.

Three stages (Yang, Zhang and Song, 2022): distil a trial student from the dense teacher; score every head and neuron of
the teacher by how much it says (expressiveness) and by how much it says to that student (friendliness), and remove the
lowest; distil again, from the same student initialisation, with the sparse teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from . import bert, losses

EPSILON = 1e-7  # added to each layer's norm, as in the official code
MATRICES = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "intermediate.dense", "output.dense")  # of a layer: W_Q, W_K, W_V, W_O, W_1, W_2
READINGS = ("A", "B", "C", "D")
GRID_POINTS = 512  # of a density curve
LOWEST_PEAK = 0.05  # of the highest one; what is below is ripple

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
    KL, whose gradient for the teacher vanishes where the two agree), or MSE for a regression."""
    if labels.is_floating_point():
        return nn.functional.mse_loss(student, teacher)
    return losses.soft_ce(student, teacher, tau)


def score(teacher, student: Student, batches: Iterable[dict], tau: float = 2.0) -> Scores:
    """Expressiveness P and friendliness Q of the teacher's heads and neurons.

    P_i = sum over batches |d L / d gate_i| where L is the batch-mean task loss, and Q_i the same with
    `friendliness_loss` at `tau` against the student's logits; the gradient goes through the teacher's logits only. Each
    is then divided by its l2 norm within the layer. A batch is a dict of `input_ids`, `attention_mask`,
    `token_type_ids` [b, t] and `labels` [b] (float: a regression). `student` is a model or a function batch -> logits.
    Both are read in eval mode and left as they were. ValueError: no batch, a pruned teacher, or tau not positive.
    """
    if not tau > 0:
        raise ValueError(f"tau: got {tau}; allowed: above 0")
    terms = (lambda batch, z: losses.hard(z, batch["labels"]),
             lambda batch, z: friendliness_loss(_logits(student, batch), z, batch["labels"], tau))
    gates = bert.Gates(teacher, requires_grad=True)
    try:
        (p_heads, p_neurons), (q_heads, q_neurons) = _sensitivities(teacher, batches, _both(gates), terms)
    finally:
        gates.remove()
    return Scores(*map(normalise, (p_heads, q_heads, p_neurons, q_neurons)))


def expressiveness(teacher, batches: Iterable[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """P of the heads and of the neurons alone, as `score` gives it."""
    gates = bert.Gates(teacher, requires_grad=True)
    terms = (lambda batch, z: losses.hard(z, batch["labels"]),)
    try:
        ((heads, neurons),) = _sensitivities(teacher, batches, _both(gates), terms)
    finally:
        gates.remove()
    return normalise(heads), normalise(neurons)


def _both(gates: bert.Gates) -> list[torch.Tensor]:
    return [gates.heads, gates.neurons]


def _sensitivities(teacher, batches, of: list[torch.Tensor], terms, weigh: bool = False) -> list[list[torch.Tensor]]:
    """For each loss term the sums over batches of |gradient| (`weigh`: of |value x gradient|) with respect to `of`.

    One forward pass and one backward pass a term for each batch; no gradient is stored for anything else.
    """
    totals = [[torch.zeros_like(x, dtype=torch.float32) for x in of] for _ in terms]
    flags, was_training = {p: p.requires_grad for p in teacher.parameters()}, teacher.training
    wanted, seen = {id(x) for x in of}, 0
    teacher.eval()
    try:
        for p in flags:
            p.requires_grad_(id(p) in wanted)
        for batch in batches:
            logits, _ = bert.forward(teacher, batch)
            for i, term in enumerate(terms):
                gradients = torch.autograd.grad(term(batch, logits), of, retain_graph=i + 1 < len(terms))
                for total, x, gradient in zip(totals[i], of, gradients, strict=True):
                    total += (x.detach() * gradient if weigh else gradient).abs()
            seen += 1
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)
        teacher.train(was_training)
    if not seen:
        raise ValueError("batches: got none; allowed: one or more")
    return totals


@torch.no_grad()
def _logits(student: Student, batch: dict) -> torch.Tensor:
    if not isinstance(student, nn.Module):
        return student(batch)
    was_training = student.training
    try:
        return bert.forward(student.eval(), batch)[0]
    finally:
        student.train(was_training)


def random_scores(teacher, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The control: uniform scores of heads and neurons, drawn from `seed`."""
    gates = bert.Gates(teacher)
    gates.remove()
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(gates.heads.shape, generator=generator), torch.rand(gates.neurons.shape, generator=generator)


# --------------------------------------------------------------------------------------------------- sparsification


def kept(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Mask of the units that stay when the round(sparsity * units) lowest of `scores` [layers, units] go, ranked over
    all layers together. Of equal scores the earlier one (lower layer, then lower number) goes first."""
    _share("sparsity", sparsity)
    order = scores.flatten().argsort(stable=True)
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[: round(sparsity * scores.numel())]] = False
    return mask.view_as(scores)


def sparsify(teacher, heads: torch.Tensor, neurons: torch.Tensor, sparsity: float | tuple[float, float]):
    """A copy of the teacher without the `sparsity` share of heads and of neurons that score lowest (see `kept`).

    They are removed, not masked, so the copy is faster; a sub-layer that loses everything passes its input through. It
    is not fine-tuned. A pair of shares holds one for heads and one for neurons. ValueError: scores of another shape.
    """
    gates = bert.Gates(teacher)
    gates.remove()
    for name, given, own in (("heads", heads, gates.heads), ("neurons", neurons, gates.neurons)):
        if given.shape != own.shape:
            raise ValueError(f"{name}: got scores of shape {tuple(given.shape)}; allowed: {tuple(own.shape)}")
    of_heads, of_neurons = sparsity if isinstance(sparsity, tuple) else (sparsity, sparsity)
    made = bert.prune(teacher, kept(heads, of_heads), kept(neurons, of_neurons))
    return made.to(teacher.classifier.weight.device)


def weight_matrices(model) -> list[list[nn.Parameter]]:
    """The six weight matrices (`MATRICES`) of each encoder layer."""
    return [[layer.get_submodule(name).weight for name in MATRICES] for layer in model.bert.encoder.layer]


def score_weights(teacher, student: Student, batches: Iterable[dict], tau: float = 2.0,
                  lam: float = 0.5) -> list[list[torch.Tensor]]:
    """Unstructured knowledgeable scores, one an element of `weight_matrices`.

    The element-wise twin of `score`: |w dL/dw| (the gradient of a gate of 1 on that weight) summed over batches, over
    its l2 norm across a layer's six matrices, for both losses, then lam P + (1 - lam) Q.
    """
    _share("lam", lam)
    layers = weight_matrices(teacher)
    flat = [w for layer in layers for w in layer]
    terms = (lambda batch, z: losses.hard(z, batch["labels"]),
             lambda batch, z: friendliness_loss(_logits(student, batch), z, batch["labels"], tau))
    p, q = _sensitivities(teacher, batches, flat, terms, weigh=True)
    made = []
    for start in range(0, len(flat), len(MATRICES)):
        part = slice(start, start + len(MATRICES))
        norms = [torch.stack([x.norm() for x in side[part]]).norm() + EPSILON for side in (p, q)]
        made.append([lam * a / norms[0] + (1 - lam) * b / norms[1] for a, b in zip(p[part], q[part], strict=True)])
    return made


def sparsify_weights(teacher, scores: list[list[torch.Tensor]], sparsity: float):
    """A copy of the teacher whose round(sparsity * elements) lowest-scoring weights, over all layers, are zero."""
    mask = kept(torch.cat([s.flatten() for layer in scores for s in layer])[None], sparsity)[0]
    made = copy.deepcopy(teacher)
    weights = [w for layer in weight_matrices(made) for w in layer]
    for weight, keep in zip(weights, mask.split([w.numel() for w in weights]), strict=True):
        weight.data.mul_(keep.view_as(weight))
    return made


# ------------------------------------------------------------------------------------------------- automatic sparsity


@dataclass(frozen=True)
class Peak:
    """The first peak of a density and the sparsity read off it.

    `sparsity` (of heads) and `neuron_sparsity` are shares rounded to a hundredth; they differ in reading C only. `x`
    and `density` [points] are the curve, `peak` the place on `x` where it first peaks.
    """

    sparsity: float
    neuron_sparsity: float
    x: np.ndarray
    density: np.ndarray
    peak: float


def density_peak(scores: Scores | torch.Tensor | np.ndarray, reading: str = "A", bandwidth: float = 1.0) -> Peak:
    """The automatic sparsity: the share of units whose score is at most x1, the lowest local maximum (above 5 % of the
    highest) of a Gaussian kernel density of scores, with Scott's bandwidth times `bandwidth`.

    Readings of the poster's "first density peak of a sparsification sequence":
    A  the density of the heads' knowledgeable scores; the share of heads below its peak serves heads and neurons
    B  the density of the heads' P and Q pooled, whose first peak is the cluster of friendliness; the share as in A
    C  as A, for heads and neurons apart
    D  along the rank: the peak of 1 / (gap between neighbours in the sorted sequence, smoothed over ranks)
    `scores` is a `Scores`, or the sequence itself (any shape; A and D). ValueError: an unknown reading, a bandwidth
    that is not positive, a sequence given to B or C, or one without two different values.
    """
    if reading not in READINGS:
        raise ValueError(f"reading: got {reading!r}; allowed: {', '.join(READINGS)}")
    if not bandwidth > 0:
        raise ValueError(f"bandwidth: got {bandwidth}; allowed: above 0")
    if not isinstance(scores, Scores):
        if reading in "BC":
            raise ValueError(f"scores: got one sequence for reading {reading}; allowed: a Scores")
        return _along_rank(_values(scores), bandwidth) if reading == "D" else _first_peak(_values(scores), bandwidth)
    heads, neurons = map(_values, scores.knowledgeable())
    if reading == "B":
        both = torch.stack([scores.head_expressiveness, scores.head_friendliness])
        return _first_peak(_values(both), bandwidth, heads)
    if reading == "D":
        return _along_rank(heads, bandwidth)
    found = _first_peak(heads, bandwidth)
    if reading == "A":
        return found
    return Peak(found.sparsity, _first_peak(neurons, bandwidth).sparsity, found.x, found.density, found.peak)


def _values(scores) -> np.ndarray:
    values = np.sort(torch.as_tensor(scores).detach().cpu().double().flatten().numpy())
    if len(values) < 2 or values[0] == values[-1]:
        raise ValueError(f"scores: got {len(np.unique(values))} distinct value(s); allowed: two or more")
    return values


def _peaks(density: np.ndarray) -> int:
    """Index of the lowest local maximum above `LOWEST_PEAK` of the highest; an end of the curve counts as one."""
    from scipy.signal import find_peaks

    return int(find_peaks(np.pad(density, 1), height=LOWEST_PEAK * density.max())[0][0]) - 1


def _first_peak(values: np.ndarray, bandwidth: float, sequence: np.ndarray | None = None) -> Peak:
    from scipy.stats import gaussian_kde

    kde = gaussian_kde(values, lambda kde: kde.scotts_factor() * bandwidth)
    spread = 3 * float(np.sqrt(kde.covariance[0, 0]))
    x = np.linspace(values[0] - spread, values[-1] + spread, GRID_POINTS)
    density = kde(x)
    peak = float(x[_peaks(density)])
    sequence = values if sequence is None else sequence
    share = round(float(sequence.searchsorted(peak, "right") / len(sequence)), 2)
    return Peak(share, share, x, density, peak)


def _along_rank(values: np.ndarray, bandwidth: float) -> Peak:
    """Reading D. The smoothing's standard deviation is Scott's, for ranks: n^(-1/5) times that of 1..n."""
    from scipy.ndimage import gaussian_filter1d

    ranks = np.arange(1, len(values)) + 0.5  # between the neighbours
    width = bandwidth * len(values) ** -0.2 * np.arange(len(values)).std()
    smooth = gaussian_filter1d(np.diff(values), width, mode="nearest")
    density = 1 / np.maximum(smooth, np.finfo(float).tiny)
    at = _peaks(density)
    share = round(float(ranks[at] / len(values)), 2)
    return Peak(share, share, ranks, density, float(ranks[at]))
