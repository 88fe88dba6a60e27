"""Readers and writers of files: one module for each format; readers return plain arrays."""
