"""Folders of results, sequences on disk, the one exception a user reads."""
