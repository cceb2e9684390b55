"""Chapter 02, STARK: the sparsity grid, its controls and ablations, and the baselines.

The run of a base method (KD, PKD, CKD) without STARK is its trial distillation as well: it leaves its logits on the
held-out and dev rows for those who score the teacher. A STARK run of the same seed starts from the same student and
goes through the same batches and dropout, with a sparse teacher.

`args`: `student`; of STARK also `base`, `sparsity`, `scores` (knowledgeable, expressiveness, friendliness, random),
`protocol` (clean: scores on held-out rows; paper: on dev) and `lam` where it is not 0.5. Students are `dropped` and
`pruned`, and for scalability `smaller` (fewer layers), `small-teacher` or `large-teacher` (of another teacher).
The other methods have trials of what is their own, `tune-KD` and so on, with `heat` and `weight` (see
`stark_baselines`), and where these chose other values than the defaults, comparisons with them, `tuned-KD`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kdutils import profiles, tasks
from kdutils.experiments import choices, common, packing
from kdutils.experiments import stark_teachers as teachers
from kdutils.experiments.stark_baselines import DEFAULT, OWN, OWN_REGRESSION, STUDENT_OF_TRIALS, TRIED, best_own
from kdutils.experiments.stark_teachers import CHAPTER, LAMBDAS
from kdutils.records import Spec, Store, look_up

GRID = tuple(round(0.1 * i, 1) for i in range(1, 10))
COARSE = (0.1, 0.3, 0.5, 0.7)
QUICK = ("smoke", "demo")  # profiles that are no experiment
QUICK_GRID = (0.3, 0.6)
SLOW = {"MetaKD": 0.5, "DynaBERT": 0.5}  # epochs at demo of what takes ten times as long as KD
BASES = ("KD", "PKD", "CKD")
BASELINES = ("FT", "PKD", "TAKD", "DKD", "CKD", "MetaKD", "DynaBERT")
METHODS = ("KD", *BASELINES, "STARK", "STARK-unstructured")
# Students whose grid runs on the later seeds, those of the headline claims: the teacher of these can be made again on
# more machines than that of the first ones.
LATER = {("mini", "mrpc", "pruned")}
SMALL_TEACHER = 4, (1, 3, 4)  # layers of mini's other teacher, and those that its student keeps
LARGE_TEACHER = {"model": "google-bert/bert-large-uncased", "depth": 24, "layers": tuple(range(1, 9))}


# --------------------------------------------------------------------------------------------------------------- plan


def one(profile: str, task: str, method: str, seed: int, student: str = "dropped", **args) -> Spec:
    """The spec of one run."""
    changes = {"small-teacher": {"layers": SMALL_TEACHER[1]}, "large-teacher": LARGE_TEACHER}.get(student, {})
    if student == "smaller":
        changes = {"layers": _fewer(profiles.settings(profile, task).layers)}
    changes = changes | teachers.SHORT.get(profile, {})
    if profile == "demo" and method in SLOW:
        changes["epochs"] = SLOW[method]
    return common.make(CHAPTER, profile, task, method, seed, {"student": student} | args, **changes)


def _fewer(layers: tuple[int, ...]) -> tuple[int, ...]:
    """The lower half of bottom layers; of others the first and the last (of two, the first)."""
    bottom = layers == tuple(range(1, len(layers) + 1))
    return layers[: len(layers) // 2] if bottom else (layers[0], layers[-1])[: len(layers) - 1]


def sparse(profile: str, task: str, seed: int, sparsity: float, student: str = "dropped", scores: str = "knowledgeable",
           base: str = "KD", protocol: str = "clean", method: str = "STARK", **args) -> Spec:
    """The spec of one STARK run."""
    args = {"base": base, "sparsity": sparsity, "scores": scores, "protocol": protocol} | args
    return one(profile, task, method, seed, student, **args)


def plan(profile: str, task: str) -> list[Spec]:
    """In order of importance. What depends on the chosen sparsity is planned once the grid that chooses it has run."""
    steps = _quick(profile, task) if profile in QUICK else _plan(profile, task)
    return list(dict.fromkeys(steps))


def _quick(profile: str, task: str) -> Iterator[Spec]:
    """Every method, at a small size."""
    seeds, grid = range(profiles.profile(profile).seeds), QUICK_GRID
    yield from _grid(profile, task, seeds, grid)
    yield from (sparse(profile, task, seed, s, scores="random") for seed in seeds for s in grid[:1])
    yield from (one(profile, task, method, 0) for method in BASELINES)
    yield from _grid(profile, task, [0], grid[:1], "pruned")
    yield sparse(profile, task, 0, grid[0], protocol="paper")
    yield from _ablations(profile, task, [0], grid[0])
    if profile == "smoke":
        yield from _tuned(profile, task, "PKD", [0])
        yield from (one(profile, task, method, 0, "pruned") for method in ("TAKD", "DynaBERT"))
        yield from _scales(profile, task, [0], grid[:1])


def _plan(profile: str, task: str) -> Iterator[Spec]:
    seeds = range(profiles.profile(profile).seeds)
    for student in ("dropped", "pruned"):
        first, rest = _seeds(profile, task, student)
        yield from _grid(profile, task, first, GRID, student)
        yield from _grid(profile, task, first, COARSE, student, "random")
        yield from _more_seeds(profile, task, student, rest)
        yield from _grid(profile, task, first, GRID, student, "random")
        yield from (one(profile, task, method, seed, student) for method in BASELINES for seed in seeds)
    if task not in profiles.profile(profile).spared:
        for method in TRIED:
            yield from _tuned(profile, task, method, seeds)
    for seed in seeds:
        yield from (sparse(profile, task, seed, s, protocol="paper") for s in GRID)
    if best := chosen(profile, task):
        yield from _ablations(profile, task, seeds, best)
    yield from _scales(profile, task, seeds, COARSE)


def _seeds(profile: str, task: str, student: str) -> tuple[range, range]:
    """The seeds that run a student's whole grids, and those that run what these chose."""
    chosen = profiles.profile(profile)
    first, more = range(chosen.seeds), chosen.more_seeds(task)
    return (more, first) if (profile, task, student) in LATER else (first, more)


def _grid(profile, task, seeds, grid, student="dropped", scores="knowledgeable") -> Iterator[Spec]:
    """KD and STARK over the grid, a whole seed at a time: half a grid chooses nothing."""
    for seed in seeds:
        yield one(profile, task, "KD", seed, student)
        yield from (sparse(profile, task, seed, s, student, scores) for s in grid)


def _more_seeds(profile: str, task: str, student: str, seeds) -> Iterator[Spec]:
    """The other seeds of the headline claims, at the sparsity that the grid's chose."""
    best = {scores: chosen(profile, task, student, scores) for scores in ("knowledgeable", "random")}
    for seed in seeds:
        yield one(profile, task, "KD", seed, student)
        yield from (sparse(profile, task, seed, s, student, scores) for scores, s in best.items() if s)


def trials(profile: str, task: str, method: str) -> list[Spec]:
    """The trials of a method's own hyper-parameters, by a seed that no comparison uses, on the student that the
    method's claim is about."""
    student = STUDENT_OF_TRIALS.get(method, "dropped")
    pairs = OWN_REGRESSION if tasks.get(task).regression else OWN
    return [one(profile, task, f"tune-{method}", choices.SEED, student, heat=heat, weight=weight)
            for heat, weight in pairs[: 2 if profile in QUICK else None]]


def own(profile: str, task: str, method: str) -> tuple[float, float] | None:
    """The heat and weight with the best held-out verdict metric; None while a trial is missing."""
    records, missing = look_up(trials(profile, task, method))
    args = [r["spec"]["args"] for r in records]
    held = {(a["heat"], a["weight"]): common.held(r) for a, r in zip(args, records, strict=True)}
    return None if missing else best_own(held)


def _tuned(profile: str, task: str, method: str, seeds) -> Iterator[Spec]:
    """The trials and, where they chose other values than the defaults, the comparison with those."""
    tried, best = trials(profile, task, method), own(profile, task, method)
    yield from tried
    if best not in (None, DEFAULT):
        heat, weight = best
        student = tried[0].args["student"]
        yield from (one(profile, task, f"tuned-{method}", seed, student, heat=heat, weight=weight) for seed in seeds)


def _ablations(profile: str, task: str, seeds, best: float) -> Iterator[Spec]:
    """At the chosen sparsity: other methods with STARK, other weights of the two scores, single weights removed."""
    for base in ("PKD", "CKD"):
        yield from (sparse(profile, task, seed, best, base=base) for seed in seeds)
    for scores in LAMBDAS:
        yield from (sparse(profile, task, seed, best, scores=scores) for seed in seeds)
    yield from (sparse(profile, task, seed, best, lam=lam) for lam in (0.25, 0.75) for seed in seeds)
    yield from (sparse(profile, task, seed, best, method="STARK-unstructured") for seed in seeds)


def _scales(profile: str, task: str, seeds, grid) -> Iterator[Spec]:
    """A teacher of another size, and a smaller student."""
    for student in ("large-teacher" if profile == "paper" else "small-teacher", "smaller"):
        if student == "small-teacher" and profiles.settings(profile, task).depth <= SMALL_TEACHER[0]:
            continue
        yield from _grid(profile, task, seeds, grid, student)


def grids(profile: str, student: str, scores: str, base: str = "KD") -> list[tuple[float, ...]]:
    """The grids of sparsities above 0 that may choose one, best first; half a grid chooses nothing. None for what is
    planned at a sparsity that another grid chose."""
    if profile in QUICK:
        return [QUICK_GRID, QUICK_GRID[:1]]
    if base != "KD" or scores in LAMBDAS:
        return []
    if student not in ("dropped", "pruned"):
        return [COARSE]
    return [GRID, COARSE] if scores == "random" else [GRID]


def chosen(profile: str, task: str, student: str = "dropped", scores: str = "knowledgeable") -> float | None:
    """The sparsity above 0 with the best held-out verdict metric, a mean over the grid's seeds; None while no grid that
    may choose it has run."""
    store, (seeds, _) = Store(), _seeds(profile, task, student)
    for grid in grids(profile, student, scores):
        specs = [sparse(profile, task, seed, s, student, scores) for s in grid for seed in seeds]
        records, missing = look_up(specs, store)
        if not missing:
            held = [common.held(r) for r in records]
            means = [sum(held[i : i + len(seeds)]) for i in range(0, len(held), len(seeds))]
            return grid[means.index(max(means))]
    return None


# --------------------------------------------------------------------------------------------------------------- runs


def kind(spec: Spec) -> str | None:
    """What runs that share a pack have in common: fine-tuning, KD, or KD from sparse teachers, and the student. None
    for runs that train alone."""
    method = "STARK" if spec.method.startswith("STARK") else spec.method
    packed = method in ("FT", "KD") or (method == "STARK" and spec.args["base"] == "KD")
    return f"{method} {spec.args['student']}" if packed else None


def stages(spec: Spec) -> packing.Stages:
    """A run, see `packing`: sparsify the teacher where the method does, distil the student, and say what each stage
    took."""
    from kdutils.experiments import stark_baselines as baselines

    method = spec.method.removeprefix("tune-").removeprefix("tuned-")
    if method not in (METHODS if method == spec.method else TRIED):
        raise ValueError(f"method: got {spec.method!r}; allowed: {', '.join(METHODS)}")
    base, extra = spec.args.get("base", method), {}
    if spec.method.startswith("STARK") and base not in BASES:
        raise ValueError(f"base: got {base!r}; allowed: {', '.join(BASES)}")
    given = {name: spec.args[name] for name in ("heat", "weight") if name in spec.args}
    made = setting(spec, states=base == "PKD")
    if base in baselines.STAGED:
        extra = common.about(made)
        result = baselines.STAGED[base](spec, made, **given)
        return result | {"extra": extra | result["extra"]}
    student = initial(spec, made)
    if spec.method.startswith("STARK"):
        made, extra = teachers.sparsified(spec, made, states=base == "PKD")
    extra = common.about(made) | extra | {"memory": memory(made, student)}
    asked = baselines.objective(base, made, student, **given)
    made = replace(made, teacher=None)  # what the objective does not hold need not last as long as a pack
    together = baselines.kd_together if base == "KD" else None
    result = yield packing.Distillation(made, student, asked, spec.seed, together=together)
    if spec.method in BASES:
        teachers.leave_logits(spec, made, student)
    return result | {"extra": extra | result["extra"]}


def setting(spec: Spec, states: bool = False):
    """The workbench; that of `small-teacher` has chapter 01's teacher of so many layers."""
    from kdutils import checkpoints

    made = common.bench(spec, states)
    if spec.args["student"] != "small-teacher":
        return made
    path = common.weights(common.teacher_spec(spec.profile, spec.task, made.settings, layers=SMALL_TEACHER[0]))
    return teachers.taught_by(made, checkpoints.restore(path).to(made.device), states, common.cache())[0]


def initial(spec: Spec, made):
    """The student's start, from the fine-tuned teacher, the same for every method and seed: `pruned` keeps the share
    `settings.keep` of heads and of neurons that are most expressive on held-out rows, all others their layers
    `settings.layers`."""
    from kdutils import bert, stark

    student = spec.args["student"]
    if student == "pruned":
        return stark.sparsify(made.teacher, *teachers.expressiveness(made), 1 - made.settings.keep)
    if student in ("dropped", "smaller", "small-teacher", "large-teacher"):
        return bert.keep_layers(made.teacher, made.settings.layers)
    raise ValueError(f"student: got {student!r}; allowed: dropped, pruned, smaller, small-teacher, large-teacher")


def memory(made, student) -> dict:
    """Megabytes of one training step in float32: the student's weights, gradients and AdamW moments, its activations
    on the longest batch, and the teacher's weights."""
    from kdutils import bert, peakd

    longest = made.data.train.lengths.argsort(descending=True)[: made.settings.batch_size]
    student = student.to(made.device)
    activations = peakd.activation_bytes(student, made.data.train.batch(longest, made.device))
    sizes = {"weights": 16 * bert.counts(student)["total"], "activations": activations,
             "teacher": 4 * bert.counts(made.teacher)["total"]}
    return {name: round(size / 2**20, 2) for name, size in sizes.items()}
