"""Pictures as files: SVG inside a page, PNG beside it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup

from fastard.files import atomic_path

from .document import Picture
from .palette import MARKED, PRINTED, themed

SVG = "{http://www.w3.org/2000/svg}"
# A page knows these prefixes alone.
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

# Names come from a file: a dollar sign in them is no formula.
SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def svg(picture: Picture) -> Markup:
    """The picture as an element of a page, which gives it its size, its fonts and its colours."""
    written = io.BytesIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": picture.name}):
        picture.draw(MARKED).savefig(written, format="svg", transparent=True)
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style"):
                parent.remove(child)
    for element in root.iter():
        if "id" in element.attrib:  # matplotlib's are the same in every picture
            element.set("id", f"{picture.name}-{element.get('id')}")
    for name in ("width", "height"):
        del root.attrib[name]
    root.attrib.update({"role": "img", "aria-labelledby": f"{picture.name}-told"})
    text = ElementTree.tostring(root, encoding="unicode")
    return Markup(themed(re.sub(r'(url\(#|href="#)', rf"\g<1>{picture.name}-", text)))


def png(picture: Picture, path: Path) -> Path:
    with matplotlib.rc_context(SETTINGS), atomic_path(path) as temporary:
        picture.draw(PRINTED).savefig(temporary, format="png", dpi=160, facecolor="white")
    return path
