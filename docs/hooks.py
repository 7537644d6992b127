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
    *("examples/*.ipynb", "benchmarks/evidence/CLAIMS.md"),
    *(f"benchmarks/results/**/*.{kind}" for kind in ("md", "png", "csv")),
]
FORMULA = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
NOTEBOOK_LINK = re.compile(r'(?<=href=")([^":#]+\.md)')
LINK = re.compile(r"(\]\()([^)\s#]+)")


@event_priority(100)  # before the plug-in for notebooks looks for them
def on_files(files, config):
    """Adds the files of other folders."""
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        place = path.relative_to(ROOT).as_posix()
        files.append(File(place, ROOT, config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes links between files of the repository links between pages."""
    folder = posixpath.dirname(page.file.src_uri) or "."

    def moved(found):
        if "://" in found[2]:
            return found[0]
        return found[1] + posixpath.relpath(_in_site(found[2], page), folder)

    return LINK.sub(moved, markdown)


def on_page_content(content, page, config, files):
    """Turns formulas into MathML, which browsers show without a script."""
    if page.file.src_uri.endswith(".ipynb"):  # MkDocs does not see its links
        return NOTEBOOK_LINK.sub(
            lambda found: files.src_uris[_in_site(found[1], page)].url_relative_to(
                page.file
            ),
            content,
        )

    return FORMULA.sub(
        lambda found: (
            '<div class="formula">'
            + convert(html.unescape(found[1]), display="block")
            + "</div>"
        ),
        content,
    )


def _in_site(link, page):
    """Returns where a file is in the site that a page of the repository links to."""
    here = pathlib.Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
    return target.removeprefix("docs/")
