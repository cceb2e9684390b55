"""The tasks: where their text stands, what their labels mean and how each is scored. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Task:
    """One classification or regression task.

    `columns` are the text columns, `labels` the class names in label order (empty: regression), `metrics` the names
    printed for it, the paper's own first; `verdict_metric` is what a verdict is computed on.
    """

    name: str
    source: str  # "glue", "rotten" or "synthetic"
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    verdict_metric: str
    dev_split: str = "validation"
    mismatched_split: str = ""  # MNLI's second dev split, whose metrics are read as those of the task mnli-mm
    test_split: str = ""  # a labelled public test split, where there is one

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def outputs(self) -> int:
        """Width of the classifier: number of classes, or 1."""
        return len(self.labels) or 1


_PAIR = ("sentence1", "sentence2")
_ENTAIL = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
_ACC = ("accuracy", "matthews")

TASKS = {
    t.name: t
    for t in (
        Task("rte", "glue", _PAIR, _ENTAIL, _ACC, "accuracy"),
        Task("mrpc", "glue", _PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy", "matthews"), "matthews",
             test_split="test"),
        Task("stsb", "glue", _PAIR, (), ("spearman",), "spearman"),
        Task("sst2", "glue", ("sentence",), ("negative", "positive"), _ACC, "accuracy"),
        Task("qnli", "glue", ("question", "sentence"), _ENTAIL, _ACC, "accuracy"),
        Task("qqp", "glue", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy", "matthews"),
             "f1"),
        Task("mnli", "glue", ("premise", "hypothesis"), _MNLI, ("accuracy",), "accuracy",
             dev_split="validation_matched", mismatched_split="validation_mismatched"),
        Task("mnli-mm", "glue", ("premise", "hypothesis"), _MNLI, ("accuracy",), "accuracy"),  # see MISMATCHED
        Task("cola", "glue", ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), "matthews"),
        Task("rotten", "rotten", ("text",), ("rotten", "fresh"), _ACC, "accuracy"),
        Task("synthetic", "synthetic", ("text",), ("negative", "positive"), _ACC, "accuracy"),
    )
}

MISMATCHED = "mnli-mm"  # what a run of mnli scores on its second dev split, in tables beside the papers

_TITLES = {"stsb": "STS-B", "sst2": "SST-2", "mnli-mm": "MNLI-mm", "cola": "CoLA", "rotten": "Rotten Tomatoes"}


def title(name: str) -> str:
    """A task's name as people write it."""
    return _TITLES.get(name, name.upper())


_READABLE = {name: title(name) for name in TASKS if name != "synthetic"}
_READABLE |= {"f1": "F1", "matthews": "Matthews", "spearman": "Spearman"}
_NAMES = re.compile(rf"\b({'|'.join(sorted(_READABLE, key=len, reverse=True))})\b")


def readable(text: str) -> str:
    """`text` with the names of tasks and metrics as people write them."""
    return _NAMES.sub(lambda name: _READABLE[name[0]], text)


def get(name: str) -> Task:
    """The task called `name`; ValueError names the allowed ones."""
    if name not in TASKS:
        raise ValueError(f"task: got {name!r}; allowed: {', '.join(TASKS)}")
    return TASKS[name]


def score(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of `task` for `logits` [n, outputs] against `labels` [n]; all as fractions, not percent, the task's
    own first and the paper's leading, by which the best epoch is chosen.

    Classification adds confidence (mean largest softmax probability), entropy and nll (nats), and ece, the expected
    calibration error over ten equal-width confidence bins (Guo et al., 2017). A regression has no confidence:
    it gets spearman, pearson and mse. ValueError: logits of another shape.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] != task.outputs:
        raise ValueError(f"logits: got shape {logits.shape}; allowed: ({len(labels)}, {task.outputs})")
    if task.regression:
        return _regression(logits[:, 0], labels)
    from scipy.special import log_softmax
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    logp = log_softmax(logits, axis=1)
    guess = logits.argmax(axis=1)
    values = {"accuracy": accuracy_score(labels, guess), "matthews": matthews_corrcoef(labels, guess)}
    if len(task.labels) == 2:
        values["f1"] = f1_score(labels, guess, zero_division=0)
    confidence = np.exp(logp.max(axis=1))
    bars = calibration(confidence, guess == labels)
    values |= {
        "confidence": confidence.mean(),
        "entropy": -(np.exp(logp) * logp).sum(axis=1).mean(),
        "nll": -logp[np.arange(len(labels)), labels].mean(),
        "ece": bars["gap"] @ bars["share"],
    }
    return {k: float(values[k]) for k in dict.fromkeys((*task.metrics, *values))}


def calibration(confidence: np.ndarray, correct: np.ndarray,
                bins: int = 10) -> dict[str, np.ndarray]:
    """A reliability diagram's bars: per equal-width bin of `confidence`, its share of
    rows, mean confidence, accuracy and the absolute gap between the two (0 in an empty
    bin)."""
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    mean = np.bincount(which, confidence, bins) / np.maximum(count, 1)
    accuracy = np.bincount(which, correct.astype(float), bins) / np.maximum(count, 1)
    share, gap = count / len(confidence), np.abs(mean - accuracy)
    return {"share": share, "confidence": mean, "accuracy": accuracy, "gap": gap}


def majority(task: Task, labels: np.ndarray) -> dict[str, float]:
    """The metrics of a constant answer: the most frequent class, or the mean for a regression (spearman 0 by
    convention)."""
    labels = np.asarray(labels)
    if task.regression:
        return {"spearman": 0.0, "pearson": 0.0, "mse": float(np.var(labels))}
    top = np.bincount(labels, minlength=task.outputs).argmax()
    values = score(task, np.eye(task.outputs)[np.full(len(labels), top)], labels)
    return {k: values[k] for k in ("accuracy", "matthews", "f1") if k in values}


def _regression(guess: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    constant = np.ptp(guess) == 0 or np.ptp(labels) == 0  # a correlation with a constant is 0 by convention here
    return {
        "spearman": 0.0 if constant else float(spearmanr(guess, labels).statistic),
        "pearson": 0.0 if constant else float(pearsonr(guess, labels).statistic),
        "mse": float(((guess - labels) ** 2).mean()),
    }
