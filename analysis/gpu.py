"""Is a GPU worth its while, and does it say the same?  The same fit on the CPU and on a GPU.

Each device has a process of its own (``JAX_PLATFORMS``); the second of two fits is timed, after
compilation.  Orientations and scales of both are compared in units of their sd.  Without a GPU, or
without ``pip install "bayes-refine[cuda]"``, the script times the CPU and says so.

python analysis/gpu.py --images 64
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NO_DEVICE = 3  # exit status of a process that finds no device of its kind


def measure(data: Path, n: int, out: Path) -> None:
    """Fit n images twice on this process's device; time the second fit and keep its mode."""
    import jax
    from known_run import load

    import bayes_refine as br

    jax.config.update("jax_enable_x64", True)
    try:
        device = jax.devices()[0]
    except (RuntimeError, AssertionError):  # no device; no plugin of JAX for it
        sys.exit(NO_DEVICE)
    stills, reference, _ = load(data, n)
    stills = (stills * (n // len(stills) + 1))[:n]
    model = br.load_model("still")
    for _ in range(2):
        started = time.perf_counter()
        with br.ImageReader() as reader:
            run = br.fit_run(stills, reference, reader, model, settings=br.Settings(d_min=2.3))
        seconds = time.perf_counter() - started
    values = run.fit.values()
    names = ("rotation_mrad", "log_G", "log_R0")
    found = {name: values[name] for name in names if name in values}
    sd = {f"{name}_sd": run.fit.sd(name) for name in found}
    np.savez(out, **found, **sd)
    print(f"{device.platform} ({device.device_kind}): {n / seconds:.2f} images/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--measure", type=Path, help="fit on one device, and write the mode here")
    options = parser.parse_args()
    from known_run import SHARED

    data = options.data or SHARED
    if options.measure is not None:
        measure(data, options.images, options.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for platform in ("cpu", "cuda"):
            out = Path(folder) / f"{platform}.npz"
            command = [sys.executable, __file__, "--images", str(options.images)]
            command += ["--data", str(data), "--measure", str(out)]
            done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": platform})
            if done.returncode == NO_DEVICE and platform == "cuda":
                print("no GPU here: only the CPU was measured")
                return
            if done.returncode:
                sys.exit(done.returncode)
            found[platform] = dict(np.load(out))
    for name, value in found["cpu"].items():
        if not name.endswith("_sd"):
            away = np.abs(found["cuda"][name] - value) / found["cpu"][f"{name}_sd"]
            print(f"{name}: at most {np.max(away):.2g} sd apart")


if __name__ == "__main__":
    main()
