"""Sphinx configuration."""

import os
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # charts.py, formulas.py

project = "diffbio_sc"
author = "diffbio_sc developers"
copyright = "2026, diffbio_sc developers"
_package = metadata("diffbio-sc")
version = release = _package["Version"]
_addresses = dict(entry.split(", ", 1) for entry in _package.get_all("Project-URL") or ())

extensions = [
    "charts",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
]
# Formulas are made MathML while the pages are built: no script, and nothing to fetch. That needs node.
if shutil.which("node"):
    extensions.append("formulas")
    katex_prerender = True
    katex_css_path = "katex-math.css"
else:
    extensions.append("sphinx.ext.mathjax")
exclude_patterns = ["_build", "**.ipynb_checkpoints", "README.md"]
suppress_warnings = ["mystnb.unknown_mime_type"]

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
# Links to our own public names must resolve; those to other projects resolve where their inventories can be had.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!diffbio_sc\.).*"),
    (r"py:.*", r"diffbio_sc\.(numerics|engines|genome|blocks|_anndata)\..*"),
    (r"py:.*", r"diffbio_sc\.(sources\.(embedding_files|download)|benchmarks\.guard)(\..*)?"),
    (r"py:.*", r"diffbio_sc\.training\.(trainable|optimizers|batches|streams)\..*"),
    (r"py:.*", r"diffbio_sc\.operators\.[a-z_]+\.[a-z_.]+\.[A-Z]\w+"),
]
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
bibtex_bibfiles = ["../src/diffbio_sc/references.bib"]
bibtex_reference_style = "author_year"

# The notebooks live at the top of the repository, without outputs. docs/run_notebooks.py, which .ci/run and Read the
# Docs call before they build, leaves them here with their outputs. One that was not run since it was changed is shown
# as it is.
_pages = Path(__file__).parent / "notebooks"
for _notebook in (Path(__file__).parent.parent / "notebooks").glob("*.ipynb"):
    _page = _pages / _notebook.name
    if not _page.exists() or _page.stat().st_mtime < _notebook.stat().st_mtime:
        shutil.copyfile(_notebook, _page)
    # A link to a page leads there from the repository; from among the pages the way is shorter.
    _text = _page.read_text(encoding="utf-8")
    if "](../docs/" in _text:
        _page.write_text(_text.replace("](../docs/", "](../"), encoding="utf-8")
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The inventories need the network; a build without it is complete apart from links into other projects.
intersphinx_mapping = {}
if os.environ.get("READTHEDOCS"):
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "flax": ("https://flax.readthedocs.io/en/latest/", None),
        "jax": ("https://docs.jax.dev/en/latest/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
    }

# A copied example has neither prompts nor what it prints.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": False, "navbar_persistent": []}
html_context = {"default_mode": "auto"}
if "Source" in _addresses:
    html_theme_options |= {"repository_url": _addresses["Source"], "use_repository_button": True}
html_static_path = ["_static"]
html_css_files = ["pages.css"]
templates_path = ["_templates"]

ogp_site_url = f"{_addresses['Documentation']}/en/latest/"
ogp_image = "_static/demo.png"
ogp_social_cards = {"enable": False}
