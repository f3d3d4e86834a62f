import os
import sys
from contextlib import suppress

with suppress(OSError):
    if not sys.flags.safe_path and sys.path[0] == os.getcwd():  # noqa: PTH109 - pathlib is not loaded yet
        # `python -m` puts it there: a file called yaml.py in the working directory would be run.
        del sys.path[0]

from opservice.cli import main

main()
