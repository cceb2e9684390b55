"""KSM's four knowledge types as losses, and the policies that choose among them at every training step.

The paper's appendix A (eqs. 14 to 18) sums over the batch. Here every type is a mean over the batch, and over layers or
pairs of layers; `literal=True` gives the paper's form. Their magnitudes differ by up to seven orders (RelK divides by
the fourth power of the width), so `Selective` divides each by its mean over the first steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F

from kdutils import bert, losses
from kdutils.profiles import matched
from kdutils.teacher import Signals

TYPES = ("FinK", "ResK", "FeaK", "RelK")  # the order of an action's four entries
CHOICES = tuple(c for c in product((0.0, 1.0), repeat=4) if any(c))  # the 15 hard selections of at least one type
FIRST = 100  # steps whose mean a type's loss is divided by


def assignment(student: int, teacher: int) -> tuple[int, ...]:
    """I(i) for i = 1..`student`: teacher layer `teacher` i / `student`, halves rounded up; the last maps to the last.

    ValueError for a student of fewer than two layers (RelK needs two that follow each other) or more than the teacher.
    """
    if not 2 <= student <= teacher:
        raise ValueError(f"student layers: got {student}; allowed: 2..{teacher}")
    return tuple(matched(i, student, teacher) for i in range(1, student + 1))


def fink(logits: torch.Tensor, labels: torch.Tensor, literal: bool = False) -> torch.Tensor:
    """Finetune knowledge: cross-entropy, a mean over the batch; a regression: mean-squared error.

    Literal (eq. 18): summed over the batch's correctly predicted rows only, because its text takes y, which should run
    over the classes, for the predicted label; there a row that the student gets wrong teaches nothing. ValueError: the
    literal form of a regression.
    """
    if not literal:
        return losses.hard(logits, labels)
    _classification(logits)
    right = logits.argmax(-1) == labels
    return (F.cross_entropy(logits, labels, reduction="none") * right).sum()


def resk(student: torch.Tensor, teacher: torch.Tensor, tau: float, literal: bool = False) -> torch.Tensor:
    """Response knowledge from logits [b, c]: tau^2 KL(teacher || student) at temperature tau, a mean over the batch; a
    regression [b, 1]: mean-squared error.

    Literal (eq. 14): KL(student || teacher), summed over the batch, without tau^2. ValueError: that of a regression.
    """
    if literal:
        _classification(student)
        return len(student) * losses.kl(teacher, student, tau)
    return F.mse_loss(student, teacher) if student.shape[1] == 1 else tau**2 * losses.kl(student, teacher, tau)


def _classification(logits: torch.Tensor) -> None:
    if logits.shape[1] == 1:
        raise ValueError("literal: got a regression; allowed: classification")


def feak(student: torch.Tensor, teacher: torch.Tensor, assigned: Sequence[int], literal: bool = False) -> torch.Tensor:
    """Feature knowledge from [CLS] states [b, layers + 1, d]: the (unsquared) distance of unit vectors, student layer i
    to teacher layer I(i); at most 2. A mean over batch and layers; literal (eq. 15): a sum over both. ValueError: not
    one assigned layer for each of the student's."""
    _one_each(student, assigned)
    its = teacher[:, bert.index(tuple(assigned), teacher.device)]
    apart = F.normalize(student[:, 1:], dim=-1) - F.normalize(its, dim=-1)
    distance = (apart.square().sum(-1) + 1e-12).sqrt()  # the root has no gradient at zero
    return distance.sum() if literal else distance.mean()


def relk(student: torch.Tensor, teacher: torch.Tensor, assigned: Sequence[int],
         literal: bool = False) -> torch.Tensor:
    """Relation knowledge from [CLS] states [b, layers + 1, d]: mean-squared error of
    the FSP matrices G(h1, h2) = h1 h2^T / d of student layers (i, i + 1) and teacher
    layers (I(i), I(i) + 1), i below the last.

    No matrix is built: |a b^T - c e^T|^2 = |a|^2 |b|^2 + |c|^2 |e|^2 - 2 (a.c)(b.e),
    and the mean over d x d entries of matrices over d divides by d^4. A mean over batch
    and pairs; literal (eq. 17): a sum over both. ValueError: not one assigned layer for
    each of the student's.
    """
    _one_each(student, assigned)
    at = bert.index(tuple(assigned[:-1]), teacher.device)
    a, b = student[:, 1:-1], student[:, 2:]
    c, e = teacher[:, at], teacher[:, at + 1]
    squared = _dot(a, a) * _dot(b, b) + _dot(c, c) * _dot(e, e)
    squared = squared - 2 * _dot(a, c) * _dot(b, e)
    mse = squared / student.shape[-1] ** 4
    return mse.sum() if literal else mse.mean()


def _one_each(student: torch.Tensor, assigned: Sequence[int]) -> None:
    if len(assigned) != student.shape[1] - 1:  # a single one would be broadcast to all
        raise ValueError(f"assigned layers: got {len(assigned)}; allowed: {student.shape[1] - 1}")


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1)


def terms(batch: dict, logits: torch.Tensor, states: torch.Tensor, teacher: Signals, assigned: Sequence[int],
          tau: float) -> dict[str, torch.Tensor]:
    """All four losses of one batch by name, from one pass of the student and the teacher's signals of those rows."""
    return {"FinK": fink(logits, batch["labels"]), "ResK": resk(logits, teacher.logits, tau),
            "FeaK": feak(states, teacher.states, assigned), "RelK": relk(states, teacher.states, assigned)}


class Selective:
    """An objective for `distil.train`: eq. 4, the four losses weighted by an action chosen at every step.

    `select(step, student, teacher)` gets the step, from 0, and both models' last [CLS] states [b, d], detached; it
    returns the action: four numbers from 0 to 1. Each loss is divided by its mean over the first `first` steps (a
    running mean until then) and multiplied by its `weights`. A type whose action is 0 is left out
    altogether, and an action of zeros leaves every parameter without a gradient, so that the optimiser skips the step.
    `actions` and `sizes` (the undivided losses) hold one row a step.
    """

    states, tokens = True, False

    def __init__(self, teacher: Signals, assigned: Sequence[int], select: Callable, tau: float,
                 weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), first: int = FIRST):
        if len(weights) != len(TYPES) or min(weights) < 0:
            raise ValueError(f"weights: got {tuple(weights)}; allowed: four numbers from 0")
        self.teacher, self.assigned, self.select, self.tau = teacher, tuple(assigned), select, tau
        self.weights, self.first = tuple(weights), first
        self.actions: list[tuple[float, ...]] = []
        self.sizes: list[torch.Tensor] = []
        self._sum = torch.zeros(len(TYPES))

    def __call__(self, batch: dict, logits: torch.Tensor, states: torch.Tensor) -> dict[str, torch.Tensor]:
        told = self.teacher.at(batch["index"])
        parts = terms(batch, logits, states, told, self.assigned, self.tau)
        scale = self._scale(torch.stack([v.detach() for v in parts.values()]))
        chosen = self.select(len(self.actions), states[:, -1].detach(), told.states[:, -1])
        action = tuple(float(a) for a in chosen)
        self.actions.append(action)
        taken = [a * w * v / s for a, w, v, s in zip(action, self.weights, parts.values(), scale, strict=True) if a > 0]
        loss = torch.stack(taken).sum() if taken else logits.new_zeros((), requires_grad=True)
        return {"loss": loss, **parts}

    def _scale(self, now: torch.Tensor) -> torch.Tensor:
        self.sizes.append(now)  # not on the CPU: that is waited for
        if len(self.sizes) <= self.first:
            self._sum = self._sum.to(now) + now
        return (self._sum / min(len(self.sizes), self.first)).clamp_min(1e-20)

    def report(self) -> dict:
        """What a record keeps: `chosen`, each type's mean action in each third of training, and `sizes`, the undivided
        losses' means over the first steps and the last ones."""
        ends = (torch.stack(list(part)).cpu() for part in (self.sizes[:FIRST], self.sizes[-FIRST:]))
        early, late = (part.mean(0).tolist() for part in ends)
        sizes = {name: [a, b] for name, a, b in zip(TYPES, early, late, strict=True)}
        return {"chosen": thirds(self.actions), "sizes": sizes, "skipped": sum(not any(a) for a in self.actions)}


def thirds(actions: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Each type's mean action in the first, second and last third of the steps."""
    means = [part.mean(0).tolist() for part in torch.tensor(actions, dtype=torch.float64).tensor_split(3)]
    return {name: [round(third[m], 4) for third in means] for m, name in enumerate(TYPES)}


# ------------------------------------------------------------------------------------------------------------ policies


def selection(names: str) -> tuple[float, ...]:
    """"FinK&ResK" as (1, 1, 0, 0). ValueError for an unknown name or none."""
    asked = names.split("&")
    if unknown := [name for name in asked if name not in TYPES]:
        raise ValueError(f"knowledge: got {'&'.join(unknown) or names!r}; allowed: {', '.join(TYPES)} joined by &")
    return tuple(float(name in asked) for name in TYPES)


def constant(action: Sequence[float]) -> Callable:
    """The policy that always takes `action`."""
    taken = tuple(action)
    return lambda step, student, teacher: taken


def switched(first: Sequence[float], then: Sequence[float], at: float) -> Callable:
    """The policy that takes the action `first` before step `at` and `then` from it on."""
    before, after = tuple(first), tuple(then)
    return lambda step, student, teacher: before if step < at else after


class Draws:
    """A random policy: at every call the next of the 15 hard selections (`soft`: four uniform numbers from 0 to 1) of
    a sequence that `draw` alone decides, so that it can be replayed whatever a run's seed. The sequence goes on from
    call to call and does not look at the step: each run needs a policy of its own, asked once a step, in order. From
    step `until` on, every type is taken (Random-One's `until` is one epoch)."""

    def __init__(self, draw: int, soft: bool = False, until: float = math.inf):
        self._generator = torch.Generator().manual_seed(draw)
        self.soft, self.until = soft, until

    def __call__(self, step: int, student=None, teacher=None) -> tuple[float, ...]:
        if step >= self.until:
            return (1.0,) * len(TYPES)
        if self.soft:
            return tuple(torch.rand(len(TYPES), generator=self._generator).tolist())
        return CHOICES[int(torch.randint(len(CHOICES), (1,), generator=self._generator))]
