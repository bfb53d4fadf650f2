"""python -m benchmarks.report RESULT.jsonl --out DIR"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import write


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("result", type=Path, help="a result file of fastard bench (JSON Lines)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    arguments = parser.parse_args(argv)
    try:
        written = write(arguments.result, arguments.out)
    except (OSError, ValueError) as error:
        print(f"fastard: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
