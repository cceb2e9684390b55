"""What a frozen model says about a data set: asked once per (weights, data), kept on disk, then looked up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from kdutils import bert, checkpoints
from kdutils.data import Encoded
from kdutils.store import RECIPE


@dataclass(frozen=True)
class Signals:
    """A model's outputs for every row of an Encoded, in its order: `logits` [n, outputs] in float32 and, where asked
    for, the [CLS] `states` [n, layers + 1, d] in bfloat16 (embeddings first)."""

    logits: torch.Tensor
    states: torch.Tensor | None = None

    def at(self, index: torch.Tensor) -> Signals:
        """The signals of rows `index`, their states in float32; `index` lies where the signals do, or on the CPU."""
        states = None if self.states is None else self.states[index].float()
        return Signals(self.logits[index], states)

    def to(self, device) -> Signals:
        """The same on `device`."""
        return Signals(self.logits.to(device), None if self.states is None else self.states.to(device))


@torch.no_grad()
def ask(model, data: Encoded, states: bool = False, precision: str | None = "auto") -> Signals:
    """One forward pass over `data` in eval mode, in batches of similar length: of 32 rows on a CPU, whose cache holds
    no more, and of 128 on a GPU. `precision` is that of `bert.compute_dtype`, or None: the model's own. The signals
    are on the CPU."""
    device, told = bert.device_of(model), None
    asked = bert.cast(model, bert.compute_dtype(precision, device)) if precision else model
    with bert.in_mode(asked, training=False):
        for batch in data.batches(128 if device.type == "cuda" else 32, device=device):
            with torch.inference_mode():
                z, cls = bert.forward(asked, batch, states=states)
            if told is None:  # where the model is: a copy to the CPU would be waited for at every batch
                kept = torch.empty(len(data), *cls.shape[1:], dtype=torch.bfloat16, device=device) if states else None
                told = Signals(torch.empty(len(data), z.shape[1], device=device), kept)
            told.logits[batch["index"]] = z
            if states:
                told.states[batch["index"]] = cls.bfloat16()
    return told.to("cpu")


def signals(model, data: Encoded, states: bool = False, cache: Path | None = None) -> Signals:
    """`ask`, remembered in the folder `cache` under the recipe, the weights' and the data's fingerprints and what
    computes it."""
    if cache is None:
        return ask(model, data, states)
    dtype = bert.compute_dtype("auto", bert.device_of(model))
    about = RECIPE, checkpoints.hash_of(model), data.fingerprint(), states, dtype
    path = cache / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:24]}.safetensors"
    if path.exists():
        found, _ = checkpoints.read(path)
        return Signals(found["logits"], found.get("states"))
    made = ask(model, data, states)
    checkpoints.write({k: v for k, v in (("logits", made.logits), ("states", made.states)) if v is not None}, path)
    return made
