"""Pea-KD: shuffled parameter sharing (SPS), pre-training with the teacher's predictions (PTP), and its objective.

Built from the paper: its released code lacks the module that would run the method.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Real

import torch
from torch import nn

from kdutils import bert, distil, losses, processes
from kdutils.data import Encoded
from kdutils.profiles import PTP_EPOCHS, PTP_INNER, PTP_PATIENCE, Settings, matched
from kdutils.teacher import Signals, ask

VARIANTS = {"ptp": 4, "ptp-1": 2, "ptp-2": 2}  # number of labels
ALPHA, TAU, BETA = 0.7, 10.0, 100.0  # the released code's; the paper gives ranges for alpha and beta, and no T

# ---------------------------------------------------------------------------------------------------------------- SPS


def share(student, swap: bool = True, top: int | None = None):
    """SPS: a copy of `student`, any BERT-family encoder of transformers, with its `top`
    upper layers (None: all n) stacked once more, in the same parameters.

    Step 1 (`swap=False`) repeats them as they are: 1..n, 1..n. Step 2 also lets each
    repeated layer use the query parameters, weights and biases, as key and the key
    parameters as query. No parameter is added. The paper's six-layer student shares
    three: 1..6, 4', 5', 6' (`top=3`). `checkpoints.save` writes such a model,
    transformers' own `save_pretrained` refuses it. ValueError: a `top` that is no
    integer from 1 to n, or a model of another build.
    """
    made = copy.deepcopy(student)
    layers = list(_encoder(made).layer)
    top = len(layers) if top is None else top
    if type(top) is not int or not 1 <= top <= len(layers):
        raise ValueError(f"top: got {top!r}; allowed: 1..{len(layers)}")
    upper = [_again(layer) for layer in layers[-top:]]
    return _restack(made, [*layers, *(map(_swapped, upper) if swap else upper)])


def exchange(student):
    """A copy of `student` with query and key exchanged in every layer: what `share` does to the upper half only."""
    made = copy.deepcopy(student)
    return _restack(made, [_swapped(layer) for layer in _encoder(made).layer])


def unshare(student):
    """A copy of `student` that computes the same, every layer in parameters of its own."""
    made = copy.deepcopy(student)
    return _restack(made, [copy.deepcopy(layer) for layer in _encoder(made).layer])


def _encoder(model) -> nn.Module:
    """The module that holds the layers, of an encoder itself or under a head."""
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    layers = getattr(getattr(base, "encoder", None), "layer", [])
    if not len(layers) or not hasattr(layers[0], "attention"):
        raise ValueError(f"student: got {type(model).__name__}; allowed: an encoder of BERT's family")
    return base.encoder


def _restack(model, layers: list):
    _encoder(model).layer = nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    return model


def _again(layer):
    """A second layer in the same parameters. Its modules are its own, because
    `_swapped` exchanges two of them."""
    own = {id(parameter): parameter for parameter in layer.parameters()}
    return copy.deepcopy(layer, own)


def _swapped(layer):
    """`layer` after its query and key modules, weights and biases, have changed
    places."""
    block = layer.attention.self
    block.query, block.key = block.key, block.query
    return layer


def activation_bytes(model, batch: dict) -> int:
    """Bytes that one forward pass over `batch` in training mode keeps for its gradient, parameters not counted: the
    memory that depth costs where sharing saves parameters."""
    known, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # so that no later one takes its storage's place

    kept = []
    with bert.in_mode(model, training=True), torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        bert.forward(model, batch)[0].sum()
    kept.clear()  # the graph holds this hook, and what the hook holds holds the graph: such a cycle is never freed
    return sum(seen.values())


# ---------------------------------------------------------------------------------------------------------------- PTP


def ptp_labels(logits: torch.Tensor, labels: torch.Tensor, threshold: float,
               variant: str = "ptp") -> torch.Tensor:
    """PTP labels [n] (int64; the paper's Table 1) of a teacher's `logits` [n, classes]
    against the true `labels` [n].

    Confidence is the largest softmax probability and counts as such above the
    threshold, not at it. "ptp": 0 confidently correct, 1 unconfidently correct, 2
    confidently wrong, 3 unconfidently wrong. "ptp-1": 0 correct, 1 wrong. "ptp-2": 0
    confident, 1 not. ValueError: another variant, a threshold that is no number in
    [0.5, 1], shapes that do not fit, logits that are not finite, labels outside the
    classes, or a regression, which has none.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}; allowed: {', '.join(VARIANTS)}")
    number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if not (number and 0.5 <= threshold <= 1):
        raise ValueError(f"threshold: got {threshold!r}; allowed: 0.5 to 1")
    if labels.is_floating_point():
        regression = f"{labels.dtype}, a regression"
        raise ValueError(f"labels: got {regression}; allowed: classes (int64)")
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        shapes = f"{tuple(logits.shape)} for labels {tuple(labels.shape)}"
        raise ValueError(f"logits: got {shapes}; allowed: (n, classes) for (n,)")
    if not logits.isfinite().all():
        raise ValueError("logits: got NaN or infinity; allowed: finite numbers")
    last = logits.shape[1] - 1
    if outside := set(labels.tolist()) - set(range(last + 1)):
        raise ValueError(f"labels: got {min(outside)}; allowed: 0..{last}")
    confidence, guess = logits.softmax(-1).max(-1)
    wrong, unsure = (guess != labels).long(), (confidence <= threshold).long()
    return {"ptp": 2 * wrong + unsure, "ptp-1": wrong, "ptp-2": unsure}[variant]


def pretrain(student, rows: Encoded, classes: int, settings: Settings, seed: int, keep: int | None = None,
             epochs: int = PTP_EPOCHS, patience: int = PTP_PATIENCE) -> distil.Outcome:
    """Train `student` in place, before KD, to predict `rows.labels` (0..classes-1) by cross-entropy through a new head.
    That head is thrown away and the student's put back as it was; encoder, embeddings and pooler are carried over.

    A tenth of the rows is held out of it: the weights of the epoch with the lowest cross-entropy there are kept, and
    `patience` epochs in a row without a gain end it, as `epochs` do. With `keep` it ends and keeps as if that epoch had
    been the best: what a control needs to be trained exactly as another run was.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    inner, used = order.split([round(PTP_INNER * len(rows)), len(rows) - round(PTP_INNER * len(rows))])
    own, held = student.classifier, rows.take(inner)
    bert.fresh_head(student, seed, classes)
    best = {"gain": -float("inf"), "weights": None, "epoch": 0}

    def judge(worker, last: bool = True) -> dict:
        best["epoch"] += 1
        if keep:
            gain = float(best["epoch"] if best["epoch"] <= keep else 0)
        else:
            gain = -float(losses.hard(ask(worker, held, precision=None).logits, held.labels))
            gain = processes.agreed(gain)  # whose weights are kept
        if gain > best["gain"]:
            best.update(gain=gain, weights={k: v.detach().clone() for k, v in student.named_parameters()})
        return {"dev": {"gain": gain}}

    outcome = distil.train(student, rows.take(used), distil.fine_tuning(), settings, seed=seed, epochs=epochs,
                           evaluate=judge, patience=patience)
    with torch.no_grad():
        for name, value in student.named_parameters():
            value.copy_(best["weights"][name])
    student.classifier = own.to(student.classifier.weight.device)
    student.config.num_labels = own.out_features
    return outcome


# ---------------------------------------------------------------------------------------------------------- objective


def pairs(student: int, teacher: int) -> list[tuple[int, int]]:
    """The layer pairs K of equation 5, counted from 1, for a student of so many layers, stacked ones counted.

    Student layers 1..n-1, never the last (the logits teach it), learn from teacher layers round(L i / n), halves
    upwards. That is the released code's choice wherever it states one (3 of 12: 4, 8; 6 of 12: 2, 4, 6, 8, 10); for
    stacked students the paper is silent, and of the code's two scripts for 6 doubled to 12 it agrees with one. One
    layer has no pair.
    """
    return [(i, max(1, matched(i, student, teacher))) for i in range(1, student)]


def pea(logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor,
        states: torch.Tensor | None = None, teacher_states: torch.Tensor | None = None,
        alpha: float = ALPHA, tau: float = TAU, beta: float = BETA) -> dict:
    """Equation 5: (1 - alpha) cross-entropy + alpha tau^2 KL(t || s) + beta MSE of
    unit-normalised [CLS] pairs.

    `logits`, `teacher` [b, classes]; the two `states` [b, pairs, d], or None where
    there is no pair. Cross-entropy and KL are means over the batch, the MSE one over
    batch, pairs and dimensions. A regression takes squared errors for the first two.
    The paper prints the third term without the normalisation that its code has.
    """
    terms = losses.kd(logits, teacher, labels, alpha, tau)
    if states is None or not states.shape[1]:
        return terms
    patience = losses.patience(states, teacher_states)
    return terms | {"loss": terms["loss"] + beta * patience, "patience": patience}


def objective(teacher: Signals, layers: Sequence[tuple[int, int]], alpha: float = ALPHA, tau: float = TAU,
              beta: float = BETA) -> distil.Plain:
    """`pea` against a teacher's cached logits and [CLS] states, over the pairs `layers`."""
    if not (layers and beta):
        return distil.Plain(lambda b, z, _: pea(z, teacher.logits[b["index"]], b["labels"], alpha=alpha, tau=tau))
    ours, its = (bert.index(some, teacher.logits.device) for some in zip(*layers, strict=True))

    def terms(batch, logits, states):
        told = teacher.at(batch["index"])
        return pea(logits, told.logits, batch["labels"], states[:, ours], told.states[:, its], alpha, tau, beta)

    return distil.Plain(terms, states=True)
