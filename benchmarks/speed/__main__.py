"""``python benchmarks/speed``."""

import sys
from pathlib import Path

# Run as a folder, Python puts the folder itself on the path; run by -m, the current one, where an installed
# ditpress would hide behind its source without the compiled library. The package is found from its parent.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from speed.cli import main  # noqa: E402

main()
