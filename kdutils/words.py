"""AdamW for a table of word embeddings, at the cost of the rows that a batch touches.

A batch of short texts reads a few hundred of a task's ten thousand words, but AdamW moves every row at every step: one
without a gradient by its fading momentum and by weight decay. Here such a row is left until it is read again, and then
takes all the steps that it missed at once. Over the missed steps s = t+1 .. T of rates eta_s

    w_T = D w_t - m_t sum_s c_s / (r_s sqrt(v_t / (1 - b2^t)) + eps),        D = prod_s (1 - eta_s decay),
    c_s = eta_s b1^(s-t) / (1 - b1^s) prod_(u>s) (1 - eta_u decay),        r_s^2 = b2^(s-t) (1 - b2^t) / (1 - b2^s),

where c_s and r_s are numbers that all rows last seen at t share. The sum is m_t A / (sqrt(..) + eps B / A) with
A = sum c_s / r_s and B = sum c_s / r_s^2: exact for eps = 0, to first order in eps, and within a percent of what a row
has moved even where its gradients are as small as eps (see the tests).
"""

from __future__ import annotations

import numpy as np
import torch


class Words:
    """The word embeddings of a run on a CPU: float32 whatever the precision, shared by `model` and `worker`, and
    updated as `torch.optim.AdamW` would. A row is brought up to date when it is looked up; `settle` does so for all.
    RuntimeError: a row that waits for its steps is looked up while `functional_call` has another table in this one's
    place, which would take them."""

    def __init__(self, model, worker, decay: float, betas: tuple[float, float], eps: float):
        self.module = worker.bert.embeddings.word_embeddings = model.bert.embeddings.word_embeddings
        self.module.sparse = True
        self.table = self.module.weight
        self.decay, (self.beta, self.gamma), self.eps = decay, betas, eps
        self.moments = self.module.weight.new_zeros(2, *self.module.weight.shape)  # m and v
        self.last = torch.zeros(len(self.module.weight), dtype=torch.long)  # the step that a row has reached
        self.step = 0
        self.shrunk, self.a, self.b = np.ones(1), np.zeros(1), np.zeros(1)  # D, A and B by the step last seen
        self.rows = self.values = None
        self.hook = self.module.register_forward_pre_hook(lambda _, inputs: self.settle(inputs[0].unique()))

    @torch.no_grad()
    @torch.profiler.record_function("Optimizer.step#Words.settle")  # profiles count it with the optimiser
    def settle(self, rows: torch.Tensor | None = None) -> None:
        """Give `rows`, or all, the steps that they missed."""
        rows = torch.arange(len(self.last)) if rows is None else rows
        seen = self.last[rows]
        rows, seen = rows[seen < self.step], seen[seen < self.step]
        if len(rows) and self.module.weight is not self.table:
            raise RuntimeError("words: got waiting rows and another table; look them up in their own first")
        steps = np.arange(self.step + 1)
        missed, known = self.step - steps, np.maximum(1 - self.gamma**steps, 1e-30)  # at 0 there is nothing to divide
        per_eps = np.divide(self.b, self.a, out=np.ones_like(self.a), where=self.a > 0)
        table = np.stack([self.shrunk, self.a, 1 / known, self.eps * per_eps, self.beta**missed, self.gamma**missed])
        shrunk, a, known, eps, *faded = torch.from_numpy(table).to(self.moments)[:, seen, None]
        weight, (mean, square) = self._of(rows)
        weight.mul_(shrunk).addcdiv_(mean * a, (square * known).sqrt_().add_(eps), value=-1)
        self._put(rows, weight, mean.mul_(faded[0]), square.mul_(faded[1]))

    def _of(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.module.weight.index_select(0, rows), self.moments.index_select(1, rows)

    def _put(self, rows: torch.Tensor, weight: torch.Tensor, *moments: torch.Tensor) -> None:
        self.module.weight.index_copy_(0, rows, weight)
        for old, new in zip(self.moments, moments, strict=True):
            old.index_copy_(0, rows, new)
        self.last.index_fill_(0, rows, self.step)

    def gradient(self) -> torch.Tensor | None:
        """The last batch's gradient [touched rows, d], each row once; None where the loss did not reach a word."""
        found, self.module.weight.grad = self.module.weight.grad, None
        found = None if found is None else found.coalesce()
        self.rows, self.values = (None, None) if found is None else (found.indices()[0], found.values())
        return self.values

    @torch.no_grad()
    @torch.profiler.record_function("Optimizer.step#Words.update")
    def update(self, lr: float) -> None:
        """One step of the rows that `gradient` found; for all others, note that there was one."""
        if self.values is None:
            return
        self._note(lr)
        weight, (mean, square) = self._of(self.rows)
        mean.lerp_(self.values, 1 - self.beta)
        square.mul_(self.gamma).addcmul_(self.values, self.values, value=1 - self.gamma)
        root = (square / (1 - self.gamma**self.step)).sqrt_().add_(self.eps)
        weight.mul_(1 - lr * self.decay).addcdiv_(mean, root, value=-lr / (1 - self.beta**self.step))
        self._put(self.rows, weight, mean, square)

    def _note(self, lr: float) -> None:
        """Count a step of rate `lr`, and add it to D, A and B of every earlier one."""
        self.step += 1
        seen, missed = np.arange(self.step), np.arange(self.step, 0, -1.0)
        ratio = np.sqrt(self.gamma**missed * (1 - self.gamma**seen) / (1 - self.gamma**self.step))
        ratio[0] = np.inf  # a row that was never touched has no momentum
        step = lr * self.beta**missed / (1 - self.beta**self.step)
        shrink = 1 - lr * self.decay
        self.shrunk = np.append(self.shrunk * shrink, 1.0)
        self.a = np.append(self.a * shrink + step / ratio, 0.0)
        self.b = np.append(self.b * shrink + step / ratio**2, 0.0)

    def release(self) -> None:
        """Settle all rows and leave an ordinary module."""
        try:
            self.settle()
        finally:
            self.hook.remove()
            self.module.sparse = False
