"""`python -m benchmarks.methods.instantmesh check FOLDER`: is what we compute what InstantMesh's public code computed?"""

import sys
from pathlib import Path

from benchmarks.methods.instantmesh.check import check

if len(sys.argv) != 3 or sys.argv[1] != "check":
    sys.exit("usage: python -m benchmarks.methods.instantmesh check FOLDER")
sys.exit(check(Path(sys.argv[2])))
