"""What was ordered and broken, and when: a JSON object a line."""

import json
import sys
import time
from pathlib import Path


class Log:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = time.monotonic()

    def write(self, what: str, **facts: object) -> None:
        entry = {"at": round(time.monotonic() - self._began, 1), "what": what, **facts}
        with self.path.open("a") as file:
            file.write(json.dumps(entry, default=str) + "\n")

    def say(self, line: str) -> None:
        """Also for whoever is waiting."""
        self.write("said", line=line)
        sys.stderr.write(f"{time.monotonic() - self._began:7.1f} s  {line}\n")
        sys.stderr.flush()
