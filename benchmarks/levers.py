"""Levers that the loop leaves alone: what a step's forward and backward pass would take with each of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice

import torch
import torch.nn.functional as F

from benchmarks.clock import now, row
from benchmarks.workload import Workload
from kdutils import bert, losses

WARM = 8  # first passes, in which `torch.compile` compiles: counted apart


def levers(work: Workload, steps: int) -> list[dict]:
    """The passes of the timed epoch's student as they are and under `torch.compile` with lengths left open (`start`:
    seconds of the first `WARM`), and the products of its first layer's query, key and value one by one and as one."""
    device = bert.device_of(work.teacher)
    student = bert.keep_layers(work.teacher, work.settings.layers)
    worker = bert.cast(student, bert.compute_dtype(work.settings.precision, device)).train()
    order = cycle(work.data.train.order(work.settings.batch_size, torch.Generator().manual_seed(0)))
    batches = [work.data.train.batch(part, device) for part in islice(order, WARM + steps)]

    def loss(batch):
        return losses.hard(bert.forward(worker, batch)[0], batch["labels"])

    start, plain = timed(loss, batches)
    compiling, compiled = timed(torch.compile(loss, dynamic=True), batches)
    torch.compiler.reset()
    block = worker.bert.encoder.layer[0].attention.self
    parts = [getattr(block, name) for name in ("query", "key", "value")]
    weights, biases = (torch.cat([getattr(part, name).detach() for part in parts]) for name in ("weight", "bias"))
    fused = weights.requires_grad_(), biases.requires_grad_()
    inputs = [torch.randn(*batch["input_ids"].shape, len(block.query.weight[0]), device=device, dtype=weights.dtype,
                          requires_grad=True) for batch in batches]
    _, three = timed(lambda x: sum(part(x).sum() for part in parts), inputs)
    _, one = timed(lambda x: F.linear(x, *fused).sum(), inputs)
    return [row("forward and backward pass", plain, start=float(start[0])),
            row("the same under torch.compile", compiled, start=float(compiling[0])),
            row("query, key and value, three products", three), row("the same as one product", one)]


def timed(passes: Callable, inputs: list):
    """Seconds (wall, cpu) of the first `WARM` forward and backward passes together, and the mean of each further."""
    ends = [now()]
    for some in inputs:
        passes(some).backward()
        ends.append(now())
    return ends[WARM] - ends[0], (ends[-1] - ends[WARM]) / (len(inputs) - WARM)
