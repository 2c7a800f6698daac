"""Sphinx configuration."""

import os
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

project = "diffbio_sc"
author = "diffbio_sc developers"
copyright = "2026, diffbio_sc developers"
version = release = installed_version("diffbio-sc")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
]
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
    (r"py:.*", r"diffbio_sc\.training\.(trainable|optimizers)\..*"),
    (r"py:.*", r"diffbio_sc\.operators\.[a-z_]+\.[a-z_.]+\.[A-Z]\w+"),
]
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
bibtex_bibfiles = ["../src/diffbio_sc/references.bib"]
bibtex_reference_style = "author_year"

# The notebooks live at the top of the repository, without outputs. Read the Docs runs them and shows their outputs;
# other builds show them as they are: the checks execute them on their own.
_pages = Path(__file__).parent / "notebooks"
for _notebook in (Path(__file__).parent.parent / "notebooks").glob("*.ipynb"):
    shutil.copyfile(_notebook, _pages / _notebook.name)
nb_execution_mode = "auto" if os.environ.get("READTHEDOCS") else "off"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
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

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"show_navbar_depth": 2, "home_page_in_toc": True}
templates_path = ["_templates"]
