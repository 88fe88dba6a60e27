"""Folders of results, sequences on disk, Student's t-law, the one exception that a user reads."""
