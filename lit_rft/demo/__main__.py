"""`python -m lit_rft.demo`."""

import sys

from lit_rft.demo import main
from lit_rft.error_messages import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        main()
    sys.exit(0)
