"""The list of bad inputs: each ends a notebook with one clear line, before any work."""

import ast
import subprocess
import sys

import nbformat
import pytest

from kdutils import params
from kdutils.chapters import chapters

CHAPTERS = chapters()
GOOD = {"chapter": "01_pilot", "profile": "mini", "task": "all", "train": False}
NAMES = {"profile": "mini", "task": "all", "train": False}

BAD = [
    ({"profile": "mni"}, {}, "profile: got 'mni'; allowed: smoke, demo, mini, paper"),
    ({"profile": 3}, {}, "profile: got 3; allowed: smoke, demo, mini, paper"),
    ({"profile": ["mini"]}, {}, "profile: got ['mini']; allowed: smoke, demo, mini, paper"),
    ({"task": "rt"}, {}, "task: got 'rt' for profile 'mini'; allowed: all, mrpc, sst2, stsb, rotten, rte"),
    ({"task": "mrpc", "profile": "demo"}, {}, "task: got 'mrpc' for profile 'demo'; allowed: all, rotten"),
    ({"train": "false"}, {}, "train: got 'false', str; allowed: True or False, with a capital"),
    ({"train": "true"}, {}, "train: got 'true', str; allowed: True or False, with a capital"),
    ({"train": 1}, {}, "train: got 1, int; allowed: True or False, with a capital"),
    ({"seeds": int}, {"seeds": "five"}, "seeds: got 'five', str; allowed: a whole number"),
    ({"seeds": int}, {"seeds": 5.0}, "seeds: got 5.0, float; allowed: a whole number"),
    ({"seeds": int}, {"seeds": True}, "seeds: got True, bool; allowed: a whole number"),
    ({"lr": float}, {"lr": "1e-4"}, "lr: got '1e-4', str; allowed: a number (YAML: 1.0e-4)"),
    ({"lr": float}, {"lr": False}, "lr: got False, bool; allowed: a number (YAML: 1.0e-4)"),
    ({"lr": float}, {"lr": float("nan")}, "lr: got nan, float; allowed: a number (YAML: 1.0e-4)"),
    ({"lr": float}, {"lr": float("-inf")}, "lr: got -inf, float; allowed: a number (YAML: 1.0e-4)"),
    ({"tau": params.Positive}, {"tau": 0.0}, "tau: got 0.0, float; allowed: a number above 0 (YAML: 1.0e-4)"),
    ({"tau": params.Positive}, {"tau": -2}, "tau: got -2, int; allowed: a number above 0 (YAML: 1.0e-4)"),
    ({"tau": params.Positive}, {"tau": float("nan")}, "tau: got nan, float; allowed: a number above 0 (YAML: 1.0e-4)"),
    ({"tau": params.Positive}, {"tau": "2"}, "tau: got '2', str; allowed: a number above 0 (YAML: 1.0e-4)"),
    ({"seeds": int}, {"seeds": 10**400}, f"seeds: got {10**400}, int; allowed: a whole number"),
    ({"tau": params.Positive}, {"tau": 10**400}, f"tau: got {10**400}, int; allowed: a number above 0 (YAML: 1.0e-4)"),
    ({"task": ""}, {}, "task: got '' for profile 'mini'; allowed: all, mrpc, sst2, stsb, rotten, rte"),
    ({"profile": ""}, {}, "profile: got ''; allowed: smoke, demo, mini, paper"),
    ({"profile": None}, {"profile": None}, "profile: got None; allowed: smoke, demo, mini, paper"),
    ({"task": None}, {"task": None}, "task: got None; allowed: text"),
    ({"train": None}, {"train": None}, "train: got None; allowed: True or False, with a capital"),
    ({"student": ("dropped", "pruned")}, {"student": "thin"}, "student: got 'thin'; allowed: 'dropped', 'pruned'"),
    ({}, {"seedz": 5}, "seedz: unknown parameter; allowed: profile, task, train"),
    ({"seeds": int}, {"seeds": 5, "Train": True}, "Train: unknown parameter; allowed: profile, task, train, seeds"),
    ({}, {"sparsity": [0.1]}, "sparsity: unknown parameter; allowed: profile, task, train"),
    ({"repeats": range(1, 201)}, {"repeats": 201}, "repeats: got 201; allowed: whole numbers from 1 to 200"),
    ({"repeats": range(1, 201)}, {"repeats": 0}, "repeats: got 0; allowed: whole numbers from 1 to 200"),
    ({"repeats": range(1, 201)}, {"repeats": 2.0}, "repeats: got 2.0, float; allowed: a whole number"),
    ({"repeats": range(1, 201)}, {"repeats": True}, "repeats: got True, bool; allowed: a whole number"),
]


@pytest.mark.parametrize("given, namespace, said", BAD, ids=[said.split(";")[0][:40] for *_, said in BAD])
def test_bad_inputs(given, namespace, said):
    with pytest.raises(params.BadParameter) as error:
        params.check(NAMES | namespace, **(GOOD | given))
    assert str(error.value) == said
    assert error.value._render_traceback_() == [said]


def test_good_inputs():
    ipython = {"In": [""], "Out": {}, "_": 3, "_dh": [], "open": open, "params": params}
    params.check(NAMES | ipython | {"seeds": 5, "lr": 1, "kind": "a"}, **GOOD, seeds=int, lr=float, kind=("a", "b"))
    params.check(NAMES, **(GOOD | {"task": "rte", "train": True}))
    params.check({}, "00_distillation", profile="smoke", task="synthetic")
    params.check({"tau": 2}, "00_distillation", tau=float)
    params.check({"tau": 0.5}, "00_distillation", tau=params.Positive)
    params.check({"tau": 2}, "00_distillation", tau=params.Positive)
    params.check({"repeats": 200}, "00_distillation", repeats=range(1, 201))
    with pytest.raises(params.BadParameter, match="profile: unknown parameter; allowed: tau"):
        params.check({"tau": 2, "profile": "mini"}, "00_distillation", tau=float)


HIDDEN = ["params", "In", "_ih", "Out", "exit", "open", "_seeds", "__doc__"]  # by an import, IPython, or their names


@pytest.mark.parametrize("name", HIDDEN)
def test_no_name_hides_an_injected_parameter(name):
    sources = ["", "profile = 'mini'", f"# Parameters\nprofile = 'demo'\n{name} = 5\n", "import params"]
    shell = {"In": sources, "_ih": sources, "Out": {}, "_dh": [], "_seeds": 1, "__doc__": ""}
    given = shell | {name: 5, "params": params}
    with pytest.raises(params.BadParameter) as error:
        params.check(NAMES | given, **GOOD)
    assert str(error.value) == f"{name}: unknown parameter; allowed: profile, task, train"
    sources.append("# Parameters\nprofile = 'demo'\n")  # mended, and run again in the same session
    params.check(NAMES | given, **GOOD)


def run(folder, *arguments):
    """papermill on a notebook with the usual parameters, as a reader would call it."""
    check = "params.check(globals(), '01_pilot', profile=profile, task=task, train=train)"
    sources = ["profile = 'mini'\ntask = 'all'\ntrain = False", f"from kdutils import params\n\n{check}",
               "print('worked', profile, task, train)"]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "a.ipynb")
    command = [sys.executable, "-m", "papermill", "a.ipynb", "out.ipynb", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done, nbformat.read(folder / "out.ipynb", as_version=4).cells


def test_papermill_fails_with_the_one_line(tmp_path):
    done, cells = run(tmp_path, "-p", "train", "false", "-p", "task", "mrpc")
    line = "train: got 'false', str; allowed: True or False, with a capital"
    assert done.returncode != 0 and line in done.stderr
    errors = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs
              if output.output_type == "error"]
    assert [error.traceback for error in errors] == [[line]] and errors[0].ename == "BadParameter"


@pytest.mark.parametrize("name, value, line", [
    ("task", "", "task: got '' for profile 'mini'; allowed: all, mrpc, sst2, stsb, rotten, rte"),
    ("profile", "None", "profile: got None; allowed: smoke, demo, mini, paper"),
])
def test_papermill_s_empty_values_are_refused(tmp_path, name, value, line):
    done, _ = run(tmp_path, "-p", name, value)
    assert done.returncode != 0 and line in done.stderr


def test_papermill_runs_with_good_parameters_and_not_with_an_unknown_one(tmp_path):
    done, cells = run(tmp_path, "-p", "train", "True", "-p", "task", "rte")
    assert done.returncode == 0 and cells[-1].outputs[0].text == "worked mini rte True\n", done.stderr
    for name in ("seedz", "In", "params"):
        done, cells = run(tmp_path, "-p", name, "5")
        assert done.returncode != 0 and f"{name}: unknown parameter; allowed: profile, task, train" in done.stderr


def test_glue_s_folder_is_taken_from_the_repository(tmp_path, monkeypatch):
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "data" / "glue").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(folder)
        for told in ("data/glue", "./data/glue", "~/data/glue", str(tmp_path / "data" / "glue")):
            monkeypatch.setenv("KDUTILS_GLUE", told)
            assert params.glue_source() == str(tmp_path / "data" / "glue")
        monkeypatch.setenv("KDUTILS_GLUE", "nyu-mll/glue")
        assert params.glue_source() == "nyu-mll/glue"


@pytest.mark.parametrize(("told", "why"), [
    ("/nope", "no such folder"), ("./nope", "no such folder"), ("~/nope", "no such folder"),
    ("my/own/glue", "no such folder"),
    ("glue", "no data in its folder mnli"),
])
def test_glue_that_cannot_be_there_is_one_line(tmp_path, monkeypatch, told, why):
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "glue" / "mnli").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KDUTILS_GLUE", told)
    params.check_glue(["rotten", "synthetic"])
    with pytest.raises(params.BadParameter) as error:
        params.check_glue(["synthetic", "mnli"])
    said = str(error.value)
    assert said.startswith("KDUTILS_GLUE: got ") and f"for task 'mnli' ({why}); allowed: a hub id, or" in said
    (tmp_path / "glue" / "mnli" / "train.parquet").touch()
    monkeypatch.setenv("KDUTILS_GLUE", "glue")
    params.check_glue(["mnli"])
    monkeypatch.setenv("KDUTILS_GLUE", "somebody/glue")
    params.check_glue(["rte"])


@pytest.mark.parametrize("path", CHAPTERS.values(), ids=CHAPTERS)
def test_no_import_of_a_chapter_hides_an_unknown_parameter(path):
    """`-p tasks rte` must not vanish under the module `tasks` that the chapter imports."""
    sources = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    before = next(i for i, source in enumerate(sources) if "params.check(" in source)
    imported = {name.asname or name.name for source in sources for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names}
    for name in imported:
        injected = f"# Parameters\n{name} = 'rte'\n"
        namespace = {"In": ["", sources[0], injected]} if name == "params" else {}
        exec(f"{sources[0]}\n{injected}", namespace)
        with pytest.raises(params.BadParameter, match=f"{name}: unknown parameter"):
            exec("\n".join(sources[1 : before + 1]), namespace)
