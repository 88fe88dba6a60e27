"""``python -m bayes_refine.cli``."""

from . import main

main()
