"""Planning: what a run would need, before anything of it is run."""
