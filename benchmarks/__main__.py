"""Measure what the book's runs cost, print it, and keep it in book/benchmarks.jsonl, from which the page Cost is made.

    python -m benchmarks                            all parts but the last three, three to five minutes on two cores
    python -m benchmarks --only training profile    these parts
    python -m benchmarks --only training --full     whole epochs of the slow loops too
    python -m benchmarks --only paper               profile paper on a BERT-base of random weights: 3 to 4 minutes
    python -m benchmarks --only quality             both loops' students, five seeds each: hours on a CPU

A machine that is doing other things measures those too: each record holds the load it began under.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
from datetime import UTC, datetime

from kdutils import profiles
from kdutils.records import repository, write_atomically
from kdutils.spec import to_json

DISTILLED, PACKED = (1, 2), (1, 3, 6)  # layers kept: of the timed epoch's student, of the packs'
PARTS = ("training", "profile", "scoring", "replicas", "sweep", "pages", "levers", "paper", "quality")


def measure(part: str, options: argparse.Namespace, load) -> tuple[list[dict], str]:
    """The part's rows and the task that they are of, if any."""
    # here, so that a sweep's workers start as quickly as ever
    from benchmarks import levers, overheads, packs, paper, training

    if part in ("sweep", "pages"):
        return getattr(overheads, part)(), ""
    if part == "paper":
        return paper.measure(), paper.TASK
    work = load("rte", PACKED) if part == "replicas" else load(options.task, DISTILLED)
    rows = {
        "training": lambda: training.speed(work, work.steps if options.full else options.steps),
        "profile": lambda: training.profile(work),
        "scoring": lambda: training.scoring(work),
        "levers": lambda: levers.levers(work, options.steps),
        "replicas": lambda: packs.compare(work, options.steps, options.replicas),
        "quality": lambda: training.quality(work, options.seeds, options.epochs or work.settings.epochs),
    }[part]()
    return rows, work.data.task.name


def record_of(part: str, task: str, rows: list[dict], load: float) -> dict:
    """What is kept of a part: its rows, and where and when they were measured."""
    import torch

    from kdutils import bert, distil, provenance

    commit, device = provenance.commit(), provenance.device()
    return {
        "part": part, "task": task, "device": device + told_otherwise(device),
        "threads": torch.get_num_threads(), "rows": rows, "gpu": torch.cuda.is_available(),
        "dtype": str(bert.compute_dtype("auto", distil.best_device())).removeprefix("torch."), "load": load,
        "versions": provenance.versions(), "commit": commit[0], "dirty": commit[1],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def told_otherwise(device: str) -> str:
    """What a device's name needs besides where MKL took an AMD processor for one of Intel's (book/reproduce.md says
    how), on which alone it uses its kernels for AVX-512: float32 is then twice as fast."""
    if "AMD" not in device:
        return ""
    asked = [sys.executable, "-c", "import torch; torch.ones(64, 64) @ torch.ones(64, 64)"]
    told = subprocess.run(asked, env=os.environ | {"MKL_VERBOSE": "1"}, capture_output=True, text=True).stdout
    return " with Intel's MKL kernels" if "AVX-512" in told else ""


def keep(record: dict) -> None:
    """Write a part's record in the place of the one that the same device, number of threads and dtype left."""
    path = repository() / "book" / "benchmarks.jsonl"

    def place(r):
        return r["part"], r["device"], r["threads"], r["dtype"]

    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kept = [old for old in records if place(old) != place(record)]
    write_atomically(path, "".join(to_json(r) + "\n" for r in sorted([*kept, record], key=place)))


def check(options: argparse.Namespace) -> None:
    """ValueError, in one line, for an option that no part can use."""
    for name in ("steps", "replicas", "seeds", "epochs"):
        if (value := getattr(options, name)) is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}; allowed: numbers above 0")
    if options.task not in (names := profiles.task_names("mini")):
        raise ValueError(f"task: got {options.task!r}; allowed: {', '.join(names)}")


def main(argv: list[str] | None = None) -> int:
    """The command line; 0, or 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", default=PARTS[:-3], help=", ".join(PARTS))
    parser.add_argument("--task", default="mrpc", help="whose epoch is timed (default: mrpc)")
    parser.add_argument("--steps", type=int, default=16, help="timed steps of a slow loop (default: 16)")
    parser.add_argument("--full", action="store_true", help="time whole epochs")
    parser.add_argument("--replicas", type=int, help="students at once (default: 200 on a GPU, 4 on a CPU)")
    parser.add_argument("--seeds", type=int, default=5, help="of the quality part (default: 5)")
    parser.add_argument("--epochs", type=float, help="of the quality part (default: the task's)")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(argv)
    try:
        check(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    from pandas import DataFrame

    from benchmarks import workload
    from kdutils.pages import cost

    load, made = functools.cache(workload.load), []
    for part in options.only:
        busy = os.getloadavg()[0]
        rows, task = measure(part, options, load)
        table = DataFrame(rows).to_string(index=False, float_format="%.4g", na_rep="")
        print(f"\n{part} {task} (load {busy:.1f})\n{table}", flush=True)
        made.append(record_of(part, task, rows, busy))
        if not options.no_record:
            keep(made[-1])
    told = cost.targets(made).dropna(subset="measured")
    print(f"\nratios asked for\n{told.to_string(index=False, float_format='%.3g')}" if len(told) else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
