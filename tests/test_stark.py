"""STARK: what its scores measure, what is removed, where the automatic sparsity lies, what its runs share."""

from __future__ import annotations

import gc
import itertools
import time
import weakref
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from kdutils import bert, checkpoints, dropout, experiments, losses, stark, tasks
from kdutils.experiments import common
from kdutils.experiments import stark as chapter
from kdutils.experiments import stark_auto as auto
from kdutils.experiments import stark_teachers as teachers
from kdutils.experiments.stark_baselines import best_own
from kdutils.store import Store
from kdutils.teacher import ask

torch.set_num_threads(1)
LAYERS, HEADS, NEURONS = 3, 4, 64


def model(outputs: int = 2, seed: int = 0):
    """A tiny BERT with weights large enough for every gate to matter."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    made = dropout.fast_dropout(BertForSequenceClassification(bert.tiny_config(outputs, LAYERS, vocabulary=60)))
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


def test_a_regressions_friendliness_is_zero_where_its_student_agrees():
    """The official code's squared error: as KL's, its gradient is zero there."""
    teacher, rows = model(1, seed=1), batch(labels=torch.linspace(0, 5, 6))
    found = stark.score(teacher, teacher, [rows])
    assert found.head_friendliness.eq(0).all() and found.neuron_friendliness.eq(0).all()
    torch.testing.assert_close(found.head_expressiveness.norm(dim=1), torch.ones(LAYERS), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("outputs", "backward"), [(1, 1), (2, 1), (3, 2)])
def test_one_backward_pass_a_free_logit_serves_both_scores(monkeypatch, outputs, backward):
    teacher, student, forward, back = model(outputs, 1), model(outputs, 2), [], []
    read, grad = bert.forward, torch.autograd.grad
    monkeypatch.setattr(bert, "forward", lambda asked, *rest: forward.append(asked) or read(asked, *rest))
    monkeypatch.setattr(torch.autograd, "grad", lambda y, x, **k: back.append(isinstance(x, list)) or grad(y, x, **k))
    labels = torch.rand(6) if outputs == 1 else torch.arange(6) % outputs
    stark.score(teacher, student, [batch(labels=labels), batch(seed=1, labels=labels)])
    assert forward.count(teacher) == forward.count(student) == 2 and sum(back) == 2 * backward


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_scores_are_those_of_one_backward_pass_a_loss(outputs):
    """The plain way: the gradient of each batch's loss at gates that all rows share."""
    teacher, student, tau = model(outputs, 1), model(outputs, 2), 3.0
    labels = torch.linspace(0, 5, 6) if outputs == 1 else torch.arange(6) % outputs
    batches, plain = [batch(labels=labels, seed=seed) for seed in range(3)], {}
    gates = bert.Gates(teacher)
    for rows in batches:
        z_s = bert.forward(student, rows)[0].detach()
        shared = [x.detach().requires_grad_() for x in (gates.heads, gates.neurons)]
        gates.heads, gates.neurons = shared
        z = bert.forward(teacher, rows)[0]
        soft = F.mse_loss(z, z_s) if outputs == 1 else F.cross_entropy(z_s / tau, F.softmax(z / tau, -1))
        task = F.mse_loss(z[:, 0], labels) if outputs == 1 else F.cross_entropy(z, labels)
        for kind, loss in (("expressiveness", task), ("friendliness", soft)):
            slopes = torch.autograd.grad(loss, shared, retain_graph=True)
            for unit, slope in zip(("head", "neuron"), slopes, strict=True):
                plain[f"{unit}_{kind}"] = plain.get(f"{unit}_{kind}", 0) + slope.abs()
    gates.remove()
    found = vars(stark.score(teacher, student, batches, tau))
    for name, sums in plain.items():
        torch.testing.assert_close(found[name], per_layer(sums), atol=1e-5, rtol=1e-4)


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
    teacher.bert.embeddings.eval()  # as of a model of which only a part is trained
    student.bert.encoder.eval()
    teacher.classifier.bias.requires_grad_(False)

    def state():
        modes = [module.training for m in (teacher, student) for module in m.modules()]
        return modes, checkpoints.hash_of(teacher), [p.requires_grad for p in teacher.parameters()]

    before = state()
    stark.score(teacher, student, [batch()])
    assert state() == before
    with pytest.raises(ValueError, match="student: got"):
        stark.score(teacher, model(3), [batch()])
    assert state() == before
    assert all(p.grad is None for m in (teacher, student) for p in m.parameters())
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_a_students_kept_logits_do_as_well_as_the_student():
    teacher, student, rows = model(seed=1), model(seed=2), batch() | {"index": torch.arange(6)}
    logits = bert.forward(student, rows)[0].detach()
    found = stark.score(teacher, lambda b: logits[b["index"]], [rows])
    torch.testing.assert_close(found.neuron_friendliness, stark.score(teacher, student, [rows]).neuron_friendliness)


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("outputs", [1, 2])
def test_gradients_are_switched_on_while_scoring(switched_off, outputs):
    teacher, student, labels = model(outputs, 1), model(outputs, 2), torch.rand(6) if outputs == 1 else None
    expected, weights = (f(teacher, student, [batch(labels=labels)]) for f in (stark.score, stark.score_weights))
    with switched_off():
        rows = batch(labels=None if labels is None else labels.clone())
        logits = bert.forward(student, rows)[0]
        found = stark.score(teacher, lambda _: logits, [rows])
        assert torch.equal(stark.expressiveness(teacher, [rows])[0], expected.head_expressiveness)
        assert torch.equal(stark.score_weights(teacher, student, [rows])[0][0], weights[0][0])
    assert all(torch.equal(value, vars(expected)[name]) for name, value in vars(found).items())


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


def test_units_are_counted_without_touching_the_model(monkeypatch):
    teacher, (heads, neurons) = model(seed=1), scores_that_empty(0, 2)
    assert bert.widths(teacher) == ((LAYERS, HEADS), (LAYERS, NEURONS))
    monkeypatch.setattr(bert, "Gates", None)
    assert stark.random_scores(teacher, 0)[0].shape == (LAYERS, HEADS)
    sparse = stark.sparsify(teacher, heads, neurons, 0.5)
    with pytest.raises(ValueError, match="model: gates need layers of one width; allowed: a model that is not pruned"):
        stark.sparsify(sparse, heads, neurons, 0.5)


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
    checkpoints.save(sparse, tmp_path / "sparse.safetensors")
    again = checkpoints.restore(tmp_path / "sparse.safetensors")
    torch.testing.assert_close(bert.forward(again, rows, tokens=True)[0], removed, atol=0, rtol=0)
    assert bert.counts(again) == bert.counts(sparse)


def test_removal_makes_the_matrices_smaller_by_the_share():
    teacher, (heads, neurons) = model(seed=1), scores_that_empty(0, 2)
    sparse = stark.sparsify(teacher, heads, neurons, (0.5, 0.25))
    layers = sparse.bert.encoder.layer
    assert sum(layer.attention.self.num_attention_heads for layer in layers) == LAYERS * HEADS // 2
    assert sum(layer.output.dense.in_features for layer in layers) == LAYERS * NEURONS * 3 // 4
    assert bert.counts(sparse)["encoder"] < bert.counts(teacher)["encoder"]
    assert bert.counts(sparse)["embeddings"] == bert.counts(teacher)["embeddings"]
    assert checkpoints.hash_of(stark.sparsify(teacher, heads, neurons, [0.5, 0.25])) == checkpoints.hash_of(sparse)


def test_random_scores_depend_on_the_seed_only():
    first, again, other = (stark.random_scores(model(seed=1), seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and first[1].shape == (LAYERS, NEURONS)


@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_unstructured_scores_and_removal(lam):
    teacher, student, rows, tau = model(seed=1), model(seed=2), batch(), 3.0
    found = stark.score_weights(teacher, student, [rows], tau, lam)
    z, z_s = bert.forward(teacher, rows)[0], bert.forward(student, rows)[0].detach()
    soft = F.cross_entropy(z_s / tau, F.softmax(z / tau, -1))
    (lam * F.cross_entropy(z, rows["labels"]) + (1 - lam) * soft).backward()
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


def test_unstructured_scores_are_interpolated():
    both, p, q = (stark.score_weights(model(seed=1), model(seed=2), [batch()], lam=lam) for lam in (0.25, 1.0, 0.0))
    for mixed, first, second in zip(*(itertools.chain(*x) for x in (both, p, q)), strict=True):
        torch.testing.assert_close(mixed, 0.25 * first + 0.75 * second)


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


def test_thousands_of_neurons_get_a_curve_as_fine_as_their_bandwidth():
    """One far neuron stretches the curve: 512 points would be further apart than the bandwidth (and say 42 %)."""
    neurons = np.append(mixture((0.01, 0.002, 6000), (0.02, 0.002, 3215)), 1.0)
    started = time.process_time()
    peak = stark.density_peak(neurons)
    assert time.process_time() - started < 2
    width = 9216**-0.2 * neurons.std(ddof=1)
    assert np.diff(peak.x).max() <= 1.001 * width / 8
    assert peak.peak == pytest.approx(0.0101, abs=2e-4) and peak.sparsity == pytest.approx(0.34, abs=0.01)
    places = slice(0, len(peak.x) // 10, 20)
    kernels = np.exp(-(((peak.x[places, None] - neurons) / width) ** 2) / 2)
    by_hand = kernels.mean(1) / (width * np.sqrt(2 * np.pi))
    assert peak.density[places] == pytest.approx(by_hand, rel=1e-9, abs=1e-12)
    heads = torch.tensor(mixture((0.4, 0.1, 72)).reshape(6, 12))
    c = stark.density_peak(stark.Scores(heads, heads, *[torch.tensor(neurons).view(6, -1)] * 2), "C")
    assert c.neuron_sparsity == peak.sparsity and c.sparsity == pytest.approx(0.5, abs=0.02)


def test_only_reading_c_needs_the_neurons():
    heads = torch.tensor(mixture((0.4, 0.1, 12))).view(LAYERS, HEADS)
    scores = stark.Scores(heads, heads, *[torch.ones(LAYERS, NEURONS)] * 2)
    assert all(0.4 < stark.density_peak(scores, reading).sparsity < 0.6 for reading in "ABD")
    with pytest.raises(ValueError, match="scores: got 1 distinct"):
        stark.density_peak(scores, "C")


def ranked(gaps: np.ndarray) -> np.ndarray:
    """The ascending sequence with these gaps between neighbours."""
    return np.concatenate([[0.0], gaps.cumsum()])


RANKS = np.arange(99)
DENSE_AT_30 = 1 + 0.01 * RANKS - 0.9 * np.exp(-(((RANKS - 30) / 8) ** 2))  # sparser before, and denser at the start


@pytest.mark.parametrize("bandwidth", [0.25, 0.5, 1.0])
def test_along_the_rank_an_end_is_no_peak(bandwidth):
    peak = stark.density_peak(ranked(DENSE_AT_30), "D", bandwidth)
    assert peak.density[0] > peak.density[1]
    assert peak.sparsity == pytest.approx(0.30, abs=0.03) and peak.peak == pytest.approx(30.5, abs=3)


def test_along_the_rank_a_curve_without_peaks_is_highest_at_an_end():
    rising = 1 + 0.01 * RANKS
    assert stark.density_peak(ranked(rising), "D").sparsity == pytest.approx(1.5 / 100, abs=0.006)
    assert stark.density_peak(ranked(rising[::-1]), "D").sparsity == 0.99


def test_along_the_rank_two_scores_that_happen_to_be_equal_make_no_peak():
    equal = DENSE_AT_30.copy()
    equal[12] = 1e-6
    assert stark.density_peak(ranked(equal), "D", 0.5).sparsity == pytest.approx(0.30, abs=0.02)
    assert stark.density_peak(ranked(equal), "D", 0.01).peak == 13.5  # where nothing is smoothed


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
    (lambda: stark.sparsify(model(), torch.rand(3, 4), torch.rand(3, 64), [0.5] * 3), "sparsity: got 3 shares; "),
    (lambda: stark.sparsify(model(), torch.rand(3, 4), torch.full((3, 64), torch.nan), 0.5), "scores: got NaN for 192"),
    (lambda: stark.kept(torch.tensor([[1.0, torch.nan]]), 0.5), r"scores: got NaN for 1 unit\(s\); allowed: numbers"),
    (lambda: stark.density_peak(torch.tensor([1.0, 2.0, torch.nan])), "scores: got 1 NaN or infinite; allowed: finite"),
    (lambda: stark.score_weights(model(), model(), [batch()], tau=0), "tau: got 0; allowed: above 0"),
    (lambda: stark.score(model(1), model(1), [batch()]),
     r"labels: got int64 of shape \(6,\); allowed: real numbers \(6,\) for a teacher of 1 output\(s\)"),
    (lambda: stark.score(model(), model(), [batch(labels=torch.rand(6))]),
     r"labels: got float32 of shape \(6,\); allowed: whole numbers \(6,\) for a teacher of 2 output\(s\)"),
    (lambda: stark.expressiveness(model(1), [batch(labels=torch.rand(6, 1))]),
     r"labels: got float32 of shape \(6, 1\)"),
    (lambda: stark.score_weights(model(1), model(1), [batch()]), "labels: got int64"),
    (lambda: stark.score(model(), model(3), [batch()]), r"student: got logits of shape \(6, 3\); allowed: \(6, 2\)"),
    (lambda: stark.score(model(), lambda _: torch.rand(6), [batch()]), r"student: got logits of shape \(6,\); allowed"),
    (lambda: stark.score_weights(model(), lambda _: torch.rand(1, 2), [batch()]),
     r"student: got logits of shape \(1, "),
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


def test_stark_is_put_on_known_methods_only(runs):
    with pytest.raises(ValueError, match="base: got 'pkd'; allowed: KD, PKD, CKD"):
        next(chapter.stages(replace(runs[0.6][0], args=runs[0.6][0].args | {"base": "pkd"})))


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
    clean, paper = (teachers.scores(with_args(spec, protocol=p), made)[0] for p in ("clean", "paper"))
    assert not torch.equal(clean.head_friendliness, paper.head_friendliness)


def with_args(spec, **args):
    return replace(spec, args=spec.args | args)


@pytest.mark.parametrize(("protocol", "split"), [("clean", "held"), ("paper", "dev")])
def test_each_protocol_scores_on_its_own_rows(runs, monkeypatch, protocol, split):
    """The rows, and the trial student's logits on them: their accuracy is that of its record."""
    made, seen = common.bench(runs["KD"][0]), []
    monkeypatch.setattr(teachers, "remembered", lambda kind, about, prepare, make: (make(*prepare()), 0.0))
    score = stark.score

    def spy(teacher, student, batches, tau):
        assert teacher is made.teacher and tau == made.settings.tau
        batches = list(batches)
        seen.extend((b["index"], b["labels"], student(b)) for b in batches)
        return score(teacher, student, batches, tau)

    monkeypatch.setattr(stark, "score", spy)
    teachers.sparse_teacher(with_args(runs[0.6][0], protocol=protocol), made)
    index, labels, logits = map(torch.cat, zip(*seen, strict=True))
    rows = made.data.evaluation[split]
    assert len(made.data.evaluation["held"]) != len(made.data.evaluation["dev"])
    assert sorted(index.tolist()) == list(range(len(rows))) and torch.equal(labels, rows.labels[index])
    accuracy = tasks.score(made.task, logits.numpy(), labels.numpy())["accuracy"]
    assert accuracy == pytest.approx(runs["KD"][1]["metrics"][split]["accuracy"], abs=0.03)


def unlike() -> stark.Scores:
    """Scores of the fixture's teacher by which no two kinds or readings say the same, friendliness the lower: on so few
    rows its own P and Q are nearly equal."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.rand(shape, generator=generator) for shape in ((4, 4), (4, 4), (4, 64), (4, 64))]
    return stark.Scores(*(low + draw / 2 for low, draw in zip((0.5, 0, 0.5, 0), draws, strict=True)))


KINDS = {"knowledgeable": 0.5, "expressiveness": 1.0, "friendliness": 0.0}  # the weight of expressiveness


def test_every_kind_of_scores_makes_the_teacher_that_it_says(runs, monkeypatch):
    spec, found = runs[0.6][0], unlike()
    made, made_by = common.bench(spec), set()
    monkeypatch.setattr(teachers, "scores", lambda spec, made: (found, 0.0))

    def by(lam: float):
        return (lam * found.head_expressiveness + (1 - lam) * found.head_friendliness,
                lam * found.neuron_expressiveness + (1 - lam) * found.neuron_friendliness)

    expected = [(with_args(spec, scores=kind), by(lam)) for kind, lam in KINDS.items()]
    expected += [(with_args(spec, lam=lam), by(lam)) for lam in (0.25, 0.75)]
    expected += [(replace(with_args(spec, scores="random"), seed=seed), stark.random_scores(made.teacher, seed))
                 for seed in (0, 1)]
    for asked, ranks in expected:
        pruned, extra = teachers.sparse_teacher(asked, made)
        assert checkpoints.hash_of(pruned) == checkpoints.hash_of(stark.sparsify(made.teacher, *ranks, 0.6))
        assert extra.items() > teachers.where(*ranks, (0.6, 0.6)).items()
        made_by.add(checkpoints.hash_of(pruned))
    assert len(made_by) == len(expected)


def test_single_weights_go_by_both_scores(runs, monkeypatch):
    spec, seen = replace(runs[0.6][0], method="STARK-unstructured"), []
    made, score = common.bench(spec), stark.score_weights
    monkeypatch.setattr(stark, "score_weights", lambda *a: seen.append(score(*a)) or seen[-1])
    pruned, extra = teachers.sparse_teacher(spec, made)
    expected = score(made.teacher, *teachers._scored_on(spec, made), made.settings.tau, 0.5)
    assert checkpoints.hash_of(pruned) == checkpoints.hash_of(stark.sparsify_weights(made.teacher, expected, 0.6))
    assert len(seen) == 1 and extra["score_seconds"] > 0
    sizes = [sum(w.numel() for w in layer) for layer in stark.weight_matrices(pruned)]
    assert np.average(extra["zeros"], weights=sizes) == pytest.approx(0.6, abs=1e-4)
    other, _ = teachers.sparse_teacher(with_args(spec, lam=0.0), made)
    friendly = score(made.teacher, *teachers._scored_on(spec, made), made.settings.tau, 0.0)
    assert checkpoints.hash_of(other) == checkpoints.hash_of(stark.sparsify_weights(made.teacher, friendly, 0.6))
    with pytest.raises(ValueError, match="^scores: got 'random' for STARK-unstructured; allowed: knowledgeable$"):
        teachers.sparse_teacher(with_args(spec, scores="random"), made)


def test_the_seconds_of_scoring_are_those_of_the_run_that_did_it(runs):
    """The scores are looked up at every other sparsity of the seed, and by the automatic run."""
    seconds = [runs[name][1]["extra"]["score_seconds"] for name in (0.0, 0.6, "auto")]
    assert seconds[0] == seconds[1] == seconds[2] > 0
    made = common.bench(runs[0.6][0])
    assert teachers.sparse_teacher(with_args(runs[0.6][0], sparsity=0.3), made)[1]["score_seconds"] == seconds[0]


def test_what_is_remembered_says_what_it_took_where_that_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    made, clock = [], [0.0]
    monkeypatch.setattr(teachers.time, "perf_counter", lambda: clock[0])

    def prepare():  # as a trial student that has to be trained first: no part of what making takes
        clock[0] += 100
        return 3, "b"

    def make(count, _):
        clock[0] += 2
        made.append(1)
        return {"x": torch.arange(count)}

    first, again = (teachers.remembered("kind", "about", prepare, make) for _ in range(2))
    assert made == [1] and list(again[0]) == ["x"] and torch.equal(again[0]["x"], torch.arange(3))
    assert first[1] == again[1] == 2
    (path,) = (tmp_path / "cache").glob("kind-*.safetensors")
    save_file({"x": load_file(path)["x"]}, path)  # as files were written before
    found, seconds = teachers.remembered("kind", "about", prepare, make)
    assert made == [1] and list(found) == ["x"] and seconds is None


def test_the_automatic_run_removes_what_its_density_says(runs):
    spec, record = runs["auto"]
    extra = record["extra"]
    assert "".join(extra["kept_heads"]).count("0") == round(extra["sparsity"] * 16)
    assert extra["sensitivity"]["A"]["1"] == extra["sparsity"]
    for curve in extra["densities"].values():
        assert len(curve["x"]) == len(curve["density"]) <= 64


def sparse_teachers(patch) -> list:
    """A list that gets the teachers by which runs replace their bench's."""
    seen, by = [], teachers.taught_by
    patch.setattr(teachers, "taught_by", lambda made, teacher, *more: seen.append(teacher) or by(made, teacher, *more))
    return seen


def teaches(asked, rows, told: torch.Tensor, tau: float) -> bool:
    """Whether an objective is KD from the logits `told` [n, outputs] of all rows."""
    taken = rows.batch(torch.arange(8))
    logits = torch.linspace(-1, 1, 16).view(8, 2)
    expected = losses.stark(logits, told[taken["index"]], taken["labels"], tau)["loss"]
    return torch.equal(asked(taken, logits, None)["loss"], expected)


@pytest.mark.parametrize(("scores", "seed"), [(None, 0), ("random", 0), ("random", 3)])
def test_an_automatic_student_learns_from_the_teacher_that_its_scores_made(runs, monkeypatch, scores, seed):
    asked, found = [], unlike()
    monkeypatch.setattr(teachers, "scores", lambda spec, made: (found, 0.0))
    monkeypatch.setattr(common, "distil_student", lambda *a: asked.append(a) or {"extra": {}})
    spec = replace(runs["auto"][0], args={"student": "dropped"} | ({"scores": scores} if scores else {}), seed=seed)
    made, taught_by = common.bench(spec), sparse_teachers(monkeypatch)
    extra = experiments.run(spec)["extra"]
    ranks = stark.random_scores(made.teacher, seed) if scores else found.knowledgeable()
    sparse = stark.sparsify(made.teacher, *ranks, extra["sparsity"])
    ((taught, student, objective, its),) = asked
    assert len({stark.density_peak(found, reading).sparsity for reading in stark.READINGS[:2]}) == 2
    assert extra["sparsity"] == extra["neuron_sparsity"] == stark.density_peak(found, "A", 1.0).sparsity
    (its_teacher,) = map(checkpoints.hash_of, taught_by)
    assert its_teacher == checkpoints.hash_of(sparse) != checkpoints.hash_of(made.teacher)
    assert extra["kept_heads"] == teachers.where(*ranks, [extra["sparsity"]] * 2)["kept_heads"] and its == seed
    told = ask(sparse, made.data.train).logits
    assert torch.equal(taught.signals["train"].logits, told)
    assert teaches(objective, made.data.train, told, made.settings.tau)
    assert checkpoints.hash_of(student) == checkpoints.hash_of(bert.keep_layers(made.teacher, made.settings.layers))


def test_readings_and_bandwidths_are_no_arguments_of_a_run(runs):
    with pytest.raises(TypeError, match="unexpected keyword argument 'reading'"):
        auto.one("smoke", "synthetic", 0, reading="B")
    assert set(runs["auto"][1]["extra"]["sensitivity"]) == {*"ABCD", "C-neurons"}


@pytest.mark.parametrize("student", ["dropped", "pruned"])
def test_rewinding_gives_every_sparsity_the_same_start(runs, student):
    """The student of the actual distillation is that of the trial one, cut from the dense teacher; what teaches it is
    not."""
    starts, told = set(), set()
    trial, *sparse = (with_args(runs[name][0], student=student) for name in ("KD", 0.0, 0.6))
    seconds = teachers.scores(runs[0.6][0], common.bench(runs[0.6][0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "scores", lambda spec, made: seconds)  # else the pruned trial student would be trained
        taught_by = sparse_teachers(patch)
        for spec in (trial, *sparse):
            asked = next(chapter.stages(spec))  # before anything is trained
            starts.add(checkpoints.hash_of(asked.student))
            its = taught_by[-1] if taught_by else common.bench(spec).teacher
            told.add(checkpoints.hash_of(its))
            signals = ask(its, asked.made.data.train).logits
            assert teaches(asked.objective, asked.made.data.train, signals, asked.made.settings.tau)
            assert asked.seed == spec.seed
    assert len(starts) == 1 and len(told) == 2


@pytest.mark.parametrize(("base", "lasts"), [("KD", False), ("CKD", True)])
def test_a_sparse_teacher_lasts_as_long_as_it_is_asked(runs, monkeypatch, base, lasts):
    """A pack holds all its runs until it ends: without their teachers, but for CKD, which asks its live."""
    spec, made = with_args(runs[0.6][0], base=base), common.bench(runs["KD"][0])
    scored = teachers.scores(runs[0.6][0], made)
    monkeypatch.setattr(teachers, "scores", lambda spec, made: scored)
    sparsify, seen = stark.sparsify, []

    def watched(*args):
        teacher = sparsify(*args)
        seen.append(weakref.ref(teacher))
        return teacher

    monkeypatch.setattr(stark, "sparsify", watched)
    run = chapter.stages(spec)
    asked = next(run)
    gc.collect()
    assert [teacher() is not None for teacher in seen] == [lasts] and asked.made.teacher is None
    if base == "KD":
        run = auto.stages(runs["auto"][0])
        asked = next(run)
        gc.collect()
        assert [teacher() for teacher in seen] == [None, None] and asked.made.signals["train"].logits.numel()


def test_students_of_other_rates_and_layers_share_a_bench(runs):
    spec = runs["KD"][0]
    made, other = (common.bench(replace(spec, settings=spec.settings | changes)) for changes in
                   ({}, {"lr": 1.0, "epochs": 9, "layers": [2], "keep": 0.5, "tau": 3.0}))
    assert other.teacher is made.teacher and other.signals is made.signals
    assert (made.settings.layers, other.settings.layers, other.settings.tau) == ((1, 4), (2,), 3.0)


def test_states_are_kept_of_rows_that_are_trained_on(runs):
    made = common.bench(runs["KD"][0], states=True)
    taught, _ = teachers.taught_by(made, made.teacher, states=True)
    for bench in (made, taught):
        assert [name for name, told in bench.signals.items() if told.states is not None] == ["train"]
        assert list(bench.signals) == ["train", *made.data.evaluation]


def test_answers_of_teachers_that_are_never_asked_again_are_not_kept(runs, monkeypatch):
    spec = runs[0.6][0]
    made, kept = common.bench(spec), sorted(common.cache().iterdir())
    _, extra = teachers.sparsified(spec, made)
    assert extra["teacher_seconds"] > 0 and sorted(common.cache().iterdir()) == kept
    dense, sparse = (common.make("01_pilot", "smoke", "synthetic", "distil_from_sparse", 0, {"amount": amount})
                     for amount in (0.0, 0.3))
    runs_again = [experiments.run(replace(one, settings=spec.settings)) for one in (dense, sparse)]
    assert runs_again[0]["curve"] != runs_again[1]["curve"] and sorted(common.cache().iterdir()) == kept
    monkeypatch.setattr(teachers, "taught_by", lambda *a: [a])
    assert chapter.setting(with_args(spec, student="small-teacher"))[-1] == common.cache()  # all its students ask it


def test_a_pruned_student_keeps_the_most_expressive_units(runs):
    spec = with_args(runs["KD"][0], student="pruned")
    made = common.bench(spec)
    p = stark.expressiveness(made.teacher, made.data.held.batches(teachers.SCORE_BATCH))
    masks = []
    for scores, stay in zip(p, (16 - round(0.7 * 16), 256 - round(0.7 * 256)), strict=True):
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[scores.flatten().topk(stay).indices] = True
        masks.append(mask.view_as(scores))
    assert checkpoints.hash_of(chapter.initial(spec, made)) == checkpoints.hash_of(bert.prune(made.teacher, *masks))


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
    assert {s.method for s in specs} == {*chapter.METHODS, "tune-PKD"}
    assert {s.args.get("scores") for s in specs} == {None, "knowledgeable", "random", "expressiveness", "friendliness"}
    assert {s.args["student"] for s in specs} == {"dropped", "pruned", "smaller"}
    assert {s.args.get("protocol") for s in specs} == {None, "clean", "paper"}
    assert {s.method for s in chapter.plan("demo", "rotten")} == set(chapter.METHODS)


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
    (tmp_path / "_toc.yml").touch()  # a book without published records
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path / "runs"))
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


def test_a_grid_on_later_seeds_chooses_for_the_first_ones(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path / "runs"))
    store, before = Store(), chapter.plan("mini", "mrpc")

    def grid(scores):
        return {(s.seed, s.args["sparsity"]) for s in before if s.method == "STARK" and s.args["student"] == "pruned"
                and s.args["scores"] == scores}

    whole = set(itertools.product(range(5, 10), chapter.GRID))
    assert grid("knowledgeable") == grid("random") == whole
    for seed, s in whole:
        spec = chapter.sparse("mini", "mrpc", seed, s, "pruned")
        assert chapter.chosen("mini", "mrpc", "pruned") is None
        store.put(spec, {"metrics": {"held": {"matthews": 0.5 if s == 0.7 else 0.4}}}, 1.0)
    assert chapter.chosen("mini", "mrpc", "pruned") == 0.7
    added = [s for s in chapter.plan("mini", "mrpc") if s not in before]
    assert {(s.seed, s.args["student"], s.args["sparsity"]) for s in added} == {(i, "pruned", 0.7) for i in range(5)}


def test_every_method_gets_as_many_trials_as_stark_has_sparsities(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path / "runs"))
    store, before = Store(), chapter.plan("mini", "mrpc")
    for task in ("mrpc", "stsb"):
        for method in (*chapter.BASELINES[1:], "KD"):
            tried = [s for s in chapter.plan("mini", task) if s.method == f"tune-{method}"]
            assert len({s.key for s in tried}) == len(chapter.GRID) and {s.seed for s in tried} == {100}
            assert {s.args["student"] for s in tried} == {"pruned" if method == "DynaBERT" else "dropped"}
            assert task != "stsb" or {s.args["heat"] for s in tried} == {1.0}  # a regression has no temperature
    assert not [s for s in chapter.plan("mini", "rte") if s.method.startswith("tune-")]  # no verdict rests on it
    for spec in chapter.trials("mini", "mrpc", "PKD"):
        won = (spec.args["heat"], spec.args["weight"]) == (0.5, 3.0)
        told = {"matthews": 0.1 if won else 0.9}
        store.put(spec, {"metrics": {"held": {"matthews": 0.5 if won else 0.4}, "dev": told, "test": told}}, 1.0)
        assert chapter.own("mini", "mrpc", "PKD") is None or spec == chapter.trials("mini", "mrpc", "PKD")[-1]
    assert chapter.own("mini", "mrpc", "PKD") == (0.5, 3.0)
    added = [s for s in chapter.plan("mini", "mrpc") if s not in before]
    assert {s.method for s in added} == {"tuned-PKD"} and {s.seed for s in added} == set(range(5))
    assert all(s.args == {"student": "dropped", "heat": 0.5, "weight": 3.0} for s in added)


def test_of_equal_trials_the_defaults_win():
    held = {(2.0, 1.0): 0.4, (0.5, 3.0): 0.4, (1.0, 1.0): 0.4, (1.0, 0.3): 0.3}
    assert best_own(held) == (1.0, 1.0)
    assert best_own({pair: score for pair, score in held.items() if pair != (1.0, 1.0)}) == (0.5, 3.0)


def test_defaults_stay_out_of_the_automatic_arguments():
    specs = auto.plan("mini", "sst2")
    assert specs[0].args == {"student": "dropped"} and len({s.key for s in specs}) == len(specs) == 40
    assert asdict(specs[0])["chapter"] == "03_stark_auto"
