"""The loop of a fit to stills, predict → measure → fit, and the numbers that result."""
