"""The training loop: repeatable, clipped, scheduled, logged; and a golden curve that says when results change."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from kdutils import bert, checkpoints, data, distil, dropout, losses, profiles, tasks, teacher
from kdutils.experiments import common

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden" / "smoke_curve.json"
SETTINGS = profiles.Settings(model="tiny", depth=4, rows=200, precision="fp32", batch_size=16, lr=3e-3, epochs=2,
                             warmup=0.1, weight_decay=0.01, clip=1.0)
CPU = {"device": "cpu", "seed": 0}


@pytest.fixture(scope="module")
def rows():
    return data.load("synthetic", replace(SETTINGS, rows=200))


@pytest.fixture(scope="module")
def told(rows):
    """A teacher's logits that follow the labels, with some noise."""
    noise = torch.randn(len(rows.train), 2, generator=torch.Generator().manual_seed(0))
    return teacher.Signals(3.0 * torch.nn.functional.one_hot(rows.train.labels, 2) + noise)


def student(seed=0):
    """A tiny BERT that learns at once: its weights are not as small as a large model's."""
    config = bert.tiny_config(2, 4)
    config.initializer_range = 0.2
    torch.manual_seed(seed)
    return dropout.fast_dropout(BertForSequenceClassification(config))


def trained(rows, objective=None, model=None, settings=SETTINGS, **options):
    model = model or student()
    return model, distil.train(model, rows.train, objective or distil.fine_tuning(), settings, **(CPU | options))


def test_a_run_repeats_bit_for_bit(rows, told):
    def run(seed):
        model, outcome = trained(rows, distil.stark_kd(told, 2.0), seed=seed, max_steps=25)
        return checkpoints.hash_of(model), outcome.curve, outcome.losses

    torch.randn(7)  # whatever happened before does not matter
    assert run(3) == run(3)
    assert run(3)[0] != run(4)[0]


@pytest.fixture
def steps(monkeypatch):
    """What is updated at each step: (rate, global norm of the gradients, words' included, parameter groups)."""
    seen, plain = [], distil.Words.update

    class Spy(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
            seen.append((self.param_groups[0]["lr"], float(torch.cat(gradients).norm()), self.param_groups))
            return super().step(*args, **kwargs)

    def update(self, lr):
        rate, norm, groups = seen.pop()
        assert rate == lr and len(self.values) > 1
        seen.append((rate, math.hypot(norm, float(self.values.norm())), groups))
        plain(self, lr)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    monkeypatch.setattr(distil.Words, "update", update)
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_clipped_to_the_global_norm_where_they_are_longer(rows, steps, precision):
    def run(factor):
        steps.clear()
        loss = distil.Plain(lambda batch, logits, _: {"loss": factor * losses.hard(logits, batch["labels"])})
        trained(rows, loss, settings=replace(SETTINGS, precision=precision, warmup=0.0), max_steps=4)
        return [norm for _, norm, _ in steps]

    assert run(100) == pytest.approx([1.0] * 4, abs=1e-3)
    short, shorter = run(1e-2), run(5e-3)
    assert max(short) < 1 and short[0] == pytest.approx(2 * shorter[0], rel=2e-2)  # left as it is


def test_the_rate_warms_up_and_decays_linearly(rows, steps):
    model, _ = trained(rows, max_steps=20, lr=1.0e-3)
    rates, groups = [rate for rate, _, _ in steps], steps[-1][2]
    # two steps of warm-up, from 0, then 18 down to 0, which the 21st would have
    by_hand = [0.0, 0.5e-3] + [1e-3 * (20 - step) / 18 for step in range(2, 20)]
    assert rates == pytest.approx(by_hand)
    names = {id(p): name for name, p in model.named_parameters()}
    spared = [names[id(p)] for p in groups[1]["params"]]
    assert groups[0]["weight_decay"] == 0.01 and groups[1]["weight_decay"] == 0
    rest = {names[id(p)] for p in groups[0]["params"]}
    assert {*names.values()} - {*spared} - rest == {"bert.embeddings.word_embeddings.weight"}  # which `Words` updates
    assert {"classifier.bias", "bert.embeddings.LayerNorm.weight"} <= set(spared)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in spared)


def test_a_step_is_the_one_worked_out_again(rows):
    """Two steps of AdamW, written down from its equations, for the head's bias (which has no decay)."""
    model, plain = student(), student()
    for module in (*model.modules(), *plain.modules()):
        if isinstance(module, dropout.Dropout):
            module.p = 0.0
    settings = replace(SETTINGS, warmup=0.0, clip=1e9)
    trained(rows, model=model, settings=settings, max_steps=2, lr=1e-3)
    order = torch.Generator().manual_seed(0)
    first, second, bias = 0.0, 0.0, plain.classifier.bias
    optimiser = torch.optim.AdamW(distil.decay_groups(plain, 0.01), lr=1e-3)
    start = bias.detach().clone().double()
    batches = rows.train.order(16, order)
    for step, lr in ((1, 1e-3), (2, 0.5e-3)):
        optimiser.param_groups[0]["lr"] = optimiser.param_groups[1]["lr"] = lr
        optimiser.zero_grad()
        batch = rows.train.batch(batches[step - 1])
        torch.nn.functional.cross_entropy(plain(**{k: batch[k] for k in INPUTS}).logits, batch["labels"]).backward()
        g = bias.grad.double()
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        start = start - lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        optimiser.step()
    assert torch.allclose(model.classifier.bias.double(), start, atol=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if not name.endswith("key.bias"):  # whose gradient is zero but for rounding
            assert torch.allclose(ours, theirs, atol=2e-6), name  # also where gradients are kept by row


INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def test_half_precision_follows_full_precision(rows, told):
    curves, models = [], []
    for precision in ("fp32", "bf16"):
        settings = replace(SETTINGS, precision=precision)
        model, outcome = trained(rows, distil.stark_kd(told, 2.0), settings=settings, max_steps=39)
        assert common.outcome(outcome)["extra"]["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[precision]
        curves.append(np.array(outcome.curve)[:, 1])
        models.append(teacher.ask(model, rows.dev, precision="fp32").logits)
        assert all(p.dtype == torch.float32 for p in model.parameters())  # the masters
    assert np.abs(curves[0] - curves[1]).mean() < 0.03  # single steps may differ more: the tiny model learns fast
    assert curves[1][-5:].mean() < curves[1][:5].mean() - 0.1
    assert (models[0] - models[1]).abs().mean() < 0.1


def test_small_updates_are_not_lost_in_half_precision(rows):
    """A weight of 1 in bf16 cannot move by 1e-4; its float32 master can, and does."""
    model = student()
    model.bert.pooler.dense.bias.data.fill_(1.0)
    trained(rows, model=model, settings=replace(SETTINGS, precision="bf16", warmup=0.0), max_steps=4, lr=1e-4)
    moved = (model.bert.pooler.dense.bias.detach() - 1).abs()
    assert 0 < float(moved.max()) < 1e-3 and float((moved > 0).float().mean()) > 0.9


def test_what_is_logged(rows, told):
    _, outcome = trained(rows, distil.stark_kd(told, 2.0), epochs=2)
    assert outcome.steps == 2 * 13 and set(outcome.losses) == {"loss", "kd", "task"}
    assert outcome.losses["loss"] == pytest.approx((outcome.losses["kd"] + outcome.losses["task"]) / 2, abs=1e-5)
    assert [step for step, _ in outcome.curve] == list(range(1, 27))
    assert np.mean([loss for _, loss in outcome.curve[13:]]) == pytest.approx(outcome.losses["loss"], abs=1e-4)


def test_a_curve_has_at_most_fifty_points():
    assert distil.thin([float(i) for i in range(120)])[0] == [3, 1.0]
    thin = distil.thin([1.0] * 151)
    assert len(thin) <= 50 and thin[-1][0] == 151


def test_last_and_best_are_both_kept(rows):
    scores = iter([0.3, 0.9, 0.5])
    seen = []

    def evaluate(model, last):
        seen.append((last, model.training))
        return {"dev": {"accuracy": next(scores)}, "test": {"accuracy": 0.0}}

    _, outcome = trained(rows, evaluate=evaluate, epochs=3)
    assert outcome.best["epoch"] == 2 and outcome.best["dev"] == {"accuracy": 0.9}
    assert outcome.epochs[-1]["dev"] == {"accuracy": 0.5} and [last for last, _ in seen] == [False, False, True]


def test_training_stops_when_dev_no_longer_rises(rows):
    scores = iter([0.5, 0.5, 0.3, 0.2, 0.1])  # the same again is no rise
    _, outcome = trained(rows, evaluate=lambda model, last: {"dev": {"accuracy": next(scores)}}, epochs=5, patience=2)
    assert outcome.steps == 3 * 13 and outcome.best["epoch"] == 1 and len(outcome.epochs) == 3


def test_steps_last_batches_and_hooks(rows):
    seen = []
    _, outcome = trained(rows, epochs=1, drop_last=True, after_step=lambda step, model: seen.append(step))
    assert outcome.steps == 200 // 16 and seen == list(range(1, 13))
    assert trained(rows, max_steps=3)[1].steps == 3
    assert trained(rows, epochs=0.5)[1].steps == round(0.5 * 13)


@pytest.mark.parametrize(("options", "steps"), [({}, 8), ({"drop_last": True}, 6), ({"epochs": 0.5}, 2),
                                                ({"epochs": 0.01}, 1)])
def test_steps_are_those_of_all_epochs_and_at_least_one(options, steps):
    settings = profiles.settings("smoke", "synthetic", batch_size=32, epochs=2)
    assert distil.total_steps(101, settings, **options) == steps


def test_the_test_set_is_scored_once_and_agreement_is_with_the_teacher(rows):
    model = student().eval()
    signals = {name: teacher.ask(model, part) for name, part in rows.evaluation.items()}
    flipped = {name: teacher.Signals(-s.logits) for name, s in signals.items()}
    judge = distil.evaluator(tasks.get("synthetic"), rows.evaluation, signals)
    assert set(judge(model, False)) == {"held", "dev"} and set(judge(model, True)) == {"held", "dev", "test"}
    found = judge(model, True)
    assert found["dev"]["agreement"] == 1 and next(iter(found["dev"])) == "accuracy"
    labels = rows.dev.labels.numpy()
    assert found["dev"]["accuracy"] == np.mean(signals["dev"].logits.numpy().argmax(1) == labels)
    assert distil.evaluator(tasks.get("synthetic"), rows.evaluation, flipped)(model, True)["dev"]["agreement"] == 0


def test_a_loss_that_is_not_finite_is_one_line(rows):
    broken = distil.Plain(lambda batch, logits, _: {"loss": losses.hard(logits, batch["labels"]) * float("nan")})
    with pytest.raises(FloatingPointError, match="loss: got a value that is not finite; allowed: "):
        trained(rows, broken, max_steps=2)


def test_a_loss_that_is_not_finite_ends_the_training_with_its_epoch(rows):
    steps = []

    def loss(batch, logits, _):  # not finite once, in the second epoch of four
        return {"loss": losses.hard(logits, batch["labels"]) * (math.inf if len(steps) == 15 else 1.0)}

    with pytest.raises(FloatingPointError):
        trained(rows, distil.Plain(loss), epochs=4, after_step=lambda step, _: steps.append(step))
    assert len(steps) == 2 * 13


@pytest.mark.parametrize("where", ["the objective", "after a step", "the evaluation"])
def test_a_training_that_is_interrupted_leaves_an_ordinary_model(rows, where):
    """With the gradients of the step that was not finished, the next training would begin with another step."""
    def stop(*_):
        raise KeyboardInterrupt

    calls = []

    def loss(batch, logits, _):
        calls.append(1)
        if where == "the objective" and len(calls) == 5:
            losses.hard(logits, batch["labels"]).backward()
            stop()
        return {"loss": losses.hard(logits, batch["labels"])}

    model, hook = student(), stop if where == "after a step" else None
    with pytest.raises(KeyboardInterrupt):
        trained(rows, distil.Plain(loss), model, evaluate=stop if where == "the evaluation" else None, after_step=hook)
    words = model.bert.embeddings.word_embeddings
    assert not words.sparse and not words._forward_pre_hooks and not model.training
    assert all(p.grad is None for p in model.parameters())
    bert.forward(model, rows.train.batch(torch.arange(4)))[0].sum().backward()
    assert not words.weight.grad.is_sparse


def test_the_first_of_several_processes_decides_when_to_stop(rows, monkeypatch):
    told = iter([0.5, 0.4, 0.3])
    monkeypatch.setattr(distil.processes, "agreed", lambda own: {"dev": {"accuracy": next(told)}})
    rising = iter(range(9))  # what this process finds by itself
    _, outcome = trained(rows, evaluate=lambda *_: {"dev": {"accuracy": next(rising)}}, epochs=5, patience=1)
    assert outcome.steps == 2 * 13 and outcome.best["epoch"] == 1


@pytest.mark.parametrize("amx, avx, faster", [(True, False, torch.bfloat16), (False, True, torch.bfloat16),
                                              (False, False, torch.float32)])
def test_auto_is_half_precision_where_the_processor_multiplies_it(monkeypatch, amx, avx, faster):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert bert.compute_dtype("auto", "cpu") == faster


def test_an_unknown_precision_is_one_line():
    with pytest.raises(ValueError, match="precision: got 'fp16'; allowed: fp32, bf16, auto"):
        bert.compute_dtype("fp16", "cpu")


# ------------------------------------------------------------------------------------------------------------ signals


def test_signals_are_in_the_rows_order_and_asked_for_once(rows, tmp_path, monkeypatch):
    model = student().eval()
    found = teacher.signals(model, rows.dev, states=True, cache=tmp_path)
    some = torch.tensor([7, 0, 300])
    with torch.no_grad():
        logits, states = bert.forward(model, rows.dev.batch(some), states=True)
    asked = teacher.ask(model, rows.dev, states=True, precision="fp32")
    assert torch.allclose(asked.at(some).logits, logits, atol=1e-5)
    assert torch.allclose(asked.at(some).states, states, atol=0.02)  # kept in bf16
    assert (found.logits.dtype, found.states.dtype) == (torch.float32, torch.bfloat16)
    assert not (found.logits.is_inference() or found.states.is_inference())  # as little as what is read again
    monkeypatch.setattr(teacher, "ask", lambda *a, **k: pytest.fail("asked again"))
    again = teacher.signals(model, rows.dev, states=True, cache=tmp_path)
    assert torch.equal(again.logits, found.logits) and torch.equal(again.states, found.states)
    assert again.states.dtype == torch.bfloat16
    monkeypatch.undo()
    with monkeypatch.context() as other:  # a machine that shares the folder and computes in another dtype asks itself
        other.setattr(bert, "compute_dtype", lambda *_: torch.float16)
        assert teacher.signals(model, rows.dev, states=True, cache=tmp_path).logits is not None
    model.classifier.bias.data += 1
    changed = teacher.signals(model, rows.dev, cache=tmp_path)
    assert torch.allclose(changed.logits, found.logits + 1, atol=0.02) and len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(teacher, "RECIPE", teacher.RECIPE + 1)  # newer code may say something else
    teacher.signals(model, rows.dev, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_what_was_just_asked_is_not_read_again(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "read", lambda *_: pytest.fail("read again"))
    assert len(teacher.signals(student(), rows.dev.take(torch.arange(10)), cache=tmp_path).logits) == 10
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_may_be_asked_as_it_is(rows, dtype, monkeypatch):
    model, some = student().to(dtype), rows.dev.take(torch.arange(10))
    other = {torch.float32: "bf16", torch.bfloat16: "fp32"}[dtype]
    found, rounded = (teacher.ask(model, some, precision=precision).logits for precision in (None, other))
    order = some.lengths.argsort(stable=True)
    with torch.no_grad():
        expected = bert.forward(model.eval(), some.batch(order))[0]
    assert torch.equal(found[order], expected) and not torch.equal(found, rounded)
    monkeypatch.setattr(bert, "cast", lambda *_: pytest.fail("copied"))
    teacher.ask(model, some, precision=None)


def test_asking_leaves_the_mode_alone(rows):
    model = student().train()
    model.dropout.eval()
    for precision in ("fp32", "bf16"):
        teacher.ask(model, rows.dev.take(torch.arange(10)), precision=precision)
        assert model.training and model.bert.training and not model.dropout.training


# ------------------------------------------------------------------------------------------------------------- golden


def smoke_curve():
    """Losses of 70 steps of fine-tuning with the smoke profile's settings, then of 30 of a student taught by that."""
    settings = profiles.settings("smoke", "synthetic", precision="fp32")
    rows, large = data.load("synthetic", settings), student()
    first = distil.train(large, rows.train, distil.fine_tuning(), settings, lr=settings.teacher_lr, max_steps=70, **CPU)
    told = teacher.ask(large, rows.train, precision="fp32")
    small = bert.keep_layers(large, settings.layers)
    second = distil.train(small, rows.train, distil.stark_kd(told, settings.tau), settings, max_steps=30, **CPU)
    logits = teacher.ask(small, rows.dev, precision="fp32").logits
    return {"fine_tuning": [v for _, v in first.curve], "distillation": [v for _, v in second.curve],
            "dev_mean_logit": float(logits.abs().mean())}


def test_the_smoke_curve_is_the_golden_one():
    """Where this fails, runs come out differently than before: raise `store.RECIPE`, which makes older records stale,
    and write the file anew by hand from `smoke_curve()`. Machines differ in the fifth digit."""
    golden, found = json.loads(GOLDEN.read_text()), smoke_curve()
    assert set(found) == set(golden)
    for name in ("fine_tuning", "distillation", "dev_mean_logit"):
        assert found[name] == pytest.approx(golden[name], abs=2e-3), name
