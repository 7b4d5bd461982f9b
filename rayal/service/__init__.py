"""The HTTP service: labels over the network, rounds in the background."""
