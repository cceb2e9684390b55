"""Weights on disk: one safetensors file a model, pruned widths and shared (SPS) tensors included, and their hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kdutils import bert, dropout
from kdutils.store import replacing


def save(model, path: Path) -> None:
    """Write weights, configuration and layer widths to one safetensors file, atomically. Shared (SPS) tensors are
    written once, and shared again by `restore`."""
    first: dict[int, str] = {}
    shared = {}
    tensors = {}
    for name, value in model.state_dict(keep_vars=True).items():
        owner = first.setdefault(id(value), name)
        if owner == name:
            tensors[name] = value
        else:
            shared[name] = owner
    write(tensors, path, {"config": model.config.to_json_string(use_diff=False), "shared": json.dumps(shared)})


def write(tensors: dict[str, torch.Tensor], path: Path, about: dict[str, str] | None = None) -> None:
    """Write `tensors`, wherever they are, and the texts `about` to one safetensors file, atomically."""
    with replacing(path) as file:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file, about)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the texts that `write` wrote."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safe_open is no dict)
        return tensors, file.metadata() or {}


def restore(path: Path):
    """The model that `save` wrote: pruned widths, shared tensors and logits are the same."""
    from transformers import BertConfig, BertForSequenceClassification

    tensors, about = read(path)
    model = BertForSequenceClassification(BertConfig.from_dict(json.loads(about["config"])))
    named = dict(model.named_modules())
    for name, value in tensors.items():
        owner, leaf = name.rsplit(".", 1)
        if leaf == "weight" and named[owner].weight.shape != value.shape:
            _resize(named, owner, value.shape)
    for layer in model.bert.encoder.layer:
        block = layer.attention.self
        block.all_head_size = block.query.out_features
        block.num_attention_heads = block.all_head_size // block.attention_head_size
    model.load_state_dict(tensors, strict=False)
    modules = dict(model.named_modules())
    for name, owner in json.loads(about["shared"]).items():
        (to, leaf), (of, its) = name.rsplit(".", 1), owner.rsplit(".", 1)
        setattr(modules[to], leaf, getattr(modules[of], its))
    return dropout.fast_dropout(model).eval()


def _resize(named: dict, owner: str, shape: torch.Size) -> None:
    parent, leaf = owner.rsplit(".", 1) if "." in owner else ("", owner)
    made = bert.linear_of(torch.empty(shape), torch.empty(shape[0]))
    setattr(named[parent], leaf, made)
    named[owner] = made


def hash_of(model) -> str:
    """16 hex digits that change with any weight."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()[:16]
