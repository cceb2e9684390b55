"""The pilot study's two ways to make a teacher sparse at random, and what they do to its confidence."""

from __future__ import annotations

import copy

import numpy as np
import torch
from scipy.special import softmax
from torch import nn
from torch.nn.utils import prune

from kdutils import bert, tasks


def zero_weights(model, amount: float, seed: int):
    """A copy of `model` with a random share `amount` of the weights of every
    encoder matrix at zero; biases, embeddings, LayerNorms, pooler and head stay.
    The mask is drawn on the CPU, so it is the same everywhere.
    ValueError: an amount outside [0, 1]."""
    _check(amount)
    made = copy.deepcopy(model).cpu()
    torch.manual_seed(seed)
    for module in made.bert.encoder.modules():
        if isinstance(module, nn.Linear):
            # a float: it takes an int for a count
            prune.random_unstructured(module, "weight", float(amount))
            prune.remove(module, "weight")
    return made.to(model.classifier.weight.device)


def remove_units(model, amount: float, seed: int):
    """A copy of `model` without a random share `amount` of all its heads and of all its neurons, really removed.
    ValueError: an amount outside [0, 1]."""
    _check(amount)
    generator, layers = torch.Generator().manual_seed(seed), model.bert.encoder.layer
    heads = torch.ones(len(layers), layers[0].attention.self.num_attention_heads, dtype=torch.bool)
    neurons = torch.ones(len(layers), layers[0].output.dense.in_features, dtype=torch.bool)
    for keep in (heads, neurons):
        gone = torch.randperm(keep.numel(), generator=generator)[: round(amount * keep.numel())]
        keep.view(-1)[gone] = False
    return bert.prune(model, heads, neurons)


def _check(amount: float) -> None:
    if not 0 <= amount <= 1:
        raise ValueError(f"amount: got {amount}; allowed: 0 to 1")


def zero_share(model) -> float:
    """Share of the encoder's matrix weights that are exactly zero."""
    weights = [m.weight for m in model.bert.encoder.modules() if isinstance(m, nn.Linear)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def reliability(logits: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """A reliability diagram's bars for `logits` [n, classes]: per tenth of confidence its share of the rows, mean
    confidence and accuracy (see `tasks.calibration`)."""
    guess = logits.argmax(axis=1)
    bars = tasks.calibration(softmax(logits.astype(np.float64), axis=1).max(axis=1), guess == labels)
    return {name: [round(float(v), 5) for v in bars[name]] for name in ("share", "confidence", "accuracy")}
