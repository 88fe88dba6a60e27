"""Bayesian integration, scaling and geometry refinement of serial-crystallography stills.

    import bayes_refine as br

    experiments = br.read_experiments("indexed.expt")
    reference = br.read_reference("reference.mtz")
    model = br.load_model("still")
    with br.ImageReader() as reader:
        prepared = br.prepare(experiments, reader, reference)
        run = br.fit(prepared, model)
        br.write_results("fitted", run, prepared)

A fit needs float64, which the caller switches on: ``jax.config.update("jax_enable_x64", True)``.

Each sub-package needs only those before it: ``util``, ``geometry``, ``physics``, ``measuring``,
``io``, ``infer``, ``simulation``, ``indexing``, ``merging``, ``fitting``, ``learned``,
``per_pixel``, ``report``, ``results``, ``cli``.
"""

from .fitting.exposures import exposed
from .fitting.loop import RunFit, fit_run
from .fitting.posterior_draws import Draws
from .fitting.prepare import Prepared, fit, prepare
from .fitting.problem import Settings, Work
from .fitting.tables import image_table, shared_values
from .geometry.crystal import Crystal
from .geometry.detector import Beam, Detector
from .geometry.experiments import Experiments, Still
from .geometry.predict import Predictions
from .geometry.symmetry import asu_map
from .infer import (
    Fit,
    evaluate,
    laplace_draws,
    map_fit,
    marginal_fit,
    nuts_fit,
    predictive_draws,
    svi_fit,
)
from .infer.executor import Executor, InProcess
from .io.expt import read_experiments, write_experiments
from .io.expt.foreign import as_experiments
from .io.images import ImageReader, read_bandwidth
from .io.mtz import write_merged, write_unmerged
from .io.pixel_maps import read_mask, read_pixel_map
from .io.posterior import write_posterior
from .io.protocols import CountedImages, Images
from .io.reference import read_reference
from .io.unmerged import Unmerged
from .io.unmerged_mtz import read_unmerged
from .loading import load_file, load_model, model_names
from .measuring.detector_noise import DetectorNoise, estimate_noise, noise_for
from .merging.agreement import completeness, pearson, r_split, shell_edges, shell_table
from .merging.average import Merged
from .merging.merge import MergeRun, MergeSettings, merge_run
from .merging.observations import ScalingPriors
from .physics.priors import Priors, declare_priors, load_priors, number, read_priors
from .physics.reference import Reference, free_set
from .results.fit import write_results
from .results.merge import write_merge
from .simulation.files import simulate_run
from .simulation.truth import Simulation
from .simulation.unmerged import UnmergedSimulation, simulate_unmerged
from .util.errors import InputError
from .util.progress import Listener

__version__ = "0.1.0"

DetectorNoise = DetectorNoise  # its name before

__all__ = [
    "Beam",
    "CountedImages",
    "Crystal",
    "Detector",
    "DetectorNoise",
    "Draws",
    "Executor",
    "Experiments",
    "Fit",
    "ImageReader",
    "Images",
    "InProcess",
    "InputError",
    "Listener",
    "MergeRun",
    "MergeSettings",
    "Merged",
    "Predictions",
    "Prepared",
    "Priors",
    "Reference",
    "RunFit",
    "ScalingPriors",
    "Settings",
    "Simulation",
    "Still",
    "Unmerged",
    "UnmergedSimulation",
    "Work",
    "as_experiments",
    "asu_map",
    "completeness",
    "declare_priors",
    "estimate_noise",
    "evaluate",
    "exposed",
    "fit",
    "fit_run",
    "free_set",
    "image_table",
    "laplace_draws",
    "load_file",
    "load_model",
    "load_priors",
    "map_fit",
    "marginal_fit",
    "merge_run",
    "model_names",
    "noise_for",
    "number",
    "nuts_fit",
    "pearson",
    "predictive_draws",
    "prepare",
    "r_split",
    "read_bandwidth",
    "read_experiments",
    "read_mask",
    "read_pixel_map",
    "read_priors",
    "read_reference",
    "read_unmerged",
    "shared_values",
    "shell_edges",
    "shell_table",
    "simulate_run",
    "simulate_unmerged",
    "svi_fit",
    "write_experiments",
    "write_merge",
    "write_merged",
    "write_posterior",
    "write_results",
    "write_unmerged",
]
