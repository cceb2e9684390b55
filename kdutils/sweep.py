"""Runs lists of specs, here or on many boxes, with the store as the only truth.

    python -m kdutils.sweep 02_stark --profile mini --dry-run                 what would run, and for how long
    python -m kdutils.sweep 02_stark 04_peakd --profile mini --task mrpc --seeds 0-4 --workers 2
    python -m kdutils.sweep all --profile mini --claims                       what claims need, headline claims first
    python -m kdutils.sweep 05_knowledge_probes --profile mini --gpus 0,1 --per-gpu 8
    python -m kdutils.sweep 05_knowledge_probes --profile mini --shard 3/16   one of 16 SLURM array tasks
    python -m kdutils.sweep 05_knowledge_probes --profile mini --gpus 0 --pack auto    as many students at once as fit
    RAY_ADDRESS=auto python -m kdutils.sweep 05_knowledge_probes --profile mini --backend ray --per-gpu 8
    accelerate launch --multi_gpu -m kdutils.sweep 01_pilot --profile paper    every run on all GPUs at once

What is in the store is not run again: a sweep that was killed goes on by the same command, and several may run at once.
Several boxes share the folder KDUTILS_RUNS (Ray needs that), or their stores are merged afterwards by copying files.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

from kdutils import experiments, pools, processes, tasks
from kdutils.params import check_glue
from kdutils.records import Record, Spec, Store, look_up, write_atomically
from kdutils.spec import to_json
from kdutils.wanted import chosen, dry_run, in_packs, is_whole

BACKENDS = ("local", "ray")
MOST = 8  # workers that are started without being asked for: each takes a gigabyte


@dataclass
class Swept:
    """What a sweep did: the specs that were in the store, that were run, and that failed."""

    present: list[Spec] = field(default_factory=list)
    done: list[Spec] = field(default_factory=list)
    failed: list[Spec] = field(default_factory=list)


def gpus_here() -> list[str]:
    """The GPUs that a sweep may use: those of CUDA_VISIBLE_DEVICES, else all of this machine."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    try:
        names = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(names.count("(UUID: GPU-"))]


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers_of(text: str, gpus: Sequence[str] | None) -> int:
    """Workers from a number, or from "auto": where there is no GPU one a core, which trains more than one run on all
    cores does, but `MOST` at most. ValueError: neither."""
    if text == "auto":
        return 1 if (gpus_here() if gpus is None else gpus) else min(cores(), MOST)
    if not is_whole(text):
        raise ValueError(f"workers: got {text!r}; allowed: integers from 1, or auto")
    return int(text)


def environments(
    workers: int, gpus: Sequence[str] | None, per_gpu: int, threads: int | None, store: Store
) -> list[dict[str, str]]:
    """The environment of each worker process: its threads, its GPU, and the store.

    There are `workers` of them, or more where the GPUs have room for more; `gpus=None` takes those of this machine and
    `[]` none. Threads: the cores divided by the workers. ValueError: a number below 1, or a GPU that is not here, since
    PyTorch would train on the CPU without a word.
    """
    for name, value in {"workers": workers, "per-gpu": per_gpu, "threads": 1 if threads is None else threads}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}; allowed: integers from 1")
    here = gpus_here() if gpus is None or len(gpus) else []
    found = here if gpus is None else [str(gpu) for gpu in gpus]
    if absent := [gpu for gpu in found if gpu not in here]:
        told = ", ".join(gpu or "''" for gpu in absent)
        raise ValueError(f"gpus: got {told}; allowed: {', '.join(here) or 'none'} (of this machine)")
    count = max(workers, len(found) * per_gpu)
    shared = {"OMP_NUM_THREADS": str(threads or max(1, cores() // count)), "KDUTILS_RUNS": str(store.runs)}
    if not found and gpus is not None:
        shared |= {"CUDA_VISIBLE_DEVICES": ""}
    on_a_gpu = [{"CUDA_VISIBLE_DEVICES": found[i % len(found)]} if found else {} for i in range(count)]
    # on a terminal the steps of each worker's run have a line below the sweep's
    lines = [{processes.LINE: str(i + 1)} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"} for i in range(count)]
    return [shared | gpu | line for gpu, line in zip(on_a_gpu, lines, strict=True)]


def check(backend: str, retries: int, pack: int | str) -> None:
    """ValueError, in one line, for a way to run that there is not."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}; allowed: {', '.join(BACKENDS)}")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValueError(f"retries: got {retries!r}; allowed: integers from 0")
    if processes.several() and (backend, pack) != ("local", 1):
        raise ValueError(f"backend, pack: got {backend!r}, {pack!r} under accelerate launch; allowed: local, 1")
    if backend == "ray" and pack != 1:
        raise ValueError(f"pack: got {pack!r} with backend ray; allowed: 1")
    if backend == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError("backend: got 'ray', which is not installed; allowed: after pip install '.[sweep]'")


def run_sweep(
    specs: Iterable[Spec],
    workers: int = 1,
    gpus: Sequence[str] | None = None,
    per_gpu: int = 1,
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
    check(backend, retries, pack)
    store = store or Store()
    places = environments(workers, gpus, per_gpu, threads, store)
    wanted = list(dict.fromkeys(specs))
    missing = processes.agreed(look_up(wanted, store)[1])
    absent, packs = set(missing), in_packs(missing, pack, len(places))
    check_glue(spec.task for spec in missing)
    if missing:
        store.check_writable()
    swept = Swept(present=[spec for spec in wanted if spec not in absent])
    if processes.several():
        events = pools.together(missing, run, store)
    elif backend == "ray":
        variables = {name: value for name, value in places[0].items() if name != "CUDA_VISIBLE_DEVICES"}
        variables["OMP_NUM_THREADS"] = str(threads or 1)
        events = pools.on_ray(missing, run, store, variables, threads or 1, per_gpu, retries)
    else:
        packed = packed or pools.Packed(experiments.run_pack, experiments.room if pack == "auto" else None)
        events = pools.local(packs, run, store, places[: len(packs)], per_gpu, retries, packed)
    pace = 0.5 if sys.stderr.isatty() else 30  # seconds between lines, which a log file keeps
    bar = tqdm(total=len(missing), desc="sweep", unit="run", smoothing=0, mininterval=pace,
               disable=not (progress and processes.first()))
    planned, done = (Counter(spec.chapter for spec in some) for some in (missing, ()))
    with contextlib.closing(events), bar:
        for event in events:
            bar.write(_note(swept, store, *event), file=sys.stdout)
            chapter, counts = event[0].chapter, event[1] != "retried"
            done[chapter] += counts
            ended = sum(done[name] == runs for name, runs in planned.items())
            of_all = f", {ended}/{len(planned)} chapters" if len(planned) > 1 else ""
            bar.set_postfix_str(f"{chapter} {done[chapter]}/{planned[chapter]}{of_all}", refresh=False)
            bar.update(counts)
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
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER",
                        help=f"all, or some of {', '.join(experiments.CHAPTERS)}")
    parser.add_argument("--list", metavar="FILE", help="specs or records as JSON lines, besides the chapters' plans")
    parser.add_argument("--profile", help="default: mini")
    parser.add_argument("--task", metavar="A,B", help="default: every task of the profile")
    parser.add_argument("--method", metavar="A,B", help="default: all")
    parser.add_argument("--seeds", metavar="0-4,7", help="default: all")
    parser.add_argument("--claims", action="store_true", help="what claims need, headline claims first; else all")
    parser.add_argument("--limit", type=int, metavar="N", help="run the first N of the missing runs only")
    parser.add_argument("--workers", default="1", metavar="N",
                        help="runs at a time, or auto (default: 1, or --per-gpu a GPU)")
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
    if not options.chapters and options.list is None:
        parser.error("give chapters or --list")
    if not processes.first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as this process lives)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # workers must not outlive a sweep that is told to end
    gpus = None if options.gpus is None else [] if options.gpus == "none" else options.gpus.split(",")
    how = {"gpus": gpus, "per_gpu": options.per_gpu, "threads": options.threads}
    pack = int(options.pack) if is_whole(options.pack) else options.pack
    try:
        check(options.backend, options.retries, pack)
        how["workers"] = workers_of(options.workers, gpus)
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
