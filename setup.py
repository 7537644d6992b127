"""Describes the package on PyPI with the README, less what only works beside its files.

All other metadata is in `setup.cfg`.
"""

import pathlib
import re

from setuptools import setup

text = pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8")
# Pictures, with the paragraph in italics below them, and links to files.
text = re.sub(
    r"!\[[^]]*\]\((?!https?:)\S+\)\n\n(\*[^*].*?\n\n)?", "", text, flags=re.DOTALL
)
text = re.sub(r"\[([^]]*)\]\((?!https?:)\S+?\)", r"\1", text)
setup(long_description=text)
