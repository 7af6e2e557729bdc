"""Workers of a pool unpickle their environment by its module's name: it must be on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
