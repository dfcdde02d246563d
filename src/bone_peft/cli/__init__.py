"""The command ``bone``: one file a command."""
