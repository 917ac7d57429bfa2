"""Settings of the documentation site. `make docs` builds it from the pages of this folder and the package's docstrings.

A build downloads nothing, and every warning is an error.
"""

import pathlib
import sys

DOCS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_extensions")]

import ddpm_jax

project = "ddpm_jax"
author = "The ddpm_jax authors"
project_copyright = "the ddpm_jax authors, Apache-2.0"
version = release = ddpm_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax is part of the site, so that equations need no other server
    "repository_files",
    "api_docstrings",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
highlight_language = "text"

# Pages are Markdown, written for GitHub as well. The notebook is shown as the repository has it and is not run.
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"

# Files of the repository outside docs/ that are pages of the site too, and where the build writes them in docs/.
repository_pages = {
    "README.md": "generated/readme.md",
    "CONTRIBUTING.md": "generated/contributing.md",
    "CHANGELOG.md": "generated/changelog.md",
    "notebooks/ddpm_colab.ipynb": "generated/ddpm_colab.ipynb",
}

# The API reference. autosummary traverses the package, so a new or renamed module needs no change here.
autodoc_default_options = {"members": True, "member-order": "bysource"}
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # the signature shows the types
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "code"  # docstrings quote code in single backticks
smartquotes = False

# References inside the package are checked. Those to other libraries are not: their indexes are not at hand in a build.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!ddpm_jax\b).*")]
suppress_warnings = ["ref.python"]  # signatures name classes as the source does; two modules may have one of the same name

html_theme = "sphinx_book_theme"
html_title = f"ddpm_jax {version}"
html_theme_options = {
    "navbar_persistent": [],
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_show_sourcelink = False
html_copy_source = False
