"""Pack what training left into parts that travel, and unpack them on the next machine.

In: `results/<preset>/`, finished or stopped. Out: `part-000`, `part-001`, ... of at most 16 MiB each, 60 MiB in all; and back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from geolrm.config import load_params
from geolrm.training.carry import pack, unpack
from pipelines.training_data import run


def main(what: tyro.conf.Positional[Literal["pack", "unpack"]], folder: tyro.conf.Positional[Path]) -> None:
    """Pack the results of the preset in params.yaml into a folder of parts, or unpack them from it.

    Args:
        what: pack or unpack.
        folder: where the parts are.
    """
    results = Path("results") / load_params().preset
    paths = pack(results, folder) if what == "pack" else unpack(folder, results)
    print(f"{len(paths)} files, {sum(path.stat().st_size for path in paths):,} bytes")


if __name__ == "__main__":
    run(lambda: tyro.cli(main))
