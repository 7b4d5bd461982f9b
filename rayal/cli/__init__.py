"""The command line: ``rayal``."""
