"""rayal."""
