"""MetaKD (Zhou, Xu and McAuley, 2022): the teacher learns, step by step, what would help its student most."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdutils import bert, losses
from kdutils.data import Encoded

TEACHER_RATE = 0.2  # the teacher's learning rate over the student's: 1e-5 and 5e-5 in the official code


class _Logits(nn.Module):
    """`bert.forward` as a module's forward, which `functional_call` needs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> torch.Tensor:
        return bert.forward(self.model, batch)[0]


def teacher_gradient(student, teacher, batch: dict, quiz: dict, rate: float,
                     tau: float) -> tuple[list[torch.Tensor | None], torch.Tensor]:
    """The bilevel gradient: d L_quiz(S') / d teacher, where S' = S - rate dL_KD(S, T)/dS is the student after one
    step of plain gradient descent on `batch` and L_quiz the task's loss on the held-out `quiz` (means over batches).

    Exact: the gradient goes through the step, by second derivatives of the student. Returns it, one entry a parameter
    of the teacher (None: no influence), and L_quiz. Neither model is changed.
    """
    asked = _Logits(student)
    start = {name: p for name, p in asked.named_parameters() if p.requires_grad}
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        inner = losses.stark(asked(batch), bert.forward(teacher, batch)[0], batch["labels"], tau)["loss"]
        slopes = torch.autograd.grad(inner, list(start.values()), create_graph=True, allow_unused=True)
        ahead = {n: p if g is None else p - rate * g for (n, p), g in zip(start.items(), slopes, strict=True)}
        outer = losses.hard(functional_call(asked, ahead, (quiz,)), quiz["labels"])
        found = torch.autograd.grad(outer, list(teacher.parameters()), allow_unused=True)
    return list(found), outer.detach()


class MetaKD:
    """An objective for `distil.train`: before each student step the teacher takes one on `teacher_gradient`, then the
    student learns from the changed teacher by `losses.stark`.

    `student` is the very model that is trained (in float32: a bf16 run trains a copy), `teacher` is changed in place,
    in eval mode. Quiz batches, of the same size, are drawn from `held` in an order fixed by `seed`. The look-ahead rate
    is `rate`, the student's; the teacher's AdamW takes `teacher_rate` of it.
    """

    states = tokens = False

    def __init__(self, student, teacher, held: Encoded, batch_size: int, rate: float, tau: float, seed: int,
                 teacher_rate: float = TEACHER_RATE):
        self.student, self.teacher, self.rate, self.tau = student, teacher.eval(), rate, tau
        self.optimiser = torch.optim.AdamW(teacher.parameters(), lr=teacher_rate * rate, weight_decay=0.0)
        self.quizzes = _endless(held, batch_size, torch.Generator().manual_seed(seed), bert.device_of(teacher))

    def __call__(self, batch, logits, states):
        asked = next(self.quizzes)
        with torch.no_grad():  # `Words` brings a row up to date when it is looked up, which must be in its own table
            self.student.bert.embeddings.word_embeddings(asked["input_ids"])
        gradient, quiz = teacher_gradient(self.student, self.teacher, batch, asked, self.rate, self.tau)
        for p, slope in zip(self.teacher.parameters(), gradient, strict=True):
            p.grad = slope
        self.optimiser.step()
        with torch.no_grad():
            told, _ = bert.forward(self.teacher, batch)
        return losses.stark(logits, told, batch["labels"], self.tau) | {"quiz": quiz}


def _endless(rows: Encoded, size: int, generator: torch.Generator, device) -> Iterator[dict]:
    while True:
        yield from rows.batches(size, generator, device)
