"""DynaBERT (Hou et al., 2020): one network trained at many widths, then at many depths; a student is cut out of it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from kdutils import bert, losses

WIDTHS = (1.0, 0.75, 0.5)  # multipliers, beside the student's own
HIDDEN = 0.1, 1.0  # weight of the hidden states' term in the width and in the depth stage


def rewire(model, heads: torch.Tensor, neurons: torch.Tensor):
    """A copy of `model` that computes the same, with each layer's heads and neurons in falling order of importance
    (`heads` [layers, heads], `neurons` [layers, neurons]): a narrower network keeps the first ones."""
    made = copy.deepcopy(model)
    for layer, by_heads, by_neurons in zip(made.bert.encoder.layer, heads, neurons, strict=True):
        block, size = layer.attention.self, layer.attention.self.attention_head_size
        order = by_heads.argsort(descending=True, stable=True)
        columns = (order[:, None] * size + torch.arange(size, device=order.device)).flatten()
        for part in (block.query, block.key, block.value):
            _reorder(part, columns)
        layer.attention.output.dense.weight.data = layer.attention.output.dense.weight.data[:, columns]
        order = by_neurons.argsort(descending=True, stable=True)
        _reorder(layer.intermediate.dense, order)
        layer.output.dense.weight.data = layer.output.dense.weight.data[:, order]
    return made


def _reorder(linear: nn.Linear, rows: torch.Tensor) -> None:
    linear.weight.data, linear.bias.data = linear.weight.data[rows], linear.bias.data[rows]


class Slice(nn.Module):
    """The first `rows` outputs and `columns` inputs of a linear layer, in its own parameters."""

    def __init__(self, linear: nn.Linear, rows: int | None = None, columns: int | None = None):
        super().__init__()
        self.weight, self.bias, self.rows, self.columns = linear.weight, linear.bias, rows, columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight[: self.rows, : self.columns], self.bias[: self.rows])


def _view(model):
    """Layers of its own on the same parameters, above the same embeddings."""
    shared = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, shared | {id(model.bert.embeddings): model.bert.embeddings})


def widths_of(model, width: float) -> tuple[int, int]:
    """Heads and neurons a layer at `width`, at least one of each. ValueError: a width outside (0, 1]."""
    if not 0 < width <= 1:
        raise ValueError(f"width: got {width}; allowed: above 0, to 1")
    layer = model.bert.encoder.layer[0]
    return (max(1, round(width * layer.attention.self.num_attention_heads)),
            max(1, round(width * layer.output.dense.in_features)))


def narrow(model, width: float):
    """The sub-network of the first heads and neurons of every layer; training it trains `model`."""
    made, (heads, neurons) = _view(model), widths_of(model, width)
    for layer in made.bert.encoder.layer:
        block = layer.attention.self
        size = heads * block.attention_head_size
        block.query, block.key, block.value = (Slice(part, size) for part in (block.query, block.key, block.value))
        block.num_attention_heads, block.all_head_size = heads, size
        layer.attention.output.dense = Slice(layer.attention.output.dense, columns=size)
        layer.intermediate.dense = Slice(layer.intermediate.dense, neurons)
        layer.output.dense = Slice(layer.output.dense, columns=neurons)
    return made


def shallow(model, layers: Sequence[int]):
    """The sub-network of `layers`, counted from 1; training it trains `model`."""
    made = _view(model)
    made.bert.encoder.layer = nn.ModuleList(made.bert.encoder.layer[i - 1] for i in layers)
    return made


def cut(model, width: float):
    """A model of its own that computes what `narrow(model, width)` does, with smaller matrices."""
    heads, neurons = widths_of(model, width)
    layers = model.bert.encoder.layer
    total = layers[0].attention.self.num_attention_heads, layers[0].output.dense.in_features
    device = model.classifier.weight.device
    first = [torch.arange(n, device=device) < kept for n, kept in zip(total, (heads, neurons), strict=True)]
    return bert.prune(model, *(mask.expand(len(layers), -1) for mask in first)).to(device)


class Elastic:
    """An objective for `distil.train`: the sum over sub-networks of soft cross-entropy at `tau` (a mean over the batch,
    without tau squared) + `weight` MSE of all real tokens' hidden states (a mean over tokens and dimensions, summed
    over layers). No label is used, and a regression has the second term only, as in the official code.

    `views` are the sub-networks with the teacher's layers that theirs learn from, counted from 1; the first is the
    model that is trained (in float32: a bf16 run trains a copy), whose forward pass `distil.train` makes. The teacher
    is frozen.
    """

    states, tokens = False, True

    def __init__(self, views: Sequence[tuple[nn.Module, Sequence[int]]], teacher, weight: float, tau: float = 1.0):
        self.views, self.teacher, self.weight, self.tau = views, teacher.eval(), weight, tau

    def __call__(self, batch, logits, states):
        with torch.no_grad():
            told, its = bert.forward(self.teacher, batch, tokens=True)
        soft = hidden = 0.0
        for i, (model, layers) in enumerate(self.views):
            z, h = (logits, states) if i == 0 else bert.forward(model.train(), batch, tokens=True)
            soft = soft + (0.0 if batch["labels"].is_floating_point() else losses.soft_ce(z, told, self.tau))
            matched = its[:, bert.index((0, *layers), its.device)]
            hidden = hidden + hidden_loss(h, matched, batch["attention_mask"])
        terms = {"kd": soft, "hidden": hidden} if torch.is_tensor(soft) else {"hidden": hidden}
        return {"loss": soft + self.weight * hidden} | terms


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """MSE of hidden states [b, layers, t, d] over the tokens whose `mask` [b, t] is 1, summed over layers."""
    squares = ((student - teacher) ** 2).mean(-1) * mask[:, None]
    return squares.sum((0, 2)).div(mask.sum()).sum()
