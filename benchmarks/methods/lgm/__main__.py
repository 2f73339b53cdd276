"""`python -m benchmarks.methods.lgm check FOLDER`: is what we compute what LGM's public code computed?"""

import sys

from benchmarks.fixtures import main
from benchmarks.methods.lgm.check import KINDS

sys.exit(main(KINDS, "lgm"))
