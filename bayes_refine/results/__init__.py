"""What a fit and a merge leave on disk."""
