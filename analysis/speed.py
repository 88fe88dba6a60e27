"""How fast are whole commands, in how much memory, and how much is compiled?

Each row is a command in a process of its own: wall and CPU seconds, peak memory, and how many
programs XLA was asked for and had to compile.  "cold" begins with an empty cache; a warm row is
preceded by a run of the same command, unless its cache is there from an earlier row.  More than one
checkout of the library are compared row by row.

    python analysis/speed.py                                  # all rows, this checkout, once
    python analysis/speed.py --rows demo-cold demo-warm --repeat 3 --checkouts ../before .
    python analysis/speed.py --rows lysosim-warm --cache ~/.cache    # compiled by earlier runs
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".." / "shared" / "data"

# Runs the command line, and prints the programs asked for and compiled as the last line.
COUNTED = """
import atexit, sys
from collections import Counter
from jax import monitoring

seen = Counter()
monitoring.register_event_listener(lambda event, **_: seen.update([event.rsplit("/", 1)[-1]]))
compiled = []
monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(seconds) if "backend_compile" in event else None)

def tell():
    hits = seen["cache_hits"]
    print(f"\\nPROGRAMS {len(compiled)} {len(compiled) - hits}", file=sys.stderr, flush=True)

atexit.register(tell)
from bayes_refine.cli import main
main()
"""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        arguments: of ``bayes-refine``, from the folder of made data; ``--out`` is added.
        cold: with an empty cache. per: images or draws that seconds are divided by.
    """

    arguments: Callable[[Path, Path], list[str]]
    cold: bool = False
    per: int = 1
    program: list[str] = field(default_factory=list)


def lysosim(images: int, reference: bool = True, *more: str):
    """``fit`` of the first images of lysosim."""

    def arguments(data: Path, made: Path) -> list[str]:
        folder = data / "lysosim"
        given = ["--reference", str(folder / "lysosim_reference.mtz")] if reference else []
        line = ["fit", str(folder / "lysosim_indexed.expt"), *given, "--d-min", "2.3"]
        return [*line, "--images", f"0:{images}", *more]

    return arguments


def simulated(images: int, reference: bool = True):
    """``fit`` of simulated stills of about 1,000 reflections each."""

    def arguments(data: Path, made: Path) -> list[str]:
        folder = made / f"simulated_{images}"
        if not folder.is_dir():
            size = ["--images", str(images), "--d-min", "1.55", "--distance-mm", "53"]
            subprocess.run(
                [sys.executable, "-m", "bayes_refine.cli", "simulate", "--out", folder, *size],
                check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
            )
        given = ["--reference", str(folder / "reference.mtz")] if reference else []
        expt = next(folder.glob("*.expt"))
        return ["fit", str(expt), *given, "--d-min", "1.55"]

    return arguments


def merged(data: Path, made: Path) -> list[str]:
    """``merge`` of measured integrated stills."""
    folder = data / "thermolysin_unmerged"
    line = ["merge", str(folder / "unmerged_plus.mtz")]
    return [*line, "--reference", str(folder / "reference.mtz")]


ROWS = {
    "demo-cold": Row(lambda data, made: ["demo"], cold=True),
    "demo-warm": Row(lambda data, made: ["demo"]),
    "lysosim-warm": Row(lysosim(200), per=200),
    "lysosim-cold": Row(lysosim(200), cold=True, per=200),
    "lysosim-alone": Row(lysosim(200, reference=False), per=200),
    "thousand": Row(simulated(120), per=120),
    "thousand-alone": Row(simulated(120, reference=False), per=120),
    "many": Row(simulated(2000), per=2000),
    "merge-cold": Row(merged, cold=True),
    "nuts": Row(lysosim(20, True, "--method", "nuts"), per=20),
    "tests": Row(lambda data, made: ["-m", "pytest", "-q"], program=[sys.executable]),
}


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, GiB, programs that were asked for and compiled anew."""

    wall: float
    cpu: float
    GiB: float
    programs: int
    compiled: int
    draws: float = float("nan")  # independent ones a second, of NUTS


def measure(row: Row, checkout: Path, data: Path, made: Path, cache: Path) -> Cost:
    """One run of a row."""
    out = Path(tempfile.mkdtemp(dir=made))
    environment = {**os.environ, "PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(cache)}
    arguments = row.arguments(data, made)
    command = row.program + arguments
    if not row.program:
        command = [sys.executable, "-c", COUNTED, *arguments, "--out", str(out / "out")]
    log = out / "stderr.txt"
    started = time.perf_counter()
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
        )
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    said = log.read_text()
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {status}:\n{said[-2000:]}")
    counts = [line.split()[1:] for line in said.splitlines() if line.startswith("PROGRAMS")]
    programs, compiled = map(int, counts[-1]) if counts else (0, 0)
    cost = Cost(
        wall,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 2**20,
        programs,
        compiled,
        independent_draws(out / "out"),
    )
    shutil.rmtree(out)
    return cost


def independent_draws(out: Path) -> float:
    """The smallest number of independent draws a second of NUTS, warm-up and compilation included.

    NaN of a run without NUTS.
    """
    path = out / "summary.json"
    if not path.exists():
        return float("nan")
    summary = json.loads(path.read_text())
    draws = summary.get("posterior", summary.get("draws", {}))
    seconds = summary.get("seconds", {})
    spent = seconds.get("draws", float("nan")) if isinstance(seconds, dict) else float("nan")
    found = draws.get("ess_bulk_min") if isinstance(draws, dict) else None
    return float(found) / spent if found else float("nan")


def median(costs: list[Cost]) -> Cost:
    """Of each number by itself."""
    names = Cost.__dataclass_fields__
    return Cost(**{name: statistics.median(getattr(c, name) for c in costs) for name in names})


def table(found: dict[str, list[Cost]], checkouts: list[Path]) -> str:
    """The rows as Markdown, one line for each row and checkout."""
    head = "| work | checkout | wall s | an image s | CPU s | GiB | programs | compiled | draws/s |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for name, costs in found.items():
        for checkout, c in zip(checkouts, costs, strict=True):
            each = f"{c.wall / ROWS[name].per:.3f}" if ROWS[name].per > 1 else ""
            draws = f"{c.draws:.1f}" if c.draws == c.draws else ""
            lines.append(
                f"| {name} | {checkout.name} | {c.wall:.1f} | {each} | {c.cpu:.1f} | {c.GiB:.2f}"
                f" | {c.programs} | {c.compiled} | {draws} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[ROOT])
    parser.add_argument("--repeat", type=int, default=1, help="runs of which the median is taken")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, help="keeps simulated data and warm caches")
    parser.add_argument("--cache", type=Path, help="for warm rows: is warm already, as ~/.cache is")
    options = parser.parse_args()
    made = (options.work or Path(tempfile.mkdtemp(prefix="speed-"))).resolve()
    made.mkdir(parents=True, exist_ok=True)
    checkouts = [path.resolve() for path in options.checkouts]
    found: dict[str, list[Cost]] = {}
    for name in options.rows:
        row, found[name] = ROWS[name], []
        for number, checkout in enumerate(checkouts):
            warm = options.cache or made / f"cache-{number}-{checkout.name}"
            costs = []
            if not (row.cold or options.cache or (warm / name).exists()):
                measure(row, checkout, options.data.resolve(), made, warm)
                (warm / name).touch()
            for _ in range(options.repeat):
                cache = Path(tempfile.mkdtemp(dir=made)) if row.cold else warm
                costs.append(measure(row, checkout, options.data.resolve(), made, cache))
                if row.cold:
                    shutil.rmtree(cache)
            found[name].append(median(costs))
        print(table({name: found[name]}, checkouts), flush=True)
    print(f"\n{table(found, checkouts)}")


if __name__ == "__main__":
    main()
