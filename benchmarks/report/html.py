"""The report as one HTML page that needs no other file."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .document import Cell, Document, Number, Verdict, text
from .drawn import svg

CLASSES = {True: "reached", False: "missed", None: "unmeasured"}
# Words longer than this need a column of their own width.
LONG = 40


def page(document: Document) -> str:
    environment = Environment(
        loader=PackageLoader(str(__package__), "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(text=text, attributes=attributes, svg=svg)
    return environment.get_template("page.html").render(document=document).lstrip()


def attributes(cell: Cell, figures: bool) -> Markup:
    """How a cell looks, and by what it is sorted: the figure as the record holds it.

    `figures`: its column holds little else.
    """
    if isinstance(cell, Number):
        side = Markup(' class="figure"') if figures else Markup("")
        return side + Markup(' data-value="{}"').format(repr(cell.value))
    if isinstance(cell, Verdict):
        return Markup(' class="{}"').format(CLASSES[cell.reached])
    return Markup(' class="words"') if cell and len(cell) > LONG else Markup("")
