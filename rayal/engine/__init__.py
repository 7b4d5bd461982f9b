"""The engine: a project's rounds, from training to selection, on any executor."""
