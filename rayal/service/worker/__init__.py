"""The service's worker: jobs of the ledger, each done in a process of its own."""
