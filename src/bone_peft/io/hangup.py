"""What to do when the terminal is gone."""

import os
import stat
from contextlib import suppress


def let_go_of_the_terminal() -> None:
    """Send what is still printed nowhere: a terminal that was closed answers with an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with suppress(OSError):  # it is closed already
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)
