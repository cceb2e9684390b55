"""Many students of one shape trained at once: what fills a GPU that one small student leaves idle.

A pack is one stacked model (see `kdutils.stacked`) and its optimiser. Each replica has its own start, seed, data
order, dropout masks, rate and objective, and its gradients are clipped by its own norm: a pack gives what as many calls
of `distil.train` give. On a CPU it gives the same, without gain.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from kdutils import bert, distil, knowledge, stacked, tasks
from kdutils.data import Encoded
from kdutils.profiles import Settings
from kdutils.teacher import Signals

LARGEST = 2**31 - 1  # elements of a tensor that every kernel can index
SHARE = 0.85  # of the free memory that a pack may take

# -------------------------------------------------------------------------------------------------------- objectives


class _Together:
    """An objective without state, evaluated for all replicas at once by vmap."""

    def __init__(self, objective: distil.Objective):
        self.objective, self.states, self.tokens = objective, objective.states, objective.tokens

    def __call__(self, batch, logits, states):
        each, step = {k: v for k, v in batch.items() if k != "step"}, {"step": batch["step"]}
        call = torch.vmap(lambda b, z, h: self.objective(b | step, z, h), (0, 0, None if states is None else 0))
        return call(each, logits, states)


class Selections:
    """`knowledge.Selective` for packs whose `actions` [students, steps, 4] are known beforehand (KSM's probes: fixed,
    Random-All and Random-One selections); arguments as there, `weights` four for all or [students, 4]. `sizes`
    [students, steps, 4] are the undivided losses. ValueError: another shape."""

    states, tokens, packed = True, False, True

    def __init__(self, teacher: Signals, assigned: Sequence[int], actions: torch.Tensor, tau: float,
                 weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), first: int = knowledge.FIRST):
        if actions.ndim != 3 or actions.shape[2] != 4:
            raise ValueError(f"actions: got {tuple(actions.shape)}; allowed: [students, steps, 4]")
        device = teacher.logits.device
        self.teacher, self.assigned, self.tau, self.first = teacher, assigned, tau, first
        self.actions = actions.float().to(device)
        self.weights = torch.tensor(weights, device=device).expand(len(actions), 4)
        self.sizes = torch.zeros_like(self.actions)
        self._sum = torch.zeros(len(actions), 4, device=device)

    @classmethod
    def of(cls, singles: Sequence, steps: int) -> Selections:
        """`knowledge.Selective`s that differ in policy, which looks at no student, and weights alone, as one for
        `steps` steps. Changes them: each gets the `actions` and, as the pack trains, the `sizes` that it would have
        after training by itself."""
        for single in singles:
            single.actions = [tuple(float(a) for a in single.select(step, None, None)) for step in range(steps)]
        actions, weights = ([getattr(single, name) for single in singles] for name in ("actions", "weights"))
        first = singles[0]
        made = cls(first.teacher, first.assigned, torch.tensor(actions), first.tau, weights, first.first)
        for single, sizes in zip(singles, made.sizes, strict=True):
            single.sizes = sizes
        return made

    def __call__(self, batch, logits, states):
        told, step, who = self.teacher.at(batch["index"]), batch["step"], batch["replica"]
        one = torch.vmap(lambda y, z, h, tz, th: knowledge.terms(
            {"labels": y}, z, h, Signals(tz, th), self.assigned, self.tau))
        parts = one(batch["labels"], logits, states, told.logits, told.states)
        values = torch.stack(list(parts.values()), 1)
        self.sizes[who, step] = values.detach().float()
        share = self.actions[who, step] * self.weights[who] / self._scale(step, who, values.detach())
        return {"loss": (share * values).sum(1), **parts}

    def _scale(self, step, who, now):
        if step == 0:
            self._sum[who] = 0.0
        if step < self.first:
            self._sum[who] += now
        return (self._sum[who] / min(step + 1, self.first)).clamp_min(1e-20)


# ------------------------------------------------------------------------------------------------------------ memory


def room(student, data: Encoded, settings: Settings, device, states: bool = False, tokens: bool = False) -> int:
    """How many replicas of `student` fit on `device`: on a GPU by what one of them is seen to take there in a step of
    the longest batch, elsewhere by `stacked.estimate`."""
    width = int(data.lengths.max())
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, before = _left(device), torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _rehearse([student], width, settings, device, states, tokens)
        need = torch.cuda.max_memory_allocated(device) - before
    else:
        from psutil import virtual_memory

        dtype = bert.compute_dtype(settings.precision, device)
        free, need = virtual_memory().available, stacked.estimate(student, settings.batch_size, width, dtype)
    widest = max(layer.intermediate.dense.out_features for layer in student.bert.encoder.layer)
    longest = max(settings.batch_size, stacked.ROWS) * settings.max_length  # of a replica: evaluations may be longer
    elements = max(longest * widest, *(p.numel() for p in student.parameters()))
    return max(1, min(int(SHARE * free / need), LARGEST // elements))


def _left(device) -> int:
    """Bytes of a GPU that are free, or those left of the share that `pools` gives this process, if these are fewer."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device.index)
    return min(free, int(share * total) - torch.cuda.memory_reserved(device))


def _rehearse(students, width: int, settings: Settings, device, states: bool, tokens: bool) -> None:
    """One step on made-up rows of `width` tokens with copies of `students`: takes the memory that training takes."""
    pack = stacked.Pack(students, [0.0] * len(students), settings, device, 1)
    ones = torch.ones(len(students) * settings.batch_size, width, dtype=torch.long, device=device)
    batch = {"input_ids": ones, "token_type_ids": ones * 0, "attention_mask": ones}
    logits, seen = bert.forward(pack.worker.train(), batch, states, tokens)
    (logits.sum() + (0 if seen is None else seen.sum())).backward()
    pack.update()


# ---------------------------------------------------------------------------------------------------------- training


@dataclass
class _Job:
    """What `train_many` was asked for, for those who run a part of it."""

    students: Sequence[nn.Module]
    data: Encoded
    objective: Callable
    settings: Settings
    seeds: Sequence[int]
    lrs: Sequence[float]
    steps: int
    evaluate: Callable | None
    drop_last: bool
    device: torch.device

    @functools.cached_property
    def held(self) -> Encoded:
        """The data on the device, its width a multiple of 8 so that a GPU's attention gets aligned masks."""
        ids, segments = (F.pad(t, (0, -t.shape[1] % 8)).to(self.device) for t in (self.data.ids, self.data.segments))
        return Encoded(ids, segments, self.data.lengths.to(self.device), self.data.labels.to(self.device))

    def run(self, part: range) -> list:
        """The outcomes of the students `part`, trained as one pack."""
        mine, started = [self.students[i] for i in part], time.perf_counter()
        if self.device.type == "cuda":  # out of memory, if so, before the objective has seen a step
            width = int(self.data.lengths.max())
            _rehearse(mine, width, self.settings, self.device, self.objective.states, self.objective.tokens)
        pack = stacked.Pack(mine, [self.lrs[i] for i in part], self.settings, self.device, self.steps)
        torch.manual_seed(self.seeds[part[0]])
        orders = [torch.Generator().manual_seed(self.seeds[i]) for i in part]
        dtype = str(bert.compute_dtype(self.settings.precision, self.device)).removeprefix("torch.")
        outcomes, log, step = [distil.Outcome(steps=self.steps, dtype=dtype) for _ in part], [], 0
        pack.worker.train()
        while step < self.steps:
            sums: dict[str, torch.Tensor] = {}
            rows, sizes = self._epoch(orders)
            taken = min(rows.shape[1], self.steps - step)
            for k in range(taken):
                terms = self._step(pack, rows[:, k], sizes[:, k], step, part)
                log.append(terms["loss"])
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
                step += 1
            means = {name: (value / taken).tolist() for name, value in sums.items()}
            metrics = self.evaluate(pack.worker, len(part), step == self.steps, part[0]) if self.evaluate else []
            for i, outcome in enumerate(outcomes):
                outcome.losses = {name: values[i] for name, values in means.items()}
                if metrics:
                    distil.judge(outcome, metrics[i], len(outcome.epochs) + 1)
            pack.worker.train()
        stacked.unstack(pack.model, mine)
        return self._finish(outcomes, torch.stack(log, 1), (time.perf_counter() - started) / len(part))

    def _epoch(self, orders) -> tuple[torch.Tensor, torch.Tensor]:
        """Each replica's batches of an epoch: row numbers [R, batches, size], a short batch filled with its first row,
        and how many of them count [R, batches]."""
        size, made, sizes = self.settings.batch_size, [], []
        for order in orders:
            batches = [b for b in self.data.order(size, order) if len(b) == size or not self.drop_last]
            made.append(torch.stack([torch.cat([b, b[:1].expand(size - len(b))]) for b in batches]))
            sizes.append([len(b) for b in batches])
        return torch.stack(made), torch.tensor(sizes)

    def _step(self, pack: stacked.Pack, rows: torch.Tensor, sizes: torch.Tensor, step: int, part: range) -> dict:
        """One step of every replica on its batch; returns the detached terms, [R] each."""
        width = int(self.data.lengths[rows].max())
        batch = self._batch(rows, -(-width // 8) * 8 if self.device.type == "cuda" else width)
        flat = {k: v.flatten(0, 1) for k, v in batch.items()}
        logits, states = bert.forward(pack.worker, flat, self.objective.states, self.objective.tokens)
        logits, states = (None if v is None else v.unflatten(0, rows.shape) for v in (logits, states))
        replica = torch.arange(part.start, part.stop, device=self.device)
        total, terms = 0.0, {}
        for size in sizes.unique().tolist():  # the one short batch of an epoch comes at another step for each
            same = bool((sizes == size).all())
            who = slice(None) if same else (sizes == size).nonzero()[:, 0].to(self.device, non_blocking=True)
            asked = {k: v[who, :size] for k, v in batch.items()} | {"replica": replica[who], "step": step}
            found = self.objective(asked, logits[who, :size], None if states is None else states[who, :size])
            total = total + found["loss"].sum()
            for name, value in found.items():
                terms.setdefault(name, torch.zeros(len(part), device=self.device))[who] = value.detach().float()
        total.backward()
        pack.update()
        return terms

    def _batch(self, rows: torch.Tensor, width: int) -> dict[str, torch.Tensor]:
        """`Encoded.batch` with a leading replica dimension, gathered on the device."""
        rows, data = rows.to(self.device, non_blocking=True), self.held
        mask = torch.arange(width, device=self.device) < data.lengths[rows, None]
        return {"input_ids": data.ids[rows, :width].long(), "attention_mask": mask.long(),
                "token_type_ids": data.segments[rows, :width].long(), "labels": data.labels[rows], "index": rows}

    def _finish(self, outcomes, log: torch.Tensor, seconds: float) -> list:
        made = []
        for outcome, losses in zip(outcomes, log.cpu(), strict=True):
            outcome.seconds, outcome.curve = seconds, distil.thin(losses.tolist())
            made.append(outcome if bool(losses.isfinite().all()) else FloatingPointError(distil.NOT_FINITE))
        return made


def train_many(students: Sequence[nn.Module], data: Encoded, objective,
               settings: Settings, *, seeds: Sequence[int],
               lrs: Sequence[float] | None = None, evaluate: Callable | None = None,
               drop_last: bool = False, max_steps: int | None = None,
               finished: Callable[[int, list], None] | None = None,
               device: str | torch.device | None = None) -> list:
    """Train `students` in place, as many at a time as fit; returns a
    `distil.Outcome` for each.

    Arguments are `distil.train`'s, with a seed and, if wanted, a rate for each
    student. `objective` is one for all: a function without state, in whose `batch`
    "step" (from 0) and "replica", the student's number, pick what is that student's
    own, as in `weights[batch["replica"]]`; or, with an attribute `packed`, one that
    is called with the whole pack ([R, b, ...]) and returns terms [R]. `evaluate`
    comes from `evaluator`.

    Without dropout each student ends as `distil.train` leaves it but for the order
    of sums; with dropout its masks depend on its pack. `Outcome.seconds` is a
    student's share. Out of memory, the pack is halved and starts again. A student
    whose loss is not finite gets the FloatingPointError in its outcome's place.
    ValueError: lists of unequal lengths; `drop_last` and not one full batch. As each
    pack ends, `finished` gets the number of its first student and its outcomes.
    """
    distil.keep_memory()
    for name, values in (("seeds", seeds), ("lrs", lrs)):
        if values is not None and len(values) != len(students):
            each = f"{len(students)}, one for each student"
            raise ValueError(f"{name}: got {len(values)}; allowed: {each}")
    if drop_last and len(data) < settings.batch_size:
        enough = f"{settings.batch_size} or more with drop_last"
        raise ValueError(f"rows: got {len(data)}; allowed: {enough}")
    steps = max_steps or distil.total_steps(len(data), settings, drop_last)
    packed = getattr(objective, "packed", False)
    asked = objective if packed else _Together(objective)
    device = torch.device(device) if device else distil.best_device()
    rates = lrs or [settings.lr] * len(students)
    job = _Job(students, data, asked, settings, seeds, rates, steps, evaluate,
               drop_last, device)
    most = room(students[0], data, settings, device, asked.states, asked.tokens)
    fits = min(len(students), most)
    outcomes: list = []
    while len(outcomes) < len(students):
        left = len(students) - len(outcomes)
        size = -(-left // -(-left // fits))  # packs of equal size
        made = _unless_full(job, range(len(outcomes), len(outcomes) + size))
        fits = fits if made else size // 2
        if made and finished:
            finished(len(outcomes), made)
        outcomes += made
    return outcomes


def _unless_full(job: _Job, part: range) -> list:
    """The outcomes of a pack, or none where memory ran out and it can be halved."""
    try:
        return job.run(part)
    except torch.OutOfMemoryError:
        if len(part) == 1:
            raise
    gc.collect()  # what the failed pack held
    torch.cuda.empty_cache()
    return []


def evaluator(task, sets: dict[str, Encoded], teacher: dict[str, Signals] | Sequence[dict] | None = None) -> Callable:
    """`distil.evaluator` for packs: a function (pack, count, last, first) -> one {set: metrics} for each of `count`
    replicas. `teacher`: the signals of one for all, or a list with those of each student, from `first` in this pack."""
    def evaluate(pack, count: int, last: bool = True, first: int = 0) -> list[dict]:
        made: list[dict] = [{} for _ in range(count)]
        told = [teacher] * count if teacher is None or isinstance(teacher, dict) else teacher[first:]
        for name, rows in sets.items():
            if name == "test" and not last:
                continue
            for metrics, logits, its in zip(made, stacked.predict(pack, count, rows), told, strict=False):
                metrics[name] = tasks.score(task, logits.numpy(), rows.labels.numpy())
                if its:
                    metrics[name]["agreement"] = distil.agreement(task, logits, its[name].logits)
        return made

    return evaluate
