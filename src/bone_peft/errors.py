"""The one exception that is meant for people to read."""


class BoneError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    A ``ValueError``, so code written for PEFT's own errors catches it; the command line prints it without a
    traceback and exits with code 2.
    """
