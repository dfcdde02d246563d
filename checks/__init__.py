"""The long checks, run before a release."""
