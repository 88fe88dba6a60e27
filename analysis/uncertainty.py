"""How certain is a fit, and of what?  ArviZ's pictures of the draws in ``posterior.nc``.

Forest of ln G over the images; ranks, effective sample size and pairs of G, R0, R1 and ω of one
image.  Draws of one chain (Laplace's are independent) are dealt to four, so that ranks and ESS
have something to compare.  Works with ArviZ 0.x and 1.x.

    bayes-refine demo --out demo && python analysis/uncertainty.py demo/fit/posterior.nc --out .
"""

from __future__ import annotations

import argparse
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

CHAINS = 4


def chains(draws: xr.Dataset) -> xr.Dataset:
    """The same draws in four chains, if they are one."""
    if draws.sizes["chain"] > 1:
        return draws
    n = draws.sizes["draw"] // CHAINS
    parts = [
        draws.isel(draw=slice(k * n, (k + 1) * n)).assign_coords(draw=np.arange(n))
        for k in range(CHAINS)
    ]
    return xr.concat(parts, "chain").assign_coords(chain=np.arange(CHAINS))


def of_image(draws: xr.Dataset, image: int) -> xr.Dataset:
    """G, R0, R1 (1e-5 Å⁻¹) and ω (mrad) of one image, each a number."""
    one = draws.isel(image=image)
    found = {
        "G": np.exp(one["log_G"]),
        "R0": 1e5 * np.exp(one["log_R0"]),
        "R1": 1e5 * np.exp(one["log_R1"]),
    }
    for axis in "xyz":
        found[f"ω_{axis}"] = one["rotation_mrad"].sel(axis=axis, drop=True)
    keep = {
        k: v.drop_vars([c for c in v.coords if c not in ("chain", "draw")])
        for k, v in found.items()
    }
    return xr.Dataset(keep)


def data_of(draws: xr.Dataset):
    """What this version of ArviZ draws: InferenceData (0.x) or a DataTree (1.x)."""
    if az.__version__.startswith("0."):
        return az.InferenceData(posterior=draws)
    return xr.DataTree.from_dict({"posterior": draws})


def save(drawn, path: Path) -> None:
    """A picture of either version: matplotlib axes (0.x) or a PlotCollection (1.x)."""
    if hasattr(drawn, "savefig"):
        drawn.savefig(path)
    else:
        np.ravel(drawn)[0].figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close("all")
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("posterior", type=Path, help="posterior.nc of a fit")
    parser.add_argument("--image", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder")
    options = parser.parse_args()
    with xr.open_dataset(options.posterior, group="posterior", engine="h5netcdf") as file:
        draws = chains(file.load())
    if "identifier" in draws:
        draws = draws.drop_vars("identifier")
    every, one = data_of(draws[["log_G", "log_R1"]]), data_of(of_image(draws, options.image))
    options.out.mkdir(parents=True, exist_ok=True)
    save(az.plot_forest(every, var_names=["log_G"], combined=True), options.out / "forest.png")
    save(az.plot_rank(one), options.out / "rank.png")
    save(az.plot_ess(one, kind="quantile"), options.out / "ess.png")
    save(az.plot_pair(one), options.out / "pair.png")
    print(az.summary(one))


if __name__ == "__main__":
    main()
