"""Every loss on two rows and three classes, worked by hand with powers of two; then against other implementations."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr

from kdutils import losses

LN2, LN3, LN7 = math.log(2), math.log(3), math.log(7)
# softmax of [0, ln 2, ln 4] is [1, 2, 4] / 7; of zeros, thirds
STUDENT = torch.tensor([[0.0, 0.0, 0.0], [0.0, LN2, 2 * LN2]])
TEACHER = torch.tensor([[0.0, LN2, 2 * LN2], [0.0, 0.0, 0.0]])
LABELS = torch.tensor([2, 0])
SOFT = (LN3 + LN7 - LN2) / 2  # rows: ln 3 against thirds; mean of ln 7, ln 7 - ln 2, ln 7 - 2 ln 2
ENTROPY = LN7 - 10 / 7 * LN2  # of [1, 2, 4] / 7
KL = ((LN3 - ENTROPY) + (LN7 - LN2 - LN3)) / 2
HARD = (LN3 + LN7) / 2  # row 1: a third; row 2: a seventh


def close(value, by_hand):
    assert float(value) == pytest.approx(by_hand, abs=1e-6)


def test_hard():
    close(losses.hard(STUDENT, LABELS), HARD)
    close(losses.hard(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 0.0])), (1 + 9) / 2)


def test_soft_cross_entropy_and_kl():
    close(losses.soft_ce(STUDENT, TEACHER), SOFT)
    close(losses.kl(STUDENT, TEACHER), KL)
    close(losses.soft_ce(2 * STUDENT, 2 * TEACHER, tau=2.0), SOFT)  # no tau squared in it
    close(losses.kl(2 * STUDENT, 2 * TEACHER, tau=2.0), KL)
    close(losses.kl(TEACHER, TEACHER), 0)


def test_stark():
    found = losses.stark(2 * STUDENT, 2 * TEACHER, LABELS, tau=2.0)
    # the hard term sees the logits without temperature: softmax of [0, ln 4, ln 16] is [1, 4, 16] / 21
    hard = (LN3 + math.log(21)) / 2
    close(found["kd"], 4 * SOFT)
    close(found["task"], hard)
    close(found["loss"], (4 * SOFT + hard) / 2)
    weighed = losses.stark(2 * STUDENT, 2 * TEACHER, LABELS, tau=2.0, weight=3.0)
    close(weighed["loss"], (3 * 4 * SOFT + hard) / 4)
    close(weighed["kd"], 4 * SOFT)


def test_kd():
    found = losses.kd(STUDENT, TEACHER, LABELS, alpha=0.7, tau=1.0)
    close(found["loss"], 0.3 * HARD + 0.7 * KL)
    close(losses.kd(2 * STUDENT, 2 * TEACHER, LABELS, alpha=1.0, tau=2.0)["loss"], 4 * KL)


def test_regression():
    student, teacher, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [3.0]]), torch.tensor([1.0, 1.0])
    # against the teacher: 1 and 0; against the labels: 0 and 4
    close(losses.stark(student, teacher, labels)["loss"], (0.5 + 2) / 2)
    close(losses.kd(student, teacher, labels, alpha=0.25, tau=10.0)["loss"], 0.75 * 2 + 0.25 * 0.5)


def test_patience():
    # [3, 4] becomes [0.6, 0.8]; its squared distances to [1, 0] are 0.16 and 0.64
    close(losses.patience(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[7.0, 0.0]]])), 0.4)
    opposite = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])
    close(losses.patience(opposite, -opposite), 4 / 2)  # the largest value: 4 / d


def test_against_other_implementations():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    for tau in (1.0, 3.0):
        p, q = (F.softmax(z / tau, 1) for z in (teacher, student))
        close(losses.kl(student, teacher, tau), float(rel_entr(p.numpy(), q.numpy()).sum(1).mean()))
        close(losses.soft_ce(student, teacher, tau), float(F.cross_entropy(student / tau, p)))


def gradient(loss, student, *more):
    student = student.clone().requires_grad_()
    loss(student, *more).backward()
    return student.grad


def test_a_student_learns_the_same_from_both_and_tau_squared_keeps_its_size():
    ones = [gradient(losses.soft_ce, STUDENT, TEACHER, 2.0), gradient(losses.kl, STUDENT, TEACHER, 2.0)]
    assert torch.allclose(*ones, atol=1e-7)
    sizes = [tau**2 * gradient(losses.kl, STUDENT, TEACHER, tau).norm() for tau in (20.0, 40.0)]
    assert float(sizes[0] / sizes[1]) == pytest.approx(1, abs=0.02)
    assert float(gradient(losses.kl, STUDENT, TEACHER, 40.0).norm() / sizes[1]) == pytest.approx(1 / 1600)


def test_only_soft_cross_entropy_moves_a_teacher_that_agrees():
    agree = TEACHER.clone()
    assert gradient(lambda t: losses.kl(TEACHER, t), agree).abs().max() < 1e-6
    assert gradient(lambda t: losses.soft_ce(TEACHER, t), agree).abs().max() > 0.05
