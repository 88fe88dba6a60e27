"""Where do the seconds of a fit go?

One bar a folder of results, of the stages that `log.txt` and `summary.json` name, from the time at
which the log begins to that of the last file.  Importing the program, some seconds, comes before.

    python analysis/stages.py before/fitted after/fitted --labels before now --out stages.png
"""

from __future__ import annotations

import argparse
import json
import re
from datetime import datetime
from pathlib import Path

import matplotlib.pyplot as plt

ROUND = re.compile(r"^(start|round \d+): .* measured in ([\d.]+) s, fitted in ([\d.]+) s", re.M)
NAMES = {
    "read": "reading",
    "noise": "gain, noise",
    "scale_sd": "sd of scales",
    "merge": "merging",
    "posterior": "posterior.nc",
}


def stages_of(folder: Path) -> dict[str, float]:
    """Seconds of each stage, in the order of the program."""
    log = (folder / "log.txt").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    seconds = {k: v for k, v in summary["seconds"].items() if isinstance(v, float)}
    began = datetime.fromisoformat(log[:19]).timestamp()
    told = (folder / "summary.json").stat().st_mtime
    ended = max(path.stat().st_mtime for path in folder.iterdir() if path.is_file())
    rounds = ROUND.findall(log)
    last = rounds[-1][0]
    found = {
        NAMES["noise"]: seconds.pop("noise", 0.0),
        "measuring": sum(float(measured) for _, measured, _ in rounds),
        "fitting, to the last round": sum(float(s) for name, _, s in rounds if name != last),
        "fitting, last round": sum(float(s) for name, _, s in rounds if name == last),
    }
    found["between rounds"] = seconds.pop("fit") - sum(list(found.values())[1:])
    found |= {NAMES.get(name, name): s for name, s in seconds.items()}
    found["other files"] = told - began - sum(found.values())
    found["pictures"] = ended - told
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="of finished fits")
    parser.add_argument("--labels", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("stages.png"))
    options = parser.parse_args()
    labels = options.labels or [str(folder) for folder in options.folders]
    of_folders = [stages_of(folder) for folder in options.folders]
    names = list(dict.fromkeys(name for stages in of_folders for name in stages))
    print(f"{'seconds':28s}" + "".join(f"{label:>12s}" for label in labels))
    for name in [*names, "total"]:
        values = [sum(s.values()) if name == "total" else s.get(name, 0.0) for s in of_folders]
        print(f"{name:28s}" + "".join(f"{value:12.1f}" for value in values))

    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.5 * len(labels)), layout="constrained")
    left = [0.0] * len(labels)
    for name, colour in zip(names, plt.get_cmap("tab20").colors, strict=False):
        values = [stages.get(name, 0.0) for stages in of_folders]
        axes.barh(labels, values, left=left, color=colour, label=name, height=0.7)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the log began")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.savefig(options.out, dpi=150)


if __name__ == "__main__":
    main()
