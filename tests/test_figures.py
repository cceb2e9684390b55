"""What chapters show: numbers with their intervals, tables, glued values, figures with alternative text."""

import math
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pandas as pd
import pytest

from kdutils import experiments, figures, params, tables
from kdutils.experiments import common
from kdutils.records import MissingRuns, Store

matplotlib.use("agg")


@pytest.fixture
def shown(monkeypatch):
    """Everything that is displayed: (data, options)."""
    seen = []
    monkeypatch.setattr(figures, "display", lambda data, **options: seen.append((data, options)))
    return seen


DATA = pd.DataFrame({"method": ["a", "a", "a", "b"], "seed": [0, 1, 2, 0], "dev_f1": [0.1, 0.2, 0.3, 0.7],
                     "dev_nll": [1.0, 2.0, 3.0, None]})
HALF = 4.302652729696142 / math.sqrt(3)  # Student's 97.5 % quantile with two degrees of freedom, sd 1, n 3


def test_an_interval_by_hand():
    assert figures.interval([1, 2, 3]) == pytest.approx((2, HALF, 3))
    assert figures.interval([1, 2, None, 3, float("nan")]) == pytest.approx((2, HALF, 3))
    mean, half, n = figures.interval([5.0])
    assert (mean, n) == (5, 1) and math.isnan(half)
    assert figures.interval([])[2] == 0


@pytest.mark.parametrize(
    "numbers, text",
    [((2, HALF, 3), "2.0 ± 2.5 (3)"), ((-2.0, 0.1, 5), "−2.0 ± 0.1 (5)"), ((5.0, math.nan, 1), "5.0 (1)"),
     ((math.nan, math.nan, 0), "–")],
)
def test_how_an_estimate_is_written(numbers, text):
    assert figures.plus_minus(*numbers) == text
    assert figures.plus_minus(1.24, 0.1, 5, digits=2, sign=True) == "+1.24 ± 0.10 (5)"


def test_points_but_for_nats():
    assert figures.scale("test_entropy") == figures.scale("mse") == 1 and figures.scale("dev_ece") == 100
    assert tables.text(DATA["dev_f1"][:3]) == "20.0 ± 24.8 (3)" and tables.text(DATA["dev_f1"][3:]) == "70.0 (1)"
    assert [figures.number(v, 2) for v in (-1.5, None, math.nan)] == ["−1.50", "–", "–"]


def test_a_difference_is_paired():
    better = DATA[DATA["method"] == "a"].assign(dev_f1=[0.2, 0.4, 0.6], seed=[2, 1, 0])
    found = tables.versus(better, DATA[DATA["method"] == "a"], "dev_f1")  # by seed: 0.6-0.1, 0.4-0.2, 0.2-0.3
    assert found["effect"] == pytest.approx(20) and found["n"] == 3
    assert found["high"] - found["effect"] == pytest.approx(30 * HALF)
    assert tables.said(found) == "+20.0 ± 74.5 (3)"
    assert tables.versus(better, DATA[:0], "dev_f1")["n"] == 0


def test_pooled_are_the_seeds_that_every_task_has():
    by_task = {"a": pd.Series([1.0, 2.0, 3.0]), "b": pd.Series([3.0, 4.0], index=[0, 1]), "c": pd.Series(dtype=float)}
    found = tables.pooled(by_task)
    assert list(found) == ["a", "b", "all"] and found["all"]["effect"] == 2.5 and found["all"]["n"] == 2


def test_a_table(shown):
    figures.table(pd.DataFrame({"who": ["<b>", "c"], "points": [-1.25, None], "n": [3, 4]}), "A caption.", digits=2)
    made = shown[0][0]
    html = made._repr_html_()
    assert "<caption>A caption.</caption>" in html and "&lt;b&gt;" in html and "−1.25" in html
    assert html.index("<caption>") < html.index("<thead>") and html.count("–") == 1
    assert repr(made).splitlines()[0] == "A caption." and "−1.25" in repr(made) and " 3" in repr(made)


def test_numbers_and_tasks_are_kept_on_one_line(shown):
    figures.table(pd.DataFrame({"a": ["x"], "task": ["stsb"], "c": ["−0.1 [−0.3, +0.2]"], "d": ["not 5"]}), "Runs.")
    cells = ElementTree.fromstring(shown[0][0]._repr_html_()).findall("tbody/tr/td")
    assert [cell.get("class") for cell in cells] == [None, "whole", "whole", None]


def test_rows_that_begin_alike_share_their_first_cell(shown):
    data = pd.DataFrame({"task": ["mrpc", "mrpc", "sst2", "mrpc"], "n": ["5", "6", "7", "8"]})
    figures.table(data, "Runs.")
    rows = ElementTree.fromstring(shown[0][0]._repr_html_()).findall("tbody/tr")
    cells = [[(cell.tag, cell.get("rowspan"), cell.text) for cell in row] for row in rows]
    assert cells == [[("th", "2", "MRPC"), ("td", None, "5")], [("td", None, "6")],
                     [("th", "1", "SST-2"), ("td", None, "7")], [("th", "1", "MRPC"), ("td", None, "8")]]
    figures.table(data.iloc[1:3], "Runs.")
    assert "rowspan" not in shown[1][0]._repr_html_()


def test_a_glued_number_is_what_myst_nb_reads(monkeypatch):
    myst = pytest.importorskip("myst_nb.ext.glue")
    ours, theirs = [], []
    monkeypatch.setattr(figures, "display", lambda data, **options: ours.append((data, options)))
    monkeypatch.setattr(myst, "ipy_display", lambda data, **options: theirs.append((data, options)))
    for name, value in (("gain", "+1.2"), ("share", 0.25), ("count", 3.0)):
        figures.glue(name, value)
        myst.glue(name, value, display=False)
    assert ours == theirs
    figures.glue("numpy", pd.Series([0.5])[0])
    assert ours[-1][0] == {"application/papermill.record/text/plain": "0.5"}


def test_a_figure_carries_its_alternative_text(shown):
    fig, (left, right) = figures.panels(2)
    figures.curve(left, DATA, "seed", "dev_f1", "method")
    figures.dots(right, DATA, "dev_f1", "method")
    figures.show(fig, "Two panels: a rises from ten to thirty points, b stands at seventy.")
    data, options = shown[0]
    about = options["metadata"]["image/png"]
    assert data["image/png"].startswith(b"\x89PNG") and data["text/plain"] == about["alt"]
    width = int.from_bytes(data["image/png"][16:20], "big")
    assert width == 2 * about["width"] and not matplotlib.pyplot.fignum_exists(fig.number)
    with pytest.raises(ValueError, match="alt: got 'Plot'; allowed: a sentence"):
        figures.show(figures.panels()[0], "Plot")


def test_what_is_drawn_is_the_mean_with_its_interval():
    fig, (axis, other, third) = figures.panels(3)
    figures.curve(axis, pd.DataFrame({"x": [1, 1, 1, 2], "dev_f1": [0.1, 0.2, 0.3, 0.5]}), "x", "dev_f1")
    assert axis.lines[0].get_ydata().tolist() == pytest.approx([20, 50])
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((20 - 10 * HALF, 20 + 10 * HALF))
    assert all(tick == round(tick) for tick in axis.get_xticks())
    figures.dots(other, DATA, "dev_f1", "method")
    assert [t.get_text() for t in other.get_yticklabels()] == ["a (n = 3)", "b (n = 1)"]
    figures.forest(third, {"a": {"effect": 1.0, "low": 0.5, "high": 2.0, "n": 4}})
    ends = third.collections[0].get_paths()[0].vertices[:, 0]
    assert sorted(ends) == pytest.approx([0.5, 2.0])
    matplotlib.pyplot.close(fig)


def test_source_is_the_module_s(shown):
    figures.show_source(params.in_one_line)
    text = shown[0][0].data
    assert text.startswith("```python\n# kdutils.params\ndef in_one_line(") and text.endswith("return error\n```")


# ------------------------------------------------------------------------------------------------------------ records


def record(spec, store, value=0.5, seconds=1800.0):
    return store.put(spec, {"metrics": {"dev": {"accuracy": value}}, "extra": {"device": "a processor"}}, seconds)


def test_runs_are_looked_up_listed_and_traced(tmp_path, monkeypatch, shown):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    specs = experiments.plan("01_pilot", "smoke")
    with pytest.raises(MissingRuns) as error:
        figures.runs("01_pilot", "smoke")
    assert len(error.value._render_traceback_()) == 1 and "--profile smoke" in str(error.value)
    for spec in specs[:3]:
        record(spec, Store())
    found = figures.runs("01_pilot", "smoke", "synthetic")
    assert len(found.records) == len(found.frame) == 3 and found.missing == specs[3:]
    figures.provenance(found.records)
    rows = dict(shown[-1][0].data.itertuples(index=False))
    assert rows["runs"] == "3 (synthetic 3)" and rows["computing"].startswith("1.50 hours")
    assert rows["devices"] == "a processor" and "numpy" in rows["versions"]


def test_runs_of_one_task_under_different_teachers_are_named(tmp_path, monkeypatch, shown):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))

    def taught(task, weights, **changes):
        extra = {"teacher_weights": weights} if weights else {}
        spec = common.make("02_stark", "mini", task, "KD", len(list(tmp_path.rglob("*.json"))), **changes)
        return Store().put(spec, {"metrics": {}, "extra": extra}, 1.0)

    def row(*records, named="teachers"):
        figures.provenance(records)
        return dict(shown[-1][0].data.itertuples(index=False)).get(named)

    same = [taught("mrpc", "a"), taught("mrpc", "a"), taught("stsb", "b"), taught("mrpc", None)]
    other_size = taught("mrpc", "c", model="large", depth=24)  # a teacher of another kind is another by intent
    assert row(*same, other_size) is None and row(same[-1]) is None
    assert row(*same, taught("mrpc", "d")) == "runs of MRPC were taught by 2 different teachers (a, d)"
    kinds = [{**same[0], "extra": {"dtype": kind}} for kind in ("bfloat16", "float32", "bfloat16")]
    assert row(*kinds, named="trained in") == "bfloat16 2, float32 1" and row(*kinds[:1], named="trained in") is None


def test_with_train_what_is_missing_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("KDUTILS_RUNS", str(tmp_path))
    made = []
    monkeypatch.setattr(experiments, "run", lambda spec: made.append(spec) or {"metrics": {"dev": {"accuracy": 1.0}}})
    first = figures.runs("01_pilot", "smoke", train=True)
    again = figures.runs("01_pilot", "smoke", train=True)
    assert len(made) == len(first.frame) == len(again.frame) == len(experiments.plan("01_pilot", "smoke"))


LOOK_UP = """
import sys, time
from kdutils import experiments, figures, params, verdicts
from kdutils.records import look_up
found = [look_up(experiments.plan(chapter, "mini")) for chapter in experiments.CHAPTERS]
figures.show(figures.panels(2)[0], "Two empty panels, drawn for their time alone.")
print("torch" in sys.modules, time.process_time() < 5)
"""


def test_looking_up_and_drawing_need_no_torch_and_less_than_five_seconds():
    done = subprocess.run([sys.executable, "-c", LOOK_UP], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False True"], done.stderr


def test_an_exception_in_one_line():
    assert params.in_one_line(KeyError("x"))._render_traceback_() == ["KeyError: 'x'"]


def test_lines_of_one_panel_differ_in_more_than_colour():
    data = pd.DataFrame({"x": [1, 2, 1, 2], "score": [0.1, 0.2, 0.3, 0.4], "who": ["a", "a", "b", "b"]})
    fig, (ax,) = figures.panels()
    figures.curve(ax, data, "x", "score", "who")
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 2]
    looks = {(line.get_linestyle(), str(line.get_marker())) for line in drawn}
    assert len(drawn) == len(looks) == 2
    figures.plt.close(fig)


def test_a_figure_without_runs_is_a_line_and_one_with_some_is_not():
    fig, axes = figures.panels(2)
    figures.nothing(axes[:1])
    assert fig.get_figheight() == pytest.approx(2.9) and axes[1].axison
    figures.nothing(axes[1:])
    for empty in (figures.placeholder(), fig):
        figures.nothing(empty.axes)
        assert empty.get_figheight() == 0.8 and not any(ax.axison for ax in empty.axes)
        figures.plt.close(empty)


def test_shares_in_percent_keep_the_digits_they_are_asked_for():
    assert [figures.percent(share) for share in (0.1, 0.3765)] == ["10\u00a0%", "38\u00a0%"]
    assert [figures.percent(share, 1) for share in (0.1, 0.025)] == ["10\u00a0%", "2.5\u00a0%"]
