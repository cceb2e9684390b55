"""Chapter 06: the knowledge selection module, its baselines, controls and ablations."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace

from kdutils import profiles, tasks
from kdutils.experiments import common, packing, probes
from kdutils.records import Spec, Store, run_once

CHAPTER = "06_ksm"
EPISODES = {"smoke": 1, "demo": 1, "mini": 3}  # of stage one; ten elsewhere
REWARD_ROWS = 256  # held-out rows that a reward is computed on
ALPHA, BETA = 0.5, 100.0  # weight of the teacher's part in vanilla KD and PKD; of PKD's patience term
QUERIED = 0.5  # share of a batch on which Dynamic KD asks the teacher
BINS = 20  # points of the action's curve over stage two
TRIALS = {"smoke": 2}  # constant weightings of which `tuned-constant` takes the best; eight elsewhere
TRIAL_SEED = 900  # of the trials' students, and of the weightings
COPIES = {"smoke": 1, "demo": 1, "mini": 2}  # changed copies of each row; elsewhere what fits the paper's Table 4
SOURCES = {"mrpc": "sst2", "sst2": "mrpc", "rotten": "sst2", "rte": "mrpc"}  # whose selector a task tries
HEADLINE = ("vanilla-KD", "Random-Soft", "KSM-soft", "constant")
OTHERS = ("KSM-hard", "Random-Hard", "PKD", "Dynamic-KD")
ABLATIONS = ({"exploration": False}, {"proportion": True}, {"reward": "accuracy"}, {"reward": "f1"}, {"phase": 64},
             {"phase": 128}, {"multi_phase": False})
# Hard with another threshold; soft, by the paper's own updates; soft, without the penalty on the actor's logits.
VARIANTS = ("KSM-threshold", "KSM-literal", "KSM-unpenalised")
# Constant weightings at the mean action that exploration in the paper's proportion ends with: as small as it is, the
# same proportions with the largest weight 1, and that with gradients that are never clipped.
SHRUNK = ({}, {"largest": 1.0}, {"largest": 1.0, "clip": False})
KSM = ("KSM-soft", "KSM-hard", *VARIANTS)
RANDOM = ("Random-Soft", "Random-Hard")
THRESHOLD, THRESHOLDS = 0.2, (0.1, 0.3)  # of hard actions: the usual one and the others of the paper
DEPTHS = ("vanilla-KD", "finetune", "Random-Soft", "KSM-soft", "Random-Hard", "KSM-hard", "PKD")
# Not augmented at the paper's size: the teacher's states on all rows would take 76 and 82 GB, and its Table 4 has
# neither task.
VAST = ("qqp", "mnli")
# On more rows: changed copies of the task's, and for as many steps without a change the same rows again.
AUGMENTED = ("finetune-augmented", "vanilla-KD-augmented", "KSM-soft-augmented", "vanilla-KD-repeated")


def make(profile: str, task: str, method: str, seed: int, **args) -> Spec:
    if method in KSM:
        args = {"episodes": EPISODES.get(profile, 10)} | args
    if method in AUGMENTED:
        args = {"copies": COPIES.get(profile, 10 if len(tasks.get(task).columns) == 2 else 20)} | args
    return probes.make(CHAPTER, profile, task, method, seed, **args)


def plan(profile: str, task: str) -> list[Spec]:
    if tasks.get(task).regression:
        return []
    chosen, small = profiles.profile(profile), profile in probes.SMALL
    few, more = range(1 if small else chosen.seeds), range(0) if small else chosen.more_seeds(task)

    def specs(method, seeds=few, **args):
        return [make(profile, task, method, seed, **args) for seed in seeds]

    def by_seed(methods, seeds=few, **args):
        return [spec for seed in seeds for method in methods for spec in specs(method, [seed], **args)]

    main = by_seed(("finetune", *HEADLINE))
    if profile == "demo":
        return main
    main += tuning(profile, task) + specs("tuned-constant") + by_seed(HEADLINE, more)
    varied = [change for change in ABLATIONS if change != {"reward": "f1"} or len(tasks.get(task).labels) == 2]
    ablations = [spec for change in varied[-2 if small else 0 :] for spec in specs("KSM-soft", **change)]
    ablations += [spec for value in THRESHOLDS[1 if small else 0 :] for spec in specs("KSM-threshold", threshold=value)]
    ablations += specs("KSM-literal") + specs("KSM-unpenalised")
    ablations += [spec for change in SHRUNK[-1 if small else 0 :] for spec in specs("shrunk", **change)]
    other = probes.other_depth(profile, task)
    transfers = [] if small else specs("transfer", source="seed")
    if SOURCES.get(task) in profiles.task_names(profile):
        transfers += specs("transfer", source="task")
    transfers += specs("transfer", source="depth", layers=other)
    depths = by_seed(DEPTHS[: 1 if small else None], layers=other)
    augmented = [] if profile == "paper" and task in VAST else by_seed(AUGMENTED)
    return [*main, *by_seed(OTHERS), *ablations, *transfers, *depths, *augmented]


def tuning(profile: str, task: str) -> list[Spec]:
    """Trials of constant weightings, one student each."""
    return [make(profile, task, "tune-constant", TRIAL_SEED, draw=i) for i in range(TRIALS.get(profile, 8))]


def weighting(draw: int) -> list[float]:
    """A constant action to try: number 0 is all ones, the others are uniform in [0, 1]^4 and the same everywhere."""
    generator = random.Random(TRIAL_SEED)
    drawn = [[generator.random() for _ in range(4)] for _ in range(draw)]
    return drawn[-1] if draw else [1.0] * 4


# ---------------------------------------------------------------------------------------------------------------- runs


def kind(spec: Spec) -> str | None:
    """What runs that share a pack have in common: a baseline, or selections that are known beforehand. None for runs
    that train alone, among them those that wait for a selector or for trials."""
    method = probes.base(spec)
    if method in (*RANDOM, "tune-constant"):
        return "selection"
    return method if method in ("finetune", "vanilla-KD", "PKD") else None


def stages(spec: Spec) -> packing.Stages:
    """A run, see `packing`."""
    from kdutils import knowledge

    method = probes.base(spec)
    made = common.bench(spec, states=True)
    if not spec.args.get("clip", True):
        made = replace(made, settings=replace(made.settings, clip=math.inf))
    if method in AUGMENTED:
        made, method = _more_rows(spec, made), method.rpartition("-")[0]
        if method == "KSM-soft":
            method = "transfer"
    plain = {"finetune": _fine_tuning, "vanilla-KD": _vanilla_kd, "PKD": _pkd, "Dynamic-KD": dynamic_kd}
    if method in plain:
        return (yield from _distil(spec, made, plain[method](made)))
    if method in KSM:
        return (yield from _ksm(spec, made))
    policies = {
        "Random-Soft": lambda: knowledge.Draws(spec.seed, soft=True),
        "Random-Hard": lambda: knowledge.Draws(spec.seed),
        "constant": lambda: knowledge.constant(_mean_action(spec)),
        "shrunk": lambda: knowledge.constant(_shrunk(spec)),
        "tune-constant": lambda: knowledge.constant(weighting(spec.args["draw"])),
        "tuned-constant": lambda: knowledge.constant(_tuned(spec)),
        "transfer": lambda: _trained(_source(spec), made.device),
    }
    if method not in policies:
        raise ValueError(f"method: got {spec.method!r}; allowed: {', '.join([*plain, *KSM, *policies, *AUGMENTED])}")
    return (yield from _select(spec, made, policies[method]()))


def _distil(spec: Spec, made: common.Bench, objective, together=None) -> packing.Stages:
    """Every run of the chapter drops an epoch's last rows where they fill no batch: a selector cannot read them."""

    learner = probes.student(spec, made)
    outcome = yield packing.Distillation(made, learner, objective, spec.seed, {"drop_last": True}, together)
    return outcome | {"extra": outcome["extra"] | common.about(made)}


def _select(spec: Spec, made: common.Bench, policy) -> packing.Stages:
    """Distil with `policy`; what it chose goes into the record: each type's mean and deviation over all steps, and
    its means over `BINS` parts of training, in which an answer to single batches averages out."""
    import torch

    selective = probes.objective(spec, made, policy)
    outcome = yield from _distil(spec, made, selective, packing.selections)
    actions = torch.tensor(selective.actions)
    bins = [part.mean(0).tolist() for part in actions.tensor_split(min(BINS, len(actions)))]
    return outcome | {"extra": outcome["extra"] | selective.report() | {
        "mean_action": actions.mean(0).tolist(), "action_sd": actions.std(0, correction=0).tolist(),
        "actions": [[round(value, 4) for value in one] for one in bins]}}


def choices(spec: Spec):
    """The selection module's hyper-parameters of a run."""
    from kdutils.agents import Choices

    method = probes.base(spec)
    names = ("episodes", "phase", "multi_phase", "exploration", "proportion", "reward")
    args = {"calm": 0.0} if method == "KSM-unpenalised" else {}
    return Choices(hard=method in ("KSM-hard", "KSM-threshold"), literal=method == "KSM-literal", **args,
                   threshold=spec.args.get("threshold", THRESHOLD),
                   **{name: spec.args[name] for name in names if name in spec.args})


def _more_rows(spec: Spec, made: common.Bench) -> common.Bench:
    """The bench with `copies` more of each train row, changed or as it is, and the teacher asked about all of them. The
    epochs stay, so there are as many times more steps. Soft KSM then selects with the selector of its seed, which was
    trained without them."""
    import torch

    from kdutils import augment, teacher

    copies = spec.args["copies"]
    if spec.method == "vanilla-KD-repeated":
        rows = made.data.train.take(torch.arange(len(made.data.train)).repeat_interleave(copies + 1))
    else:
        rows = augment.of_task(made.data, made.settings, copies, spec.seed, made.device)
    states = spec.method == "KSM-soft-augmented"  # no other method reads them
    asked = teacher.signals(made.teacher, rows, states, common.cache()).to(made.device)
    return replace(made, data=replace(made.data, train=rows), signals=made.signals | {"train": asked})


def _ksm(spec: Spec, made: common.Bench) -> packing.Stages:
    """Stage one, the selector written to disk, and stage two with the selector read from there."""
    from kdutils import agents

    chosen = choices(spec)
    started = time.perf_counter()
    agent, episodes = _train_selector(spec, made, chosen)
    path = Store().model_path(spec)
    agents.save(agent.selector, path)
    between = time.perf_counter()
    outcome = yield from _select(spec, made, _trained(spec, made.device))
    outcome["extra"] |= {"episodes_run": len(episodes), "episodes": episodes, "ksm_seconds": between - started,
                         "distil_seconds": outcome["extra"]["train_seconds"]}
    return outcome


def _train_selector(spec: Spec, made: common.Bench, chosen):
    """Algorithm 2 on the task's train split; the rewards come from held-out rows."""
    from kdutils import agents, distil, ksm

    size = made.settings.batch_size
    agent = agents.Agent(made.teacher.config.hidden_size, size, chosen, spec.seed, made.device)

    def episode(learning):
        learner = probes.student(spec, made).to(made.device)
        learning.begin(learner)
        distil.train(learner, made.data.train, probes.objective(spec, made, learning), made.settings, seed=spec.seed,
                     drop_last=True, after_step=learning.after_step)

    total = distil.total_steps(len(made.data.train), made.settings, drop_last=True)
    return agent, ksm.train(agent, episode, _measure(made, chosen.reward), total)


def _measure(made: common.Bench, reward: str):
    """How good a student is on the held-out rows of the rewards: minus its mean cross-entropy, or a metric."""
    from kdutils import teacher

    rows = made.data.held.take(slice(0, REWARD_ROWS))

    def measure(model) -> float:
        logits = teacher.ask(model, rows, precision=None).logits
        scores = tasks.score(made.task, logits.numpy(), rows.labels.numpy())
        return -scores["nll"] if reward == "loss" else scores[reward]

    return measure


def _trained(spec: Spec, device):
    """The policy of the selector that `spec` trained, which is read from its file."""
    from kdutils import agents, ksm

    return ksm.Trained(agents.restore(common.weights(spec)).to(device), choices(spec))


def _shrunk(spec: Spec) -> list[float]:
    """The mean action that exploration in the paper's proportion ends with, or a multiple with the largest weight 1."""
    action = _mean_action(spec, proportion=True)
    share = spec.args["largest"] / max(action) if "largest" in spec.args else 1.0
    return [weight * share for weight in action]


def _mean_action(spec: Spec, **change) -> list[float]:
    """The mean action of soft KSM's stage two, same seed, with `change` in its arguments."""
    from kdutils.experiments import run

    trained = make(spec.profile, spec.task, "KSM-soft", spec.seed, **change)
    return run_once(trained, run, Store())["extra"]["mean_action"]


def _tuned(spec: Spec) -> list[float]:
    """The weighting of the trial that is best on held-out rows; trials are made first where they are missing."""
    from kdutils.experiments import run

    trials = [run_once(trial, run, Store()) for trial in tuning(spec.profile, spec.task)]
    return weighting(common.best(trials)["args"]["draw"])


def _source(spec: Spec) -> Spec:
    """Whose selector a transfer run tries: the next seed's, another task's, or (for a student of another depth, or on
    augmented rows) its own seed's and task's."""
    source = spec.args.get("source")
    if source not in (None, "seed", "task", "depth"):
        raise ValueError(f"source: got {source!r}; allowed: seed, task, depth")
    seed = (spec.seed + 1) % profiles.profile(spec.profile).seeds if source == "seed" else spec.seed
    task = SOURCES[spec.task] if source == "task" else spec.task
    return make(spec.profile, task, "KSM-soft", seed)


# ----------------------------------------------------------------------------------------------------------- baselines


def _fine_tuning(made: common.Bench):
    from kdutils import distil

    return distil.fine_tuning()


def _vanilla_kd(made: common.Bench):
    """Hinton's objective at alpha = 0.5 and the profile's temperature."""
    from kdutils import peakd

    return peakd.objective(made.signals["train"], [], ALPHA, made.settings.tau)


def _pkd(made: common.Bench):
    """PKD-skip: vanilla KD and `BETA` times the distance of normalised [CLS] states of all layers but the last."""
    from kdutils import knowledge, peakd

    assigned = knowledge.assignment(len(made.settings.layers), made.settings.depth)[:-1]
    return peakd.objective(made.signals["train"], list(enumerate(assigned, 1)), ALPHA, made.settings.tau, BETA)


def dynamic_kd(made: common.Bench):
    """Dynamic KD by uncertainty: cross-entropy on all rows and KL(t || s) at temperature 1 on the half of the batch of
    which the student is least certain (largest entropy); both means, with weight 1."""
    from kdutils import distil, losses

    def loss(batch, logits, _):
        told = made.signals["train"].logits[batch["index"]]
        p = logits.detach().softmax(-1)
        entropy = -(p * p.clamp_min(1e-12).log()).sum(-1)
        asked = entropy.topk(max(1, round(QUERIED * len(entropy)))).indices
        soft, task = losses.kl(logits[asked], told[asked]), losses.hard(logits, batch["labels"])
        return {"loss": task + soft, "kd": soft, "task": task}

    return distil.Plain(loss, whole=True)
