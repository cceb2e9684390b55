"""Several processes that make each run together, a part of every batch each, as `accelerate launch` starts them.

All of them take the same way through the code; the first one alone holds leases and writes records.
"""

from __future__ import annotations

import os
from typing import Any

LINE = "KDUTILS_LINE"  # environment variable: how far below the sweep's bar a worker of it shows its own


def several() -> bool:
    """Whether `accelerate launch` (or torchrun) started more than one process."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def first() -> bool:
    """Whether this is the first of them, or the only one."""
    return int(os.environ.get("RANK") or 0) == 0


def line() -> int | None:
    """The line of this process's progress bars; None where it may have the next free one."""
    return int(os.environ[LINE]) if LINE in os.environ else None


def state(cpu: bool):
    """accelerate's state, which has this process's device, where there are several; else None."""
    if not several():
        return None
    from accelerate import PartialState

    return PartialState(cpu=cpu)


def agreed(value: Any) -> Any:
    """The first process's `value`, in all of them; each waits for the others."""
    if not several():
        return value
    import torch
    from accelerate.utils import broadcast_object_list

    state(cpu=not torch.cuda.is_available())
    return broadcast_object_list([value])[0]
