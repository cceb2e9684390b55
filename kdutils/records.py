"""Runs and their records: what a run is (`Spec`), where its outcome is kept (`Store`), and looking outcomes up.

An outcome, which is what an experiment's `run(spec)` returns, is a dict of

    metrics  {"dev": {"accuracy": ..., "f1": ...}, "test": {...}, "held": {...}}
    best     {"epoch": ..., "dev": {...}}     the best-dev checkpoint, which is the papers' protocol
    losses   {"loss": ..., "kd": ...}         last-epoch mean of every loss term
    curve    [[step, loss], ...]              at most 50 points
    extra    {...}                            anything else that is JSON; its "device" names the device

and a record is that outcome with its spec and provenance: one JSON file `runs/<chapter>/<key>.json`, and once published
one line of `book/records/<chapter>.jsonl`. Nothing here imports torch: a look-up is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from kdutils import processes
from kdutils.spec import Spec, to_json
from kdutils.store import RECIPE, Busy, Record, Store, repository, write_atomically

__all__ = ["Busy", "MissingRuns", "RECIPE", "Record", "Spec", "Store", "TEACHER", "command_for", "ensure", "frame",
           "look_up", "publish", "repository", "run_once", "stale", "status", "write_atomically"]

TEACHER = "extra_teacher_weights"  # the hash of the fine-tuned teacher that a run began with, as `frame` names it
UNPUBLISHED = ("smoke", "demo")  # profiles that guard the code and welcome newcomers: their runs stay out of the book


class MissingRuns(Exception):
    """Nothing asked for is in the store; the message names the one command that makes it. `missing` holds the specs."""

    def __init__(self, missing: list[Spec], command: str):
        super().__init__(f"none of the {len(missing)} runs asked for is in the store; make them with: {command}")
        self.missing, self.command = missing, command


def look_up(specs: Iterable[Spec], store: Store | None = None) -> tuple[list[Record], list[Spec]]:
    """The records of the runs asked for and the specs that have none, each once and in the order asked."""
    store, records, missing = store or Store(), [], []
    for spec in dict.fromkeys(specs):
        record = store.get(spec)
        records.append(record) if record else missing.append(spec)
    return records, missing


def command_for(specs: Iterable[Spec]) -> str:
    """The command that makes these runs."""
    specs = list(specs)
    chapters, profiles, tasks = (
        list(dict.fromkeys(getattr(spec, name) for spec in specs)) for name in ("chapter", "profile", "task")
    )
    return " && ".join(
        f"python -m kdutils.sweep {' '.join(chapters)} --profile {profile} --task {','.join(tasks)}"
        for profile in profiles
    )


def ensure(specs: Iterable[Spec], run: Callable[[Spec], dict]) -> None:
    """Make the records of `specs` that are missing by `run(spec)`, in order and with a progress bar. An exception in a
    run passes on: that run stores nothing, those before it are kept."""
    from tqdm import tqdm

    store = Store()
    missing = look_up(specs, store)[1]
    with tqdm(missing, desc="runs", file=sys.stderr, disable=not missing) as bar:
        for spec in bar:
            run_once(spec, run, store)


def run_once(spec: Spec, run: Callable[[Spec], dict], store: Store) -> Record:
    """The record of one run: made under its lease, for which it waits, unless another process has made it in the
    meantime. Processes that were launched together make it together, and the first has the lease."""
    writes = processes.first()
    with store.lease(spec, wait=True) if writes else contextlib.nullcontext():
        record = processes.agreed(store.get(spec) if writes else None)
        if record is None:
            start = time.perf_counter()
            outcome = run(spec)
            record = processes.agreed(store.put(spec, outcome, time.perf_counter() - start) if writes else None)
    return record


def _flat(value: dict, prefix: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, item in value.items():
        out |= _flat(item, f"{prefix}{name}_") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return out


def frame(records: Iterable[Record]):
    """A pandas DataFrame, one row a record: key, chapter, task, profile, method, seed, the arguments by name, metrics
    as `dev_accuracy`, best-dev ones as `best_dev_f1`, losses as `loss_kd`, extras as `extra_...`, seconds, device. The
    oldest records do not name the teacher that they began with (`TEACHER`): it was their task's first."""
    import pandas

    def row(record):
        spec = record["spec"]
        args = {k: tuple(v) if isinstance(v, list) else v for k, v in _flat(spec["args"], "").items()}
        flat = _flat(record["metrics"], "") | _flat(record["best"], "best_") | _flat(record["losses"], "loss_")
        fixed = {name: spec[name] for name in ("chapter", "task", "profile", "method", "seed")}
        ends = {"seconds": record["seconds"], "device": record["device"]}
        return {"key": record["key"]} | fixed | args | flat | _flat(record["extra"], "extra_") | ends

    records = list(records)
    table = pandas.DataFrame([row(record) for record in records])
    if TEACHER in table:
        age = sorted(range(len(records)), key=lambda i: records[i]["created"])
        first = table.iloc[age].groupby("task")[TEACHER].first()  # that is named
        table[TEACHER] = table[TEACHER].fillna(table["task"].map(first))
    return table


def stale(store: Store | None = None) -> list[Record]:
    """Records of an older recipe that no run of the present one has replaced."""
    store = store or Store()
    return [r for chapter in store.chapters() for r in store.records(chapter, recipe=None) if r["recipe"] < RECIPE]


def publish(chapter: str | None = None, store: Store | None = None) -> dict[str, int]:
    """Write `<published>/<chapter>.jsonl` from both places united, one line a run, sorted by key; returns the counts.

    The bytes depend on the set of records only. Profiles `smoke` and `demo` stay out, and so, with a warning, do
    chapters that do not exist. Raises ValueError, and writes nothing, for such a `chapter` and where a published line
    is no record: it would be lost.
    """
    from kdutils.experiments import CHAPTERS

    store = store or Store()
    if chapter is not None and chapter not in CHAPTERS:
        raise ValueError(f"chapter: got {chapter!r}; allowed: {', '.join(CHAPTERS)}")
    names = [name for name in store.chapters() if name in CHAPTERS] if chapter is None else [chapter]
    if chapter is None and (strays := sorted(set(store.chapters()) - set(names))):
        warnings.warn(f"{', '.join(strays)}: records of no chapter, not published", stacklevel=2)
    if torn := [place for name in names for place in store.torn(name)]:
        raise ValueError(f"{store.published}: got no record in {', '.join(torn)}; allowed: records only "
                         "(publishing would drop these lines: mend or delete them)")
    counts = {}
    for name in names:
        records = [r for r in store.records(name, recipe=None) if r["spec"]["profile"] not in UNPUBLISHED]
        if records:
            write_atomically(store.published / f"{name}.jsonl", "".join(to_json(record) + "\n" for record in records))
        counts[name] = len(records)
    return counts


def status(profile: str | None = None):
    """A pandas DataFrame that counts, by chapter, profile, task and method, the runs present, stale and, where the
    chapter plans them (`profile`, or every profile with a record of the chapter), missing."""
    import pandas

    from kdutils.experiments import CHAPTERS, plan

    store, rows = Store(), []
    for chapter in CHAPTERS:
        records = [r for r in store.records(chapter, recipe=None) if profile in (None, r["spec"]["profile"])]
        rows += [r["spec"] | {"n": r["recipe"] == RECIPE, "stale": r["recipe"] < RECIPE} for r in records]
        profiles = {r["spec"]["profile"] for r in records} if profile is None else {profile}
        for name in sorted(profiles):
            rows += [asdict(spec) | {"missing": True} for spec in look_up(plan(chapter, name), store)[1]]
    groups, counts = ["chapter", "profile", "task", "method"], ["n", "stale", "missing"]
    table = pandas.DataFrame(rows, columns=groups + counts)
    table[counts] = table[counts].astype("boolean").fillna(False).astype(int)
    return table.groupby(groups, as_index=False)[counts].sum()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kdutils.records", description="The runs' records.")
    commands = parser.add_subparsers(dest="command", required=True)
    publishing = commands.add_parser("publish", help="write book/records/<chapter>.jsonl from the working store")
    publishing.add_argument("--chapter", help="only this chapter")
    counting = commands.add_parser("status", help="runs present, stale and missing")
    counting.add_argument("--profile", help="only this profile, planned runs included")
    options = parser.parse_args(argv)
    try:
        if options.command == "publish":
            for chapter, count in publish(options.chapter).items():
                print(f"{chapter}: {count} runs")
        else:
            table = status(options.profile)
            print(table.to_string(index=False) if len(table) else "no runs")
        if old := stale():
            print(f"{len(old)} stale (recipe below {RECIPE}): {' '.join(record['key'] for record in old[:20])}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from kdutils.records import main as imported_main  # so that Spec is the class that the experiments know

    sys.exit(imported_main())
