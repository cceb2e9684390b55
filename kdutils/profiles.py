"""Four profiles and what each expands to: the only place where sizes, seeds, steps and models are chosen.

`Settings` is everything, besides method, arguments and seed, that decides a run's outcome; it goes into the run's key.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from kdutils import tasks


@dataclass(frozen=True)
class Settings:
    """The expanded profile of one task."""

    model: str = "minilm"  # "minilm", "tiny", or a hub id or folder
    depth: int = 6  # encoder layers of that model
    rows: int = 0  # rows of train used (held-out rows come on top where there are enough); 0: all
    held: float = 0.1  # share held out of train for every choice, score and reward of the clean protocol
    max_length: int = 128  # tokens
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of all steps
    clip: float = 1.0  # global gradient norm
    teacher_lr: float = 5e-5
    teacher_epochs: int = 3
    lr: float = 1e-4  # students
    epochs: int = 3
    layers: tuple[int, ...] = (1, 3, 6)  # teacher layers, counted from 1, that a layer-dropped student keeps
    keep: float = 0.3  # share of heads and of neurons that a parameter-pruned student keeps
    tau: float = 2.0  # temperature of STARK's distillation loss
    precision: str = "auto"  # "fp32", "bf16" (fp32 master weights), or the faster one on this device


@dataclass(frozen=True)
class Profile:
    """A profile: its base settings, what its tasks change, and how many seeds it plans."""

    base: Settings
    tasks: dict[str, dict] = field(default_factory=dict)  # task -> changes, in order of importance
    seeds: int = 5  # per ordinary comparison
    headline_seeds: int = 10  # per headline claim
    spared: tuple[str, ...] = ()  # tasks that no claim plans: they get no more seeds than ordinary comparisons

    def more_seeds(self, task: str) -> range:
        """The seeds that a headline claim has on `task` beyond an ordinary comparison's."""
        return range(self.seeds, self.seeds if task in self.spared else self.headline_seeds)


PTP_EPOCHS, PTP_PATIENCE = 4, 1  # PTP's "until convergence": at most so many epochs, stopped after so many without gain
PTP_INNER = 0.1  # share of train that decides when PTP has converged

# mini's layers and rates of students were chosen once per task on held-out rows of train: chapter 01's table "choices"
# shows the runs behind them, and tests/test_profiles.py compares the two. The epochs are a budget, set here; the same
# table shows what others reach.
PROFILES = {
    # synthetic task, tiny BERT: guards the code, says nothing about the papers
    "smoke": Profile(
        Settings(model="tiny", depth=4, rows=2000, max_length=32, teacher_lr=3e-3, teacher_epochs=14, lr=1e-3, epochs=2,
                 layers=(1, 4), precision="fp32"),
        {"synthetic": {}}, seeds=2, headline_seeds=2,
    ),
    # MiniLM on review snippets, no network needed
    "demo": Profile(
        Settings(rows=1600, max_length=64, teacher_epochs=2, epochs=2),
        {"rotten": {}}, seeds=2, headline_seeds=2,
    ),
    # MiniLM on GLUE: what this book publishes
    "mini": Profile(
        Settings(),
        {
            "mrpc": {"teacher_epochs": 4, "lr": 2e-4},
            "sst2": {"rows": 8000, "teacher_epochs": 2, "epochs": 2},
            "stsb": {"teacher_epochs": 4, "lr": 2e-4},
            "rotten": {"teacher_epochs": 2, "epochs": 2},
            "rte": {"teacher_epochs": 5, "epochs": 5, "layers": (2, 4, 6)},
        },
        spared=("rotten", "rte"),
    ),
    # BERT-base on GLUE as the papers use it
    "paper": Profile(
        Settings(model="google-bert/bert-base-uncased", depth=12, held=0.05, batch_size=16, clip=5.0,
                 teacher_lr=3e-5, teacher_epochs=10, lr=3e-5, epochs=10, layers=(1, 2, 3, 4)),
        {t: {} for t in ("mrpc", "rte", "stsb", "sst2", "qnli", "qqp", "mnli")},
    ),
}
for _large in ("qnli", "qqp", "mnli"):
    PROFILES["paper"].tasks[_large] |= {"batch_size": 32, "lr": 2e-5, "epochs": 5, "teacher_lr": 2e-5,
                                        "teacher_epochs": 3}


def profile(name: str) -> Profile:
    """The profile called `name`; ValueError names the allowed ones."""
    if name not in PROFILES:
        raise ValueError(f"profile: got {name!r}; allowed: {', '.join(PROFILES)}")
    return PROFILES[name]


def task_names(name: str) -> list[str]:
    """The tasks of a profile, the most important first."""
    return list(profile(name).tasks)


def settings(name: str, task: str, **changes) -> Settings:
    """The settings of `task` in profile `name`, with `changes`; a task outside the profile or an unknown field is an
    error of one line."""
    chosen = profile(name)
    tasks.get(task)
    if task not in chosen.tasks:
        raise ValueError(f"task: got {task!r} for profile {name!r}; allowed: {', '.join(chosen.tasks)}")
    known = {f.name for f in fields(Settings)}
    if unknown := set(changes) - known:
        raise ValueError(f"settings: got {sorted(unknown)}; allowed: {', '.join(sorted(known))}")
    return replace(chosen.base, **(chosen.tasks[task] | changes))


def matched(layer: int, layers: int, depth: int) -> int:
    """Of `depth` layers the one that stands for `layer` of `layers`, from 1: depth layer / layers, halves upwards."""
    return (2 * depth * layer + layers) // (2 * layers)
