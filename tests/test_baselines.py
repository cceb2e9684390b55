"""The methods that STARK is compared with: their formulas worked by hand, and what their stages do."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdutils import (
    baselines,
    bert,
    checkpoints,
    dropout,
    dynabert,
    knowledge,
    losses,
    metakd,
    peakd,
    stark,
)
from kdutils.data import Encoded
from kdutils.experiments import common, stark_baselines
from kdutils.experiments import stark as chapter
from kdutils.teacher import Signals, ask

torch.set_num_threads(1)
LAYERS = 4


def model(outputs: int = 2, seed: int = 0, layers: int = LAYERS):
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    made = dropout.fast_dropout(BertForSequenceClassification(bert.tiny_config(outputs, layers, vocabulary=60)))
    for name, p in made.named_parameters():
        if name.endswith("weight") and p.ndim == 2:
            torch.nn.init.normal_(p, std=0.2)
    return made.eval()


def batch(rows: int = 5, length: int = 7, labels=None, seed: int = 0) -> dict:
    torch.manual_seed(seed)
    mask = (torch.arange(length) < torch.randint(3, length + 1, (rows, 1))).long()
    mask[0] = 1
    labels = torch.randint(0, 2, (rows,)) if labels is None else labels
    return {"input_ids": torch.randint(5, 60, (rows, length)), "attention_mask": mask, "labels": labels,
            "token_type_ids": torch.zeros(rows, length, dtype=torch.long), "index": torch.arange(rows)}


def real(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A spec and its workbench on a few rows, with a teacher of random weights."""
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    spec = chapter.one("smoke", "synthetic", "TAKD", 0)
    spec = replace(spec, settings=spec.settings | {"rows": 96})
    settings, data = common.settings_of(spec), common.load_data(spec)
    teacher = common.pretrained(settings, data, seed=1).eval()
    for p in teacher.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    asked = {name: ask(teacher, rows) for name, rows in ({"train": data.train} | data.evaluation).items()}
    return spec, common.Bench(settings, data, teacher, asked, "cpu", checkpoints.hash_of(teacher))


# ---------------------------------------------------------------------------------------------------------------- PKD


def test_pkd_by_hand():
    """Two layer pairs of three dimensions: units (.6, .8, 0) and (0, 0, 1) against (1, 0, 0) and (0, 0, 1)."""
    student = torch.tensor([[[9.0, 9, 9], [3, 4, 0], [0, 0, 2], [7, 7, 7]]])  # embeddings, layers 1 to 3
    told = torch.zeros(1, 7, 3)
    told[0, 2], told[0, 4] = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 5.0])
    rows = {"labels": torch.tensor([1]), "index": torch.tensor([0])}
    logits, its = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.0]])
    terms = baselines.pkd(Signals(its, told), [(1, 2), (2, 4)], tau=2.0, beta=100.0)(rows, logits, student)
    patience = (0.4**2 + 0.8**2) / 6
    assert float(terms["patience"]) == pytest.approx(patience)
    kd = losses.stark(logits, its, rows["labels"], 2.0)["loss"]
    assert float(terms["loss"]) == pytest.approx(float(kd) + 100 * patience)
    alone = baselines.pkd(Signals(its), peakd.pairs(1, 6), tau=2.0)  # one layer has no pair
    torch.testing.assert_close(alone(rows, logits, None)["loss"], kd)


# ---------------------------------------------------------------------------------------------------------------- CKD


def test_ckd_pairs_by_hand():
    """Cosines: student s01 = 0, s02 = 1, s12 = 0; teacher t01 = 1, t02 = 0, t12 = 0. Softmax of (1, 0) is (h, l)."""
    student = torch.tensor([[1.0, 0], [0, 3], [2, 0]])[None]
    teacher = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 5, 0]])[None]
    high, low = math.e / (math.e + 1), 1 / (math.e + 1)
    row_0 = (high - low) * 1.0
    row_1 = math.log(2) + high * math.log(high) + low * math.log(low)
    row_2 = math.log(0.5) - 0.5 * (math.log(high) + math.log(low))
    found = baselines.pair_loss(student, teacher, real(1, 3))
    assert float(found) == pytest.approx((row_0 + row_1 + row_2) / 3, abs=1e-5)
    apart = torch.eye(3)[None]  # no two alike: rows 0 and 1 are as row 1 above, row 2 is uniform in both
    assert float(baselines.pair_loss(apart, teacher, real(1, 3))) == pytest.approx(2 * row_1 / 3, abs=1e-5)
    two = torch.tensor([[True, True, False]])  # each has one other: nothing to weigh
    assert float(baselines.pair_loss(student, teacher, two)) == pytest.approx(0, abs=1e-6)


def test_ckd_triples_by_hand():
    """A right angle with two of 45 degrees against three points on a line."""
    student = torch.tensor([[0.0, 0], [1, 0], [0, 1]])[None]
    teacher = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])[None]
    expected = ((0 - 1) ** 2 + (math.sqrt(0.5) + 1) ** 2 + (math.sqrt(0.5) - 1) ** 2) / 3
    assert float(baselines.triple_loss(student, teacher, real(1, 3))) == pytest.approx(expected, abs=1e-5)
    two = torch.tensor([[True, True, False]])
    assert float(baselines.triple_loss(student, teacher, two)) == 0.0


def test_ckd_triples_against_loops(monkeypatch):
    monkeypatch.setattr(baselines, "WINDOW", 5)
    torch.manual_seed(0)
    student, teacher, mask = torch.randn(2, 9, 4), torch.randn(2, 9, 6), real(2, 9)
    mask[1, 6:] = False
    squares = []
    for row, j, i, k in itertools.product(range(2), *[range(9)] * 3):
        if len({i, j, k}) == 3 and max(abs(i - j), abs(k - j)) <= 2 and mask[row, [i, j, k]].all():
            angles = [F.cosine_similarity(x[row, i] - x[row, j], x[row, k] - x[row, j], dim=0)
                      for x in (student, teacher)]
            squares.append((angles[0] - angles[1]) ** 2)
    found = baselines.triple_loss(student, teacher, mask)
    torch.testing.assert_close(found, torch.stack(squares).mean(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["mrpc", "stsb", "rotten"])
def test_ckd_of_a_student_that_equals_its_teacher_is_the_soft_term(task):
    labels = torch.rand(5) if task == "stsb" else None
    teacher, rows = model(1 if task == "stsb" else 2, seed=1), batch(labels=labels)
    logits, states = bert.forward(teacher, rows, tokens=True)
    terms = baselines.ckd(teacher, [(i, i) for i in range(1, LAYERS + 1)], task)(rows, logits, states)
    soft = torch.zeros(()) if task == "stsb" else losses.soft_ce(logits, logits, 4.0)
    torch.testing.assert_close(terms["loss"], soft, atol=1e-4, rtol=1e-4)
    other = bert.forward(model(1 if task == "stsb" else 2, seed=2), rows, tokens=True)
    apart = baselines.ckd(teacher, [(i, i) for i in range(1, LAYERS + 1)], task)(rows, *other)
    assert all(apart[name] > 1e-4 for name in ("wr_pair", "wr_triple", "ltr_pair", "ltr_triple"))
    weights = baselines.CKD.get(task, baselines.CKD["mrpc"])[1:]
    total = apart["kd"] + weights[0] * apart["wr_pair"] + weights[1] * apart["wr_triple"]
    torch.testing.assert_close(apart["loss"], total + apart["ltr_pair"] + apart["ltr_triple"])


def test_ckd_ignores_padding():
    student, teacher, rows = model(seed=1, layers=2), model(seed=2), batch()
    longer = {k: F.pad(v, (0, 3), value=0) if v.ndim == 2 else v for k, v in rows.items()}
    values = [baselines.ckd(teacher, [(1, 2), (2, 4)], "mrpc")(b, *bert.forward(student, b, tokens=True))["loss"]
              for b in (rows, longer)]
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------- at every step


class Ops(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.seen[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["PKD", "CKD", "Pea-KD", "KSM", "DynaBERT"])
def test_no_step_makes_an_index_anew_or_asks_for_a_number(name):
    """A GPU would be waited for: a list as index is a tensor that is copied there. (On a CPU a forward pass of the
    teacher looks once whether a batch has padding.)"""
    teacher, rows = model(), batch(rows=4) | {"index": torch.arange(4)}
    told, rows["attention_mask"] = Signals(torch.randn(8, 2), torch.randn(8, 5, 32)), torch.ones(4, 7, dtype=torch.long)
    objective = {
        "PKD": lambda: baselines.pkd(told, [(1, 2)], 2.0), "CKD": lambda: baselines.ckd(teacher, [(1, 2)], "mrpc"),
        "Pea-KD": lambda: peakd.objective(told, [(1, 2)]),
        "KSM": lambda: knowledge.Selective(told, (2, 4), knowledge.constant((1.0,) * 4), 2.0),
        "DynaBERT": lambda: dynabert.Elastic([(teacher, (2, 4))], teacher, 0.1)}[name]()
    states = torch.randn(4, 3, 7, 32) if objective.tokens else torch.randn(4, 3, 32)
    logits = torch.randn(4, 2, requires_grad=True)
    objective(rows, logits, states)  # indices are made now
    with Ops() as ops:
        objective(rows, logits, states)
    assert not ops.seen["aten.lift_fresh.default"]
    assert ops.seen["aten._local_scalar_dense.default"] == (name in ("CKD", "DynaBERT"))


# ---------------------------------------------------------------------------------------------------------------- DKD


def test_dkd_of_two_classes_is_kd():
    torch.manual_seed(0)
    student, teacher, labels, tau = torch.randn(6, 2), torch.randn(6, 2), torch.randint(0, 2, (6,)), 4.0
    tckd, nckd = baselines.decoupled(student, teacher, labels, tau)
    assert float(nckd) == 0.0
    torch.testing.assert_close(tckd, losses.kl(student, teacher, tau))
    rows = {"labels": labels, "index": torch.arange(6)}
    warm = baselines.DKD(Signals(teacher), steps=1)(rows, student, None)["loss"]
    torch.testing.assert_close(warm, F.cross_entropy(student, labels) + tau**2 * losses.kl(student, teacher, tau))


def test_dkd_of_three_classes_adds_up_to_kd():
    """Its paper's identity: KL = TCKD + (1 - p_t(true)) NCKD, row by row."""
    torch.manual_seed(1)
    student, teacher, labels, tau = torch.randn(6, 3), torch.randn(6, 3), torch.randint(0, 3, (6,)), 2.0
    for s, t, y in zip(student[:, None], teacher[:, None], labels[:, None], strict=True):
        tckd, nckd = baselines.decoupled(s, t, y, tau)
        rest = 1 - F.softmax(t / tau, -1)[0, y[0]]
        torch.testing.assert_close(tckd + rest * nckd, losses.kl(s, t, tau))
        assert nckd > 0


def test_dkd_fades_in_and_a_regression_takes_squared_error():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(4, 2), torch.randn(4, 2), torch.randint(0, 2, (4,))
    objective, rows = baselines.DKD(Signals(teacher), steps=24), {"labels": labels, "index": torch.arange(4)}
    task, soft = F.cross_entropy(student, labels), 16 * losses.kl(student, teacher, 4.0)
    for share in (0.5, 1.0, 1.0):
        torch.testing.assert_close(objective(rows, student, None)["loss"], task + share * soft)
    real_rows = {"labels": torch.tensor([1.0, 2.0]), "index": torch.arange(2)}
    told, logits = torch.tensor([[1.5], [1.0]]), torch.tensor([[1.0], [1.0]])
    value = baselines.DKD(Signals(told), steps=1)(real_rows, logits, None)["loss"]
    assert float(value) == pytest.approx((0 + 1) / 2 + (0.25 + 0) / 2)


# --------------------------------------------------------------------------------------------------------------- TAKD


@pytest.mark.parametrize(("layers", "depth", "expected"), [
    ((1, 3, 6), 6, (1, 3, 4, 6)), ((1, 4), 4, (1, 2, 4)), ((1, 2, 3, 4), 12, tuple(range(1, 9))),
    ((2, 4, 6), 6, (1, 2, 4, 6)), ((1, 2), 6, (1, 2, 3, 4)), ((1, 6), 6, (1, 3, 4, 6)),
])
def test_an_assistants_layers_lie_between(layers, depth, expected):
    found = baselines.between(layers, depth)
    assert found == expected and set(layers) <= set(found) and len(found) == (len(layers) + depth) // 2


def test_a_pruned_student_stands_inside_its_assistant():
    teacher, rows = model(seed=1), batch()
    torch.manual_seed(3)
    scores = torch.rand(LAYERS, 4), torch.rand(LAYERS, 64)
    own, wanted = ([stark.kept(s, share) for s in scores] for share in (0.35, 0.7))
    assistant = bert.prune(teacher, *own)
    made = baselines.inherit(assistant, own, wanted)
    direct = bert.prune(teacher, *wanted)
    torch.testing.assert_close(bert.forward(made, rows)[0], bert.forward(direct, rows)[0], atol=1e-6, rtol=0)
    assert bert.counts(made) == bert.counts(direct) and bert.counts(assistant)["encoder"] > bert.counts(made)["encoder"]


@pytest.mark.parametrize("student", ["dropped", "pruned"])
def test_takds_student_comes_from_its_assistant_and_learns_from_it(bench, monkeypatch, student):
    spec, made = bench
    spec, calls = chapter.one("smoke", "synthetic", "TAKD", 4, student), []

    def train(made, student, objective, seed, evaluate=True):
        """In the place of training: any change of the weights."""
        calls.append((made, student, objective, checkpoints.hash_of(student), evaluate))
        with torch.no_grad():
            for p in student.parameters():
                p.mul_(1.5)
        return {"extra": {"train_seconds": 1.0, "steps": 5}}

    monkeypatch.setattr(common, "distil_student", train)
    extra = stark_baselines.STAGED["TAKD"](spec, made, heat=0.5, weight=3.0)["extra"]
    assert (extra["train_seconds"], extra["steps"]) == (2.0, 10)  # of both stages
    (of_teacher, assistant, first, _, judged), (of_assistant, _, second, start, _) = calls
    assert of_teacher is made and of_assistant.teacher is assistant and not judged
    sizes = [bert.counts(m)["encoder"] for m in (made.teacher, assistant, calls[1][1])]
    assert sizes[0] > sizes[1] > sizes[2]
    torch.manual_seed(0)
    rows, logits = made.data.train.batch(torch.arange(8)), torch.randn(8, 2)
    for asked, teacher in ((first, made.teacher), (second, assistant)):
        told = ask(teacher, made.data.train).logits[rows["index"]]
        expected = losses.stark(logits, told, rows["labels"], 0.5 * made.settings.tau, weight=3.0)["loss"]
        torch.testing.assert_close(asked(rows, logits, None)["loss"], expected, atol=0, rtol=0)
    with torch.no_grad():  # the start times 1.5 is what the same cut from the teacher has become in the assistant
        cut = chapter.initial(spec, made)
        for p in cut.parameters():
            p.mul_(1.5)
    assert start == checkpoints.hash_of(cut)


@pytest.mark.parametrize("method", ["KD", "PKD", "DKD", "CKD"])
def test_trials_multiply_what_is_a_methods_own(bench, monkeypatch, method):
    """The temperature of the soft loss and the weight of the method's term, as they reach the objective of a run."""
    heat, weight = 0.5, 3.0
    trial = chapter.one("smoke", "synthetic", f"tune-{method}", 100, heat=heat, weight=weight)
    made = replace(bench[1], signals={name: ask(bench[1].teacher, rows, states=True) for name, rows in
                                      ({"train": bench[1].data.train} | bench[1].data.evaluation).items()})
    monkeypatch.setattr(common, "bench", lambda spec, states=False: made)
    asked = next(chapter.stages(trial))
    rows = made.data.train.batch(torch.arange(8))
    asked.student.eval()
    logits, states = bert.forward(asked.student, rows, method == "PKD", method == "CKD")
    terms, told = asked.objective(rows, logits, states), made.signals["train"].logits[rows["index"]]
    tau = heat * (baselines.TAU if method == "DKD" else 4.0 if method == "CKD" else made.settings.tau)
    if method == "KD":
        expected = losses.stark(logits, told, rows["labels"], tau, weight)["loss"]
    elif method == "PKD":
        assert terms["patience"] > 0
        plain = losses.stark(logits, told, rows["labels"], tau)["loss"]
        expected = plain + weight * baselines.BETA * terms["patience"]
    elif method == "DKD":
        warm = min(1.0, 1 / asked.objective.warm_up)
        expected = terms["task"] + warm * weight * tau**2 * losses.kl(logits, told, tau)
    else:
        _, pair, triple = baselines.CKD["mrpc"]
        relations = pair * terms["wr_pair"] + triple * terms["wr_triple"] + terms["ltr_pair"] + terms["ltr_triple"]
        assert relations > 0
        live, _ = bert.forward(made.teacher, rows)  # kept answers are in bf16 where that is faster
        expected = losses.soft_ce(logits, live, tau) + weight * relations
    torch.testing.assert_close(terms["loss"], expected, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------------- MetaKD


def step_ahead(student, teacher, rows, quiz, rate, tau):
    """L_quiz(S') by a real, detached step on a copy of the student."""
    ahead = copy.deepcopy(student)
    ahead.bert.embeddings.word_embeddings.sparse = False
    told = bert.forward(teacher, rows)[0].detach()
    losses.stark(bert.forward(ahead, rows)[0], told, rows["labels"], tau)["loss"].backward()
    with torch.no_grad():
        for p in ahead.parameters():
            if p.grad is not None:
                p -= rate * p.grad
        return float(losses.hard(bert.forward(ahead, quiz)[0], quiz["labels"]))


@pytest.mark.parametrize(("outputs", "sparse"), [(2, False), (1, False), (2, True)])
def test_metakds_gradient_goes_through_the_students_step(outputs, sparse):
    """Against differences of the whole bilevel function along its own gradient. `sparse`: with row-wise gradients of
    the student's word embeddings, which `distil.train` gives them on a CPU."""
    labels = [None, None] if outputs == 2 else [torch.rand(5), torch.rand(5)]
    student, teacher = model(outputs, seed=1, layers=1), model(outputs, seed=2, layers=2)
    rows, quiz, rate, tau = batch(labels=labels[0]), batch(labels=labels[1], seed=9), 0.05, 2.0
    student.bert.embeddings.word_embeddings.sparse = sparse
    before = checkpoints.hash_of(student), checkpoints.hash_of(teacher)
    gradient, value = metakd.teacher_gradient(student, teacher, rows, quiz, rate, tau)
    assert (checkpoints.hash_of(student), checkpoints.hash_of(teacher)) == before
    assert float(value) == pytest.approx(step_ahead(student, teacher, rows, quiz, rate, tau), abs=1e-5)
    length = math.sqrt(sum(float((g**2).sum()) for g in gradient if g is not None))
    sides, step = [], 1e-2
    for sign in (1, -1):
        moved = copy.deepcopy(teacher)
        with torch.no_grad():
            for p, g in zip(moved.parameters(), gradient, strict=True):
                if g is not None:
                    p += sign * step * g / length
        sides.append(step_ahead(student, moved, rows, quiz, rate, tau))
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(length, rel=0.03)
    assert length > 1e-3


def test_metakd_moves_the_teacher_then_teaches_from_it():
    student, teacher, rows = model(seed=1, layers=1), model(seed=2), batch()
    held = Encoded(rows["input_ids"].int(), rows["token_type_ids"].to(torch.int8), rows["attention_mask"].sum(1),
                   rows["labels"])
    objective = metakd.MetaKD(student, teacher.train(), held, batch_size=5, rate=1e-3, tau=2.0, seed=0)
    assert not any(module.training for module in teacher.modules())
    dense, before = copy.deepcopy(teacher), checkpoints.hash_of(student)
    logits, _ = bert.forward(student, rows)
    terms = objective(rows, logits, None)
    assert checkpoints.hash_of(teacher) != checkpoints.hash_of(dense) and checkpoints.hash_of(student) == before
    told = bert.forward(teacher, rows)[0].detach()
    torch.testing.assert_close(terms["loss"], losses.stark(logits, told, rows["labels"], 2.0)["loss"])
    terms["loss"].backward()
    assert student.classifier.weight.grad.abs().sum() > 0
    first = metakd.teacher_gradient(student, dense, rows, rows, 1e-3, 2.0)[0][-2:]
    for slope, now, was in zip(first, teacher.classifier.parameters(), dense.classifier.parameters(), strict=True):
        moved = now - was  # AdamW's first step is the rate against the sign, without decay
        torch.testing.assert_close(moved, -metakd.TEACHER_RATE * 1e-3 * slope.sign(), atol=2e-6, rtol=0)


def test_metakds_quizzes_are_held_out_rows_and_its_teacher_a_copy(bench, monkeypatch):
    (spec, made), asked = bench, []
    monkeypatch.setattr(metakd, "MetaKD", lambda *a: asked.append(a) or "objective")
    monkeypatch.setattr(common, "distil_student", lambda *a: asked.append(a) or {"extra": {}})
    stark_baselines.STAGED["MetaKD"](spec, made, heat=2.0, weight=0.3)
    (learner, teacher, quizzes, *_, tau, seed, rate), (taught, trained, objective, _) = asked
    assert (tau, rate) == (2 * made.settings.tau, pytest.approx(0.3 * metakd.TEACHER_RATE))
    assert quizzes.fingerprint() == made.data.held.fingerprint() != made.data.evaluation["dev"].fingerprint()
    assert checkpoints.hash_of(learner) == checkpoints.hash_of(chapter.initial(spec, made))
    assert learner is trained and objective == "objective" and seed == spec.seed
    assert teacher is not made.teacher and checkpoints.hash_of(teacher) == checkpoints.hash_of(made.teacher)
    assert taught.settings.precision == "fp32"  # a bf16 run would train a copy of the learner


# ------------------------------------------------------------------------------------------------------------ DynaBERT


def test_rewiring_changes_the_order_and_nothing_else():
    made, rows = model(seed=1), batch()
    torch.manual_seed(2)
    heads, neurons = torch.rand(LAYERS, 4), torch.rand(LAYERS, 64)
    wired = dynabert.rewire(made, heads, neurons)
    torch.testing.assert_close(bert.forward(wired, rows)[0], bert.forward(made, rows)[0], atol=1e-5, rtol=0)
    best = neurons[1].argmax()
    torch.testing.assert_close(wired.bert.encoder.layer[1].intermediate.dense.weight[0],
                               made.bert.encoder.layer[1].intermediate.dense.weight[best])
    queries = [some.bert.encoder.layer[1].attention.self.query.weight.unflatten(0, (4, 8)) for some in (wired, made)]
    torch.testing.assert_close(queries[0], queries[1][heads[1].argsort(descending=True)])


@pytest.mark.parametrize("width", [1.0, 0.75, 0.3])
def test_a_narrow_network_is_the_masked_one_and_the_one_cut_out(width):
    made, rows = model(seed=1), batch()
    narrow, heads, neurons = dynabert.narrow(made, width), max(1, round(4 * width)), round(64 * width)
    gates = bert.Gates(made)
    gates.heads[:, heads:] = 0
    gates.neurons[:, neurons:] = 0
    masked = bert.forward(made, rows)[0]
    gates.remove()
    torch.testing.assert_close(bert.forward(narrow, rows)[0], masked, atol=1e-5, rtol=0)
    torch.testing.assert_close(bert.forward(dynabert.cut(made, width), rows)[0], masked, atol=1e-5, rtol=0)


def test_sub_networks_train_the_whole():
    made, rows = model(seed=1), batch()
    for view, touched in ((dynabert.narrow(made, 0.5), 0), (dynabert.shallow(made, (1, 4)), 3)):
        made.zero_grad()
        bert.forward(view, rows)[0].sum().backward()
        grad = made.bert.encoder.layer[touched].output.dense.weight.grad
        assert grad[:, :32].abs().sum() > 0 and (touched or grad[:, 32:].abs().sum() == 0)
    assert made.bert.encoder.layer[1].output.dense.weight.grad is None  # not in the shallow one


def test_elastic_is_the_sum_over_sub_networks():
    made, teacher, rows = model(seed=1), model(seed=2), batch()
    narrow, every = dynabert.narrow(made, 0.5), range(1, LAYERS + 1)
    shallow = dynabert.shallow(made, (1, 4))
    views = [(made, every), (narrow.eval(), every), (shallow.eval(), (1, 4))]
    for view, _ in views[1:]:
        view.train = lambda view=view: view  # dropout off, so that the value can be worked out
    terms = dynabert.Elastic(views, teacher.train(), weight=0.1, tau=2.0)(rows, *bert.forward(made, rows, tokens=True))
    told, its = bert.forward(teacher.eval(), rows, tokens=True)
    expected, mask = 0.0, rows["attention_mask"].bool()
    for view, layers in views:
        z, h = bert.forward(view, rows, tokens=True)
        expected += losses.soft_ce(z, told, 2.0)
        expected += 0.1 * sum(F.mse_loss(h[:, i][mask], its[:, j][mask]) for i, j in enumerate([0, *layers]))
    torch.testing.assert_close(terms["loss"], expected, atol=1e-5, rtol=1e-5)


def test_elastic_without_classes_has_hidden_states_only():
    made, teacher, rows = model(1, seed=1), model(1, seed=2), batch(labels=torch.rand(5))
    terms = dynabert.Elastic([(made, range(1, 5))], teacher, 0.1)(rows, *bert.forward(made, rows, tokens=True))
    assert set(terms) == {"loss", "hidden"}
    torch.testing.assert_close(terms["loss"], 0.1 * terms["hidden"])


def test_both_stages_train_with_the_loop_that_trains_everything():
    """`distil.train` gives word embeddings row-wise gradients on a CPU, from all sub-networks at once."""
    from kdutils import distil, profiles

    rows, settings = batch(12), profiles.Settings(epochs=2, batch_size=6, lr=1e-2, precision="fp32")
    data = Encoded(rows["input_ids"].int(), rows["token_type_ids"].to(torch.int8), rows["attention_mask"].sum(1),
                   rows["labels"])
    made, every = model(seed=1), range(1, LAYERS + 1)
    before = made.bert.embeddings.word_embeddings.weight.clone()
    views = [(made, every), (dynabert.narrow(made, 0.5), every), (dynabert.shallow(made, (1, 4)), (1, 4))]
    took = distil.train(made, data, dynabert.Elastic(views, model(seed=2), 0.1), settings, seed=0, device="cpu")
    assert took.curve[-1][1] < took.curve[0][1] and not torch.equal(made.bert.embeddings.word_embeddings.weight, before)
    for view, _ in views[1:]:
        assert torch.equal(view.bert.embeddings.word_embeddings.weight, made.bert.embeddings.word_embeddings.weight)


def test_what_dynabert_took_is_what_both_stages_took(bench, monkeypatch):
    from kdutils import distil

    took = iter([2.0, 3.0])
    trained = distil.Outcome(steps=5, epochs=[{"dev": {}}], dtype="float32")
    monkeypatch.setattr(distil, "train", lambda *_, **__: replace(trained, seconds=next(took)))
    extra = stark_baselines.STAGED["DynaBERT"](*bench)["extra"]
    assert (extra["train_seconds"], extra["steps"]) == (5.0, 10)


def test_a_width_outside_is_an_error_of_one_line():
    with pytest.raises(ValueError, match=r"width: got 1.2; allowed: above 0, to 1"):
        dynabert.narrow(model(), 1.2)
