"""Readers: one kind of source a file, each giving rows in blocks."""
