"""Runs and their records: what a run is (`Spec`), where its outcome is kept (`Store`), and looking outcomes up.

An outcome, which is what an experiment's `run(spec)` returns, is a dict of

    metrics  {"dev": {"accuracy": ..., "f1": ...}, "test": {...}, "held": {...}}
    best     {"epoch": ..., "dev": {...}}     the best-dev checkpoint, which is the papers' protocol
    losses   {"total": ..., "kd": ...}        last-epoch mean of every loss term
    curve    [[step, loss], ...]              at most 50 points
    extra    {...}                            anything else that is JSON; its "device" names the device

and a record is that outcome with its spec and provenance: one JSON file `runs/<chapter>/<key>.json`, and once published
one line of `book/records/<chapter>.jsonl`. Nothing here imports torch: a look-up is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdutils import provenance
from kdutils.spec import Spec, key_of, plain, to_json

Record = dict[str, Any]

SCHEMA = 1
RECIPE = 1  # raised only when the golden smoke curve changes; records of an older recipe are stale
CURVE_POINTS = 50
UNPUBLISHED = ("smoke", "demo")  # profiles that guard the code and welcome newcomers: their runs stay out of the book
_OUTCOME = {"metrics": {}, "best": {}, "losses": {}, "curve": [], "extra": {}}


class MissingRuns(Exception):
    """Nothing asked for is in the store; the message names the one command that makes it. `missing` holds the specs."""

    def __init__(self, missing: list[Spec], command: str):
        super().__init__(f"none of the {len(missing)} runs asked for is in the store; make them with: {command}")
        self.missing, self.command = missing, command


class Busy(Exception):
    """Another live process holds the lease of this run."""


def repository() -> Path:
    """The book's folder: the working folder or the nearest one above it that holds _toc.yml, else that of the code."""
    cwd = Path.cwd()
    for folder in (cwd, *cwd.parents, Path(__file__).resolve().parents[1]):
        if (folder / "_toc.yml").exists():
            return folder
    return cwd


def write_atomically(path: Path, text: str) -> None:
    """Write so that a reader, and a machine that loses power, sees the whole file or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _parse(text: str, name: str, key: str | None = None) -> Record | None:
    """The record in `text`; None, with a warning that names the place, where it is torn or foreign."""
    try:
        record = json.loads(text)
        whole = record["schema"] == SCHEMA and isinstance(record["recipe"], int) and set(_OUTCOME) <= set(record)
        if not whole or record["key"] != key_of(record["spec"]) or key not in (None, record["key"]):
            raise ValueError
        return record
    except (ValueError, KeyError, TypeError, AttributeError):
        warnings.warn(f"{name} is torn or foreign: not read as a record", stacklevel=2)
        return None

_published: dict[Path, tuple[tuple[int, int], dict[str, Record]]] = {}


def _read_published(path: Path) -> dict[str, Record]:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return {}
    stamp = (stat.st_mtime_ns, stat.st_size)
    if path not in _published or _published[path][0] != stamp:
        lines = enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        records = (_parse(line, f"{path.name}:{number}") for number, line in lines if line.strip())
        _published[path] = stamp, {record["key"]: record for record in records if record}
    return _published[path][1]


def _prefer(a: Record, b: Record) -> Record:
    """Which of two records of one run is kept, whatever the order they are met in: the newer recipe, then the elder."""
    return min(a, b, key=lambda record: (-record["recipe"], record["created"], to_json(record)))


class Store:
    """Records in two places: `runs`, the working store, and `published`, the committed one.

    Relative folders are taken from `repository()`; the environment's KDUTILS_RUNS stands in for the default `runs`.
    Several processes and machines may write; merging two stores is copying files.
    """

    def __init__(self, runs: str | Path | None = None, published: str | Path = "book/records"):
        root = repository()
        self.runs = root / (runs or os.environ.get("KDUTILS_RUNS") or "runs")
        self.published = root / published

    def path(self, spec: Spec) -> Path:
        return self.runs / spec.chapter / f"{spec.key}.json"

    def model_path(self, spec: Spec) -> Path:
        """Where the weights of a run that others build on are kept; its folder exists."""
        path = self.runs / "models" / f"{spec.key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def get(self, spec: Spec) -> Record | None:
        """The run's record, from the working store or else the published one; None where there is none of this recipe.

        The record may be shared with other callers: do not change it.
        """
        path = self.path(spec)
        try:
            record = _parse(path.read_text(encoding="utf-8", errors="replace"), f"{spec.chapter}/{path.name}", spec.key)
        except FileNotFoundError:
            record = None
        if record is None or record["recipe"] != RECIPE:
            record = _read_published(self.published / f"{spec.chapter}.jsonl").get(spec.key)
        return record if record is not None and record["recipe"] == RECIPE else None

    def put(self, spec: Spec, outcome: dict, seconds: float) -> Record:
        """Store the outcome of a run that took `seconds`; returns the record. ValueError, and nothing stored, where the
        outcome has an unknown part, a value that is not JSON, or a NaN."""
        if unknown := sorted(set(outcome) - set(_OUTCOME)):
            raise ValueError(f"outcome: got {unknown}; allowed: {', '.join(_OUTCOME)}")
        parts = {name: plain(outcome.get(name, empty), name) for name, empty in _OUTCOME.items()}
        if len(parts["curve"]) > CURVE_POINTS:
            raise ValueError(f"curve: got {len(parts['curve'])} points; allowed: at most {CURVE_POINTS}")
        commit, dirty = provenance.commit()
        record = {
            "schema": SCHEMA, "key": spec.key, "recipe": RECIPE, "spec": asdict(spec), **parts,
            "seconds": plain(seconds, "seconds"), "device": parts["extra"].get("device") or provenance.device(),
            "versions": provenance.versions(), "commit": commit, "dirty": dirty,
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        }  # fmt: skip
        write_atomically(self.path(spec), to_json(record) + "\n")
        return record

    @contextmanager
    def lease(self, spec: Spec, wait: bool = False) -> Iterator[None]:
        """Hold the run, so that no other process trains it; the lock dies with its process. Raises Busy where another
        one holds it and not `wait`."""
        from filelock import FileLock, Timeout

        path = self.runs / "leases" / f"{spec.key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            raise Busy(f"{spec} is being run by another process") from None
        try:
            yield
        finally:
            lock.release()

    def chapters(self) -> list[str]:
        """Every chapter with records in either place."""
        names = {path.parent.name for path in self.runs.glob("*/*.json") if _is_key(path.stem)}
        return sorted(names | {path.stem for path in self.published.glob("*.jsonl")})

    def records(self, chapter: str, recipe: int | None = RECIPE) -> list[Record]:
        """One record a run of a chapter, both places united, sorted by key; `recipe=None` takes stale ones too."""
        found = dict(_read_published(self.published / f"{chapter}.jsonl"))
        for path in self.runs.glob(f"{chapter}/*.json"):
            name = f"{chapter}/{path.name}"
            record = _parse(path.read_text(encoding="utf-8", errors="replace"), name, path.stem)
            if record and record["spec"]["chapter"] == chapter:
                found[path.stem] = _prefer(record, found[path.stem]) if path.stem in found else record
        return [found[key] for key in sorted(found) if recipe in (None, found[key]["recipe"])]


def _is_key(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{16}", name) is not None


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


def ensure(
    specs: Iterable[Spec],
    run: Callable[[Spec], dict],
    train: bool = False,
    store: Store | None = None,
    progress: bool = True,
    command: str | None = None,
) -> list[Record]:
    """Records of `specs`: looked up and, with `train`, made by `run(spec)` where they are missing, in order.

    Without `train`, says how many are missing and the command that makes them; MissingRuns where there is none at all.
    An exception in a run passes on: that run stores nothing, those before it are kept.
    """
    specs, store = list(dict.fromkeys(specs)), store or Store()
    records, missing = look_up(specs, store)
    if not missing:
        return records
    if not train:
        command = command or command_for(missing)
        if not records:
            raise MissingRuns(missing, command)
        print(f"{len(missing)} of {len(specs)} runs are missing; make them with: {command}")
        return records
    from tqdm import tqdm

    with tqdm(missing, desc="runs", file=sys.stderr, disable=not progress) as bar:
        for spec in bar:
            run_once(spec, run, store, wait=True)
    return look_up(specs, store)[0]


def run_once(spec: Spec, run: Callable[[Spec], dict], store: Store, wait: bool = False) -> Record:
    """The record of one run: made under its lease, unless another process has made it in the meantime. Raises Busy."""
    with store.lease(spec, wait=wait):
        record = store.get(spec)
        if record is None:
            start = time.perf_counter()
            outcome = run(spec)
            record = store.put(spec, outcome, time.perf_counter() - start)
    return record


def _flat(value: dict, prefix: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, item in value.items():
        out |= _flat(item, f"{prefix}{name}_") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return out


def frame(records: Iterable[Record]):
    """A pandas DataFrame, one row a record: key, chapter, task, profile, method, seed, the arguments by name, metrics
    as `dev_accuracy`, best-dev ones as `best_dev_f1`, losses as `loss_kd`, extras as `extra_...`, seconds, device."""
    import pandas

    def row(record):
        spec = record["spec"]
        args = {k: tuple(v) if isinstance(v, list) else v for k, v in _flat(spec["args"], "").items()}
        flat = _flat(record["metrics"], "") | _flat(record["best"], "best_") | _flat(record["losses"], "loss_")
        fixed = {name: spec[name] for name in ("chapter", "task", "profile", "method", "seed")}
        ends = {"seconds": record["seconds"], "device": record["device"]}
        return {"key": record["key"]} | fixed | args | flat | _flat(record["extra"], "extra_") | ends

    return pandas.DataFrame([row(record) for record in records])


def stale(store: Store | None = None) -> list[Record]:
    """Records of an older recipe that no run of the present one has replaced."""
    store = store or Store()
    return [r for chapter in store.chapters() for r in store.records(chapter, recipe=None) if r["recipe"] != RECIPE]


def publish(chapter: str | None = None, store: Store | None = None) -> dict[str, int]:
    """Write `<published>/<chapter>.jsonl` from both places united, one line a run, sorted by key; returns the counts.

    The bytes depend on the set of records only. Profiles `smoke` and `demo` stay out. Raises ValueError, and writes
    nothing, for a chapter that does not exist.
    """
    from kdutils.experiments import CHAPTERS

    store = store or Store()
    names = store.chapters() if chapter is None else [chapter]
    if unknown := [name for name in names if name not in CHAPTERS]:
        raise ValueError(f"chapter: got {', '.join(unknown)}; allowed: {', '.join(CHAPTERS)}")
    counts = {}
    for name in names:
        records = [r for r in store.records(name, recipe=None) if r["spec"]["profile"] not in UNPUBLISHED]
        if records:
            write_atomically(store.published / f"{name}.jsonl", "".join(to_json(record) + "\n" for record in records))
        counts[name] = len(records)
    return counts


def status(store: Store | None = None, profile: str | None = None):
    """A pandas DataFrame that counts, by chapter, profile, task and method, the runs present, stale and, where the
    chapter plans them (`profile`, or every profile with a record of the chapter), missing."""
    import pandas

    from kdutils.experiments import CHAPTERS, plan

    store, rows = store or Store(), []
    for chapter in CHAPTERS:
        records = [r for r in store.records(chapter, recipe=None) if profile in (None, r["spec"]["profile"])]
        for record in records:
            rows.append(record["spec"] | {"n": record["recipe"] == RECIPE, "stale": record["recipe"] != RECIPE})
        for name in [profile] if profile else sorted({r["spec"]["profile"] for r in records}):
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
            table = status(profile=options.profile)
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
