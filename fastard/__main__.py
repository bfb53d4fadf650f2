"""``python -m fastard`` is the command ``fastard``."""

from __future__ import annotations

import sys

from fastard.cli import main

sys.exit(main())
