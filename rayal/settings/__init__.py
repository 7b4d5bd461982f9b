"""The settings of a run: YAML read strictly, its sections, and the bounds of every parameter."""
