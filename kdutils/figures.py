"""What a chapter shows: one style, figures with alternative text, tables, glued numbers. Reads records, never torch.

A figure's cell ends with `show(fig, alt)`. Its caption and its name stand in the cell's metadata, from which the book
numbers it: `"mystnb": {"figure": {"caption": "...", "name": "fig-pilot-size"}}`. The alternative text that `show` is
given goes into the output, and `python -m kdutils.chapters commit` copies it to where the book looks for it.
"""

from __future__ import annotations

import inspect
import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display

from kdutils.intervals import paired
from kdutils.params import check_glue, in_one_line
from kdutils.records import MissingRuns, Record, Spec, Store, command_for, ensure, frame, look_up
from kdutils.tasks import readable

DASH = "–"
PERCENT = "\N{NO-BREAK SPACE}%"  # on one line with its number
NATURAL = ("nll", "entropy", "mse")  # measures in their own units; all others are fractions, shown in points
COLOURS = sns.color_palette("colorblind")
INK = "#333333"
GLUE = "application/papermill.record/"


# ------------------------------------------------------------------------------------------------------------ records


@dataclass(frozen=True)
class Runs:
    """What a chapter looks at: `records`, the specs that are `missing`, and `frame` (see `kdutils.records.frame`)."""

    records: list[Record]
    missing: list[Spec]
    frame: pd.DataFrame


def runs(chapter: str, profile: str, task: str = "all", train: bool = False,
         keep: Callable[[list[Spec]], Iterable[Spec]] = list) -> Runs:
    """A chapter's planned runs, those that `keep` leaves of them: looked up, or with `train` made where they are
    missing, with a progress bar.

    What is missing is left out; MissingRuns, in one line, where there is nothing at all. ValueError, in one line and
    before any work: training would lack its data, or could not be stored.
    """
    from kdutils import experiments

    def planned():
        return keep(experiments.plan(chapter, profile, None if task == "all" else task))

    found, missing = look_up(planned())
    if missing and train:
        check_glue(spec.task for spec in missing)
        Store().check_writable()
    while missing and train:
        before = missing
        ensure(missing, experiments.run)
        found, missing = look_up(planned())  # some runs are planned only once those that they build on are there
        if missing == before:
            made = f"{len(missing)} runs were made but are not in the store, such as {missing[0]}"
            raise in_one_line(RuntimeError(made))
    if not found:
        raise in_one_line(MissingRuns(missing, command_for(missing)))
    return Runs(found, missing, frame(found))


def provenance(records: Iterable[Record]) -> None:
    """Show where a chapter's numbers come from: its runs, their hours, commits, devices and versions and, where there
    are several, the dtypes that trained them and the teachers of a task."""
    records = list(records)
    tasks = pd.Series([r["spec"]["task"] for r in records]).value_counts(sort=False)
    commits = ", ".join(sorted({(r["commit"] or "unknown")[:7] + ("*" if r["dirty"] else "") for r in records}))
    days = sorted(r["created"][:10] for r in records)
    versions = sorted({f"{name} {version}" for r in records for name, version in r["versions"].items()})
    rows = {
        "runs": f"{len(records)} ({', '.join(f'{task} {count}' for task, count in tasks.items())})",
        "computing": f"{sum(r['seconds'] for r in records) / 3600:.2f} hours, summed over runs",
        "devices": ", ".join(sorted({r["device"] for r in records})),
        "versions": ", ".join(versions),
        "commits": commits + (" (*: with changes that were not committed)" if "*" in commits else ""),
        "made": " to ".join(dict.fromkeys((days[0], days[-1]))),
    }
    kinds = pd.Series([r["extra"].get("dtype") for r in records]).dropna().value_counts()
    if len(kinds) > 1:
        rows["trained in"] = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    if several := _teachers(records):
        rows["teachers"] = several
    table(pd.DataFrame(rows.items(), columns=["what", "value"]), "Where these numbers come from.")


def _teachers(records: Iterable[Record]) -> str:
    """The tasks that were taught by different teachers of one model, in one line, empty where there is none. Weights
    are never published, so that every machine fine-tunes a teacher of its own. Older records do not say theirs."""
    told: dict[tuple, set] = {}
    for record in records:
        if weights := record["extra"].get("teacher_weights"):
            spec = record["spec"]
            told.setdefault((spec["profile"], spec["task"], spec["settings"].get("model")), set()).add(weights)
    return "; ".join(f"runs of {task} were taught by {len(found)} different teachers ({', '.join(sorted(found))})"
                     for (_, task, _), found in told.items() if len(found) > 1)


# ------------------------------------------------------------------------------------------------------------ numbers


def scale(metric: str) -> float:
    """What a measure is multiplied by for display: 100 (points) for fractions and correlations, else 1."""
    return 1.0 if metric.rsplit("_", 1)[-1] in NATURAL else 100.0


def interval(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean, half width of Student's 95 % interval (NaN with one value) and n; missing values are left out."""
    known = [v for v in values if v is not None and not math.isnan(v)]
    found = paired(known)
    return found["effect"], (found["high"] - found["low"]) / 2, len(known)


def plus_minus(mean: float, half: float, n: int, digits: int = 1, sign: bool = False) -> str:
    """`78.4 ± 0.9 (5)`: mean, half width of the 95 % interval, n; no half width where there is one value only."""
    if not n or math.isnan(mean):
        return f"{DASH} ({n})" if n else DASH
    shown = number(mean, digits, sign)
    return f"{shown} ({n})" if math.isnan(half) else f"{shown} ± {half:.{digits}f} ({n})"


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A number with a true minus sign, and with its plus where `sign`; what rounds to zero has no sign; a dash where
    there is no number."""
    if pd.isna(value):
        return DASH
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def percent(share: float, digits: int = 0) -> str:
    """A share in percent, to `digits` places where it has them."""
    return f"{round(100 * share, digits):g}{PERCENT}"


# -------------------------------------------------------------------------------------------------- tables and numbers


WHOLE = re.compile(r"<td>((?=[^<]*\d)[^<A-Za-z]{1,28}|[A-Z]+-\w)</td>")  # kept on one line: numbers, a task like STS-B
LONG = re.compile(r"<td>((?=[^<\s]+\s)[^<]{40,})</td>")  # a sentence, which needs some width
FIRST = re.compile(r"(<tr>\s*)<td[^>]*>(.*?)</td>", re.DOTALL)


@dataclass(frozen=True)
class Table:
    """A captioned table: HTML on a page, where rows that begin alike share their first cell; plain text elsewhere."""

    data: pd.DataFrame
    caption: str

    def _repr_html_(self) -> str:
        html = self.data.to_html(index=False, border=0, justify="left")
        spans = [len(list(alike)) for _, alike in itertools.groupby(self.data.iloc[:, 0])]
        if max(spans) > 1:
            left = iter([span if i == 0 else 0 for span in spans for i in range(span)])
            html = FIRST.sub(lambda row: row[1] + self._first(row[2], next(left)), html)
        html = LONG.sub(r'<td class="long">\1</td>', WHOLE.sub(r'<td class="whole">\1</td>', html))
        return html.replace("<thead>", f"<caption>{escape(self._sentence)}</caption>\n<thead>", 1)

    @property
    def _sentence(self) -> str:
        return self.caption.rstrip(".") + "."

    @staticmethod
    def _first(text: str, span: int) -> str:
        return f'<th scope="rowgroup" rowspan="{span}">{text}</th>' if span else ""

    def __repr__(self) -> str:
        return f"{self._sentence}\n{self.data.to_string(index=False)}"


def table(data: pd.DataFrame, caption: str, digits: int = 1) -> None:
    """Show `data` with its caption, tasks and metrics under their readable names, or a line where there are no rows.
    Floats are printed as they are, to `digits` places: scale them before."""
    if data.empty:
        print(f"No runs yet for: {caption}")
        return

    def text(value):
        plain = value is not None and value is not pd.NA and not isinstance(value, float | np.floating)
        return readable(str(value)) if plain else number(value, digits)

    named = {readable(str(name)): [text(v) for v in column] for name, column in data.items()}
    display(Table(pd.DataFrame(named), readable(caption)))


def glue(name: str, value: str | float) -> None:
    """Keep a number for the page's prose, where {glue:text}`name` shows it; `myst_nb.glue` without needing myst_nb."""
    text = value if isinstance(value, str) else repr(float(value))
    display({f"{GLUE}text/plain": repr(text) if isinstance(value, str) else text}, raw=True,
            metadata={"scrapbook": {"name": name, "mime_prefix": GLUE}})


def show_source(function: Callable) -> None:
    """Show a function's source as it stands in the module, so that what is read is what runs."""
    source = textwrap.dedent(inspect.getsource(function))
    display(Markdown(f"```python\n# {inspect.getmodule(function).__name__}\n{source}```"))


# ------------------------------------------------------------------------------------------------------------ figures


def style() -> None:
    """The book's style: white ground (a white card in dark mode), colour-blind-safe colours, thin grid."""
    sns.set_theme(context="notebook", style="whitegrid", palette=COLOURS, rc={
        "figure.facecolor": "white", "axes.edgecolor": "#888888", "axes.labelcolor": INK, "text.color": INK,
        "xtick.color": INK, "ytick.color": INK, "grid.color": "#e6e6e6", "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "font.size": 10, "axes.titlesize": 11,
        "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
        "figure.constrained_layout.use": True, "figure.constrained_layout.h_pad": 0.08,
        "figure.constrained_layout.w_pad": 0.06,
    })


def panels(columns: int = 1, rows: int = 1, width: float = 7.2, height: float = 2.9, **options):
    """A figure in the book's style and its axes as a flat list."""
    style()
    fig, axes = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, **options)
    return fig, list(axes.flat)


def show(fig, alt: str) -> None:
    """Show a figure at twice the screen's resolution, with the alternative text `alt`: what it says to those who do not
    see it. ValueError: no text."""
    if len(alt.split()) < 5:
        raise ValueError(f"alt: got {alt!r}; allowed: a sentence that says what the figure shows")
    buffer, (width, height) = io.BytesIO(), fig.get_size_inches() * 96
    fig.savefig(buffer, format="png", dpi=192)
    plt.close(fig)
    about = {"alt": alt, "width": round(width), "height": round(height)}
    display({"image/png": buffer.getvalue(), "text/plain": alt}, raw=True, metadata={"image/png": about})


def curve(ax, data: pd.DataFrame, x: str, y: str, hue: str | None = None, **options) -> None:
    """Mean of column `y` (in points where it is a fraction) over `x`, with a band: Student's 95 % interval. Groups of
    `hue` differ in dashes and markers too."""
    def band(values):
        mean, half, n = interval(values)
        return (mean, mean) if n < 2 else (mean - half, mean + half)

    shown = data.assign(**{y: data[y] * scale(y)})
    told = {"style": hue, "markers": True, "style_order": options.get("hue_order")} if hue else {"marker": "o"}
    sns.lineplot(shown, x=x, y=y, hue=hue, errorbar=band, markersize=5, ax=ax, **told, **options)
    if pd.api.types.is_integer_dtype(data[x]):  # layers, epochs: there are none and a half
        ax.xaxis.get_major_locator().set_params(integer=True)


def dots(ax, data: pd.DataFrame, metric: str, by: str, order: Iterable | None = None) -> None:
    """One row a group of `by`: every run a faint dot, and the mean with its 95 % interval; n beside the name."""
    order = list(dict.fromkeys(data[by])) if order is None else list(order)
    names = []
    for row, group in enumerate(order):
        values = data.loc[data[by] == group, metric] * scale(metric)
        mean, half, n = interval(values)
        ax.plot(values, np.full(len(values), row), "o", color=COLOURS[0], alpha=0.35, markersize=4)
        bars = None if math.isnan(half) else [half]
        ax.errorbar([mean], [row], xerr=bars, fmt="D", color=COLOURS[0], capsize=3, markersize=5)
        names.append(f"{group} (n = {n})")
    _rows(ax, names)


def forest(ax, estimates: dict[str, dict]) -> None:
    """One row an estimate (`effect`, `low`, `high`, `n`: see `kdutils.intervals`), its interval, and a line at zero."""
    ax.axvline(0, color="#888888", linewidth=1)
    for row, found in enumerate(estimates.values()):
        ends = [[found["effect"] - found["low"]], [found["high"] - found["effect"]]]
        bars = None if np.isnan(ends).any() else ends
        ax.errorbar([found["effect"]], [row], xerr=bars, fmt="o", color=COLOURS[0], capsize=3, markersize=6)
    ax.locator_params(axis="x", nbins=7)  # signed decimals are wide
    _rows(ax, [f"{name} (n = {found['n']})" for name, found in estimates.items()])


def differences(estimates: dict[str, dict], label: str, height: float):
    """A forest plot of estimates by name, as a figure of its own."""
    fig, (ax,) = panels(height=height)
    forest(ax, estimates) if estimates else nothing([ax])
    ax.set_xlabel(label)
    return fig


def nothing(axes: Iterable, why: str = "no runs yet") -> None:
    """Say on axes why they are empty. A figure with nothing else becomes a line of its own."""
    axes = list(axes)
    for ax in axes:
        ax.text(0.5, 0.5, why, ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
    if axes and axes == axes[0].figure.axes:
        axes[0].figure.set_figheight(0.8)
        for ax in axes:
            ax.set_axis_off()


def placeholder(why: str = "no runs yet"):
    """A figure that says why it is empty."""
    fig, axes = panels()
    nothing(axes, why)
    return fig


def _rows(ax, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(max(1, len(names)) - 0.5, -0.5)
    ax.grid(False, axis="y")
