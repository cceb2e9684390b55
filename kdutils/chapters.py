"""Chapters as programs: run notebooks with papermill, keep a copy only when every cell of it succeeded.

    python -m kdutils.chapters list
    python -m kdutils.chapters run 01_pilot --profile demo --train --out runs/book/demo/notebooks
    python -m kdutils.chapters commit 01_pilot

`run` leaves the notebooks in the repository alone and writes executed copies; a chapter whose code, library, versions
and records are those of an existing copy is skipped. `commit` runs a notebook in place with its own defaults and
strips what changes from run to run, which is the form in which notebooks are committed.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
import yaml
from tqdm import tqdm

from kdutils import params, profiles
from kdutils.records import Store, write_atomically
from kdutils.store import place

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 4 * 3600  # seconds a cell may take before its chapter counts as failed
VOLATILE = ("papermill", "execution", "collapsed", "ExecuteTime")


def chapters(root=ROOT):
    """Notebooks of the book in reading order, {name: path}, as _toc.yml lists them."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return {Path(file).name: root / f"{file}.ipynb" for file in files if file.startswith("notebooks/")}


def chosen(names, root=ROOT):
    """{name: path} of the chapters asked for, all of them when none is. Raises ValueError on an unknown name."""
    known = chapters(root)
    for name in names:
        if name not in known:
            raise ValueError(f"chapter: got {name!r}; allowed: {', '.join(known)}")
    return {name: path for name, path in known.items() if not names or name in names}


def typed(text):
    """A command-line value as the type it spells: 5, 1e-4, true, [1, 2]; anything else stays text."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):  # no JSON, more digits than Python takes, or too deep
        return text


def parameters_of(path):
    """Names in the notebook's cell tagged `parameters`."""
    import papermill

    return set(papermill.inspect_notebook(str(path)))


def parameters_for(path, profile, train, extra):
    """What papermill passes to one notebook: `profile` and `train` where it has them, and all of `extra`. ValueError:
    a name that it does not have (papermill only warns of it), or a profile, task or train that is wrong for it.
    """
    known = parameters_of(path)
    for name in extra:
        if name not in known:
            raise ValueError(f"parameter of {path.stem}: got {name!r}; allowed: {', '.join(sorted(known))}")
    common = {"profile": profile, "train": train}
    passed = {name: value for name, value in common.items() if name in known} | extra
    params.check({}, path.stem, **{name: passed[name] for name in ("profile", "task", "train") if name in passed})
    return passed


def clean(notebook):
    """The notebook without timestamps, paths, stderr and the other things that differ between two equal runs.

    A figure's alternative text is copied from its output to its cell, where the book looks for it.
    """
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    })
    for cell in notebook.cells:
        for key in VOLATILE:
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            _describe_figure(cell)
    return notebook


def _describe_figure(cell):
    for output in cell.outputs:
        for kind, about in output.get("metadata", {}).items():
            if kind.startswith("image/") and "alt" in about:
                cell.metadata.setdefault("mystnb", {})["image"] = {"alt": about["alt"]}


def failure(notebook):
    """Why an executed notebook is not a finished one, in one line; None if it is.

    papermill's own status cannot be asked: after a dead kernel or a timeout it says that all is well.
    """
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        for output in cell.outputs:
            if output.output_type == "error" and output.ename == "KeyboardInterrupt":
                return f"cell {number}: interrupted (it took longer than the timeout, or somebody stopped it)"
            if output.output_type == "error":
                return f"cell {number}: {output.ename}: {output.evalue}"
        if cell.execution_count is None:
            return f"cell {number}: not run (its kernel died, or a cell took too long)"
    return None


def warning(notebook):
    """The first warning of a cell whose output is compared (by nbval), in one line; None where there is none."""
    for number, cell in enumerate(notebook.cells):
        if "nbval-ignore-output" in cell.metadata.get("tags", []):
            continue
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and "Warning" in output.text:
                return f"cell {number}: {next(line for line in output.text.splitlines() if 'Warning' in line)}"
    return None


def code_hash(path, parameters):
    """Hash of what an executed copy depends on beside records: its cells and parameters, the code that it may import,
    versions, claims and measurements."""
    fixed = [ROOT / "constraints.txt", ROOT / "book" / "claims.yml", ROOT / "book" / "benchmarks.jsonl"]
    files = [*fixed, *(file for folder in ("benchmarks", "kdutils") for file in sorted((ROOT / folder).rglob("*.py")))]
    code = [file.read_text() for file in files if file.exists()]
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    return _hash([parameters, cells, code])


def records_hash(name, parameters):
    """Hash of the records that a chapter can show: those of its profile, made by itself or by chapters before it."""
    store = Store()
    owners = [owner for owner in store.chapters() if owner <= name]
    records = [record for owner in owners for record in store.records(owner)]
    return _hash([(r["key"], r["created"]) for r in records if r["spec"]["profile"] == parameters.get("profile")])


def _hash(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def execute(source, target, parameters, timeout):
    """Run one notebook in this process, in its own folder; `target` holds what was reached, an error included."""
    import papermill

    shown = sys.stderr if sys.stderr.isatty() else None  # a chapter's own progress bars
    papermill.execute_notebook(
        str(source), str(target), parameters=parameters, kernel_name="python3", cwd=str(source.parent),
        execution_timeout=timeout, progress_bar=False, stderr_file=shown,
        coalesce_streams=True,  # a busy machine sends what a cell prints in parts
    )


def _attempt(source, target, parameters, timeout, environment):
    """Execute in a process of its own and say why it failed, or None; `target` holds the cells that were reached."""
    target.unlink(missing_ok=True)
    order = json.dumps([str(source), str(target), parameters, timeout])
    command = [sys.executable, "-m", "kdutils.chapters", "execute", order]
    shown = None if sys.stderr.isatty() else subprocess.PIPE
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=shown, stderr=shown, text=True, check=False
    )
    why = failure(nbformat.read(target, as_version=4)) if target.exists() else "nothing written"
    said = (done.stderr or "").strip().splitlines()
    return why or (f"exit {done.returncode}: {said[-1] if said else ''}" if done.returncode else None)


def _started(path):
    return path.exists() and any(cell.get("execution_count") for cell in nbformat.read(path, as_version=4).cells)


def run_chapter(source, target, parameters, timeout=TIMEOUT, strict=False, **environment):
    """Execute `source` and put the result at `target`, all or nothing. Returns why it failed, or None.

    A kernel that never started (a known race for ports) is tried once more. The copy of a failed run goes to the
    store's folder `failed`. With `strict` a warning is a failure too. `environment` is added to the notebook's.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kdutils-") as folder:  # one that is killed leaves nothing beside `target`
        partial = Path(folder) / target.name
        why = _attempt(source, partial, parameters, timeout, environment)
        if why and not _started(partial):
            why = _attempt(source, partial, parameters, timeout, environment)
        if strict and not why:
            why = warning(nbformat.read(partial, as_version=4))
        if not why:
            _write(clean(nbformat.read(partial, as_version=4)), target)
        elif partial.exists():
            failed = Store().runs / "failed"
            failed.mkdir(parents=True, exist_ok=True)
            why += f" (see {shutil.move(partial, failed / target.name)})"
    return why


def _write(notebook, path):
    write_atomically(path, nbformat.writes(notebook) + "\n")


def _stamp(target):
    """The two hashes that an executed copy carries about itself, or None."""
    return nbformat.read(target, as_version=4).metadata.get("kdutils") if target.exists() else None


def _set_stamp(target, stamp):
    notebook = nbformat.read(target, as_version=4)
    notebook.metadata["kdutils"] = stamp
    _write(notebook, target)


def _check(**numbers):
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}; allowed: integers from 1")


def _folder(out, sources):
    """The folder that `out` says. ValueError: it says none, or a copy there would overwrite one of the `sources`."""
    if not str(out):
        raise ValueError("out: got ''; allowed: a folder")
    folder = place("out", Path(out).resolve())
    for target, source in ((folder / source.name, source) for source in sources):
        if target.exists() and target.samefile(source):
            raise ValueError(f"out: got {str(out)!r}; allowed: a folder without the notebook {source.name} itself")
    return folder


def run(names, profile, train, out, extra=None, timeout=TIMEOUT, jobs=1):
    """Run chapters into the folder `out`, `jobs` at a time; returns rows (chapter, state, seconds, why).

    Raises ValueError before any work. Copies are stamped at the end, when the records that they share are all there.
    """
    _check(jobs=jobs, timeout=timeout)
    profiles.profile(profile)
    plan = [(name, path, parameters_for(path, profile, train, extra or {})) for name, path in chosen(names).items()]
    out = _folder(out, [path for _, path, _ in plan])
    store = Store()
    if train:
        store.check_writable()
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}

    def one(name, path, parameters):
        began, target = time.monotonic(), out / path.name
        stamp = {"code": code_hash(path, parameters), "records": records_hash(name, parameters)}
        if _stamp(target) == stamp:
            return stamp, (name, "unchanged", 0.0, "")
        why = run_chapter(path, target, parameters, timeout, **environment)
        return stamp, (name, "failed" if why else "done", time.monotonic() - began, why or "")

    with ThreadPoolExecutor(jobs) as pool:
        work = [pool.submit(one, *item) for item in plan]
        for _ in tqdm(as_completed(work), "chapters", len(work), unit="chapter", disable=not sys.stderr.isatty()):
            pass
    done = [future.result() for future in work]
    for (name, path, parameters), (stamp, row) in zip(plan, done, strict=True):
        if row[1] == "done":
            _set_stamp(out / path.name, stamp | {"records": records_hash(name, parameters)})
    return [row for _, row in done]


def commit(names, timeout=TIMEOUT):
    """Run notebooks in place, with the parameters written in them and the published records only; rows as `run`'s."""
    _check(timeout=timeout)
    rows = []
    for name, path in chosen(names).items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as empty:
            why = run_chapter(path, path, {}, timeout, strict=True, KDUTILS_RUNS=empty)
        rows.append((name, "failed" if why else "done", time.monotonic() - began, why or ""))
    return rows


def _report(rows):
    for name, state, seconds, why in rows:
        print(f"{name:24} {state:10} {seconds:7.1f} s  {why}".rstrip())
    return any(state == "failed" for _, state, _, _ in rows)


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m kdutils.chapters", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="chapters in reading order")
    commands.add_parser("execute").add_argument("order", help=argparse.SUPPRESS)
    for command, text in (("run", "executed copies into --out"), ("commit", "execute in place with the defaults")):
        sub = commands.add_parser(command, help=text)
        sub.add_argument("chapters", nargs="*", help="all of them when none is named")
        sub.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds a cell may take (%(default)s)")
        if command == "run":
            sub.add_argument("--profile", required=True)
            sub.add_argument("--train", action="store_true", help="train what is missing")
            sub.add_argument("--out", required=True, help="folder of the executed copies")
            sub.add_argument("--jobs", type=int, default=1, help="chapters at a time (%(default)s)")
            sub.add_argument("-p", dest="extra", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    return parser.parse_args()


def main():
    args = _arguments()
    if args.command == "list":
        print("\n".join(chapters()))
        return 0
    if args.command == "execute":
        source, target, parameters, timeout = json.loads(args.order)
        execute(Path(source), Path(target), parameters, timeout)
        return 0
    try:
        if args.command == "commit":
            return _report(commit(args.chapters, args.timeout))
        extra = {name: typed(value) for name, value in args.extra}
        return _report(run(args.chapters, args.profile, args.train, args.out, extra, args.timeout, args.jobs))
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
