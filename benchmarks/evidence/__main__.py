"""The command `python benchmarks/evidence`."""

import pathlib
import sys

if not __package__:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from evidence.study import main

if __name__ == "__main__":
    main()
