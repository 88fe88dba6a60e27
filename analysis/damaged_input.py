"""Does any damaged input end in a traceback, a hang, a crash or a number that is not finite?

    python analysis/damaged_input.py --cases 60 --seed 7 [--only stream]

Makes ``--cases`` damaged inputs of each kind that ``tests/`` can damage (bytes, words and lines,
numbers, objects of HDF5, values of documents), reads each in a process of its own with warnings as
errors, and lets ``inspect`` describe it.  Prints a table: kind × (cases, read, left out, refused,
other).  A case is *read* if all numbers are finite and all shapes right, *left out* if so without
some images or rows, *refused* if one sentence names the file; what else happened is printed whole.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from outcomes import OUTCOMES, in_another_process  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=60, help="of each kind")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", default="", help="part of the name of a file of tests")
    chosen = parser.parse_args()
    files = [f for f in sorted(ROOT.glob("tests/**/test_*_mutations.py")) if chosen.only in f.name]
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            found |= in_another_process(file, chosen.seed, chosen.cases, Path(folder))
    print(f"| kind | cases | {' | '.join(OUTCOMES)} | other |")
    print("|---|--:|--:|--:|--:|--:|")
    for kind, told in found.items():
        print(_row(kind, told))
    print(_row("**all**", sum(found.values(), Counter())))
    for kind, told in found.items():
        for what in set(told) - set(OUTCOMES):
            print(f"\n{kind}, {what}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{used.ru_utime + used.ru_stime:.0f} processor seconds, seed {chosen.seed}")


def _row(kind: str, told: Counter[str]) -> str:
    numbers = [told.total(), *(told[name] for name in OUTCOMES)]
    other = told.total() - sum(told[name] for name in OUTCOMES)
    return f"| {kind} | {' | '.join(map(str, [*numbers, other]))} |"


if __name__ == "__main__":
    main()
