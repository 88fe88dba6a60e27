"""Readers and writers: one file a format, plain arrays out."""
