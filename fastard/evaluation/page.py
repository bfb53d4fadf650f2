"""One HTML page of an evaluation, with pictures of broken samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import fastard
from fastard.evaluation.pictures import MOST
from fastard.evaluation.results import protocol, titles


def page(result: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> str:
    """The page as text; it needs no other file.

    Args:
        examples: what `pictures.examples` found; the first of them in the samples' order are shown.
    """
    environment = Environment(
        loader=PackageLoader("fastard.evaluation", "."), autoescape=True, undefined=StrictUndefined
    )
    broken = Counter(name for name in result["broken_by"] if name is not None)
    return environment.get_template("page.html").render(
        title=f"{result['architecture']} on {result['data']}, suite {result['suite']}",
        result=result,
        titles=titles(result),
        protocol=protocol(result),
        broken=broken.most_common(),
        examples=sorted(examples, key=lambda shown: (shown["id"], shown["attack"]))[:MOST],
        version=fastard.__version__,
    )
