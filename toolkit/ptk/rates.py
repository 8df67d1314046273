"""How fast models have answered on this machine: noted after each step that asked one, fitted for the next plan."""

from __future__ import annotations

import hashlib
import os
import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from ptk.params import Params
from ptk.places import Place, listed

__all__ = ["Kind", "Rate", "Seen", "model_id", "note_rate", "seen_rates", "this_machine"]

Kind = Literal["written", "constrained", "scored"]
_LATEST = 50
_OUTPUT_WEIGHT = 4.0
"""How many prompt tokens cost as much as one of an answer, as far as nothing was seen that tells."""
_PRIOR = 0.01


class Rate(Params):
    """What asking one step's requests took: the answers' tokens, and seconds without the start of the model."""

    model: str
    kind: Kind
    machine: str
    requests: int
    computed_tokens: int
    """Prompt tokens that were not taken from the prefix cache."""
    output_tokens: int
    seconds: float
    starting: float
    """Seconds that the model took to start; 0 where it was there already."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a model and a kind of request here."""

    runs: int
    prompt_seconds: float
    """Seconds for each prompt token that is computed."""
    output_seconds: float
    """Seconds for each token of an answer."""
    output_tokens: float
    """Tokens of an answer, on average."""
    starting: float
    """Seconds until the model is loaded, on average; 0 where it needs no start."""

    def seconds(self, computed_tokens: float, output_tokens: float) -> float:
        """Return the time that so many tokens will take, without the start."""
        return computed_tokens * self.prompt_seconds + output_tokens * self.output_seconds


def model_id(identity: Mapping[str, Any]) -> str:
    """Return a short name of all that decides a model's answers."""
    return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


@cache
def this_machine() -> str:
    """Return what decides speed here, as far as it is plain to see: the processor, the cores that may be used, the GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = sorted(_value(path, "Model") or "GPU" for path in Path("/proc/driver/nvidia/gpus").glob("*/information"))
    processor = _value(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    return ", ".join([processor, f"{cores} cores", *gpus])


def _value(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), None)


def note_rate(folder: Place, rate: Rate) -> None:
    """Keep a rate as a small file of its own, so that runs side by side do not meet."""
    path = folder / rate.model / f"{rate.kind}-{time.time_ns():020}-{uuid.uuid4().hex[:8]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(rate.model_dump()))


def seen_rates(folder: Place, model: str, kind: Kind, machine: str) -> Seen | None:
    """Return what was seen of a model and a kind of request on a machine, or None. What can't be read is passed over."""
    found: list[Rate] = []
    for path in reversed(listed(folder / model, f"{kind}-*.json")):
        with suppress(ValidationError, OSError):
            rate = Rate.model_validate_json(path.read_bytes())
            if rate.machine == machine and rate.seconds > 0 and rate.requests > 0:
                found.append(rate)
        if len(found) == _LATEST:
            break
    return _fitted(found) if found else None


def _fitted(rates: Sequence[Rate]) -> Seen:
    """Fit seconds = a * computed prompt tokens + b * answer tokens by least squares of relative errors, long runs counting more.

    As long as all runs have about the same mix of tokens, what they don't tell, b / a, is taken to be the usual one.
    """
    scale = sum(rate.computed_tokens + rate.output_tokens for rate in rates) / sum(rate.seconds for rate in rates) or 1.0
    xx = xy = yy = xz = yz = 0.0
    for rate in rates:
        x, y = rate.computed_tokens / rate.seconds / scale, rate.output_tokens / rate.seconds / scale
        xx, xy, yy, xz, yz = (
            total + rate.seconds * term for total, term in zip((xx, xy, yy, xz, yz), (x * x, x * y, y * y, x, y), strict=True)
        )
    prior = _PRIOR * sum(rate.seconds for rate in rates)
    xx, xy, yy = xx + prior * _OUTPUT_WEIGHT**2, xy - prior * _OUTPUT_WEIGHT, yy + prior
    determinant = xx * yy - xy * xy
    a, b = (xz * yy - yz * xy) / determinant, (yz * xx - xz * xy) / determinant
    if a < 0 or b < 0:  # one of the two explains all; the other can't be told
        a, b = (0.0, yz / yy) if a < 0 else (xz / xx, 0.0)
    started = [rate.starting for rate in rates if rate.starting >= 1]
    requests = sum(rate.requests for rate in rates)
    return Seen(
        runs=len(rates),
        prompt_seconds=a / scale,
        output_seconds=b / scale,
        output_tokens=sum(rate.output_tokens for rate in rates) / requests,
        starting=sum(started) / len(started) if started else 0.0,
    )
