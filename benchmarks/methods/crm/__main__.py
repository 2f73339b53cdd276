"""`python -m benchmarks.methods.crm check FOLDER`: is what we compute what CRM's public code computed?"""

import sys

from benchmarks.fixtures import main
from benchmarks.methods.crm.check import KINDS

sys.exit(main(KINDS, "crm"))
