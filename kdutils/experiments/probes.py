"""Chapter 05, KSM's preliminary study: which knowledge helps, and does it matter when?"""

from __future__ import annotations

import math
from statistics import mean, variance

from kdutils import profiles, tasks
from kdutils.experiments import common, packing
from kdutils.records import Spec, Store, look_up

CHAPTER = "05_knowledge_probes"
FIXED = ("FinK", "ResK", "FeaK", "RelK", "FinK&ResK", "FinK&ResK&FeaK", "FinK&ResK&FeaK&RelK")  # Table 1's rows
ALL = FIXED[-1]
SMALL = {"smoke": 3, "demo": 1}  # profiles that only show what there is: repeats of a random policy in them
REPEATS = 200  # of each random policy, as in the paper; a chapter shows the first of them
ROUND = 10  # repeats of a policy before the next one's, so that any prefix of a plan compares them fairly
EARLY = 50  # repeats that come before the other depth's runs
REPLAYED = 3  # sequences from the top, and from the middle, that are trained on again
REPLAYED_FROM = 20  # Random-All's first runs, from which they are taken
REPLAYS = 5  # fresh seeds for each of them: the fewest that a verdict takes
REPLAY_SEED = 1000  # the first of those seeds
TRIALS = ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 0.3, 0.3), (1.0, 1.0, 1.0, 0.1), (1.0, 1.0, 0.1, 0.1))
TRIAL_SEEDS = (900, 901)
# Weights of the four types, in the order of knowledge.TYPES, by profile and task, where `best_weights` of the trials
# are not all 1; tests/test_knowledge.py compares the two.
WEIGHTS: dict[tuple[str, str], tuple[float, ...]] = {
    ("mini", "mrpc"): (1.0, 1.0, 1.0, 0.1),
    ("mini", "sst2"): (1.0, 1.0, 1.0, 0.1),
}
UNWEIGHED = ("finetune", "vanilla-KD", "PKD", "Dynamic-KD")  # methods that select no knowledge, whatever their rows
# As the paper trains (appendix B): the bottom six pre-trained layers, batches of 32, five epochs.
PAPER = {"layers": (1, 2, 3, 4, 5, 6), "batch_size": 32, "lr": 3e-5, "epochs": 5,
         "teacher_lr": 5e-5, "teacher_epochs": 5}


def make(chapter: str, profile: str, task: str, method: str, seed: int, layers: int = 0, **args) -> Spec:
    """A spec of chapters 05 and 06, with the task's weights where they matter; `layers` asks for another student depth,
    which is then part of the method's name ("fixed-2L")."""
    changes = PAPER if profile == "paper" else {}
    if layers:
        depth = profiles.settings(profile, task).depth
        changes = changes | {"layers": positions(layers, depth, bottom=profile == "paper")}
        method, args = f"{method}-{layers}L", {"layers": layers} | args
    if (weights := WEIGHTS.get((profile, task))) and _weighed(weights, method, args.get("knowledge")):
        args = {"weights": weights} | args
    return common.make(chapter, profile, task, method, seed, args, **changes)


def _weighed(weights: tuple[float, ...], method: str, names: str | None) -> bool:
    """Whether a method's runs differ with `weights`: not where it takes only types of weight 1, or none."""
    every = names is None or method in ("early", "late")  # those two leave out the named type for half of training
    taken = [weight for name, weight in zip(FIXED[:4], weights, strict=True) if every or name in names.split("&")]
    return not method.startswith(UNWEIGHED) and any(weight != 1 for weight in taken)


def base(spec: Spec) -> str:
    """A run's method without the student depth in its name."""
    return spec.method.removesuffix(f"-{spec.args.get('layers')}L")


def positions(layers: int, depth: int, bottom: bool = False) -> tuple[int, ...]:
    """Teacher layers, from 1, that a student of `layers` layers starts from: evenly spread from the first to the last,
    or the bottom ones, which is the paper's choice and serves a six-layer teacher's students badly."""
    if not 2 <= layers <= depth:
        raise ValueError(f"layers: got {layers}; allowed: 2..{depth}")
    return tuple(range(1, layers + 1)) if bottom else tuple(1 + i * (depth - 1) // (layers - 1) for i in range(layers))


def other_depth(profile: str, task: str) -> int:
    """The second student depth of the tables: the paper's three layers; elsewhere one layer fewer than the first, or
    one more where a two-layer student does not beat the majority class."""
    if profile == "paper":
        return 3
    first = len(profiles.settings(profile, task).layers)
    return first - 1 if task in ("sst2", "rotten") else first + 1


def plan(profile: str, task: str) -> list[Spec]:
    if tasks.get(task).regression:
        return []

    def specs(method, seeds, **args):
        return [make(CHAPTER, profile, task, method, seed, **args) for seed in seeds]

    small = profile in SMALL
    seeds = range(1 if small else profiles.profile(profile).seeds)
    trials = [make(CHAPTER, profile, task, "tuning", seed, weights=weights)
              for weights in TRIALS[: 2 if small else None] for seed in TRIAL_SEEDS[: 1 if small else None]]
    fixed = [spec for s in seeds for names in FIXED for spec in specs("fixed", [s], knowledge=names)]
    head = [spec for s in seeds for names in ("FeaK", "RelK") for spec in specs("teacher-head", [s], knowledge=names)]
    other = [spec for s in seeds for names in FIXED[-1 if small else 0 :]
             for spec in specs("fixed", [s], knowledge=names, layers=other_depth(profile, task))]
    halves = [spec for s in seeds for name in FIXED[: 1 if small else 4] for method in ("early", "late")
              for spec in specs(method, [s], knowledge=name)]
    rounds = []
    repeats = SMALL.get(profile, REPEATS)
    for first in range(0, repeats, ROUND):
        some = range(first, min(first + ROUND, repeats))
        rounds += [spec for r in some for spec in specs("Random-All", [r], draw=r)]
        rounds += specs("fixed-seed", [len(seeds) + r for r in some])  # the null goes on where the fixed runs end
        rounds += [spec for r in some for spec in specs("Random-One", [r], draw=r)]
    if profile == "demo":
        return [*fixed, *rounds, *halves]
    return [*trials, *fixed, *rounds[: 3 * EARLY], *replays(profile, task), *halves, *head, *other,
            *rounds[3 * EARLY :]]


def best_weights(scores: dict[tuple[float, ...], list[float]]) -> tuple[float, ...]:
    """The weights to take, from the held-out scores of each trial's seeds: all 1, unless the best trial's mean is above
    theirs by more than the difference's standard error (one deviation of a seed, pooled over the trials)."""
    equal, best = TRIALS[0], max(scores, key=lambda weights: mean(scores[weights]))
    spread = math.sqrt(mean(variance(values) for values in scores.values()))
    error = spread * math.sqrt(1 / len(scores[equal]) + 1 / len(scores[best]))
    return best if mean(scores[best]) - mean(scores[equal]) > error else equal


def replays(profile: str, task: str) -> list[Spec]:
    """The best and the middle sequences of the first Random-All runs, to be trained on again with fresh seeds; none
    until those runs are all there. They are ranked by the verdict's metric on dev after the last epoch: MRPC's best
    epoch is F1's, by which a constant answer does well."""
    small = profile in SMALL
    first = [make(CHAPTER, profile, task, "Random-All", r, draw=r) for r in range(SMALL.get(profile, REPLAYED_FROM))]
    records, missing = look_up(first, Store())
    if missing:
        return []
    metric = tasks.get(task).verdict_metric
    ranked = sorted(records, key=lambda record: -record["metrics"]["dev"][metric])
    draws = [record["spec"]["args"]["draw"] for record in ranked]
    count = 1 if small else REPLAYED
    start = (len(draws) - count) // 2
    groups = {"best": draws[:count], "middle": draws[start : start + count]}
    return [make(CHAPTER, profile, task, "replay", REPLAY_SEED + i, draw=draw, was=was)
            for i in range(1 if small else REPLAYS) for was, some in groups.items() for draw in some]


def kind(spec: Spec) -> str:
    """What runs of one task, settings and chapter that share a pack have in common: here all are selections that are
    known beforehand."""
    return "selection"


def stages(spec: Spec) -> packing.Stages:
    """A run, see `packing`."""
    from kdutils import knowledge

    method, args = base(spec), spec.args
    made = common.bench(spec, states=True)
    epoch = math.ceil(len(made.data.train) / made.settings.batch_size)

    def half(early: bool):  # all types in one half of training, all but the run's in the other
        rest = tuple(1.0 - taken for taken in knowledge.selection(args["knowledge"]))
        every = knowledge.selection(ALL)
        return knowledge.switched(*((every, rest) if early else (rest, every)), at=epoch * made.settings.epochs / 2)

    policies = {
        "tuning": lambda: knowledge.constant(knowledge.selection(ALL)),
        "fixed": lambda: knowledge.constant(knowledge.selection(args["knowledge"])),
        "teacher-head": lambda: knowledge.constant(knowledge.selection(args["knowledge"])),
        "fixed-seed": lambda: knowledge.constant(knowledge.selection(ALL)),
        "Random-All": lambda: knowledge.Draws(args["draw"]),
        "replay": lambda: knowledge.Draws(args["draw"]),
        "Random-One": lambda: knowledge.Draws(args["draw"], until=epoch),
        "early": lambda: half(True),
        "late": lambda: half(False),
    }
    if method not in policies:
        raise ValueError(f"method: got {spec.method!r}; allowed: {', '.join(policies)}")
    learner = student(spec, made)
    if method == "teacher-head":
        learner.bert.pooler.load_state_dict(made.teacher.bert.pooler.state_dict())
        learner.classifier.load_state_dict(made.teacher.classifier.state_dict())
    selective = objective(spec, made, policies[method]())
    outcome = yield packing.Distillation(made, learner, selective, spec.seed, together=packing.selections)
    outcome["extra"] |= common.about(made) | selective.report()
    return outcome


def student(spec: Spec, made: common.Bench):
    """The pre-trained layers that the settings name, with a head drawn from the run's seed. A tiny model has no
    pre-training: its students start from the teacher's layers."""
    from kdutils import bert

    if made.settings.model == "tiny":
        return bert.fresh_head(bert.keep_layers(made.teacher, made.settings.layers), spec.seed)
    return bert.keep_layers(common.pretrained(made.settings, made.data, spec.seed), made.settings.layers)


def objective(spec: Spec, made: common.Bench, select):
    """The four types of knowledge, weighed by the run's weights and chosen by `select`."""
    from kdutils import knowledge

    assigned = knowledge.assignment(len(made.settings.layers), made.settings.depth)
    return knowledge.Selective(made.signals["train"], assigned, select, made.settings.tau,
                               spec.args.get("weights", (1.0, 1.0, 1.0, 1.0)))
