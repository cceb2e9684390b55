"""Replicas: a pack of students gives what as many separate runs give, and knows how many fit."""

import copy
from dataclasses import replace

import pytest
import torch

from kdutils import bert, data, distil, dropout, knowledge, losses, peakd, profiles, replicas, stacked
from kdutils.teacher import Signals, ask

torch.set_num_threads(1)

SETTINGS = profiles.settings("smoke", "synthetic", rows=200, precision="fp32", batch_size=16)
DATA = data.load("synthetic", SETTINGS)
ON, TASK = {"device": "cpu"}, distil.fine_tuning()


def student(seed, rate=0.0, layers=(1, 2)):
    made = bert.keep_layers(bert.load("tiny", 2, seed), layers)
    for module in made.modules():
        if isinstance(module, dropout.Dropout):
            module.p = rate
    return made


TEACHER = replace(ask(student(99), DATA.train, states=True),
                  logits=2 * torch.randn(len(DATA.train), 2, generator=torch.Generator().manual_seed(0)))


def spread(a, b):
    """Largest difference of two models' parameters."""
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def both(students, objectives, together, steps=100, settings=SETTINGS, lrs=None, within=1e-3, **options):
    """Train copies one at a time with `objectives` and `students` as a pack with the objective `together`, compare the
    losses; returns the copies."""
    alone, options = [copy.deepcopy(s) for s in students], options | ON | {"max_steps": steps}
    seeds, lrs = range(3, 3 + len(students)), lrs or [settings.lr] * len(students)
    separate = [distil.train(s, DATA.train, o, settings, seed=seed, lr=lr, **options)
                for s, o, seed, lr in zip(alone, objectives, seeds, lrs, strict=True)]
    packed = replicas.train_many(students, DATA.train, together, settings, seeds=seeds, lrs=lrs, **options)
    for one, other in zip(separate, packed, strict=True):
        assert [step for step, _ in one.curve] == [step for step, _ in other.curve] and one.steps == other.steps
        assert [loss for _, loss in other.curve] == pytest.approx([loss for _, loss in one.curve], abs=within)
        assert other.losses == pytest.approx(one.losses, abs=within)
    return alone


def test_a_pack_is_separate_runs_with_their_own_starts_seeds_rates_and_objectives():
    students = [student(i) for i in range(3)]
    start = copy.deepcopy(students)
    students[1].classifier.weight.data.mul_(20)  # its gradients are cut by a norm that is not the others'
    taus = torch.tensor([1.0, 2.0, 6.0])
    together = distil.Plain(lambda batch, logits, _: losses.stark(
        logits, TEACHER.logits[batch["index"]], batch["labels"], taus[batch["replica"]]))
    alone = both(students, [distil.stark_kd(TEACHER, tau) for tau in taus.tolist()], together, lrs=[1e-3, 3e-4, 2e-3])
    assert max(map(spread, students, alone)) < 1e-3 < 0.02 < min(map(spread, start, alone))


def test_one_objective_for_all_reads_each_replicas_own_weights_and_teacher():
    alpha = torch.tensor([0.1, 0.5, 0.9])
    teachers = torch.stack([TEACHER.logits.roll(i, 0) for i in range(3)])

    def kd(batch, logits, _):
        r = batch["replica"]
        parts = losses.kd(logits, teachers[r, batch["index"]], batch["labels"], 0.5, 4.0)
        return parts | {"loss": (1 - alpha[r]) * parts["task"] + alpha[r] * parts["kd"]}

    def own(i):
        return distil.Plain(lambda b, z, _: losses.kd(z, teachers[i][b["index"]], b["labels"], float(alpha[i]), 4.0))

    both([student(i) for i in range(3)], [own(i) for i in range(3)], distil.Plain(kd), steps=40)


@pytest.mark.parametrize("drop_last", [False, True])
def test_selections_replay_each_replicas_own_sequence(drop_last):
    steps, assigned = 40, knowledge.assignment(2, 2)
    draws = [knowledge.Draws(i) for i in range(3)]
    actions = torch.tensor([[d(step) for step in range(steps)] for d in draws])
    actions[0, 7] = 0.0  # a step that a single run skips
    single = [knowledge.Selective(TEACHER, assigned, lambda step, s, t, i=i: actions[i, step].tolist(), 2.0, first=20)
              for i in range(3)]
    packed = replicas.Selections(TEACHER, assigned, actions, 2.0, first=20)
    both([student(i) for i in range(3)], single, packed, steps=steps, drop_last=drop_last)
    with pytest.raises(ValueError, match="actions: got"):
        replicas.Selections(TEACHER, assigned, torch.zeros(steps, 4), 2.0)


def test_shared_students_pack_and_stay_shared():
    students = [peakd.share(student(i)) for i in range(2)]
    alone = both(students, [TASK] * 2, TASK, steps=25)
    assert max(map(spread, students, alone)) < 1e-3
    top, bottom = (students[0].bert.encoder.layer[i].attention.self for i in (2, 0))
    assert top.query.weight is bottom.key.weight and len(students[0].bert.encoder.layer) == 4
    pack = stacked.stack(students)
    assert bert.counts(pack)["total"] == 2 * bert.counts(students[0])["total"]


def test_pruned_students_pack_even_where_a_sub_layer_lost_everything():
    heads, neurons = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 64, dtype=torch.bool)
    heads[0], heads[1, 1:], neurons[0, :40], neurons[1] = False, False, False, False
    both([bert.prune(student(i), heads, neurons) for i in range(2)], [TASK] * 2, TASK, steps=25)


def test_bf16_keeps_float32_weights_and_follows_separate_runs():
    settings = replace(SETTINGS, precision="bf16")
    students = [student(i) for i in range(2)]
    kd = distil.stark_kd(TEACHER, 2.0)
    both(students, [kd] * 2, kd, steps=25, settings=settings, within=0.02)
    assert students[0].classifier.weight.dtype == torch.float32


def test_every_replica_draws_dropout_of_its_own():
    students = [student(1, rate=0.3) for _ in range(3)]
    found = replicas.train_many(students, DATA.train, TASK, SETTINGS, seeds=[4, 4, 4], max_steps=5, **ON)
    assert len({str(outcome.curve) for outcome in found}) == 3


def test_a_full_memory_halves_the_pack_and_goes_on(monkeypatch):
    students, sizes = [student(i) for i in range(5)], []
    alone, seeds, objective = copy.deepcopy(students), [1, 2, 3, 4, 5], distil.stark_kd(TEACHER, 2.0)
    update = stacked.Pack.update

    def full(self):
        update(self)
        sizes.append(len(self.model.classifier.weight))
        if sizes[-1] > 2 and len(sizes) > 3:  # not at the first step: the weights are no longer what they were
            raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(stacked.Pack, "update", full)
    found = replicas.train_many(students, DATA.train, objective, SETTINGS, seeds=seeds, max_steps=12, **ON)
    assert list(dict.fromkeys(sizes)) == [5, 2, 1] and len(found) == 5
    for one, other, seed in zip(alone, students, seeds, strict=True):
        distil.train(one, DATA.train, objective, SETTINGS, seed=seed, max_steps=12, **ON)
        assert spread(one, other) < 1e-4
    monkeypatch.setattr(stacked.Pack, "update", lambda self: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        replicas.train_many(students, DATA.train, objective, SETTINGS, seeds=seeds, max_steps=12, **ON)


def test_a_diverged_student_does_not_spoil_the_others():
    students = [student(0), student(1)]
    students[0].classifier.weight.data.fill_(torch.inf)
    lost, found = replicas.train_many(students, DATA.train, TASK, SETTINGS, seeds=[1, 2], max_steps=5, **ON)
    assert isinstance(lost, FloatingPointError) and found.steps == 5
    assert all(bool(p.isfinite().all()) for p in students[1].parameters())


def test_evaluation_of_a_pack_is_each_students_own():
    students = [student(i, rate=0.1) for i in range(2)]
    sets = {"dev": DATA.dev, "test": DATA.test.take(range(50))}
    signals = {name: Signals(torch.randn(len(rows), 2)) for name, rows in sets.items()}
    alone = [distil.evaluator(DATA.task, sets, signals)(s) for s in students]
    packed = replicas.evaluator(DATA.task, sets, signals)(stacked.stack(students), 2)
    for one, other in zip(alone, packed, strict=True):
        assert list(one["dev"]) == list(other["dev"])
        assert all(other[name] == pytest.approx(one[name], abs=1e-5) for name in sets)
    others = {name: Signals(-told.logits) for name, told in signals.items()}  # of two students of an earlier pack
    later = replicas.evaluator(DATA.task, sets, [others, others, signals, signals])(stacked.stack(students), 2, True, 2)
    assert later == packed
    outcome = replicas.train_many(students, DATA.train, TASK, replace(SETTINGS, epochs=2), seeds=[1, 2],
                                  evaluate=replicas.evaluator(DATA.task, sets), **ON)[1]
    assert [list(found) for found in outcome.epochs] == [["dev"], ["dev", "test"]]
    assert outcome.epochs[1]["test"] == pytest.approx(distil.evaluator(DATA.task, sets)(students[1])["test"], abs=1e-6)


def test_the_memory_that_is_planned_is_about_what_the_backward_pass_keeps():
    one = student(0, rate=0.1)
    rows, width = 16, 30
    ids = torch.ones(rows, width, dtype=torch.long)
    batch = {"input_ids": ids, "token_type_ids": ids * 0, "attention_mask": ids}
    fixed = 16 * sum(p.numel() for p in one.parameters())
    assert stacked.estimate(one, 0, width, torch.float32) == fixed
    planned = stacked.estimate(one, rows, width, torch.float32) - fixed
    assert 0.8 < planned / peakd.activation_bytes(one, batch) < 2
    assert replicas.room(one, DATA.train, SETTINGS, torch.device("cpu")) > 100


@pytest.mark.parametrize(("fraction", "left"), [(1.0, 60), (0.9, 60), (0.3, 20)])
def test_a_gpus_room_is_what_is_free_or_left_of_the_processs_own_share(monkeypatch, fraction, left):
    """Of 100 bytes 60 are free and 10 are this process's."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: fraction)
    assert replicas._left(torch.device("cuda")) == left


def test_mistakes_take_one_line():
    students = [student(0), student(1)]
    with pytest.raises(ValueError, match="students: got another shape or tying in number 1"):
        stacked.stack([students[0], peakd.share(students[0])])
    with pytest.raises(ValueError, match="students: got another shape or tying in number 1"):
        stacked.stack([peakd.share(students[0]), peakd.share(students[1], swap=False)])
    gates = bert.Gates(students[0])
    with pytest.raises(ValueError, match="hooks"):
        stacked.stack(students)
    gates.remove()
    with pytest.raises(ValueError, match="seeds: got 1; allowed: 2, one for each student"):
        replicas.train_many(students, DATA.train, TASK, SETTINGS, seeds=[1], **ON)
