import nettrim_solver

project = "nettrim_solver"
author = "nettrim_solver developers"
copyright = "2026, nettrim_solver developers"
version = release = nettrim_solver.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "numpydoc",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"nettrim_solver {release}"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it, with shapes
numpydoc_show_class_members = False


def plain_headings(app, what, name, obj, options, lines):
    # "References" of several modules on one page cannot all be sections.
    if what == "module":
        for i in range(len(lines) - 1):
            if lines[i] and lines[i + 1] == "-" * len(lines[i]):
                lines[i : i + 2] = [f".. rubric:: {lines[i]}", ""]


def setup(app):
    app.connect("autodoc-process-docstring", plain_headings)
