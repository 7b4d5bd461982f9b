"""The executor on Ray: a cluster, its workers, and the same three functions as in one process."""
