"""`python -m lit_rft.demo`."""

import os
import sys

from lit_rft.demo import main
from lit_rft.error_messages import one_line_errors

if __name__ == "__main__":
    # Threads that wait for one another busily, as libgomp's do by default, cost a machine with other work most of its
    # time (docs/performance.md). It is read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with one_line_errors():
        main()
    sys.exit(0)
