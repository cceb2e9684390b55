"""Where outcomes are kept: one atomic file a run, leases, and the published lines beside them."""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdutils import provenance
from kdutils.params import in_one_line
from kdutils.spec import Spec, key_of, plain, to_json

Record = dict[str, Any]

SCHEMA = 1
RECIPE = 1  # raised only when the golden smoke curve changes; records of an older recipe are stale, of a newer an error
CURVE_POINTS = 50
_OUTCOME = {"metrics": {}, "best": {}, "losses": {}, "curve": [], "extra": {}}
_TYPES = {"recipe": int, **{name: type(empty) for name, empty in _OUTCOME.items()}, "seconds": (int, float),
          "device": str, "versions": dict, "commit": (str, type(None)), "dirty": (bool, type(None)), "created": str}


class Busy(Exception):
    """Another live process holds the lease of this run."""


def repository() -> Path:
    """The book's folder: the working folder or the nearest one above it that holds _toc.yml, else that of the code."""
    cwd = Path.cwd()
    for folder in (cwd, *cwd.parents, Path(__file__).resolve().parents[1]):
        if (folder / "_toc.yml").exists():
            return folder
    return cwd


def place(name: str, text: str | Path) -> Path:
    """The folder that `name` says, made or not: from the repository on, a leading ~ as the shell takes it. ValueError:
    something that is no folder stands in its way."""
    path = repository() / os.path.expanduser(text)
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not os.path.isdir(nearest):
        raise in_one_line(ValueError(f"{name}: got {str(text)!r}; allowed: a folder ({nearest} is none)"))
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write meanwhile, which then takes the place of `path`: a reader, and a machine that loses power, sees
    the whole file or the one before. Where writing fails nothing is left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: containers that share a disk share process ids
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _to_disk(temporary, os.O_RDWR)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _to_disk(path.parent, os.O_RDONLY)


def _to_disk(path: Path, how: int) -> None:
    opened = os.open(path, how)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file as `replacing` does."""
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")


def _no_number(text: str) -> None:
    raise ValueError(f"got {text}")


def _parse(text: str, name: str, chapter: str, key: str | None = None) -> Record | None:
    """The record in `text`; None, with a warning that names the place, where it is torn or foreign: no reader of the
    others may stop for a field that one lacks."""
    try:
        record = json.loads(text, parse_constant=_no_number)  # NaN and Infinity are not JSON
        whole = record["schema"] == SCHEMA and all(isinstance(record[name], kind) for name, kind in _TYPES.items())
        # A record whose spec no longer gives its key was written when some setting had another default.
        at_home = record["key"] == key_of(record["spec"]) and record["spec"]["chapter"] == chapter
        if whole and at_home and key in (None, record["key"]):
            return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    warnings.warn(f"{name} is torn or foreign: not read as a record", stacklevel=2)
    return None


def _read(path: Path) -> Record | None:
    name = f"{path.parent.name}/{path.name}"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        warnings.warn(f"{name} cannot be read ({error.strerror}): not read as a record", stacklevel=2)
        return None
    return _parse(text, name, path.parent.name, path.stem)


_published: dict[Path, tuple[tuple[int, int], tuple[dict[str, Record], list[str]]]] = {}


def _read_published(path: Path) -> tuple[dict[str, Record], list[str]]:
    """The records of a published file by key, and the places of its lines that are none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return {}, []
    stamp = (stat.st_mtime_ns, stat.st_size)
    if path not in _published or _published[path][0] != stamp:
        lines = enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1)
        places = {f"{path.name}:{number}": line for number, line in lines if line.strip()}
        records = {name: _parse(line, name, path.stem) for name, line in places.items()}
        torn = [name for name, record in records.items() if record is None]
        _published[path] = stamp, (_unite(filter(None, records.values())), torn)
    return _published[path][1]


def _unite(records: Iterable[Record]) -> dict[str, Record]:
    """One record a key, whatever their order: that of the newest recipe, and of those the one made first."""
    ordered = sorted(records, key=lambda record: (-record["recipe"], record["created"], record["seconds"]))
    return {record["key"]: record for record in reversed(ordered)}


class Store:
    """Records in two places: `runs`, the working store, and `published`, the committed one.

    Relative folders are taken from `repository()`; the environment's KDUTILS_RUNS stands in for the default `runs`.
    Several processes and machines may write; merging two stores is copying files. ValueError: `runs` can be no folder.
    """

    def __init__(self, runs: str | Path | None = None, published: str | Path = "book/records"):
        self.runs = place("KDUTILS_RUNS", runs or os.environ.get("KDUTILS_RUNS") or "runs")
        self.published = repository() / published

    def check_writable(self) -> None:
        """Make the working folder; ValueError, in one line, where nothing can be written into it."""
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.runs).close()
        except OSError as error:
            line = f"KDUTILS_RUNS: got '{self.runs}'; allowed: a folder that can be written ({error.strerror})"
            raise in_one_line(ValueError(line)) from None

    def path(self, spec: Spec) -> Path:
        """Where the run's record is kept."""
        return self.runs / spec.chapter / f"{spec.key}.json"

    def model_path(self, spec: Spec) -> Path:
        """Where the weights of a run that others build on are kept, apart for each recipe; its folder exists."""
        name = spec.key if RECIPE == 1 else f"{spec.key}-{RECIPE}"
        path = self.runs / "models" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def get(self, spec: Spec) -> Record | None:
        """The run's record, the same one of the two places' that `records` and publishing take; None where there is
        none of this recipe. ValueError, in one line, where it is of a newer one: to train it again would be in vain.

        The record may be shared with other callers: do not change it.
        """
        both = _read(self.path(spec)), self._lines(spec.chapter)[0].get(spec.key)
        record = _unite(filter(None, both)).get(spec.key)
        if record is not None and record["recipe"] > RECIPE:
            raise in_one_line(ValueError(
                f"recipe: got {record['recipe']} in the record {spec.chapter}/{spec.key}; allowed: at most {RECIPE} "
                "(records of a newer recipe need newer code: update the checkout)"
            ))
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
        }
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
            held = lock.acquire()
        except Timeout:
            raise Busy(f"{spec} is being run by another process") from None
        with held:
            yield

    def _lines(self, chapter: str) -> tuple[dict[str, Record], list[str]]:
        return _read_published(self.published / f"{chapter}.jsonl")

    def torn(self, chapter: str) -> list[str]:
        """The published lines of a chapter that are no records, as `<file>:<line>`."""
        return self._lines(chapter)[1]

    def chapters(self) -> list[str]:
        """Every chapter with records in either place."""
        names = {path.parent.name for path in self.runs.glob("*/*.json") if re.fullmatch("[0-9a-f]{16}", path.stem)}
        return sorted(names | {path.stem for path in self.published.glob("*.jsonl")})

    def records(self, chapter: str, recipe: int | None = RECIPE) -> list[Record]:
        """One record a run of a chapter, both places united, sorted by key; `recipe=None` takes stale ones too."""
        working = filter(None, (_read(path) for path in self.runs.glob(f"{chapter}/*.json")))
        found = _unite([*self._lines(chapter)[0].values(), *working])
        return [found[key] for key in sorted(found) if recipe in (None, found[key]["recipe"])]
