"""Many students at once beside one at a time, and both beside what the device can multiply."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clock import now, row
from benchmarks.training import WARM, per_step
from benchmarks.workload import Workload
from kdutils import bert, distil, knowledge, replicas, teacher

RUNS = 200  # random-selection runs that the throughput is stated for
GPU_PACK, CPU_PACK = 200, 4
COUNTED = 5  # batches whose operations are counted


def peak(dtype: torch.dtype, device: torch.device) -> float:
    """The most operations a second seen in a large square matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(5):
        started = now()
        a @ b
        times.append((now() - started)[0])
    return 2 * size**3 / min(times)


def operations(student, work: Workload, device: torch.device) -> float:
    """Mean operations of a training step's matrix products on its own batch, padded to its own longest row."""
    rows = work.data.train
    counter = FlopCounterMode(display=False)
    with counter:
        for part in rows.order(work.settings.batch_size, torch.Generator().manual_seed(0))[:COUNTED]:
            bert.forward(student.train(), rows.batch(part, device))[0].sum().backward()
    student.zero_grad()
    return counter.get_total_flops() / COUNTED


def compare(work: Workload, steps: int, count: int | None = None) -> list[dict]:
    """Random-selection runs (KSM's probe Random-All) one at a time and `count` at once: seconds of a step of one
    student, their ratio, the share of the device's peak, and the minutes of `RUNS` runs of all their epochs."""
    device = distil.best_device()
    count = count or (GPU_PACK if device.type == "cuda" else CPU_PACK)
    start = bert.keep_layers(work.teacher, work.settings.layers)
    signals = teacher.ask(work.teacher, work.data.train, states=True).to(device)
    assigned = knowledge.assignment(len(work.settings.layers), work.settings.depth)
    total, tau = steps + WARM, work.settings.tau
    draws = [knowledge.Draws(seed) for seed in range(count)]
    actions = torch.tensor([[draw(step) for step in range(total)] for draw in draws])
    ends: list = []
    distil.train(copy.deepcopy(start), work.data.train, knowledge.Selective(signals, assigned, knowledge.Draws(0), tau),
                 work.settings, seed=0, max_steps=total, after_step=lambda *_: ends.append(now()))
    clock = _Clock(replicas.Selections(signals, assigned, actions, tau))
    replicas.train_many([copy.deepcopy(start) for _ in range(count)], work.data.train, clock, work.settings,
                        seeds=range(count), max_steps=total)
    most = peak(bert.compute_dtype(work.settings.precision, device), device)
    work_done = operations(copy.deepcopy(start), work, device)
    rows = []
    for what, at_once, times in (("one at a time", 1, ends), ("as a pack", clock.size, clock.ends)):
        each = per_step(times) / at_once
        minutes = each[0] * RUNS * work.steps * work.settings.epochs / 60
        rows.append(row(what, each, **{"at once": at_once, "share of peak": work_done / each[0] / most,
                                       f"minutes of {RUNS} runs": minutes}))
        for name, seconds in (("one at a time / it", "seconds"), ("one at a time / it, cpu", "cpu seconds")):
            rows[-1][name] = rows[0][seconds] / rows[-1][seconds]
    return rows + [{"what": "measured peak, Top/s", "peak": most / 1e12}]


class _Clock:
    """Notes when a pack's steps begin and how many students it has; the objective itself is the one given."""

    packed = True

    def __init__(self, objective):
        self.objective, self.states, self.tokens = objective, objective.states, objective.tokens
        self.ends, self.size = [], 0

    def __call__(self, batch, logits, states):
        if batch["step"] == len(self.ends):  # the first of the calls of a step, where a short batch makes two
            self.ends.append(now())
        self.size = max(self.size, len(batch["replica"]))
        return self.objective(batch, logits, states)
