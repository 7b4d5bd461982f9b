"""The service: projects over HTTP, with rounds in the background.

Nothing here loads torch or ray when it is imported, but ``deployment`` and what runs in processes
of its own.
"""
