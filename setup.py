"""Describes the package on PyPI with the README, less what only works beside its files.

All other metadata is in `setup.cfg`.
"""

import pathlib
import re

from setuptools import setup

INSTALL = """## Install

`pip install 'keras-weissi[tensorflow]'`, or `[jax]` or `[torch]`; without brackets if
you have one of them.

"""

text = pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8")
text = re.sub("## Install\n.*?(?=## )", lambda _: INSTALL, text, flags=re.DOTALL)
text = re.sub("## More\n.*?(?=- Source)", "## Source\n\n", text, flags=re.DOTALL)
# Pictures, with the paragraph in italics below them; sentences that point to a file.
text = re.sub(
    r"!\[[^]]*\]\((?!https?:)\S+\)\n\n(\*[^*].*?\n\n)?", "", text, flags=re.DOTALL
)
text = re.sub(r"See \[[^]]*\]\((?!https?:)\S+?\)\.", "", text)
text = re.sub(r"\[([^]]*)\]\((?!https?:)\S+?\)", r"\1", text)
setup(long_description=text)
