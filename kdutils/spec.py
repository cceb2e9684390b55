"""What a run is: `Spec`, everything that decides a run's outcome, and its key."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import numbers
import os
import re
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

COLUMNS = ("key", "chapter", "task", "profile", "method", "seed", "seconds", "device")  # of records.frame
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def plain(value: Any, name: str) -> Any:
    """`value` as plain JSON (tuples become lists, numpy scalars numbers); ValueError, in one line, where it is none."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if os.path.isabs(value):
            raise ValueError(f"{name}: got {value!r}; allowed: no absolute path (records are shared between machines)")
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise ValueError(f"{name}: got {value}; allowed: finite numbers (None where a value is undefined)")
        return float(value)
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    raise ValueError(f"{name}: got {type(value).__name__} {str(value)[:80]!r}; allowed: JSON values with text keys")


def to_json(value: Any) -> str:
    """One line of JSON, the same for equal values. ValueError: NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@functools.cache
def _defaults() -> dict[str, Any]:
    from kdutils.profiles import Settings

    def default(field):
        made = field.default if field.default_factory is MISSING else field.default_factory()
        return made if made is MISSING else plain(made, field.name)

    return {field.name: default(field) for field in fields(Settings)}


def key_of(spec: dict[str, Any]) -> str:
    """Key of a plain spec. Settings at their default, and those that no longer exist, are left out, so that adding or
    removing a setting leaves the other keys alone."""
    defaults = _defaults()
    settings = {k: v for k, v in spec["settings"].items() if k in defaults and v != defaults[k]}
    return hashlib.sha256(to_json(spec | {"settings": settings}).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Spec:
    """Everything that decides a run's outcome. Two specs are the same run where their keys are equal.

    args: the method's own arguments, JSON values; settings: `asdict` of the expanded `profiles.Settings`.
    Raises ValueError, in one line, for a value that is not JSON, not finite, an absolute path, or an unknown setting.
    """

    chapter: str
    task: str
    method: str
    profile: str
    seed: int
    args: dict
    settings: dict

    def __post_init__(self):
        for name in ("chapter", "task", "method", "profile"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                raise ValueError(f"{name}: got {value!r}; allowed: letters, digits and _ . + -")
        if isinstance(self.seed, bool) or not isinstance(self.seed, numbers.Integral) or self.seed < 0:
            raise ValueError(f"seed: got {self.seed!r}; allowed: integers from 0")
        for name in ("args", "settings"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name}: got {getattr(self, name)!r}; allowed: a dict")
            object.__setattr__(self, name, plain(getattr(self, name), name))
        object.__setattr__(self, "seed", int(self.seed))
        if taken := sorted(set(self.args) & set(COLUMNS)):
            raise ValueError(f"args: got {taken}; allowed: names other than {', '.join(COLUMNS)}")
        if unknown := sorted(set(self.settings) - set(_defaults())):
            raise ValueError(f"settings: got {unknown}; allowed: {', '.join(_defaults())}")

    @functools.cached_property
    def key(self) -> str:
        """16 hex digits of sha256 over canonical JSON (sorted keys, floats by repr)."""
        return key_of(asdict(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        args = " ".join(f"{name}={value}" for name, value in self.args.items())
        return " ".join(filter(None, (self.chapter, self.profile, self.task, self.method, args, f"seed={self.seed}")))
