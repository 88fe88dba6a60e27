"""The per-pixel likelihood in the same loop, and its comparison with the factored one."""
