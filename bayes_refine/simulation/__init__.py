"""Runs whose every parameter is known: truth → spots → pixels → files; or unmerged intensities."""
