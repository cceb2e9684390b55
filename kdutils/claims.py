"""What the papers print: every published number, once, in book/claims.yml, and what those numbers contradict.

A cell is named `table/row/column` and a row of tasks `table/row`; a formula over them is a dict of one entry:

    value        a cell
    mean         rows; the mean of their task cells
    difference   [a, b], each a cell or a list of rows and cells (then their mean); a - b
    share        [x, bottom, top], three cells; (x - bottom) / (top - bottom)
    correlation  [row, row]; Pearson's r over their task cells
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import pearsonr

from kdutils import tasks
from kdutils.records import repository

PARTS = ("tables", "checks", "claims")
FIELDS = ("id", "paper", "chapter", "section", "short", "sentence", "kind", "seeds", "tasks", "a", "b")
KINDS = ("beats", "nearly", "wider", "correlation")
AVERAGE = "all average"


@functools.cache
def load(path: Path | None = None) -> dict[str, Any]:
    """The whole of claims.yml, checked: rows as long as their columns, kinds and tasks that exist. Do not change it."""
    path = path or repository() / "book" / "claims.yml"
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    _need(path.name, data or {}, PARTS)
    for name, table in data["tables"].items():
        for row, values in table["rows"].items():
            if len(values) != len(table["columns"]):
                raise ValueError(f"{name}/{row}: got {len(values)} values; allowed: {len(table['columns'])}")
    for claim in data["claims"]:
        _need(f"claim {claim.get('id')!r}", claim, FIELDS)
        for task in claim["tasks"]:
            tasks.get(task)
        if claim["kind"] not in KINDS:
            raise ValueError(f"{claim['id']}: kind: got {claim['kind']!r}; allowed: {', '.join(KINDS)}")
        for sides in (claim, *claim.get("at", {}).values()):  # a side's runs are of the claim's chapter, unless it says
            sides.update({side: {"chapter": claim["chapter"]} | sides[side] for side in "ab" if side in sides})
    return data


def one(name: str) -> dict[str, Any]:
    """The claim of that id. Do not change it."""
    return next(claim for claim in load()["claims"] if claim["id"] == name)


def _need(what: str, found: dict, names: tuple[str, ...]) -> None:
    if lacking := [name for name in names if name not in found]:
        raise ValueError(f"{what}: got no {', '.join(lacking)}; allowed: {', '.join(names)} and more")


def published() -> pd.DataFrame:
    """One row a printed number: paper, table (its key), printed (its name in the paper), row, task, metric, split,
    value (NaN where not printed) and copies (what other copies of the paper print in its place, or an empty tuple)."""
    rows = []
    for name, table in load()["tables"].items():
        differing = {(d["row"], d["column"]): tuple(d["copies"]) for d in table.get("copies_differ", [])}
        for row, values in table["rows"].items():
            for column, value in zip(table["columns"], values, strict=True):
                task, metric = column.split()
                if metric != "average":
                    metric = table.get("metric", metric)
                fixed = {"paper": table["paper"], "table": name, "printed": table["table"], "row": row, "task": task}
                rest = {"metric": metric, "split": table["split"], "value": value}
                rows.append(fixed | rest | {"copies": differing.get((row, column), ())})
    return pd.DataFrame(rows).astype({"value": float})


def _row(ref: str) -> tuple[dict, str, str | None]:
    """(table, row, column or None) of a reference; ValueError names what is not there."""
    name, _, rest = ref.partition("/")
    tables = load()["tables"]
    table = tables.get(name)
    if table is None:
        raise ValueError(f"cell: got table {name!r}; allowed: {', '.join(tables)}")
    if rest in table["rows"]:
        return table, rest, None
    row, _, column = rest.rpartition("/")  # a row's name may hold a slash, a column's does not
    if row not in table["rows"] or column not in table["columns"]:
        raise ValueError(f"cell: got {ref!r}; allowed: rows {list(table['rows'])}, columns {table['columns']}")
    return table, row, column


def at(claim: dict[str, Any], profile: str) -> dict[str, Any]:
    """The claim as it is at a profile, which may have other models to compare, and other tasks."""
    return claim | claim.get("at", {}).get(profile, {})


def cell(ref: str) -> float:
    """The value of `table/row/column`; NaN where the paper prints none."""
    table, row, column = _row(ref)
    if column is None:
        raise ValueError(f"cell: got {ref!r}, a row; allowed: table/row/column")
    value = table["rows"][row][table["columns"].index(column)]
    return np.nan if value is None else float(value)


def task_cells(ref: str) -> np.ndarray:
    """The values of `table/row` that its printed average is a mean of."""
    table, row, _ = _row(ref)
    columns = table.get("average_of") or [c for c in table["columns"] if c != AVERAGE]
    values = dict(zip(table["columns"], table["rows"][row], strict=True))
    return np.array([np.nan if values[c] is None else values[c] for c in columns], dtype=float)


def evaluate(formula: dict[str, Any]) -> float:
    """The value of a formula over published cells (see the module's docstring)."""
    (kind, operands), *more = formula.items()
    if more or kind not in ("value", "mean", "difference", "share", "correlation"):
        raise ValueError(f"formula: got {formula!r}; allowed: one of value, mean, difference, share, correlation")
    if kind == "value":
        return cell(operands)
    if kind == "mean":
        return _mean(operands)
    if kind == "correlation":
        return float(pearsonr(*(task_cells(ref) for ref in operands)).statistic)
    values = [_mean(o) if isinstance(o, list) else cell(o) for o in operands]
    if kind == "difference":
        return values[0] - values[1]
    x, bottom, top = values
    return (x - bottom) / (top - bottom)


def on_tasks(formula: dict[str, Any], metrics: dict[str, str]) -> float:
    """A `difference` with the averages in it taken over some tasks alone, {task: metric}; NaN for any other formula,
    and where the paper does not print one of those cells."""
    if "difference" not in formula:
        return np.nan
    wanted = [f"{task} {metric}" for task, metric in metrics.items()]
    sides = []
    for operand in formula["difference"]:
        cells = []
        for ref in operand if isinstance(operand, list) else [operand]:
            table, row, column = _row(ref)
            values = dict(zip(table["columns"], table["rows"][row], strict=True))
            asked = wanted if column in (None, AVERAGE) else [c for c in (column,) if c in wanted]
            cells += [values.get(c) for c in asked]
        sides.append(cells)
    known = all(cells and None not in cells for cells in sides)
    return float(np.mean(sides[0]) - np.mean(sides[1])) if known else np.nan


def printed_tasks(formula: dict[str, Any], metrics: dict[str, str]) -> list[str]:
    """Those of the tasks, {task: metric}, on which the paper prints a `difference` (see `on_tasks`)."""
    return [task for task in metrics if not np.isnan(on_tasks(formula, {task: metrics[task]}))]


def _mean(refs: list[str]) -> float:
    parts = [[cell(ref)] if _row(ref)[2] else task_cells(ref) for ref in refs]
    return float(np.mean(np.concatenate(parts)))


def averages() -> pd.DataFrame:
    """Every printed average beside the mean of its row, and whether they agree.

    `agrees`: the mean rounds to the printed value. `rounding`: it does not, but that of the unrounded entries may.
    `differs`: no entries that round to the printed ones can.
    """
    rows = []
    for name, table in load()["tables"].items():
        if AVERAGE not in table["columns"] or len(table["columns"]) == 1:
            continue
        half = 0.5 if table.get("metric") == "sparsity" else 0.05  # half a unit of the last printed digit
        for row in table["rows"]:
            printed, mean = cell(f"{name}/{row}/{AVERAGE}"), task_cells(f"{name}/{row}").mean()
            if np.isnan(printed) or np.isnan(mean):
                continue
            gap = abs(printed - mean) - 1e-9
            state = "agrees" if gap <= half else "rounding" if gap <= 2 * half else "differs"
            rows.append({"table": name, "row": row, "printed": printed, "mean": mean, "state": state})
    return pd.DataFrame(rows)


def checks() -> pd.DataFrame:
    """What the papers say of their own numbers, worked out again: id, paper, text, expects ("= 35", "" for a remark),
    computed, and state: `agrees`, `fails` or `remark`."""
    rows = []
    for entry in load()["checks"]:
        computed = evaluate(entry["computed"])
        expects, state = _compare(computed, entry.get("expects"))
        fixed = {name: entry[name] for name in ("id", "paper", "text")}
        rows.append(fixed | {"expects": expects, "computed": computed, "state": state})
    return pd.DataFrame(rows)


def _compare(computed: float, expects: dict[str, float] | None) -> tuple[str, str]:
    if expects is None:
        return "", "remark"
    relation, stated = next(iter(expects.items()))
    holds = {
        "equal": abs(computed - stated) <= expects.get("within", 0.05) + 1e-9,
        "at least": computed >= stated - 1e-9,
        "at most": computed <= stated + 1e-9,
        "above": computed > stated + 1e-9,
    }[relation]
    sign = {"equal": "=", "at least": "≥", "at most": "≤", "above": ">"}[relation]
    return f"{sign} {stated:g}", "agrees" if holds else "fails"
