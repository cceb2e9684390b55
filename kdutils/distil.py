"""The only training loop: fine-tuning, distillation, PTP and knowledge selection all go through `train`."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from tqdm import tqdm

from kdutils import bert, losses, processes, tasks
from kdutils.data import Encoded
from kdutils.profiles import Settings
from kdutils.store import CURVE_POINTS
from kdutils.teacher import Signals, ask
from kdutils.words import Words

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's own for AdamW, which packs take as well
NOT_FINITE = "loss: got a value that is not finite; allowed: finite ones (lower lr, or use fp32)"


class Objective(Protocol):
    """What a student is trained on. Called with a batch, its logits and, where `states` (or `tokens`) is true, its
    hidden states as `bert.forward` gives them; returns named scalar terms, the one to minimise under "loss"."""

    states: bool
    tokens: bool

    def __call__(self, batch: dict, logits: torch.Tensor, states: torch.Tensor | None) -> dict[str, torch.Tensor]: ...


@dataclass
class Plain:
    """An objective made of one function of (batch, logits, states). It knows nothing besides but, at most, how often it
    was called, and is a mean over rows, so that several processes can each take a share of a batch; not so a `whole`
    one, which compares a batch's rows or weighs them by each other."""

    function: Callable
    states: bool = False
    tokens: bool = False
    whole: bool = False

    def __call__(self, batch, logits, states):
        return self.function(batch, logits, states)


def fine_tuning() -> Plain:
    """Cross-entropy (mean over the batch), or mean-squared error for a regression."""
    return Plain(lambda batch, logits, _: {"loss": losses.hard(logits, batch["labels"])})


def stark_kd(teacher: Signals, tau: float, weight: float = 1.0) -> Plain:
    """`losses.stark` against cached teacher logits."""
    return Plain(lambda batch, logits, _: losses.stark(logits, teacher.logits[batch["index"]], batch["labels"], tau,
                                                       weight))


@dataclass
class Outcome:
    """What `train` leaves: `losses` (last-epoch mean of every term), `curve` (see `thin`),
    `best` (best-dev epoch and its metrics), `epochs` (metrics after each), `seconds`, `steps`, and the `dtype` that
    computed ("" where nothing was trained)."""

    losses: dict = field(default_factory=dict)
    curve: list = field(default_factory=list)
    best: dict = field(default_factory=dict)
    epochs: list = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0
    dtype: str = ""


def train(model, data: Encoded, objective: Objective, settings: Settings, *, seed: int, epochs: float | None = None,
          lr: float | None = None, evaluate: Callable[[nn.Module, bool], dict] | None = None,
          patience: int | None = None, after_step: Callable[[int, nn.Module], None] | None = None,
          drop_last: bool = False, max_steps: int | None = None, progress: bool = False,
          device: str | torch.device | None = None) -> Outcome:
    """Train `model` in place on `device` (`best_device` unless given) for `max_steps` or else for `epochs`, at the peak
    rate `lr`: those of the settings unless given. With `progress` a bar counts the steps.

    AdamW (fused, on a CPU with `Words`; no decay on biases and LayerNorms) with linear warm-up over `settings.warmup`
    of the steps and linear decay to zero, gradients clipped to the global norm `settings.clip`. In bf16 a half-
    precision copy computes and float32 master weights are updated. `seed` fixes data order and dropout: a run is
    repeatable bit for bit on one machine. `evaluate(model, last) -> {"dev": {...}, ...}` is called after each epoch
    where given; its first dev metric decides `Outcome.best`, and training stops after `patience` epochs without a
    better one, where given. After every step `after_step(step, model)` is called. Under `accelerate launch` each
    process takes its share of every batch, which only a `Plain` objective allows. On a CPU whoever reads the word
    table itself inside an epoch, rather than asking the model, finds rows that wait for their steps.
    ValueError: `drop_last`, and not one full batch; several processes, and an objective that is not `Plain` or takes
    whole batches. FloatingPointError, at the end of its epoch: a loss that is not finite. Whatever is raised, and
    whoever interrupts, `model` can be trained and read as before.
    """
    from transformers import get_linear_schedule_with_warmup

    if drop_last and len(data) < settings.batch_size:
        raise ValueError(f"rows: got {len(data)}; allowed: {settings.batch_size} or more with drop_last")
    keep_memory()
    epochs, lr = epochs or settings.epochs, lr or settings.lr
    device = torch.device(device) if device else best_device()
    if state := processes.state(cpu=device.type == "cpu"):
        device = state.device
        if not isinstance(objective, Plain) or objective.whole:
            got = "one of whole batches" if isinstance(objective, Plain) else type(objective).__name__
            raise ValueError(f"objective: got {got} with several processes; allowed: Plain, a mean over rows")
    model.to(device)
    torch.manual_seed(seed + (state.process_index if state else 0))  # dropout's masks, of each process's own rows
    order = torch.Generator().manual_seed(seed)
    dtype = bert.compute_dtype(settings.precision, device)
    worker = bert.cast(model, dtype)
    pairs = [(m, w) for m, w in zip(model.parameters(), worker.parameters(), strict=True) if m is not w]
    total = max_steps or total_steps(len(data), settings, drop_last, epochs)
    outcome, log, stale = Outcome(steps=total, dtype=str(dtype).removeprefix("torch.")), [], 0
    shown = progress and processes.first()  # where it is, TQDM_DISABLE still decides
    hidden = {} if shown else {"disable": True}
    bar = tqdm(total=total, desc="steps", unit="step", leave=False, mininterval=1, position=processes.line(), **hidden)
    words = Words(model, worker, settings.weight_decay, BETAS, EPS) if device.type == "cpu" and not state else None
    try:
        groups = decay_groups(model, settings.weight_decay, words.module.weight if words else None)
        optimiser = torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS, fused=True)
        schedule = get_linear_schedule_with_warmup(optimiser, round(settings.warmup * total), total)
        started = time.perf_counter()
        worker.train()
        step = 0
        while step < total:
            sums, seen = {}, 0
            for rows in data.order(settings.batch_size, order):
                if step == total:
                    break
                if drop_last and len(rows) < settings.batch_size:
                    continue
                share, weight = _share(rows, state)
                batch = data.batch(share, device)
                terms = objective(batch, *bert.forward(worker, batch, objective.states, objective.tokens))
                (terms["loss"] * weight).backward()
                _update(model, pairs, words, optimiser, settings.clip, state)
                schedule.step()
                step += 1
                seen += 1
                terms = _over_processes(terms, weight, state)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value
                log.append(terms["loss"])
                bar.update()
                if after_step:
                    after_step(step, worker)
            outcome.losses = {k: float(v) / max(seen, 1) for k, v in sums.items()}
            if not math.isfinite(outcome.losses["loss"]):
                raise FloatingPointError(NOT_FINITE)
            if words:
                words.settle()  # whoever evaluates may read the table itself
            if evaluate and step < total:
                stale = 0 if _judged(outcome, evaluate, worker, False) else stale + 1
                worker.train()
                if patience and stale >= patience:
                    outcome.epochs.pop()  # the same weights are evaluated below, as the last ones
                    break
        if evaluate:
            _judged(outcome, evaluate, worker, True)
        outcome.curve = thin(torch.stack(log).tolist())
        outcome.seconds = time.perf_counter() - started
        outcome.steps = step
    finally:
        bar.close()
        if words:
            words.release()
        model.zero_grad()  # of a step that was not finished
        model.eval()
    give_back_memory()
    return outcome


def total_steps(rows: int, settings: Settings, drop_last: bool = False, epochs: float | None = None) -> int:
    """The steps of a training on `rows` rows, at least one; `epochs` None: those of the settings."""
    per_epoch = rows // settings.batch_size if drop_last else -(-rows // settings.batch_size)
    return max(1, round(per_epoch * (epochs or settings.epochs)))


def _update(model, pairs, words: Words | None, optimiser, clip: float, state) -> None:
    """Gradients to the masters, summed over processes and clipped; one optimiser step; weights back to the worker."""
    table = words.gradient() if words else None
    live = [(m, w) for m, w in pairs if w.grad is not None]
    for master, worker in pairs:
        if worker.grad is None:
            master.grad = None
        elif master.grad is None:
            master.grad = torch.empty_like(master)
    if live:
        torch._foreach_copy_([m.grad for m, _ in live], [w.grad for _, w in live])
        for _, worker in live:
            worker.grad = None
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if state:
        from accelerate.utils import reduce

        for g in gradients:
            g.copy_(reduce(g, "mean"))
    norm = torch.nn.utils.get_total_norm(gradients if table is None else [*gradients, table])
    if norm.is_cuda or norm > clip:  # on a CPU the comparison is free, and the pass over every gradient is not
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip, norm)
        if table is not None:
            table.mul_(clip / (norm + 1e-6))
    optimiser.step()
    if words:
        words.update(optimiser.param_groups[0]["lr"])
    if pairs:
        with torch.no_grad():
            torch._foreach_copy_([w for _, w in pairs], [m for m, _ in pairs])
    else:
        optimiser.zero_grad()


def _share(rows: torch.Tensor, state) -> tuple[torch.Tensor, float]:
    """This process's rows of a batch, and what its mean loss is multiplied by so that the processes' mean is the
    batch's. Where there are fewer rows than processes, each takes them all."""
    if not state or len(rows) < state.num_processes:
        return rows, 1.0
    share = rows[state.process_index :: state.num_processes]
    return share, len(share) * state.num_processes / len(rows)


def _over_processes(terms: dict, weight: float, state) -> dict[str, torch.Tensor]:
    """Every term without its graph, as a mean over the whole batch."""
    if not state:
        return {name: value.detach() for name, value in terms.items()}
    from accelerate.utils import reduce

    values = reduce(torch.stack([value.detach().float() for value in terms.values()]) * weight, "mean")
    return dict(zip(terms, values, strict=True))


def _judged(outcome: Outcome, evaluate: Callable, worker, last: bool) -> bool:
    """`judge` the metrics of now. Those of the first of several processes, so that all of them stop at one epoch."""
    return judge(outcome, processes.agreed(evaluate(worker, last)), len(outcome.epochs) + 1)


def judge(outcome: Outcome, metrics: dict, epoch: int) -> bool:
    """Log an epoch's metrics; True where its first dev metric is the best yet."""
    outcome.epochs.append(metrics)
    first = next(iter(metrics["dev"]))
    better = not outcome.best or metrics["dev"][first] > outcome.best["dev"][first]
    if better:
        outcome.best = {"epoch": epoch} | metrics
    return better


def thin(values: list[float]) -> list[list[float]]:
    """[step, mean loss of the steps since the last point], at most `CURVE_POINTS` points."""
    width = -(-len(values) // CURVE_POINTS)
    parts = [values[i : i + width] for i in range(0, len(values), width)]
    return [[min((i + 1) * width, len(values)), round(sum(p) / len(p), 5)] for i, p in enumerate(parts)]


def decay_groups(model, decay: float, without: torch.Tensor | None = None) -> list[dict]:
    """AdamW's parameter groups: weight decay on everything but biases and LayerNorms; nothing for `without`."""
    named = [(n, p) for n, p in model.named_parameters() if p is not without]
    spared = [p for n, p in named if n.endswith("bias") or "LayerNorm" in n]
    ids = {id(p) for p in spared}
    return [{"params": [p for _, p in named if id(p) not in ids], "weight_decay": decay},
            {"params": spared, "weight_decay": 0.0}]


@functools.cache
def keep_memory() -> None:
    """Ask glibc to keep freed blocks: it hands large ones back to the system at once, and a CPU step then spends a
    tenth to a third of its time on page faults. Other allocators and systems are left alone."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        mallopt(option, value)


def give_back_memory() -> None:
    """The counterpart at a training's end, without which a process of many trainings grows with each."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def best_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def evaluator(task: tasks.Task, sets: dict[str, Encoded], teacher: dict[str, Signals] | None = None) -> Callable:
    """A function (model, last) -> {set: metrics}: `tasks.score`'s and, with the teacher's signals, the agreement with
    it (the share of equal predictions; for a regression the Spearman correlation). The test set waits for the last."""
    def evaluate(model, last: bool = True) -> dict[str, dict]:
        made = {}
        for name, rows in sets.items():
            if name == "test" and not last:
                continue
            logits = ask(model, rows, precision=None).logits
            made[name] = tasks.score(task, logits.numpy(), rows.labels.numpy())
            if teacher:
                made[name]["agreement"] = agreement(task, logits, teacher[name].logits)
        return made

    return evaluate


def agreement(task: tasks.Task, student: torch.Tensor, teacher: torch.Tensor) -> float:
    """How alike the student's logits [n, outputs] answer to the teacher's, see `evaluator`."""
    teacher = teacher.cpu()  # a workbench's signals are on its device, a student's answers are not
    if task.regression:
        return tasks.score(task, student.numpy(), teacher[:, 0].numpy())["spearman"]
    return float((student.argmax(1) == teacher.argmax(1)).float().mean())
