"""The `keras-griffin` command, one file a subcommand."""
