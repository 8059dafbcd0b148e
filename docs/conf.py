import re

from docutils import nodes
from docutils.utils.math import latex2mathml

import nettrim_solver

project = "nettrim_solver"
author = "nettrim_solver developers"
copyright = "2026, nettrim_solver developers"
version = release = nettrim_solver.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"nettrim_solver {release}"
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it, with shapes
numpydoc_show_class_members = False


def mathml(tex, block):
    # MathML needs no script from the net, so that pages show formulas offline. docutils does not
    # know mathrel, big and textstyle, which change spaces and sizes only.
    tex = re.sub(r"\\mathrel\{(.)\}|\\big(?![a-z])|\\textstyle", r"\1", tex)
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    return latex2mathml.tex2mathml(tex, as_block=block)


def visit_math(translator, node):
    translator.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def visit_math_block(translator, node):
    parts = [part for part in re.split(r"\n\s*\n", node.astext()) if part.strip()]
    formulas = "".join(mathml(part.strip(), block=True) for part in parts)
    translator.body.append(f'<div class="math" style="overflow-x: auto">{formulas}</div>')
    raise nodes.SkipNode


def plain_headings(app, what, name, obj, options, lines):
    # "References" of several modules on one page cannot all be sections.
    if what == "module":
        for i in range(len(lines) - 1):
            if lines[i] and lines[i + 1] == "-" * len(lines[i]):
                lines[i : i + 2] = [f".. rubric:: {lines[i]}", ""]


def setup(app):
    app.connect("autodoc-process-docstring", plain_headings)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
