"""``python benchmarks/gate``."""

import sys
from pathlib import Path

# As in benchmarks/speed: the package is found from its parent, however it is started.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from gate.cli import main  # noqa: E402

main()
