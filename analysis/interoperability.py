"""Do the programs our users come from and go to read what is written here?

    PYTHONPATH=. python analysis/interoperability.py [--fit DIR] [--run DIR]
        [--programs DIR]... [--python PATH]... [--measured DIR --fits DIR]

Without folders a small run is simulated and fitted first.  Each line of the table is a real
command of a real program on a file of ours; one that is not installed is skipped and said so.
Commands that ``PATH`` does not have are looked for in the folders ``--programs`` too, such as the
build folder of CrystFEL.  ``--python`` names further interpreters, each with an ArviZ of its own.

``--measured`` is the folder of three sets of stills (``SETS``): each is fitted, unless ``--fits``
has its fit, and French and Wilson's amplitudes are made of its ``merged.mtz`` by servalcat, which
takes unweighted means in shells: the table says how far they are from a reference's.
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

import gemmi
import numpy as np

import bayes_refine as br

TIMEOUT = 600.0  # s, of one command
PROGRAMS: list[str] = []  # folders beside the PATH's
SETS = {  # folder: experiments, reference ("" for none), options of the fit, model
    "thermolysin_xfel": ("thermolysin_xfel.expt", "reference.mtz", (), "2tli.pdb"),
    "lysosim": ("lysosim_indexed.expt", "lysosim_reference.mtz", ("--images", "0:20"), ""),
    "thaumatin_grid": ("thaumatin_grid.expt", "", (), ""),
}
FRENCH_WILSON_BINS = "10"  # servalcat's own choice is one bin for less than 1,000 reflections


class Check(NamedTuple):
    """A command, what it reads, and words its output must hold (or a file it must write)."""

    program: str
    reads: str
    command: list[str]
    where: Path
    expects: str = ""
    writes: str = ""


def checks(run: Path, fit: Path, pythons: list[str]) -> list[Check]:
    """All commands, on a simulated run and on its fit; ArviZ of each of the interpreters."""
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
    return [
        Check(
            "dials.import", "master.h5", ["dials.import", str(run / "master.h5")], out, "num stills"
        ),
        Check(
            "dials.import",
            "master.h5, four panels",
            ["dials.import", str(run.parent / "panels" / "master.h5"), "output.experiments=4.expt"],
            out,
            "num stills",
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
            "dials.cosym",
            "refined.expt, refined.refl",
            ["dials.cosym", str(fit / "refined.expt"), str(fit / "refined.refl")],
            out,
            writes="symmetrized.refl",
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
        *(_arviz(each, fit, out) for each in pythons),
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


ARVIZ = (
    "import arviz as az, sys; d = az.from_netcdf(sys.argv[1]); print('draws',"
    " d['posterior']['log_G'].sizes['draw']); print(az.loo(d, var_name='intensity'))"
)


def _arviz(python: str, fit: Path, out: Path) -> Check:
    """ArviZ as one interpreter has it: its draws are counted, and PSIS-LOO computed."""
    asked = [python, "-c", "import arviz; print(arviz.__version__)"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    command = [python, "-c", ARVIZ, str(fit / "posterior.nc")]
    return Check(f"ArviZ {said}", "posterior.nc", command, out, "elpd")


def found(program: str) -> str | None:
    """Where a program is: on the PATH, or in one of PROGRAMS."""
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(PROGRAMS))


def outcome(check: Check) -> str:
    """One word, and why where a check fails."""
    where = found(check.command[0])
    if where is None:
        return "skipped: not installed"
    if check.writes:
        (check.where / check.writes).unlink(missing_ok=True)
    environment = {**os.environ}
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(f"{p}/libcrystfel" for p in PROGRAMS)
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


# -- French and Wilson ----------------------------------------------------------------------


def french_wilson(name: str, measured: Path, fit: Path) -> str:
    """A line of the table: a set of stills is fitted, and servalcat makes amplitudes of it."""
    stills, reference, options, model = SETS[name]
    folder = measured / name
    if not (fit / "summary.json").is_file():
        given = ["--reference", str(folder / reference)] if reference else []
        line = [str(folder / stills), *given, "--d-min", "2.3", *options, "--out", str(fit)]
        subprocess.run([sys.executable, "-m", "bayes_refine.cli", "fit", *line], check=True)
    program, out = found("servalcat"), fit / "other"
    if program is None:
        return f"{name:18s} skipped: servalcat is not installed"
    out.mkdir(exist_ok=True)
    given = ["--hklin", str(fit / "merged.mtz"), "--labin", "IMEAN,SIGIMEAN"]
    given += ["--nbins", FRENCH_WILSON_BINS]
    subprocess.run([program, "fw", *given], cwd=out, check=True, capture_output=True)
    merged = gemmi.read_mtz_file(str(fit / "merged.mtz"))
    I, sigma = (np.array(merged.column_with_label(k)) for k in ("IMEAN", "SIGIMEAN"))  # noqa: E741
    told = np.isfinite(I)
    largest = np.abs(I[told]).max() / np.median(np.abs(I[told]))
    own = amplitudes(out / "merged_fw.mtz", "F")
    posterior = amplitudes(fit / "posterior.mtz", "FPOST")
    cell = merged.cell
    line = f"{name:18s} {len(I):5d} {(~told).sum():5d} {largest:7.0f} "
    line += f"{np.median(I[told] / sigma[told]):7.2f} {distance(own, posterior, cell):8.3f} "
    if reference:
        there = br.read_reference(folder / reference)
        rows = zip(there.hkl.tolist(), np.sqrt(there.intensity).tolist(), strict=True)
        true = {tuple(h): F for h, F in rows}
        line += f" {distance(own, true, cell):8.3f} "
        line += f"{distance({h: posterior[h] for h in own}, true, cell):8.3f}"
    if model:
        given = ["--hklin", str(fit / "merged.mtz"), "--labin", "IMEAN,SIGIMEAN,FREE"]
        given += ["--free", "1", "--model", str(folder / model), "-s", "xray", "-o", "sigmaa"]
        done = subprocess.run(
            [program, "sigmaa", *given], cwd=out, capture_output=True, check=False
        )
        line += f"   sigmaa: {'reads it' if not done.returncode else 'fails'}"
    return line


Amplitudes = dict[tuple[int, int, int], float]


def amplitudes(path: Path, label: str) -> Amplitudes:
    """By hkl, of a column of an MTZ file."""
    mtz = gemmi.read_mtz_file(str(path))
    values = np.array(mtz.column_with_label(label), float)
    rows = zip(mtz.make_miller_array().tolist(), values.tolist(), strict=True)
    return {tuple(h): F for h, F in rows if F == F}


def distance(ours: Amplitudes, others: Amplitudes, cell: gemmi.UnitCell) -> float:
    """R = Σ|k·F − F'|/ΣF' over the reflections of both.

    k is the ratio of the sums in each of ten shells of equal number, so that neither scale nor
    falloff counts; it is 0.6 for amplitudes that have nothing to do with each other.
    """
    common = sorted((h for h in ours if h in others), key=cell.calculate_d)
    a, b = (np.array([values[h] for h in common]) for values in (ours, others))
    off = 0.0
    for rows in np.array_split(np.arange(len(common)), 10):
        k = b[rows].sum() / a[rows].sum()
        off += float(np.abs(k * a[rows] - b[rows]).sum())
    return off / float(b.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a simulated run")
    parser.add_argument("--fit", type=Path, help="the fit of it")
    parser.add_argument("--programs", action="append", default=[], help="a folder of programs")
    parser.add_argument("--python", action="append", default=[], help="an interpreter with ArviZ")
    parser.add_argument("--measured", type=Path, help="the folder of the three sets of stills")
    parser.add_argument("--fits", type=Path, help="the folder of their fits")
    options = parser.parse_args()
    PROGRAMS.extend(os.path.abspath(folder) for folder in options.programs)
    pythons = [sys.executable, *options.python]
    run = options.run or Path(tempfile.mkdtemp()) / "run"
    fit = options.fit or run.parent / "fit"
    command = [sys.executable, "-m", "bayes_refine.cli"]
    if not run.is_dir():
        subprocess.run([*command, "simulate", "--images", "6", "--out", str(run)], check=True)
    four = ["simulate", "--images", "2", "--panels", "4", "--out", str(run.parent / "panels")]
    subprocess.run([*command, *four], check=True)
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
    for check in checks(run.absolute(), fit.absolute(), pythons):
        print(f"{check.program:22s} {check.reads:34s} {outcome(check)}", flush=True)
    if options.measured is None:
        return
    print("\nset                 rows blank largest  I/sigma R(F,post)  R(F,ref)  R(post,ref)")
    fits = options.fits or run.parent / "fits"
    for name in SETS:
        print(
            french_wilson(name, options.measured.absolute(), (fits / name).absolute()), flush=True
        )


if __name__ == "__main__":
    main()
