"""What a sweep is asked for: the specs that a command line names, and how long those that are missing would take."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from kdutils import experiments
from kdutils.records import Spec, Store, look_up

GROUP = ("chapter", "profile", "task", "method")  # a line of the dry run
SIMILAR = (GROUP, ("chapter", "profile", "task"), ("profile", "task"), ("profile",))  # runs to estimate from


def shard_of(specs: Iterable[Spec], shard: str | None) -> list[Spec]:
    """The specs of shard "i/n", i from 0: a partition by key, the same on every machine and for every order."""
    if shard is None:
        return list(specs)
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ValueError(f"shard: got {shard!r}; allowed: i/n with i from 0 to n - 1")
    return [spec for spec in specs if int(spec.key, 16) % int(count) == int(index)]


def seeds_of(text: str) -> set[int]:
    """The seeds that a text such as "0-4,7" names."""
    seeds = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not (last.isdigit() and int(first) <= int(last))):
            raise ValueError(f"seeds: got {text!r}; allowed: numbers and ranges such as 0-4,7")
        seeds |= set(range(int(first), int(last or first) + 1))
    return seeds


def listed(path: str) -> list[Spec]:
    """The specs in a file of JSON lines, each a spec or a record."""
    specs = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"list: got {path!r}; allowed: a file of specs ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            specs.append(Spec(**value.get("spec", value)))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"list: got line {number} of {path}; allowed: a spec or record ({error})") from None
    return specs


def chosen(options: argparse.Namespace) -> list[Spec]:
    """The specs that a command line asks for, in order of priority."""
    specs = listed(options.list) if options.list else []
    for chapter in experiments.CHAPTERS if options.chapters == ["all"] else options.chapters:
        for task in options.task.split(",") if options.task else [None]:
            specs += experiments.plan(chapter, options.profile, task)
    wanted = {"method": options.method and set(options.method.split(",")),
              "seed": options.seeds and seeds_of(options.seeds)}  # fmt: skip
    for name, values in wanted.items():
        planned = {getattr(spec, name) for spec in specs}
        if values and (unknown := values - planned):
            raise ValueError(f"{name}: got {_commas(unknown)}; allowed: {_commas(planned)}")
        specs = [spec for spec in specs if not values or getattr(spec, name) in values]
    return shard_of(dict.fromkeys(specs), options.shard)


def _commas(values: Iterable) -> str:
    return ", ".join(map(str, sorted(values)))


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
