"""The documentation's build: Sphinx over docs/, README and the measurements, from the root of the repository.

Sphinx with furo and MyST, because it is kept and stable: mkdocs-material is in maintenance, zensical before its first
stable version. A build takes four seconds and no network.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import reference  # noqa: E402 - of this folder

reference.write(ROOT / "docs/reference")

project = "posttrain"
author = "The posttrain authors"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/**.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
# Sphinx walks every folder that is not excluded.
_SOURCES = {"docs", "benchmarks", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in _SOURCES] + ["docs/_build"]

myst_enable_extensions = ["deflist", "html_image"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_title = "posttrain"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
# Jinja, Go templates and chat formats stand in many blocks: text without a language is text.
highlight_language = "text"


def setup(app) -> None:
    """Writes the page at the root that leads to docs/index.html."""

    def write_lead(app, error) -> None:
        if error is None and app.builder.name == "html":
            lead = '<meta http-equiv="refresh" content="0; url=docs/index.html">'
            (Path(app.outdir) / "index.html").write_text(lead + "\n")

    app.connect("build-finished", write_lead)
