"""Chapter 03, automatic STARK: the sparsity is read off the scores' density instead of a grid.

`args`: `student`, and `scores` where they are not "knowledgeable". Scores come from the trial student of the same seed
(a KD run of chapter 02), on held-out rows, the sparsity by reading A at Scott's bandwidth; what other readings and
bandwidths say is recorded beside it. With `scores` "random", as many heads and neurons go as the automatic sparsity
says, but drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kdutils import profiles
from kdutils.experiments import common, packing
from kdutils.experiments import stark as grid
from kdutils.experiments import stark_teachers as teachers
from kdutils.records import Spec

CHAPTER = "03_stark_auto"
BANDWIDTHS = (0.5, 1.0, 2.0)
CURVE = 64  # points of a density curve in a record


def one(profile: str, task: str, seed: int, student: str = "dropped", scores: str | None = None) -> Spec:
    """The spec of one run; `scores` None: the knowledgeable ones."""
    args, changes = {"student": student} | ({"scores": scores} if scores else {}), teachers.SHORT.get(profile, {})
    return common.make(CHAPTER, profile, task, "STARK-Auto", seed, args, **changes)


def plan(profile: str, task: str) -> list[Spec]:
    """In order of importance; where a profile is no experiment, one run of each kind."""
    return _quick(profile, task) if profile in grid.QUICK else list(_plan(profile, task))


def _quick(profile: str, task: str) -> list[Spec]:
    students = ("dropped", "pruned") if profile == "smoke" else ("dropped",)
    controls = [one(profile, task, 0, student, scores="random") for student in students]
    return [one(profile, task, 0), one(profile, task, 1), *(one(profile, task, 0, s) for s in students[1:]), *controls]


def _plan(profile: str, task: str) -> Iterator[Spec]:
    chosen = profiles.profile(profile)
    few, more = range(chosen.seeds), chosen.more_seeds(task)
    for student in ("dropped", "pruned"):
        for seeds in (few, more):
            yield from (one(profile, task, seed, student) for seed in seeds)
            yield from (one(profile, task, seed, student, scores="random") for seed in seeds)


# --------------------------------------------------------------------------------------------------------------- runs


def kind(spec: Spec) -> str:
    """What runs that share a pack have in common: they are KD from sparse teachers into one student."""
    return spec.args["student"]


def stages(spec: Spec) -> packing.Stages:
    """A run, see `packing`: read the sparsity off the density, sparsify the teacher, distil the student."""
    from kdutils import distil
    from kdutils.experiments.stark_baselines import kd_together

    made = common.bench(spec)
    student = grid.initial(spec, made)
    made, extra = _sparsified(spec, made)
    extra |= common.about(made)
    asked = distil.stark_kd(made.signals["train"], made.settings.tau)
    made = replace(made, teacher=None)  # it need not last as long as a pack
    result = yield packing.Distillation(made, student, asked, spec.seed, together=kd_together)
    return result | {"extra": result["extra"] | extra}


def _sparsified(spec: Spec, made: common.Bench) -> tuple:
    """The bench with the sparse teacher in the place of its own, and what is recorded of it and of its scores."""
    from kdutils import stark

    found, took = teachers.scores(spec, made)
    peak = stark.density_peak(found)
    shares = peak.sparsity, peak.neuron_sparsity
    control = stark.random_scores(made.teacher, spec.seed)
    ranks = {"knowledgeable": found.knowledgeable(), "random": control}[spec.args.get("scores", "knowledgeable")]
    extra = {"sparsity": shares[0], "neuron_sparsity": shares[1], "peak": peak.peak}
    extra |= {"sensitivity": sensitivity(found), "densities": densities(found),
              "random_sparsity": stark.density_peak(control[0]).sparsity}
    extra |= teachers.where(*ranks, shares) | {"score_seconds": took}
    made, seconds = teachers.taught_by(made, stark.sparsify(made.teacher, *ranks, shares))
    return made, extra | seconds


def sensitivity(scores) -> dict:
    """The automatic sparsity by reading and by factor on the bandwidth; reading C has two, for heads and neurons."""
    from kdutils import stark

    found = {(reading, b): stark.density_peak(scores, reading, b) for reading in stark.READINGS for b in BANDWIDTHS}
    made = {reading: {f"{b:g}": found[reading, b].sparsity for b in BANDWIDTHS} for reading in stark.READINGS}
    return made | {"C-neurons": {f"{b:g}": found["C", b].neuron_sparsity for b in BANDWIDTHS}}


def densities(scores) -> dict:
    """For the heads' expressiveness P, friendliness Q and knowledgeable score I: the density curve, thinned, and the
    place of its highest point, the centre of the cluster."""
    from kdutils import stark

    kinds = {"P": scores.head_expressiveness, "Q": scores.head_friendliness, "I": scores.knowledgeable()[0]}
    made = {}
    for name, values in kinds.items():
        curve = stark.density_peak(values)
        step = -(-len(curve.x) // CURVE)
        made[name] = {"x": curve.x[::step].round(4).tolist(), "density": curve.density[::step].round(4).tolist(),
                      "centre": float(curve.x[curve.density.argmax()])}
    return made
