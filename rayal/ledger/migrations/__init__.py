"""The revisions of the ledger's tables, one script each, in the order of their numbers.

A revision is number and name at once: "0002" leads from schema version 1 to 2. It repeats what
``rayal.ledger.schema`` says at that time in plain SQLAlchemy, and is never changed again.

- It adds only: tables, indexes, columns that may be null or have a server default. Events that
  were written before name none of them, and must be replayed into the tables of today.
- Rows that it fills otherwise are told by an event of its own, so that a replay finds them.
- SQLite takes most changes of a table by ``op.batch_alter_table``, which copies it; for ``events``
  with ``table_kwargs={"sqlite_autoincrement": True}``, or numbers would be given twice.
"""
