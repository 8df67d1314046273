"""A training job, as ptk and the process that does it see it: events as lines of JSON, and a failure that has a known cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["Events", "JobFailed"]


class JobFailed(Exception):
    """Ends the job with an event that says why; `kind` is a word for ptk, the message is for the user."""

    def __init__(self, kind: str, what: str, **more: Any) -> None:
        self.kind, self.more = kind, more
        super().__init__(what)


class Events:
    """Lines of JSON that are appended to a file, by the first process alone."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self.path, self.writes = path, writes

    def send(self, **event: Any) -> None:
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event, default=float) + "\n")
