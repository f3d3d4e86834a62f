"""Sphinx's configuration. scripts/docs.sh builds the site from it.

The source directory is the repository, so that links between its pages are the same here and where the
repository is read as files.
"""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[1]

project = "opservice"
author = "The opservice maintainers"
release = re.findall(r'^version = "(.+)"$', (_ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "client/README.md",
    "proto/README.md",
    "examples/*/README.md",
]
html_theme = "furo"
html_title = f"opservice {release}"
html_copy_source = False
html_show_copyright = False

# A link to a heading is checked like one to a page: myst makes the anchors that forges make.
myst_heading_anchors = 4
suppress_warnings = [
    "misc.highlighting_failure",  # some examples leave out what does not matter, with …
    "ref.python",  # in signatures `Work` may be that of threads or that of asyncio, and links to one
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
