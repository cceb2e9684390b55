"""STARK: what its scores measure, what is removed, where the automatic sparsity lies, what its runs share."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdutils import bert, experiments, stark
from kdutils.experiments import common
from kdutils.experiments import stark as chapter
from kdutils.experiments import stark_auto as auto
from kdutils.experiments import stark_teachers as teachers
from kdutils.store import Store

torch.set_num_threads(1)
LAYERS, HEADS, NEURONS = 3, 4, 64


def model(outputs: int = 2, seed: int = 0):
    """A tiny BERT with weights large enough for every gate to matter."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    made = bert.fast_dropout(BertForSequenceClassification(bert.tiny_config(outputs, LAYERS, vocabulary=60)))
    for name, p in made.named_parameters():
        if name.endswith("weight") and p.ndim == 2:
            torch.nn.init.normal_(p, std=0.25)
    return made.eval()


def batch(rows: int = 6, length: int = 7, labels=None, seed: int = 0) -> dict:
    torch.manual_seed(seed)
    mask = (torch.arange(length) < torch.randint(3, length + 1, (rows, 1))).long()
    labels = torch.randint(0, 2, (rows,)) if labels is None else labels
    return {"input_ids": torch.randint(5, 60, (rows, length)), "attention_mask": mask,
            "token_type_ids": torch.zeros(rows, length, dtype=torch.long), "labels": labels}


def finite_differences(teacher, rows: dict, *terms, units=("heads", "neurons"), step: float = 1e-2) -> list[list]:
    """For each loss term (of the logits) its slope by each head's and neuron's gate, by central differences."""
    gates = bert.Gates(teacher)
    slopes = [[torch.zeros_like(getattr(gates, name)) for name in units] for _ in terms]
    try:
        for which, name in enumerate(units):
            values = getattr(gates, name)
            for place in itertools.product(*map(range, values.shape)):
                for sign in (1, -1):
                    values[place] = 1 + sign * step
                    with torch.no_grad():
                        logits = bert.forward(teacher, rows)[0]
                    for slope, term in zip(slopes, terms, strict=True):
                        slope[which][place] += sign * term(logits) / (2 * step)
                values[place] = 1
    finally:
        gates.remove()
    return slopes


def per_layer(x: torch.Tensor) -> torch.Tensor:
    return x.abs() / x.norm(dim=1, keepdim=True)


# ----------------------------------------------------------------------------------------------------------- scores


def test_scores_are_the_gates_gradients():
    teacher, student, rows, tau = model(seed=1), model(seed=2), batch(), 2.0
    found = stark.score(teacher, student, [rows], tau)
    z_s = bert.forward(student, rows)[0].detach()
    task, soft = finite_differences(teacher, rows, lambda z: F.cross_entropy(z, rows["labels"]),
                                    lambda z: F.cross_entropy(z_s / tau, F.softmax(z / tau, -1)))
    for score, slope in ((found.head_expressiveness, task[0]), (found.neuron_expressiveness, task[1]),
                         (found.head_friendliness, soft[0]), (found.neuron_friendliness, soft[1])):
        torch.testing.assert_close(score, per_layer(slope), atol=3e-3, rtol=2e-2)


def test_a_regression_is_scored_by_squared_error():
    teacher, student, rows = model(1, 1), model(1, 2), batch(labels=torch.linspace(0, 5, 6))
    found = stark.score(teacher, student, [rows])
    z_s = bert.forward(student, rows)[0].detach()
    soft, task = finite_differences(teacher, rows, lambda z: ((z - z_s) ** 2).mean(),
                                    lambda z: ((z[:, 0] - rows["labels"]) ** 2).mean(), units=["heads"])
    torch.testing.assert_close(found.head_friendliness, per_layer(soft[0]), atol=3e-3, rtol=2e-2)
    torch.testing.assert_close(found.head_expressiveness, per_layer(task[0]), atol=3e-3, rtol=2e-2)


def test_absolute_values_are_summed_over_batches():
    """Two batches whose gradients nearly cancel: their sum would, the sum of absolute values does not."""
    teacher, rows = model(seed=1), batch(labels=torch.zeros(6, dtype=torch.long))
    other = rows | {"labels": torch.ones(6, dtype=torch.long)}
    (first,), (second,) = finite_differences(teacher, rows, *(lambda z, b=b: F.cross_entropy(z, b["labels"])
                                                              for b in (rows, other)), units=["heads"])
    found = stark.score(teacher, teacher, [rows, other]).head_expressiveness
    torch.testing.assert_close(found, per_layer(first.abs() + second.abs()), atol=3e-3, rtol=2e-2)
    assert not torch.allclose(found, per_layer(first + second), atol=0.05)
    alone = stark.expressiveness(teacher, [rows, other])
    torch.testing.assert_close(alone[0], found)


def test_a_teacher_that_equals_its_student_still_has_friendliness():
    teacher, rows = model(seed=1), batch()
    found = stark.score(teacher, teacher, [rows])
    for scores in (found.head_friendliness, found.neuron_friendliness):
        torch.testing.assert_close(scores.norm(dim=1), torch.ones(LAYERS), atol=1e-4, rtol=0)
    z = bert.forward(teacher, rows)[0].detach().requires_grad_()
    kl = F.kl_div(F.log_softmax(z.detach() / 2, -1), F.log_softmax(z / 2, -1), log_target=True, reduction="batchmean")
    assert torch.autograd.grad(kl, z)[0].abs().max() < 1e-6  # what KL would have said


def test_norms_interpolation_and_shapes():
    found = stark.score(model(seed=1), model(seed=2), [batch(), batch(rows=3, seed=1)])
    for scores, units in ((found.head_expressiveness, HEADS), (found.head_friendliness, HEADS),
                          (found.neuron_expressiveness, NEURONS), (found.neuron_friendliness, NEURONS)):
        assert scores.shape == (LAYERS, units) and (scores >= 0).all()
        torch.testing.assert_close(scores.norm(dim=1), torch.ones(LAYERS), atol=1e-4, rtol=0)
    heads, neurons = found.knowledgeable(0.25)
    torch.testing.assert_close(heads, 0.25 * found.head_expressiveness + 0.75 * found.head_friendliness)
    torch.testing.assert_close(neurons, 0.25 * found.neuron_expressiveness + 0.75 * found.neuron_friendliness)
    torch.testing.assert_close(found.knowledgeable(1.0)[0], found.head_expressiveness)


def test_scoring_leaves_both_models_as_they_were_and_stores_no_gradient():
    teacher, student = model(seed=1).train(), model(seed=2).train()
    teacher.classifier.bias.requires_grad_(False)
    before = bert.weights_hash(teacher), [p.requires_grad for p in teacher.parameters()]
    stark.score(teacher, student, [batch()])
    assert (bert.weights_hash(teacher), [p.requires_grad for p in teacher.parameters()]) == before
    assert teacher.training and student.training
    assert all(p.grad is None for m in (teacher, student) for p in m.parameters())
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_a_students_kept_logits_do_as_well_as_the_student():
    teacher, student, rows = model(seed=1), model(seed=2), batch() | {"index": torch.arange(6)}
    logits = bert.forward(student, rows)[0].detach()
    found = stark.score(teacher, lambda b: logits[b["index"]], [rows])
    torch.testing.assert_close(found.neuron_friendliness, stark.score(teacher, student, [rows]).neuron_friendliness)


def test_dropout_is_off_while_scoring():
    first, second = (stark.score(model(seed=1).train(), model(seed=2).train(), [batch()]) for _ in range(2))
    torch.testing.assert_close(first.head_friendliness, second.head_friendliness, atol=0, rtol=0)


# --------------------------------------------------------------------------------------------------- sparsification


@pytest.mark.parametrize(("sparsity", "expected"), [
    (0.0, [[1, 1], [1, 1], [1, 1]]),
    (1 / 6, [[1, 1], [1, 1], [1, 0]]),
    (0.5, [[0, 1], [1, 0], [1, 0]]),  # .05, .1 and .2 go, wherever they stand
    (0.65, [[0, 1], [0, 0], [1, 0]]),  # 3.9 units are 4
    (1.0, [[0, 0], [0, 0], [0, 0]]),
])
def test_units_are_ranked_over_all_layers(sparsity, expected):
    scores = torch.tensor([[0.1, 0.5], [0.3, 0.2], [0.9, 0.05]])
    assert stark.kept(scores, sparsity).int().tolist() == expected


def test_of_equal_scores_the_earlier_goes():
    assert stark.kept(torch.ones(2, 3), 0.5).int().tolist() == [[0, 0, 0], [1, 1, 1]]


def scores_that_empty(heads_of: int, neurons_of: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    heads, neurons = 1 + torch.rand(LAYERS, HEADS), 1 + torch.rand(LAYERS, NEURONS)
    heads[heads_of] *= 0.1
    neurons[neurons_of] *= 0.1
    return heads, neurons


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 1 / 3, 0.6, 0.9, 1.0])
def test_removal_equals_masking_and_survives_the_disk(sparsity, tmp_path):
    """At a third, layer 1 loses all its heads and layer 3, the last, all its neurons."""
    teacher, rows, (heads, neurons) = model(seed=1), batch(), scores_that_empty(0, 2)
    sparse = stark.sparsify(teacher, heads, neurons, sparsity)
    gates = bert.Gates(teacher)
    gates.heads, gates.neurons = (stark.kept(s, sparsity).float() for s in (heads, neurons))
    masked, states = bert.forward(teacher, rows, tokens=True)
    gates.remove()
    removed, its = bert.forward(sparse, rows, tokens=True)
    torch.testing.assert_close(removed, masked, atol=1e-5, rtol=0)
    torch.testing.assert_close(its, states, atol=1e-5, rtol=0)
    bert.save(sparse, tmp_path / "sparse.safetensors")
    again = bert.restore(tmp_path / "sparse.safetensors")
    torch.testing.assert_close(bert.forward(again, rows)[0], removed, atol=0, rtol=0)
    assert bert.counts(again) == bert.counts(sparse)


def test_removal_makes_the_matrices_smaller_by_the_share():
    teacher, (heads, neurons) = model(seed=1), scores_that_empty(0, 2)
    sparse = stark.sparsify(teacher, heads, neurons, (0.5, 0.25))
    layers = sparse.bert.encoder.layer
    assert sum(layer.attention.self.num_attention_heads for layer in layers) == LAYERS * HEADS // 2
    assert sum(layer.output.dense.in_features for layer in layers) == LAYERS * NEURONS * 3 // 4
    assert bert.counts(sparse)["encoder"] < bert.counts(teacher)["encoder"]
    assert bert.counts(sparse)["embeddings"] == bert.counts(teacher)["embeddings"]


def test_random_scores_depend_on_the_seed_only():
    first, again, other = (stark.random_scores(model(seed=1), seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and first[1].shape == (LAYERS, NEURONS)


def test_unstructured_scores_and_removal():
    teacher, student, rows = model(seed=1), model(seed=2), batch()
    found = stark.score_weights(teacher, student, [rows], lam=1.0)
    F.cross_entropy(bert.forward(teacher, rows)[0], rows["labels"]).backward()
    for scores, matrices in zip(found, stark.weight_matrices(teacher), strict=True):
        assert len(scores) == 6
        raw = [(w * w.grad).abs().detach() for w in matrices]
        norm = torch.cat([r.flatten() for r in raw]).norm()
        for score, r in zip(scores, raw, strict=True):
            torch.testing.assert_close(score, r / norm, atol=1e-6, rtol=1e-3)
    sparse = stark.sparsify_weights(teacher, found, 0.3)
    zeroed = torch.cat([(w == 0).flatten() for layer in stark.weight_matrices(sparse) for w in layer])
    flat = torch.cat([s.flatten() for layer in found for s in layer])
    assert int(zeroed.sum()) == round(0.3 * len(flat)) and flat[zeroed].max() <= flat[~zeroed].min()
    assert not any((w == 0).any() for layer in stark.weight_matrices(teacher) for w in layer)


# ------------------------------------------------------------------------------------------------- automatic sparsity


def mixture(*parts: tuple[float, float, int]) -> np.ndarray:
    """Normal quantiles: (mean, standard deviation, number) of each cluster."""
    from scipy.stats import norm

    return np.concatenate([norm(mean, sd).ppf((np.arange(n) + 0.5) / n) for mean, sd, n in parts])


def test_the_automatic_sparsity_is_the_share_below_the_lowest_mode():
    peak = stark.density_peak(mixture((0.2, 0.03, 60), (0.6, 0.03, 40)), bandwidth=0.3)
    assert peak.peak == pytest.approx(0.2, abs=0.01) and peak.sparsity == pytest.approx(0.30, abs=0.02)
    assert peak.neuron_sparsity == peak.sparsity
    assert len(peak.x) >= 512 and np.trapezoid(peak.density, peak.x) == pytest.approx(1, abs=0.01)
    lower = stark.density_peak(mixture((0.2, 0.03, 20), (0.6, 0.03, 80)), bandwidth=0.3)
    assert lower.sparsity == pytest.approx(0.10, abs=0.02)
    assert stark.density_peak(mixture((0.5, 0.1, 101))).sparsity == pytest.approx(0.5, abs=0.01)


def test_ripples_do_not_count_and_units_do_not_matter():
    clean, dirty = mixture((0.5, 0.05, 300)), mixture((-0.5, 0.05, 6), (0.5, 0.05, 294))
    assert stark.density_peak(dirty).peak == pytest.approx(stark.density_peak(clean).peak, abs=0.02)
    values = mixture((0.2, 0.03, 60), (0.6, 0.05, 40))
    assert stark.density_peak(7 * values - 3).sparsity == stark.density_peak(values).sparsity
    assert stark.density_peak(torch.tensor(values).view(10, 10)).sparsity == stark.density_peak(values).sparsity


def test_the_bandwidth_decides_what_is_one_cluster():
    values = mixture((0.4, 0.03, 50), (0.5, 0.03, 50))
    assert stark.density_peak(values, bandwidth=0.5).sparsity == pytest.approx(0.25, abs=0.04)
    assert stark.density_peak(values, bandwidth=2.0).sparsity == pytest.approx(0.5, abs=0.02)


def test_readings_b_c_and_d():
    shape = (10, 10)
    p, q = (torch.tensor(mixture((mean, 0.02, 100))).float().view(shape) for mean in (0.6, 0.2))
    neurons = torch.tensor(mixture((0.2, 0.02, 20), (0.6, 0.02, 80))).float().view(shape)
    scores = stark.Scores(p, q, neurons, neurons)
    a, b, c, d = (stark.density_peak(scores, reading) for reading in "ABCD")
    assert a.peak == pytest.approx(0.4, abs=0.01) and a.sparsity == pytest.approx(0.5, abs=0.02)
    assert b.peak == pytest.approx(0.2, abs=0.01) and b.sparsity == 0.0  # no I is as low as the cluster of Q
    assert c.sparsity == a.sparsity and c.neuron_sparsity == pytest.approx(0.10, abs=0.02)
    assert d.sparsity == pytest.approx(0.5, abs=0.05)  # a normal sequence is densest in the middle


@pytest.mark.parametrize(("call", "message"), [
    (lambda: stark.kept(torch.ones(2, 2), 1.1), "sparsity: got 1.1; allowed: 0 to 1"),
    (lambda: stark.density_peak(torch.ones(5)), "scores: got 1 distinct"),
    (lambda: stark.density_peak(torch.rand(5), "E"), "reading: got 'E'; allowed: A, B, C, D"),
    (lambda: stark.density_peak(torch.rand(5), "B"), "scores: got one sequence for reading B"),
    (lambda: stark.density_peak(torch.rand(5), bandwidth=0), "bandwidth: got 0; allowed: above 0"),
    (lambda: stark.score(model(), model(), []), "batches: got none"),
    (lambda: stark.score(model(), model(), [batch()], tau=0), "tau: got 0; allowed: above 0"),
    (lambda: stark.sparsify(model(), torch.rand(2, 4), torch.rand(3, 64), 0.5), r"heads: got scores of shape \(2, 4\)"),
])
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """KD and STARK of one seed on a few rows, and the store that holds them."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KDUTILS_RUNS", str(tmp_path_factory.mktemp("runs")))
    few = {"rows": 96, "teacher_epochs": 1, "epochs": 1}

    def small(spec):
        return replace(spec, settings=spec.settings | few)

    specs = {"KD": small(chapter.one("smoke", "synthetic", "KD", 0))}
    specs |= {s: small(chapter.sparse("smoke", "synthetic", 0, s)) for s in (0.0, 0.6)}
    specs["auto"] = small(auto.one("smoke", "synthetic", 0))
    store = Store()
    yield {name: (spec, store.put(spec, experiments.run(spec), 1.0)) for name, spec in specs.items()}
    patch.undo()


def test_a_run_at_sparsity_zero_is_kd(runs):
    """The same start, batches, dropout and, with nothing removed, the same teacher."""
    kd, zero, sparse = (runs[name][1] for name in ("KD", 0.0, 0.6))
    assert zero["metrics"] == kd["metrics"] and zero["curve"] == kd["curve"]
    assert sparse["curve"] != kd["curve"]


def test_a_run_says_what_its_teacher_lost(runs):
    extra = runs[0.6][1]["extra"]
    assert "".join(extra["kept_heads"]).count("0") == round(0.6 * 16)
    assert sum(extra["kept_neurons"]) == 256 - round(0.6 * 256)
    assert {"dev", "test", "held"} == set(extra["teacher"]) and 0.5 <= extra["teacher"]["dev"]["confidence"] <= 1
    assert extra["teacher_parameters"] < runs[0.0][1]["extra"]["teacher_parameters"]
    assert extra["memory"]["teacher"] < runs["KD"][1]["extra"]["memory"]["teacher"]


def test_scores_come_from_the_seeds_own_trial_student(runs):
    spec = runs[0.6][0]
    assert teachers.trial(spec) == runs["KD"][0] and teachers.trial(runs["auto"][0]) == runs["KD"][0]
    assert teachers.trial(replace(spec, seed=1)) != runs["KD"][0]
    made = common.bench(spec)
    clean, paper = (teachers.scores(replace(spec, args=spec.args | {"protocol": p}), made) for p in ("clean", "paper"))
    assert not torch.equal(clean.head_friendliness, paper.head_friendliness)


def test_the_automatic_run_removes_what_its_density_says(runs):
    spec, record = runs["auto"]
    extra = record["extra"]
    assert "".join(extra["kept_heads"]).count("0") == round(extra["sparsity"] * 16)
    assert extra["sensitivity"]["A"]["1"] == extra["sparsity"]
    for curve in extra["densities"].values():
        assert len(curve["x"]) == len(curve["density"]) <= 64


def test_students_start_the_same_whatever_teaches_them(runs):
    spec = runs[0.6][0]
    made = common.bench(spec)
    dropped = chapter.initial(spec, made)
    assert len(dropped.bert.encoder.layer) == 2
    pruned = chapter.initial(replace(spec, args=spec.args | {"student": "pruned"}), made)
    heads = [layer.attention.self.num_attention_heads for layer in pruned.bert.encoder.layer]
    assert len(heads) == 4 and sum(heads) == 16 - round(0.7 * 16)
    with pytest.raises(ValueError, match="student: got 'other'; allowed: dropped, pruned"):
        chapter.initial(replace(spec, args={"student": "other"}), made)


# ------------------------------------------------------------------------------------------------------------- plans


def test_smoke_covers_every_method_and_student():
    specs = chapter.plan("smoke", "synthetic")
    assert {s.method for s in specs} == set(chapter.METHODS)
    assert {s.args.get("scores") for s in specs} == {None, "knowledgeable", "random", "expressiveness", "friendliness"}
    assert {s.args["student"] for s in specs} == {"dropped", "pruned", "smaller"}
    assert {s.args.get("protocol") for s in specs} == {None, "clean", "paper"}
    assert {s.method for s in chapter.plan("demo", "rotten")} >= set(chapter.BASELINES) | {"KD", "STARK"}


@pytest.mark.parametrize(("profile", "task"), [("mini", "mrpc"), ("mini", "stsb"), ("paper", "mnli")])
def test_plans_begin_with_the_headline_and_repeat_nothing(profile, task, tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    specs = chapter.plan(profile, task)
    assert len({s.key for s in specs}) == len(specs)
    assert specs[0].method == "KD" and {s.method for s in specs[1:10]} == {"STARK"}
    pairs = {(s.args["student"], s.seed) for s in specs if s.method == "KD"}
    assert {seed for student, seed in pairs if student == "dropped"} == set(range(10))
    assert ("large-teacher" if profile == "paper" else "small-teacher", 0) in pairs and ("smaller", 4) in pairs
    for spec in specs:
        if spec.method == "STARK":
            assert teachers.trial(spec) in specs


def test_the_grid_chooses_on_held_out_rows_and_then_gets_more_seeds(tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    store, before = Store(), chapter.plan("mini", "mrpc")
    assert chapter.chosen("mini", "mrpc") is None
    for seed, s in itertools.product(range(5), chapter.GRID):
        held = {"matthews": 0.5 if s == 0.4 else 0.4}
        test = {"matthews": 0.9 if s == 0.8 else 0.1}
        spec = chapter.sparse("mini", "mrpc", seed, s)
        store.put(spec, {"metrics": {"held": held, "dev": test, "test": test}}, 1.0)
    assert chapter.chosen("mini", "mrpc") == 0.4
    after = chapter.plan("mini", "mrpc")
    added = [s for s in after if s not in before]
    assert {s.args["sparsity"] for s in added} == {0.4}
    assert {s.seed for s in added if s.args["scores"] == "knowledgeable" and s.args["base"] == "KD"
            and "lam" not in s.args and s.method == "STARK"} == set(range(5, 10))
    assert {s.method for s in added} == {"STARK", "STARK-unstructured"}
    assert {"PKD", "CKD"} < {s.args["base"] for s in added}


def test_defaults_stay_out_of_the_automatic_arguments():
    specs = auto.plan("mini", "sst2")
    assert specs[0].args == {"student": "dropped"} and len({s.key for s in specs}) == len(specs) == 40
    assert asdict(specs[0])["chapter"] == "03_stark_auto"
