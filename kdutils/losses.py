"""Pure losses. Every one says what it averages or sums over and whether tau squared is in it: each paper differs."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def hard(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Task loss, a mean over the batch: cross-entropy of `logits` [b, c] with class `labels` [b], or mean-squared
    error of `logits` [b, 1] with real `labels` [b]."""
    if labels.is_floating_point():
        return F.mse_loss(logits[:, 0], labels)
    return F.cross_entropy(logits, labels)


def soft_ce(student: torch.Tensor, teacher: torch.Tensor,
            tau: float = 1.0) -> torch.Tensor:
    """-sum_c softmax(z_t / tau) log softmax(z_s / tau) of logits [b, c], a mean over
    the batch, without tau squared. Its gradient with respect to the teacher does not
    vanish where the two agree (KL's does)."""
    soft = F.softmax(teacher / tau, -1) * F.log_softmax(student / tau, -1)
    return -soft.sum(-1).mean()


def kl(student: torch.Tensor, teacher: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """KL(softmax(z_t / tau) || softmax(z_s / tau)) of logits [b, c], a mean over the batch, without tau squared."""
    log_t, log_s = F.log_softmax(teacher / tau, -1), F.log_softmax(student / tau, -1)
    return (log_t.exp() * (log_t - log_s)).sum(-1).mean()  # F.kl_div cannot be batched over replicas


def stark(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor,
          tau: float = 2.0, weight: float = 1.0) -> dict:
    """STARK's objective of logits [b, c] and `labels` [b], for trial and actual
    distillation alike, as its official code has it: (tau^2 soft_ce + cross-entropy) /
    2; a regression: (MSE(z_s, z_t) + MSE(z_s, y)) / 2. Means over the batch. With a
    `weight`, which the code does not have, (weight soft + task) / (weight + 1)."""
    if labels.is_floating_point():
        soft = F.mse_loss(student, teacher)
    else:
        soft = tau**2 * soft_ce(student, teacher, tau)
    task = hard(student, labels)
    return {"loss": (weight * soft + task) / (weight + 1), "kd": soft, "task": task}


def kd(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, alpha: float, tau: float) -> dict:
    """Hinton's objective of logits [b, c] and `labels` [b]: (1 - alpha) cross-entropy + alpha tau^2 KL(t || s), means
    over the batch; a regression uses MSE(z_s, z_t) for the second term."""
    soft = F.mse_loss(student, teacher) if labels.is_floating_point() else tau**2 * kl(student, teacher, tau)
    task = hard(student, labels)
    return {"loss": (1 - alpha) * task + alpha * soft, "kd": soft, "task": task}


def patience(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Patient KD's term: mean-squared error of unit-normalised [CLS] states [b, pairs, d], a mean over batch, pairs and
    dimensions (so a single pair's value is at most 4 / d)."""
    return F.mse_loss(F.normalize(student, dim=-1), F.normalize(teacher, dim=-1))
