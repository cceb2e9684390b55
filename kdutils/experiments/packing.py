"""Runs as generators, so that one run's training can be done alone or with others' (see `kdutils.replicas`).

`stages(spec)` of a chapter builds a student, yields the `Distillation` that it asks for, is sent what came out as
`common.distil_student` gives it, and returns the run's outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdutils.experiments import common


@dataclass
class Distillation:
    """What a run asks for: `student` trained on `made`'s train split, as `common.distil_student` does it.

    Of runs that share a pack, `together(distillations)` makes the objective that `replicas.train_many` takes; without
    it the first one's, which then has no state and learns from the same teacher, serves all.
    """

    made: common.Bench
    student: Any
    objective: Any
    seed: int
    options: dict = field(default_factory=dict)
    together: Callable[[Sequence[Distillation]], Any] | None = None


Stages = Generator[Distillation, dict, dict]


def alone(run: Stages) -> dict:
    """The outcome of a run by itself."""
    result = None
    try:
        while True:
            asked = run.send(result)
            result = common.distil_student(asked.made, asked.student, asked.objective, asked.seed, **asked.options)
    except StopIteration as end:
        return end.value


def room(run: Stages) -> int:
    """How many runs like this one fit on the device at once; the run itself goes no further."""
    from kdutils import distil, replicas

    asked = next(run)
    run.close()
    objective, device = asked.objective, distil.best_device()
    return replicas.room(asked.student.cpu(), asked.made.data.train, asked.made.settings, device, objective.states,
                         objective.tokens)


def together(runs: Sequence[Stages], finished: Callable[[dict[int, dict | Exception]], None]) -> None:
    """Train `runs` as one pack, or as several where memory runs out: `finished` gets the outcomes, by number, of those
    that each leaves. A run that raises has its exception there and does not stop the others."""
    from kdutils import replicas

    asked, lost = {}, {}
    for number, run in enumerate(runs):
        try:
            asked[number] = next(run)
            asked[number].student.cpu()  # the pack has a copy on the device
        except Exception as error:
            lost[number] = error
    if lost:
        finished(lost)
    if not asked:
        return
    numbers, every = list(asked), list(asked.values())
    first, made = every[0], every[0].made

    def end(start: int, results: list) -> None:
        part = zip(numbers[start:], results, strict=False)
        finished({i: _ended(runs[i], asked[i], result, len(results)) for i, result in part})

    replicas.train_many(
        [one.student for one in every], made.data.train, first.together(every) if first.together else first.objective,
        made.settings, seeds=[one.seed for one in every], finished=end, **first.options,
        evaluate=replicas.evaluator(made.task, made.data.evaluation, [one.made.signals for one in every]))


def _ended(run: Stages, asked: Distillation, result, count: int) -> dict | Exception:
    """The outcome of a run whose training, one of `count` in its pack, gave `result`."""
    from kdutils import bert

    if isinstance(result, Exception):
        return result
    try:
        asked.student.to(asked.made.device).eval()
        run.send(common.outcome(result, student_parameters=bert.counts(asked.student)["encoder"], packed=count))
    except StopIteration as end:
        return end.value
    except Exception as error:
        return error
    finally:
        asked.student.cpu()
    return RuntimeError("packed run: got a second distillation; allowed: one")


def selections(every: Sequence[Distillation]):
    """`replicas.Selections` of runs whose `knowledge.Selective` chooses without looking at the student."""
    from kdutils import distil, replicas

    first = every[0]
    steps = distil.total_steps(len(first.made.data.train), first.made.settings, **first.options)
    return replicas.Selections.of([one.objective for one in every], steps)
