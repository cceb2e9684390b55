"""Word embeddings that skip the rows which a batch does not touch, against torch's AdamW, which does not."""

import copy

import pytest
import torch
from torch import nn

from kdutils import bert, distil, metakd, profiles
from kdutils.data import load
from kdutils.words import Words

ROWS, BETAS = 40, (0.9, 0.999)


def table(dtype):
    """Two models that share nothing but their table's values."""
    torch.manual_seed(0)
    made = nn.Module()
    made.bert = nn.Module()
    made.bert.embeddings = nn.Module()
    made.bert.embeddings.word_embeddings = nn.Embedding(ROWS, 6, dtype=dtype)
    return made, copy.deepcopy(made)


def walk(ours, dense, words, optimiser, size, steps=200):
    """The same rows and gradients for both: row 0 never, low ones seldom, high ones often; rates rise and fall."""
    generator = torch.Generator().manual_seed(1)
    odds = torch.linspace(0, 1, ROWS).pow(3)
    odds[0] = 0
    for step in range(steps):
        ids = odds.multinomial(9, replacement=True, generator=generator)
        pull = size * torch.randn(9, 6, generator=generator, dtype=torch.float64).to(dense.weight.dtype)
        lr = 1e-2 * min((step + 1) / 20, (steps - step) / steps)
        (ours(ids) * pull).sum().backward()
        (dense(ids) * pull).sum().backward()
        words.gradient()
        words.update(lr)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.step()
        optimiser.zero_grad()
        yield ids


@pytest.mark.parametrize("size, close", [(1.0, 1e-12), (1e-5, 1e-4), (1e-7, 1e-2), (1e-9, 2e-2), (1e-12, 1e-4)])
def test_every_row_moves_as_with_adamw(size, close):
    """Exact but for eps, which plays no part in large gradients and is the denominator of tiny ones. `close` is a share
    of the largest move so far."""
    model, other = table(torch.float64)
    words = Words(model, model, 0.01, BETAS, 1e-8)
    ours, dense = (m.bert.embeddings.word_embeddings for m in (model, other))
    start = ours.weight.detach().clone()
    optimiser = torch.optim.AdamW(dense.parameters(), lr=1.0, betas=BETAS, eps=1e-8, weight_decay=0.01)
    for step, ids in enumerate(walk(ours, dense, words, optimiser, size)):
        moved = (dense.weight - start).abs().max().item()
        torch.testing.assert_close(ours(ids), dense(ids), rtol=0, atol=close * moved)  # what is looked up is up to date
        assert step > 5 or (words.last < words.step).any()  # and what is not is left alone
    words.release()
    torch.testing.assert_close(ours.weight, dense.weight, rtol=0, atol=close * moved)
    assert not ours.sparse and not ours._forward_pre_hooks


def test_a_loss_that_reaches_no_word_is_no_step():
    model, _ = table(torch.float32)
    words = Words(model, model, 0.01, BETAS, 1e-8)
    before = model.bert.embeddings.word_embeddings.weight.clone()
    assert words.gradient() is None
    words.update(0.1)
    words.release()
    assert words.step == 0 and torch.equal(model.bert.embeddings.word_embeddings.weight, before)


@pytest.mark.parametrize("clip", [1.0, 1e-3])
def test_training_is_that_with_a_dense_table(monkeypatch, clip):
    settings = profiles.settings("smoke", "synthetic", rows=200, clip=clip)
    rows = load("synthetic", settings).train
    start = bert.load("tiny", 2)
    models = [copy.deepcopy(start) for _ in range(2)]
    distil.train(models[0], rows, distil.fine_tuning(), settings, seed=0, epochs=3)
    monkeypatch.setattr(distil, "Words", lambda *_: None)
    distil.train(models[1], rows, distil.fine_tuning(), settings, seed=0, epochs=3)
    assert_equal(*models)


def assert_equal(model, other):
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_metakds_quizzes_find_their_rows_up_to_date(monkeypatch):
    """They are read through `functional_call`, whose table would take the steps that the student's own waits for."""
    settings = profiles.settings("smoke", "synthetic", rows=200, batch_size=2)  # few words a step, so that many wait
    data = load("synthetic", settings)
    models = [bert.load("tiny", 2) for _ in range(2)]
    for model, kind in zip(models, (Words, None), strict=True):
        monkeypatch.setattr(distil, "Words", kind or (lambda *_: None))
        objective = metakd.MetaKD(model, bert.load("tiny", 2, seed=1), data.held, 2, settings.lr, 2.0, seed=0)
        distil.train(model, data.train, objective, settings, seed=0, max_steps=60)
    assert_equal(*models)


def test_a_row_that_waits_is_never_settled_in_a_foreign_table():
    model, _ = table(torch.float32)
    words, module = Words(model, model, 0.01, BETAS, 1e-8), model.bert.embeddings.word_embeddings
    module(torch.tensor([1, 2])).sum().backward()
    words.gradient()
    words.update(0.1)
    foreign = {"bert.embeddings.word_embeddings.weight": torch.zeros(ROWS, 6)}
    ask = nn.Module()
    ask.bert, ask.forward = model.bert, lambda ids: ask.bert.embeddings.word_embeddings(ids)
    assert torch.func.functional_call(ask, foreign, (torch.tensor([1, 2]),)).abs().sum() == 0  # these wait for nothing
    with pytest.raises(RuntimeError, match="^words: got waiting rows and another table"):
        torch.func.functional_call(ask, foreign, (torch.tensor([3]),))
