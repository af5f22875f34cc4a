"""The command line: a thin shell over `engine`, one module per command."""
