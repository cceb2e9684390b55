"""What a sweep is asked for: the specs that a command line names, and how long those that are missing would take."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from kdutils import experiments, profiles
from kdutils.params import check_glue
from kdutils.records import Spec, Store, look_up

GROUP = ("chapter", "profile", "task", "method")  # a line of the dry run
MOST = 10_000  # seeds that a text may name: no plan has as many
FEW = 5  # unknown values that a message names
POSITIVE = ("depth", "max_length", "batch_size", "teacher_lr", "teacher_epochs", "lr", "epochs")  # settings above 0
SIMILAR = (  # runs to estimate from; methods differ more than tasks do: a mask takes seconds, KSM many trainings
    GROUP, ("chapter", "profile", "method"), ("chapter", "profile", "task"), ("chapter", "profile"), ("profile",),
)


def is_whole(text: str) -> bool:
    """Whether a text is a whole number in the digits 0 to 9, which `int` and `str.isdigit` take others beside, and has
    no more of them than any number that is meant."""
    return text.isascii() and text.isdecimal() and len(text) <= 18


def shard_of(specs: Iterable[Spec], shard: str | None) -> list[Spec]:
    """The specs of shard "i/n", i from 0: a partition by key, the same on every machine and for every order."""
    if shard is None:
        return list(specs)
    index, _, count = shard.partition("/")
    if not (is_whole(index) and is_whole(count) and int(index) < int(count)):
        raise ValueError(f"shard: got {shard!r}; allowed: i/n with i from 0 to n - 1")
    return [spec for spec in specs if int(spec.key, 16) % int(count) == int(index)]


def seeds_of(text: str) -> set[int]:
    """The seeds that a text such as "0-4,7" names; ValueError: it is no such text, or names more than `MOST`."""
    seeds = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not is_whole(first) or (dash and not (is_whole(last) and int(first) <= int(last))):
            raise ValueError(f"seeds: got {text!r}; allowed: numbers and ranges such as 0-4,7")
        some = range(int(first), int(last or first) + 1)
        if len(seeds) + len(some) > MOST:
            raise ValueError(f"seeds: got {text!r}; allowed: at most {MOST} seeds")
        seeds |= set(some)
    return seeds


def listed(path: str) -> list[Spec]:
    """The specs in a file of JSON lines, each a spec or a record; blank lines are left out."""
    specs = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", error)
        raise ValueError(f"list: got {path!r}; allowed: a file of specs ({why})") from None
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                value = json.loads(line)
                specs.append(_checked(Spec(**value.get("spec", value))))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"list: got line {number} of {path}; allowed: a spec or record ({error})") from None
    return specs


def _checked(spec: Spec) -> Spec:
    """The spec; ValueError where this code has no such chapter, profile or task, or a setting is of another type than
    its default or one that nothing can be trained with."""
    if spec.chapter not in experiments.CHAPTERS:
        raise ValueError(f"chapter: got {spec.chapter!r}; allowed: {', '.join(experiments.CHAPTERS)}")
    defaults = profiles.settings(spec.profile, spec.task)
    for name, value in spec.settings.items():
        kind = float if name == "epochs" else type(getattr(defaults, name))  # some methods plan half an epoch
        allowed = {float: (int, float), tuple: list}.get(kind, kind)
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ValueError(f"{name}: got {value!r}; allowed: {kind.__name__}")
    told = profiles.Settings(**spec.settings)
    within = all(type(layer) is int and 1 <= layer <= told.depth for layer in told.layers)
    rules = {name: (getattr(told, name) > 0, "numbers above 0") for name in POSITIVE} | {
        "rows": (told.rows >= 0, "integers from 0"),
        "held": (0 < told.held < 1, "numbers between 0 and 1"),
        "precision": (told.precision in ("fp32", "bf16", "auto"), "fp32, bf16, auto"),
        # a teacher's layers, which it does not read, are the default whatever its depth
        "layers": (spec.method == "finetune" or told.layers and within, f"integers from 1 to {told.depth}"),
    }
    for name, (right, allowed) in rules.items():
        if not right:
            raise ValueError(f"{name}: got {getattr(told, name)!r}; allowed: {allowed}")
    return spec


def chosen(options: argparse.Namespace) -> list[Spec]:
    """The specs that a command line asks for, in order of priority."""
    for name in ("profile", "task"):
        if not options.chapters and (told := getattr(options, name)) is not None:
            raise ValueError(f"{name}: got {told!r} with a list alone, whose specs say theirs; allowed: with chapters")
    specs = [] if options.list is None else listed(options.list)
    profile = "mini" if options.profile is None else options.profile
    for chapter in experiments.CHAPTERS if options.chapters == ["all"] else options.chapters:
        for task in [None] if options.task is None else options.task.split(","):
            specs += experiments.plan(chapter, profile, task)
    if options.method is not None:
        specs = _only("method", set(options.method.split(",")), specs)
    if options.seeds is not None:
        specs = _only("seeds", seeds_of(options.seeds), specs)
    if options.claims:
        from kdutils import verdicts

        specs = verdicts.serving(dict.fromkeys(specs))
    return shard_of(dict.fromkeys(specs), options.shard)


def _only(option: str, values: set, specs: list[Spec]) -> list[Spec]:
    """The specs whose method or seed is one of `values`, each of which one must have."""
    found = [getattr(spec, option.removesuffix("s")) for spec in specs]
    if unknown := values - set(found):
        more = f" and {len(unknown) - FEW} more" if len(unknown) > FEW else ""
        raise ValueError(f"{option}: got {_commas(sorted(unknown)[:FEW])}{more}; allowed: {_commas(set(found))}")
    return [spec for spec, value in zip(specs, found, strict=True) if value in values]


def _commas(values: Iterable) -> str:
    return ", ".join(str(value) or "''" for value in sorted(values))


def estimates(specs: Sequence[Spec], store: Store) -> list[tuple[float | None, tuple[str, ...]]]:
    """For each spec the median seconds of the stored runs most like it and what those share with it; None and () where
    there is nothing to go by."""
    seconds = defaultdict(list)
    for chapter in store.chapters():
        for record in store.records(chapter):
            for names in SIMILAR:
                seconds[names, tuple(record["spec"][name] for name in names)].append(record["seconds"])

    def estimate(spec):
        for names in SIMILAR:
            if found := seconds.get((names, tuple(getattr(spec, name) for name in names))):
                return median(found), names
        return None, ()

    return [estimate(spec) for spec in specs]


def in_packs(specs: Iterable[Spec], pack: int | str = 1, slots: int = 1) -> list[list[Spec]]:
    """`specs` in lists that are trained at once: at most `pack` runs each or, where it is "auto", the groups of
    `experiments.packs` shared out to `slots` workers, each of which trains as many at once as fit."""
    if pack != "auto" and (isinstance(pack, bool) or not isinstance(pack, int) or pack < 1):
        raise ValueError(f"pack: got {pack!r}; allowed: integers from 1, or auto")
    if pack == 1:
        return [[spec] for spec in specs]
    made = []
    for group in experiments.packs(specs):
        size = -(-len(group) // slots) if pack == "auto" else pack
        made += [group[i : i + size] for i in range(0, len(group), size)]
    return made


def dry_run(specs: Sequence[Spec], store: Store, slots: int = 1, pack: int | str = 1) -> str:
    """A table of what is in the store and what would run, with the hours that it would take in `slots` workers, and
    how many packs."""
    import pandas

    present, missing = look_up(specs, store)
    check_glue(spec.task for spec in missing)
    rows = [record["spec"] | {"in store": 1} for record in present]
    for spec, (seconds, names) in zip(missing, estimates(missing, store), strict=True):
        hours = None if seconds is None else seconds / 3600
        rows.append(asdict(spec) | {"to run": 1, "hours": hours, "as": ", ".join(names) or "unknown"})
    if not rows:
        return "nothing planned"
    table = pandas.DataFrame(rows, columns=[*GROUP, "to run", "in store", "hours", "as"])
    columns = {"to run": "sum", "in store": "sum", "hours": "sum", "as": "first"}
    lines = table.groupby(list(GROUP), as_index=False, sort=False).agg(columns).rename(columns={"as": "timed as same"})
    lines = lines.astype({"to run": int, "in store": int}).fillna({"timed as same": "-"})
    known, unknown = table["hours"].sum() / slots, (table["as"] == "unknown").sum()
    total = f"{len(missing)} to run, {len(present)} in the store; about {known:.2f} hours with {slots} at a time"
    if unknown:
        total += f", and {unknown} runs with no similar record to time them by"
    sizes = [len(some) for some in in_packs(missing, pack, slots) if len(some) > 1]
    if pack != 1:
        more = ", or more where fewer fit" if pack == "auto" and sizes else ""
        total += f"\npacks: {len(sizes)} of at most {max(sizes, default=0)}, for {sum(sizes)} of the runs{more}"
    return f"{lines.to_string(index=False, float_format='%.2f')}\n{total}"
