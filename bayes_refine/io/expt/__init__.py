"""DIALS ``.expt`` files (dxtbx experiment lists, JSON), read and written without DIALS.

Two conventions of the format: a beam's ``direction`` points from the sample to the source,
and where a detector has a ``hierarchy`` each frame in it is given in the frame of its parent.
"""

from .read import read_experiments
from .write import write_experiments

__all__ = ["read_experiments", "write_experiments"]
