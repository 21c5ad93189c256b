"""Answer the questions of a bundle on this device: python3 run.py JOBDIR

JOBDIR may hold an order.json; out.jsonl is written there. After a kill at any moment, rerun to resume.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  # a device may have any Python
    sys.exit("error: this Python is older than 3.10: name a newer one, for example sh bench.sh JOBDIR python3.11")

from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True  # the bundle stays as it was sent
sys.path.insert(0, str(HERE / "mpa_edge.zip"))

if __name__ == "__main__":
    from mpa_edge.bench.device.runner import main

    sys.exit(main(sys.argv[1:], HERE))
