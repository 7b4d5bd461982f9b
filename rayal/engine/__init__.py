"""Pools, training and scanning: what runs over all items, in this process or on Ray."""
