"""What the site needs besides MkDocs: pages of other folders, and formulas as MathML.

The README is the start page. Pages that lie outside of `docs/` have the same path in
the site as in the repository. So one text, with links that work on a code host, is
enough.
"""

import html
import pathlib
import posixpath
import re

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
OUTSIDE = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "CITATION.cff"),
    *("examples/*.py", "examples/*.ipynb", "benchmarks/evidence/CLAIMS.md"),
    *(f"benchmarks/results/**/*.{kind}" for kind in ("md", "png", "csv")),
]
KINDS = {"span": "inline", "div": "block"}
FORMULAS = [
    re.compile(r'<(span) class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL),
    re.compile(r'<(div) class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL),
]
LINK = re.compile(r"(\]\()([^)\s#]+)")


@event_priority(100)  # before the plug-in for notebooks looks for them
def on_files(files, config):
    """Adds the files of other folders."""
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        place = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, _in_site(place), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes links between files of the repository links between pages."""
    here = page.file.src_uri
    folder = posixpath.dirname(_in_repository(here, files))

    def moved(found):
        if "://" in found[2]:
            return found[0]
        target = _in_site(posixpath.normpath(posixpath.join(folder, found[2])))
        return found[1] + posixpath.relpath(target, posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)


def on_page_content(content, page, config, files):
    """Turns formulas into MathML, which browsers show without a script."""
    for formula in FORMULAS:
        content = formula.sub(
            lambda found: convert(html.unescape(found[2]), display=KINDS[found[1]]),
            content,
        )
    return content


def _in_site(place):
    """Returns where a file of the repository is in the site."""
    return "index.md" if place == "README.md" else place.removeprefix("docs/")


def _in_repository(place, files):
    """Returns where a file of the site is in the repository."""
    path = pathlib.Path(files.src_uris[place].abs_src_path)
    return path.relative_to(ROOT).as_posix()
