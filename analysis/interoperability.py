"""Do the programs our users come from and go to read what is written here?

    python analysis/interoperability.py [--fit DIR] [--run DIR]

Without folders a small run is simulated and fitted first.  Each line of the table is a real
command of a real program on a file of ours; one that is not installed is skipped and said so.
Commands that ``PATH`` does not have are looked for in the folder ``CRYSTFEL`` too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TIMEOUT = 600.0  # s, of one command


class Check(NamedTuple):
    """A command, what it reads, and words its output must hold (or a file it must write)."""

    program: str
    reads: str
    command: list[str]
    where: Path
    expects: str = ""
    writes: str = ""


def checks(run: Path, fit: Path) -> list[Check]:
    """All commands, on a simulated run and on its fit."""
    out = fit / "other"
    python = sys.executable
    label = (
        "import sys; from iotbx import reflection_file_reader as r, reflection_file_utils as u\n"
        "f = r.any_reflection_file(sys.argv[1])\n"
        "s = u.reflection_file_server(reflection_files=[f], err=sys.stderr)\n"
        "a = s.get_xray_data(None, None, True, 'x')\n"
        "print('picked', a.info().label_string())"
    )
    rs = (
        "import reciprocalspaceship as rs, sys; d = rs.read_mtz(sys.argv[1]);"
        " print('columns', list(d.columns))"
    )
    az = (
        "import arviz as az, sys; d = az.from_netcdf(sys.argv[1]);"
        " print(az.loo(d, var_name='intensity'))"
    )
    return [
        Check(
            "dials.import", "master.h5", ["dials.import", str(run / "master.h5")], out, "num stills"
        ),
        Check(
            "dials.show",
            "refined.expt, refined.refl",
            ["dials.show", str(fit / "refined.expt"), str(fit / "refined.refl")],
            out,
            "Reflection list contains",
        ),
        Check(
            "dials.export",
            "refined.expt, refined.refl",
            [
                "dials.export",
                str(fit / "refined.expt"),
                str(fit / "refined.refl"),
                "intensity=profile",
                "format=mtz",
            ],
            out,
            writes="integrated.mtz",
        ),
        Check(
            "process_hkl",
            "refined.stream",
            ["process_hkl", "-i", str(fit / "refined.stream"), "-o", "p.hkl", "-y", "4/mmm"],
            out,
            writes="p.hkl",
        ),
        Check(
            "partialator",
            "refined.stream",
            [
                "partialator",
                "-i",
                str(fit / "refined.stream"),
                "-o",
                "q.hkl",
                "-y",
                "4/mmm",
                "--model=xsphere",
                "--iterations=1",
                "-j",
                "1",
            ],
            out,
            writes="q.hkl",
        ),
        Check(
            "check_hkl",
            "merged.hkl",
            ["check_hkl", "-p", str(out / "run.cell"), str(fit / "merged.hkl")],
            out,
            "completeness",
        ),
        Check(
            "compare_hkl",
            "half1.hkl, half2.hkl",
            [
                "compare_hkl",
                str(fit / "half1.hkl"),
                str(fit / "half2.hkl"),
                "-p",
                str(out / "run.cell"),
                "--fom=CC",
            ],
            out,
            "Overall CC",
        ),
        Check(
            "gemmi mtz2cif --depo",
            "merged.mtz, unmerged_scaled.mtz",
            [
                "gemmi",
                "mtz2cif",
                "--depo",
                str(fit / "merged.mtz"),
                str(fit / "unmerged_scaled.mtz"),
                "depo.cif",
            ],
            out,
            writes="depo.cif",
        ),
        Check(
            "gemmi merge",
            "unmerged.mtz",
            ["gemmi", "merge", str(fit / "unmerged.mtz"), "m.mtz"],
            out,
            writes="m.mtz",
        ),
        Check(
            "servalcat fw",
            "merged.mtz",
            ["servalcat", "fw", "--hklin", str(fit / "merged.mtz"), "--labin", "IMEAN,SIGIMEAN"],
            out,
            writes="merged_fw.mtz",
        ),
        Check(
            "iotbx",
            "merged.mtz",
            ["cctbx.python", "-c", label, str(fit / "merged.mtz")],
            out,
            "picked IMEAN",
        ),
        Check(
            "reciprocalspaceship",
            "merged.mtz",
            [python, "-c", rs, str(fit / "merged.mtz")],
            out,
            "IMEAN",
        ),
        Check("ArviZ", "posterior.nc", [python, "-c", az, str(fit / "posterior.nc")], out, "elpd"),
        Check(
            "careless",
            "unmerged.mtz",
            [
                "careless",
                "mono",
                "--iterations",
                "20",
                "dHKL,XDET,YDET,EPSILON_R",
                str(fit / "unmerged.mtz"),
                "careless",
            ],
            out,
            writes="careless_0.mtz",
        ),
    ]


def found(program: str) -> str | None:
    """Where a program is: on the PATH, or in the folder CRYSTFEL."""
    extra = os.environ.get("CRYSTFEL", "")
    return shutil.which(program) or (shutil.which(program, path=extra) if extra else None)


def outcome(check: Check) -> str:
    """One word, and why where a check fails."""
    where = found(check.command[0])
    if where is None:
        return "skipped: not installed"
    if check.writes:
        (check.where / check.writes).unlink(missing_ok=True)
    environment = {**os.environ}
    if folder := os.environ.get("CRYSTFEL"):
        environment["LD_LIBRARY_PATH"] = f"{folder}/libcrystfel"
    try:
        done = subprocess.run(
            [where, *check.command[1:]],
            cwd=check.where,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"fails: no end after {TIMEOUT:g} s"
    text = done.stdout + done.stderr
    if done.returncode or check.expects not in text:
        last = [line for line in text.splitlines() if line.strip()][-1:]
        return f"fails: status {done.returncode}, {last[0][:90] if last else 'no output'}"
    if check.writes and not (check.where / check.writes).is_file():
        return f"fails: wrote no {check.writes}"
    return "reads it"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a simulated run")
    parser.add_argument("--fit", type=Path, help="the fit of it")
    options = parser.parse_args()
    run = options.run or Path(tempfile.mkdtemp()) / "run"
    fit = options.fit or run.parent / "fit"
    command = [sys.executable, "-m", "bayes_refine.cli"]
    if not run.is_dir():
        subprocess.run([*command, "simulate", "--images", "6", "--out", str(run)], check=True)
    if not (fit / "summary.json").is_file():
        reference = ["--reference", str(run / "reference.mtz"), "--out", str(fit)]
        subprocess.run([*command, "fit", str(run / "indexed.expt"), *reference], check=True)
    subprocess.run(
        [*command, "export", str(fit), "--write", "refl", "--write", "stream", "--write", "hkl"],
        check=True,
    )
    (fit / "other").mkdir(exist_ok=True)
    stream = (fit / "refined.stream").read_text(encoding="utf-8")
    cell = stream.split("----- Begin unit cell -----\n")[1].split("----- End unit cell -----")[0]
    (fit / "other" / "run.cell").write_text(cell, encoding="utf-8")
    print(f"{'program':22s} {'file':34s} outcome")
    for check in checks(run, fit):
        print(f"{check.program:22s} {check.reads:34s} {outcome(check)}", flush=True)


if __name__ == "__main__":
    main()
