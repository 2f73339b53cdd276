"""`python -m benchmarks.methods.instantmesh check FOLDER`: is what we compute what InstantMesh's public code computed?"""

import sys

from benchmarks.fixtures import main
from benchmarks.methods.instantmesh.check import KINDS

sys.exit(main(KINDS, "instantmesh"))
