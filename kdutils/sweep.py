"""Runs lists of specs, here or on many boxes, with the store as the only truth.

    python -m kdutils.sweep 02_stark --profile mini --dry-run                 what would run, and for how long
    python -m kdutils.sweep 02_stark 04_peakd --profile mini --task mrpc --seeds 0-4 --workers 2
    python -m kdutils.sweep 05_knowledge_probes --profile mini --gpus 0,1 --per-gpu 8
    python -m kdutils.sweep 05_knowledge_probes --profile mini --shard 3/16   one of 16 SLURM array tasks
    python -m kdutils.sweep 05_knowledge_probes --profile mini --gpus 0 --pack auto    as many students at once as fit
    RAY_ADDRESS=auto python -m kdutils.sweep 05_knowledge_probes --profile mini --backend ray --per-gpu 8

What is in the store is not run again: a sweep that was killed goes on by the same command, and several may run at once.
Several boxes share the folder KDUTILS_RUNS (Ray needs that), or their stores are merged afterwards by copying files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from tqdm import tqdm

from kdutils import experiments, pools, tasks
from kdutils.records import Record, Spec, Store, look_up, write_atomically
from kdutils.spec import to_json

BACKENDS = ("local", "ray")
GROUP = ("chapter", "profile", "task", "method")  # a line of the dry run
SIMILAR = (GROUP, ("chapter", "profile", "task"), ("profile", "task"), ("profile",))  # runs to estimate from


@dataclass
class Swept:
    """What a sweep did: the specs that were in the store, that were run, and that failed."""

    present: list[Spec] = field(default_factory=list)
    done: list[Spec] = field(default_factory=list)
    failed: list[Spec] = field(default_factory=list)


# Choosing ------------------------------------------------------------------------------------------------------------


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
    for chapter in options.chapters:
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


# Estimating ----------------------------------------------------------------------------------------------------------


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


# Running -------------------------------------------------------------------------------------------------------------


def gpus_here() -> list[str]:
    """The GPUs that a sweep may use: those of CUDA_VISIBLE_DEVICES, else all of this machine."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    try:
        names = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(names.count("(UUID: GPU-"))]


def environments(
    workers: int, gpus: Sequence[str] | None, per_gpu: int, threads: int | None, store: Store
) -> list[dict[str, str]]:
    """The environment of each worker process: its threads, its GPU, and the store.

    There are `workers` of them, or more where the GPUs have room for more; `gpus=None` takes those of this machine and
    `[]` none. Threads: the cores divided by the workers. ValueError: a number below 1, or a GPU that is not here, since
    PyTorch would train on the CPU without a word.
    """
    for name, value in {"workers": workers, "per_gpu": per_gpu, "threads": 1 if threads is None else threads}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}; allowed: integers from 1")
    here = gpus_here() if gpus is None or len(gpus) else []
    found = here if gpus is None else [str(gpu) for gpu in gpus]
    if absent := [gpu for gpu in found if gpu not in here]:
        raise ValueError(f"gpus: got {', '.join(absent)}; allowed: {', '.join(here) or 'none'} (of this machine)")
    count = max(workers, len(found) * per_gpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = {"OMP_NUM_THREADS": str(threads or max(1, cores // count)), "KDUTILS_RUNS": str(store.runs),
              "TQDM_DISABLE": "1"}  # the sweep has the one progress line  # fmt: skip
    if not found:
        return [shared | ({} if gpus is None else {"CUDA_VISIBLE_DEVICES": ""})] * count
    return [shared | {"CUDA_VISIBLE_DEVICES": found[i % len(found)]} for i in range(count)]


def run_sweep(
    specs: Iterable[Spec],
    workers: int = 1,
    gpus: Sequence[str] | None = None,
    per_gpu: int = 1,
    shard: str | None = None,
    backend: str = "local",
    retries: int = 2,
    threads: int | None = None,
    pack: int | str = 1,
    *,
    run: pools.Run = experiments.run,
    packed: pools.Packed | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> Swept:
    """Run what the store lacks of `specs`, and go on past failures, whose tracebacks go to `runs/failures/<key>.txt`.

    A run whose worker is killed is tried again up to `retries` times. Runs that can be trained at once are, `pack` of
    them or as many as fit ("auto"). `run`, and `packed`, must be importable where workers run.
    Raises ValueError, in one line, before any work, for a bad argument.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}; allowed: {', '.join(BACKENDS)}")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValueError(f"retries: got {retries!r}; allowed: integers from 0")
    if backend == "ray" and pack != 1:
        raise ValueError(f"pack: got {pack!r} with backend ray; allowed: 1")
    store = store or Store()
    places = environments(workers, gpus, per_gpu, threads, store)
    wanted = shard_of(dict.fromkeys(specs), shard)
    missing = look_up(wanted, store)[1]
    absent, packs = set(missing), in_packs(missing, pack, len(places))
    swept = Swept(present=[spec for spec in wanted if spec not in absent])
    if backend == "ray":
        variables = {name: value for name, value in places[0].items() if name != "CUDA_VISIBLE_DEVICES"}
        variables["OMP_NUM_THREADS"] = str(threads or 1)
        events = pools.on_ray(missing, run, store, variables, threads or 1, per_gpu, retries)
    else:
        packed = packed or pools.Packed(experiments.run_pack, experiments.room if pack == "auto" else None)
        events = pools.local(packs, run, store, places[: len(packs)], per_gpu, retries, packed)
    pace = 0.5 if sys.stderr.isatty() else 30  # seconds between lines, which a log file keeps
    bar = tqdm(total=len(missing), desc="sweep", unit="run", smoothing=0, mininterval=pace, disable=not progress)
    with contextlib.closing(events), bar:
        for event in events:
            bar.write(_note(swept, store, *event), file=sys.stdout)
            bar.update(event[1] != "retried")
    return swept


def _note(swept: Swept, store: Store, spec: Spec, status: str, text: str) -> str:
    """Take an event in; returns its line."""
    if status == "retried":
        return f"again: {spec}: {text}"
    report = store.runs / "failures" / f"{spec.key}.txt"
    record = store.get(spec) if status == "done" else None
    if record is None:
        text = text or "stored out of sight of this machine; KDUTILS_RUNS must be a folder that all machines share"
        write_atomically(report, f"{spec}\n{to_json(asdict(spec))}\n\n{text.strip()}\n")
        swept.failed.append(spec)
        return f"failed: {spec}: {text.strip().splitlines()[-1]} (failures/{report.name})"
    report.unlink(missing_ok=True)
    swept.done.append(spec)
    return _line(spec, record)


def _line(spec: Spec, record: Record) -> str:
    metric = tasks.get(spec.task).verdict_metric
    values = {split: record["metrics"].get(split, {}).get(metric) for split in ("test", "dev", "held")}
    shown = ", ".join(f"{split} {metric} {value:.4f}" for split, value in values.items() if value is not None)
    name = str(spec).removeprefix(f"{spec.chapter} {spec.profile} ")
    return f"{name}: {shown or 'no ' + metric}, {record['seconds']:.1f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kdutils.sweep", description="Run what the store lacks.")
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help=", ".join(experiments.CHAPTERS))
    parser.add_argument("--list", metavar="FILE", help="specs or records as JSON lines, besides the chapters' plans")
    parser.add_argument("--profile", default="mini", help="default: mini")
    parser.add_argument("--task", metavar="A,B", help="default: every task of the profile")
    parser.add_argument("--method", metavar="A,B", help="default: all")
    parser.add_argument("--seeds", metavar="0-4,7", help="default: all")
    parser.add_argument("--limit", type=int, metavar="N", help="run the first N of the missing runs only")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time (default: 1, or --per-gpu a GPU)")
    parser.add_argument("--threads", type=int, help="of a run; default: cores / workers")
    parser.add_argument("--gpus", metavar="0,1", help="GPUs to use, 'none' for none; default: all")
    parser.add_argument("--per-gpu", type=int, default=1, help="runs at a time on a GPU (default: 1)")
    parser.add_argument("--pack", default="1", metavar="R", help="runs trained as one where that can be; or auto")
    parser.add_argument("--shard", metavar="I/N", help="one of N parts, I from 0")
    parser.add_argument("--backend", choices=BACKENDS, default="local")
    parser.add_argument("--retries", type=int, default=2, help="of a run whose worker was killed (default: 2)")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and the estimated hours")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; 0, or 1 where a run failed, 2 for bad arguments, 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.chapters and not options.list:
        parser.error("give chapters or --list")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # workers must not outlive a sweep that is told to end
    gpus = None if options.gpus is None else [] if options.gpus == "none" else options.gpus.split(",")
    how = {"workers": options.workers, "gpus": gpus, "per_gpu": options.per_gpu, "threads": options.threads}
    pack = int(options.pack) if options.pack.isdigit() else options.pack
    try:
        store, specs = Store(), chosen(options)
        if options.limit is not None:
            if options.limit < 1:
                raise ValueError(f"limit: got {options.limit}; allowed: integers from 1")
            specs = look_up(specs, store)[1][: options.limit]
        if options.dry_run:
            print(dry_run(specs, store, len(environments(store=store, **how)), pack))
            return 0
        swept = run_sweep(specs, pack=pack, backend=options.backend, retries=options.retries, store=store, **how)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished runs are in the store; the same command goes on", file=sys.stderr)
        return 130
    print(f"{len(swept.done)} run, {len(swept.present)} in the store before, {len(swept.failed)} failed")
    return 1 if swept.failed else 0


if __name__ == "__main__":
    from kdutils.sweep import main as imported_main  # so that workers find what it sends them by its name

    sys.exit(imported_main())
