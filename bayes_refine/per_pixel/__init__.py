"""Fits to single pixels in the same loop, and their comparison with the factored likelihood."""
