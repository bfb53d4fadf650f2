"""The attack benchmark's file: a network at a time, what was found before kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastard.files import write_json


class Record:
    """`put` replaces a network's entry and rewrites the file.

    Figures of two environments never share a file: a run of everything starts it anew, one of some
    networks raises ValueError.
    """

    def __init__(self, path: Path, environment: dict[str, Any], whole: bool) -> None:
        self.path = path
        self.run: dict[str, Any] = {"environment": environment, "networks": []}
        if not path.exists():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        # Networks measured later bear a commit of their own.
        if found["environment"] | {"commit": None} == environment | {"commit": None}:
            self.run = found
        elif not whole:
            raise ValueError(
                f"--out holds a run of another machine or version ({path}): measure all networks, "
                "or name another file."
            )

    def get(self, name: str) -> dict[str, Any]:
        """A network's entry; raises ValueError where there is none."""
        found = [known for known in self.run["networks"] if known["model"] == name]
        if not found:
            raise ValueError(f"--out holds no run of {name} ({self.path}): measure it whole first.")
        return found[0]

    def put(self, network: dict[str, Any]) -> None:
        networks = self.run["networks"]
        names = [known["model"] for known in networks]
        if network["model"] in names:
            networks[names.index(network["model"])] = network
        else:
            networks.append(network)
        write_json(self.path, self.run)
