"""Write ``posterior.nc`` of a run: draws with named axes, and their predictions of reflections."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import infer
from ..fitting.loop import RunFit
from ..fitting.posterior_draws import Draws, of_batch
from ..io.posterior import About, Variable, pointwise_draws, write_posterior
from ..physics.contract import unknown
from ..physics.observations import STATISTICS
from ..physics.priors import Priors
from ..util.large_arrays import joined, release, stored, taken
from ..util.text import printable

N_POINTWISE = 400  # draws with log likelihoods and replicates: enough for PSIS-LOO


def write_draws(
    path: Path,
    run: RunFit,
    model: infer.Model,
    priors: Priors,
    draws: Draws,
    *,
    rng: np.random.Generator,
) -> None:
    """Write the draws of a run, and pointwise values of at most 400 evenly spaced draws.

    Terms are the frozen statistics that the model observes: intensity (J, photons),
    centroid_radial and centroid_tangential (c), spread (M2), ...
    """
    r = run.reflections
    rows = r.where(lambda some: some.informs)
    posterior, coords = {}, {}
    for site in run.fit.sites:
        values, shape = np.asarray(draws.values[site.name]), site.shape
        if site.per_image and shape[:1] == (1,):  # the axis beside the plate's
            values, shape = values.reshape(*values.shape[:3], *shape[1:]), shape[1:]
        dims = [f"{site.name}_dim_{k}" for k in range(len(shape))]
        axis = unknown(site.name)
        if axis.axis and dims:
            dims[-1], last = axis.axis, np.arange(1, shape[-1] + 1)
            coords[axis.axis] = np.array(axis.labels) if axis.labels else last
        posterior[site.name] = Variable(values, ("image", *dims) if site.per_image else tuple(dims))

    chains, _ = draws.shape
    kept = pointwise_draws(draws.shape, len(rows), N_POINTWISE)
    some = Draws(draws.method, {k: stored(v[:, kept]) for k, v in draws.values.items()})
    seen = infer.observed_sites(model, run.observed.parts[0], priors)
    terms = [(k, name) for k, name in enumerate(STATISTICS) if name in seen]
    fitted = (b.statistics.value[b.informs].astype(np.float32) for b in run.batches)
    observed = joined([each[:, k] for k, _ in terms] for each in fitted)

    def pointwise():
        flat = some.flat()
        for batch, obs in zip(run.batches, run.observed.parts, strict=True):
            here = of_batch(run, flat, batch.images)
            release(*flat.values())
            informs = np.asarray(obs.fit)
            found = {  # of one batch these are most of the memory of the command's end
                name: np.empty((2, chains * len(kept), informs.sum()), np.float32)
                for _, name in terms
            }
            replicated = infer.predictive_draws(model, here, obs, priors, rng=rng)
            for k, row in enumerate(replicated):
                for name, values in found.items():
                    values[:, k] = [part[informs] for part in row[name]]
            yield {
                name: tuple(values.reshape(2, chains, len(kept), -1))
                for name, values in found.items()
            }

    write_posterior(
        path,
        posterior,
        pointwise(),
        {name: x for (_, name), x in zip(terms, observed, strict=True)},
        {"image": taken(r.image, rows)}
        | {name: taken(column, rows) for name, column in zip("hkl", r.hkl.T, strict=True)},
        About(
            coords,
            {"identifier": ("image", np.array([printable(s.identifier) for s in run.stills]))},
            {"inference_library": "bayes_refine", "method": draws.method},
        ),
        draws.stats,
        kept,
    )
