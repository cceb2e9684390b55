"""Metrics against numbers worked by hand and against scikit-learn and scipy asked directly."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from kdutils import tasks

MRPC, STSB, MNLI = tasks.get("mrpc"), tasks.get("stsb"), tasks.get("mnli")


def two_class(confidence, guess):
    """Logits whose softmax gives class `guess` the probability `confidence`."""
    margin = np.log(confidence / (1 - np.asarray(confidence)))
    return np.stack([np.where(np.array(guess) == 0, margin, 0), np.where(np.array(guess) == 1, margin, 0)], axis=1)


def test_classification_by_hand():
    # guesses 1 1 0 1 against 1 0 0 1: two true positives, one false, one true negative
    logits = two_class(np.array([0.9, 0.8, 0.6, 0.7]), [1, 1, 0, 1])
    found = tasks.score(MRPC, logits, np.array([1, 0, 0, 1]))
    assert found["accuracy"] == 3 / 4
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 0))
    assert found["matthews"] == pytest.approx((2 * 1 - 1 * 0) / math.sqrt((2 + 1) * (2 + 0) * (1 + 1) * (1 + 0)))
    assert found["confidence"] == pytest.approx((0.9 + 0.8 + 0.6 + 0.7) / 4)
    assert found["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.2) + math.log(0.6) + math.log(0.7)) / 4)
    each = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.9, 0.8, 0.6, 0.7)]
    assert found["entropy"] == pytest.approx(sum(each) / 4)


def test_ece_by_hand():
    # bins of a tenth: 0.95 and 0.91 (one right), 0.62 and 0.68 (both right), 0.55 (wrong)
    logits = two_class(np.array([0.95, 0.91, 0.62, 0.68, 0.55]), [1, 1, 0, 0, 1])
    labels = np.array([1, 0, 0, 0, 0])
    by_hand = 2 / 5 * abs(0.93 - 0.5) + 2 / 5 * abs(0.65 - 1) + 1 / 5 * abs(0.55 - 0)
    assert tasks.score(MRPC, logits, labels)["ece"] == pytest.approx(by_hand)
    bars = tasks.calibration(np.array([0.95, 0.91, 0.62, 0.68, 0.55]), np.array([1, 0, 1, 1, 0], dtype=bool))
    assert bars["share"].tolist() == pytest.approx([0, 0, 0, 0, 0, 0.2, 0.4, 0, 0, 0.4])
    assert bars["accuracy"][[5, 6, 9]].tolist() == [0, 1, 0.5] and bars["gap"][0] == 0


def test_a_confidence_of_one_falls_into_the_last_bin():
    bars = tasks.calibration(np.array([1.0, 0.0]), np.array([True, True]))
    assert bars["share"][-1] == 0.5 and bars["share"][0] == 0.5


def test_classification_against_scikit_learn(seed=3):
    rng = np.random.default_rng(seed)
    for task in (MRPC, MNLI):
        logits, labels = rng.normal(size=(200, task.outputs)), rng.integers(0, task.outputs, 200)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found = tasks.score(task, logits, labels)
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, p.argmax(1)))
        assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(labels, p.argmax(1)))
        assert found["nll"] == pytest.approx(metrics.log_loss(labels, p))
        assert found["entropy"] == pytest.approx(stats.entropy(p, axis=1).mean())
        assert ("f1" in found) == (task is MRPC)
        assert set(task.metrics) <= set(found) and task.verdict_metric in found


def test_regression_against_scipy():
    rng = np.random.default_rng(4)
    labels = rng.uniform(0, 5, 100)
    guess = labels + rng.normal(size=100)
    found = tasks.score(STSB, guess[:, None], labels)
    assert found["spearman"] == pytest.approx(stats.spearmanr(guess, labels)[0])
    assert found["pearson"] == pytest.approx(np.corrcoef(guess, labels)[0, 1])
    assert found["mse"] == pytest.approx(np.mean((guess - labels) ** 2))
    assert not {"confidence", "entropy", "ece"} & set(found)
    assert tasks.score(STSB, np.ones((100, 1)), labels)["spearman"] == 0


def test_a_constant_answer():
    labels = np.array([1] * 279 + [0] * 129)  # MRPC's dev set
    assert tasks.majority(MRPC, labels) == pytest.approx({"accuracy": 279 / 408, "matthews": 0, "f1": 0.8122}, abs=1e-4)
    assert tasks.majority(STSB, np.array([1.0, 3.0])) == {"spearman": 0, "pearson": 0, "mse": 1}


def test_every_task_names_its_metrics():
    for task in tasks.TASKS.values():
        labels = np.arange(4.0) if task.regression else np.arange(4) % task.outputs
        values = tasks.score(task, np.zeros((4, task.outputs)), labels)
        assert {*task.metrics, task.verdict_metric} <= set(values), task.name


@pytest.mark.parametrize("name", ["MRPC", "", "sts-b"])
def test_an_unknown_task_is_one_line(name):
    with pytest.raises(ValueError) as error:
        tasks.get(name)
    assert str(error.value).startswith(f"task: got {name!r}; allowed: rte, mrpc") and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (3, 3)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"logits: got shape .*; allowed: \(3, 2\)"):
        tasks.score(MRPC, np.zeros(shape), np.zeros(3, dtype=int))
