"""Crystals, beams, detectors, reflections: float64 NumPy, no probability."""
