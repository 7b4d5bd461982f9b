"""The pool: immutable parts on storage, how sources become parts, and how rows are read back."""
