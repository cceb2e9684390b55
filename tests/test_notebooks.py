"""The chapters as programs: the runner keeps only copies in which everything succeeded, and every chapter trains."""

import ast
import os
import re
import shutil
import statistics
import subprocess
import sys

import nbformat
import pytest

from kdutils import chapters

CHAPTERS = chapters.chapters()


def notebook(path, *sources, parameters="seed = 1"):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def read(path):
    return nbformat.read(path, as_version=4)


def test_a_copy_holds_the_parameters_and_nothing_that_differs_between_two_runs(tmp_path):
    said = "print('out', flush=True)\ntime.sleep(0.5)\nprint(seed, pathlib.Path.cwd().name)"
    source = notebook(tmp_path / "a.ipynb", f"import sys, pathlib, time\n{said}", "print('bar', file=sys.stderr)")
    texts = []
    for name in ("x.ipynb", "y.ipynb"):
        assert chapters.run_chapter(source, tmp_path / "out" / name, {"seed": 2}) is None
        copy = read(tmp_path / "out" / name)
        texts.append([(cell.source, cell.metadata, cell.get("outputs")) for cell in copy.cells])
    assert texts[0] == texts[1]
    (output,) = copy.cells[2].outputs
    assert output.text == f"out\n2 {tmp_path.name}\n" and copy.cells[3].outputs == []
    assert copy.metadata.keys() == {"kernelspec", "language_info"} and "version" not in copy.metadata.language_info
    assert "hide-input" in copy.cells[1].metadata.tags


@pytest.mark.parametrize(
    "cell, why",
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import os; os._exit(3)", "not run"),
        ("import time; time.sleep(60)", "longer than the timeout"),
    ],
)
def test_a_failed_chapter_leaves_the_last_good_copy_alone(tmp_path, monkeypatch, cell, why):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    source = notebook(tmp_path / "a.ipynb", "print(seed)", cell, "print('after')")
    target = tmp_path / "out" / "a.ipynb"
    target.parent.mkdir()
    target.write_text("the last good copy")
    said = chapters.run_chapter(source, target, {}, timeout=5)
    assert why in said and said.endswith(f"(see {tmp_path}/failed/a.ipynb)")
    assert target.read_text() == "the last good copy" and os.listdir(target.parent) == ["a.ipynb"]
    reached = next(cell for cell in read(tmp_path / "failed" / "a.ipynb").cells if cell.source == "print(seed)")
    assert reached.outputs[0].text == "1\n"


def test_a_published_chapter_may_not_warn(tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    source = notebook(tmp_path / "a.ipynb", "import warnings\nwarnings.warn('half of it is missing')")
    target = tmp_path / "out" / "a.ipynb"
    assert chapters.run_chapter(source, target, {}) is None
    assert read(target).cells[1].outputs == []
    target.unlink()
    said = chapters.run_chapter(source, target, {}, strict=True)
    assert "half of it is missing" in said and not target.exists()


def test_unknown_names_are_refused_before_any_work(tmp_path):
    source = notebook(tmp_path / "a.ipynb", parameters="profile = 'mini'\nseeds = 0\ntrain = False")
    assert chapters.parameters_for(source, "demo", True, {"seeds": 5}) == {"profile": "demo", "train": True, "seeds": 5}
    assert chapters.parameters_for(notebook(tmp_path / "b.ipynb"), "demo", True, {}) == {}
    with pytest.raises(ValueError, match="got 'seedz'; allowed: profile, seeds, train"):
        chapters.parameters_for(source, "demo", True, {"seedz": 5})
    with pytest.raises(ValueError, match="chapter: got '99_none'; allowed: "):
        chapters.chosen(["99_none"])


@pytest.mark.parametrize(("arguments", "line"), [
    (["--profile", "nope"], "profile: got 'nope'; allowed: smoke, demo, mini, paper"),
    (["-p", "train", "maybe"], "train: got 'maybe', str; allowed: True or False"),
    (["-p", "task", "mrpc"], "task: got 'mrpc' for profile 'smoke'; allowed: all, synthetic"),
    (["-p", "task", "5"], "task: got 5, int; allowed: text"),
    (["-p", "profile", "null"], "profile: got None; allowed: smoke"),
    (["--jobs", "0"], "jobs: got 0; allowed: integers from 1"),
    (["--timeout", "0"], "timeout: got 0; allowed: integers from 1"),
    (["--timeout", "-5"], "timeout: got -5; allowed: integers from 1"),
    (["--out", "file/below"], "out: got '"),
    (["--out", ""], "out: got ''; allowed: a folder"),
    (["--out", "../book"], "out: got '../book'; allowed: a folder without the notebook 01_pilot.ipynb itself"),
    (["--out", "link"], "out: got 'link'; allowed: a folder without the notebook 01_pilot.ipynb itself"),
    (["-p", "task", "5" * 5000], "task: got '555"),
    (["-p", "two\nlines", "5"], r"parameter of 01_pilot: got 'two\nlines'; allowed: profile, task, train"),
])
def test_bad_command_lines_start_no_kernel(tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.setattr(chapters, "_attempt", None)
    for folder in ("book", "here"):
        (tmp_path / folder).mkdir()
    source = notebook(tmp_path / "book" / "01_pilot.ipynb", parameters="profile = 'mini'\ntask = 'all'\ntrain = False")
    monkeypatch.setattr(chapters, "chapters", lambda root=None: {"01_pilot": source})
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "file").touch()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "book")
    words = ["chapters", "run", "01_pilot", "--profile", "smoke", "--out", "out", *arguments]
    monkeypatch.setattr(sys, "argv", words)
    assert chapters.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(line) and said.count("\n") == 1 and not (tmp_path / "here" / "out").exists()


def test_a_failed_copy_goes_to_the_store_and_a_chapter_to_come_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path / "runs"))
    source, seen = notebook(tmp_path / "a.ipynb"), []

    def attempt(source, partial, *_):
        seen.append(os.listdir(tmp_path / "out"))
        copy = read(source)
        copy.cells[0].execution_count = 1
        nbformat.write(copy, partial)
        return "cell 0: wrong"

    monkeypatch.setattr(chapters, "_attempt", attempt)
    where = tmp_path / "runs" / "failed" / "a.ipynb"
    assert chapters.run_chapter(source, tmp_path / "out" / "a.ipynb", {}) == f"cell 0: wrong (see {where})"
    assert where.exists() and seen == [[]] and os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize(
    "text, value",
    [("5", 5), ("1e-4", 1e-4), ("true", True), ("False", False), ("[1, 2]", [1, 2]), ("rte", "rte"), ("007", "007"),
     ("5" * 5000, "5" * 5000)],
)
def test_values_have_the_type_they_spell(text, value):
    assert chapters.typed(text) == value and type(chapters.typed(text)) is type(value)


def test_the_hashes_follow_code_parameters_and_records(tmp_path, monkeypatch):
    source = notebook(tmp_path / "a.ipynb", "print(seed)")
    stamp = chapters.code_hash(source, {"seed": 1})
    assert chapters.code_hash(source, {"seed": 1}) == stamp != chapters.code_hash(source, {"seed": 2})
    assert chapters.code_hash(notebook(tmp_path / "b.ipynb", "print(-seed)"), {"seed": 1}) != stamp

    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    stamps = [chapters.code_hash(source, {})]
    for name in ("constraints.txt", "book/claims.yml", "book/benchmarks.jsonl", "benchmarks/a.py", "kdutils/a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
        stamps.append(chapters.code_hash(source, {}))
    assert len(set(stamps)) == 6

    made = {"01_pilot": [], "02_stark": [], "03_stark_auto": []}
    monkeypatch.setattr(chapters.Store, "chapters", lambda self: list(made))
    monkeypatch.setattr(chapters.Store, "records", lambda self, chapter: made[chapter])
    empty = chapters.records_hash("02_stark", {"profile": "smoke"})
    steps = [("03_stark_auto", "smoke", False), ("01_pilot", "demo", False), ("01_pilot", "smoke", True)]
    for owner, profile, shown in steps:
        made[owner].append({"key": "0" * 16, "created": "now", "spec": {"profile": profile}})
        assert (chapters.records_hash("02_stark", {"profile": "smoke"}) != empty) == shown


def test_an_unchanged_chapter_is_not_run_again(tmp_path, monkeypatch):
    source = notebook(tmp_path / "a.ipynb", "print(seed)", parameters="profile = 'mini'\nseed = 1")
    monkeypatch.setattr(chapters, "chapters", lambda root=None: {"a": source})
    out = tmp_path / "out"
    states = [chapters.run([], "smoke", True, out, {"seed": seed})[0][1] for seed in (1, 1, 2)]
    assert states == ["done", "unchanged", "done"]
    assert "print(2)" not in source.read_text() and read(out / "a.ipynb").cells[-1].outputs[0].text == "2\n"


@pytest.mark.parametrize(("there", "calls"), [((), 1), (("python",), 1), (("python", "pip"), 0)])
def test_the_set_up_goes_on_after_one_that_failed(tmp_path, there, calls):
    """`python -m venv` that is stopped, or has no ensurepip, leaves a python and no pip."""
    root, programs = chapters.ROOT, tmp_path / ".venv" / "bin"
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements-data.txt"):
        shutil.copy(root / name, tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit\necho "$@" >> calls\nmkdir -p .venv/bin\ncp pip .venv/bin/\n')
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    for program in (python, tmp_path / "pip"):
        program.chmod(0o755)
    programs.mkdir(parents=True)
    for name in there:
        shutil.copy(tmp_path / "pip", programs / name)
    subprocess.run(["make", "setup", "PYTHON=./python"], cwd=tmp_path, check=True, capture_output=True)
    made = (tmp_path / "calls").read_text() if calls else ""
    assert made == "-m venv --clear .venv\n" * calls and list((tmp_path / ".venv").glob("ready-*"))


@pytest.mark.parametrize("name", CHAPTERS)
def test_committed_form(name):
    copy = read(CHAPTERS[name])
    assert chapters.failure(copy) is None
    assert chapters.clean(read(CHAPTERS[name])) == copy, f"strip it: python -m kdutils.chapters commit {name}"
    tagged = [cell.source for cell in copy.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assigned = {}
    for line in ast.parse(tagged[0]).body:  # papermill does not recompute what depends on a parameter
        target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
        assigned[target.id] = ast.literal_eval(line.value)
    assert assigned.get("train", False) is False and assigned.get("profile", "mini") == "mini"


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_parameter_is_checked_right_after_its_cell(name):
    cells = [cell for cell in read(CHAPTERS[name]).cells if cell.cell_type == "code"]
    where = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    calls = [node for node in ast.walk(ast.parse(cells[where + 1].source)) if isinstance(node, ast.Call)]
    (check,) = [call for call in calls if ast.unparse(call.func) == "params.check"]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in check.keywords}
    assert [ast.unparse(argument) for argument in check.args] == ["globals()", repr(name)]
    assert given.keys() == chapters.parameters_of(CHAPTERS[name])
    common = [key for key in ("profile", "task", "train") if key in given]
    assert [given[key] for key in common] == common  # by value; the others declare what they allow


@pytest.mark.parametrize("name", CHAPTERS)
def test_prose_outweighs_code(name):
    cells = read(CHAPTERS[name]).cells
    code = [
        sum(1 for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#"))
        for cell in cells
        if cell.cell_type == "code"
    ]
    words = sum(len(re.findall(r"\w+", cell.source)) for cell in cells if cell.cell_type == "markdown")
    assert sum(code) <= 200 and max(code) <= 40 and statistics.median(code) <= 9
    assert words >= 7 * sum(code)


@pytest.mark.parametrize("name", CHAPTERS)
def test_code_fits_the_page(name):
    """A page has room for 88 characters of code, a cell's or the module's; a longer line wraps."""
    cells = [cell for cell in read(CHAPTERS[name]).cells if cell.cell_type == "code"]
    shown = [output.data["text/markdown"] for cell in cells for output in cell.outputs
             if output.get("data", {}).get("text/markdown", "").startswith("```python\n")]
    assert shown
    lines = "\n".join([*shown, *(cell.source for cell in cells)]).splitlines()
    assert [line for line in lines if len(line) > 88] == []


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """{chapter: (state, seconds, why)} of all chapters, trained at profile smoke, one a core."""
    rows = chapters.run([], "smoke", True, tmp_path_factory.mktemp("smoke"), timeout=300, jobs=os.cpu_count() or 1)
    return {name: rest for name, *rest in rows}


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_trains_at_smoke(name, smoke):
    state, _, why = smoke[name]
    assert state == "done", why
