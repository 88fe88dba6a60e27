"""From experiments and images to a run that can be fitted: photons, bandwidth, sensor, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .. import infer
from ..geometry.experiments import Experiments, Still
from ..infer.executor import IN_PROCESS
from ..io.hdf5_beam import FileBeam
from ..io.protocols import CountedImages
from ..measuring.bad_pixels import BadPixels, bad_pixels_of
from ..measuring.detector_noise import DetectorNoise, noise_for
from ..physics.priors import Priors
from ..physics.reference import Reference, check_fits
from ..util.errors import InputError
from ..util.progress import SILENT, Listener
from .beams import beams_of, with_own_wavelengths
from .exposures import model_of
from .loop import RunFit, fit_run
from .problem import Settings, Work
from .readable import Unread, readable


@dataclass(frozen=True)
class Prepared:
    """A run whose images can be read as photons.

    Attributes:
        experiments: their stills have the bandwidth and the sensor that the fit takes.
        reference: intensities, or None.
        reader: of photons; bad pixels are masked.
        noise: gain and read-out noise of the detector.
        bad_pixels: masked on all images.
        d_min: Å, resolution limit.
        unread: stills whose images cannot be read, and why; the fit leaves them out.
    """

    experiments: Experiments
    reference: Reference | None
    reader: CountedImages
    noise: DetectorNoise
    bad_pixels: BadPixels
    d_min: float
    unread: Unread = ()


def prepare(
    experiments: Experiments,
    reader: CountedImages,
    reference: Reference | None = None,
    *,
    d_min: float | None = None,
    read_noise: float | None = None,
    bandwidth: float | None = None,
    sensor: tuple[float | None, float | None] = (None, None),
    work: Work | None = None,
) -> Prepared:
    """Find gain, read-out noise, bandwidth and bad pixels, and put them on the run.

        with br.ImageReader(gain=5.5) as reader:
            run = br.prepare(br.read_experiments("indexed.expt"), reader, d_min=2.3)
            found = br.fit(run, br.load_model("still"))

    Args:
        reader: with the gain and the pedestal that are known.  A gain that is not known is taken
            from the experiments, else found in the background of the images, and set on the reader.
        d_min: Å; that of the reference if not given.
        read_noise: photons rms a pixel; found in the images if not given.
        bandwidth: rms fraction; what the files say if not given.
        sensor: thickness (mm) and attenuation (per mm), each as the experiments say for None.
        work: where each image is tried; this process by default.

    Raises:
        InputError: no image can be read, the gain cannot be found, the reference does not fit
            the crystals, or nobody says how far to go.
    """
    if d_min is None:
        if reference is None:
            raise InputError("without a reference, say how far to go: give d_min, in Å")
        d_min = float(reference.d.min())
    executor = IN_PROCESS if work is None else work.executor
    good, unread = readable(experiments.stills, reader, executor)
    stills = described(good, bandwidth, *sensor)
    if reference is not None:
        check_fits(reference, [s.crystal for s in stills], str(experiments.path))
    noise = noise_for(reader, stills, reader.gain, read_noise)
    one_gain = all((s.detector.gain == s.detector.gain[0]).all() for s in stills)
    if reader.gain is None and one_gain:  # else each panel has its own; noise has their mean
        reader.gain = noise.gain
    bad = bad_pixels_of(reader, stills, noise.read_noise)
    if bad.mask.any():
        reader.usable = ~bad.mask if reader.usable is None else reader.usable & ~bad.mask
    usable = replace(experiments, stills=stills)
    return Prepared(usable, reference, reader, noise, bad, d_min, unread)


def fit(
    run: Prepared,
    model: infer.Model,
    priors: Priors | None = None,
    settings: Settings | None = None,
    progress: Listener = SILENT,
    work: Work | None = None,
) -> RunFit:
    """Refine a prepared run (``loop.fit_run``), at its resolution and with its read-out noise.

        run = br.fit(prepared, br.load_model("still"), settings=br.Settings(rounds=4))
        run.status, run.fit.values()["log_G"]

    Raises:
        InputError: as ``fit_run``.
    """
    settings = settings_of(run, settings or Settings())
    stills = run.experiments.stills
    program = model_of(model, stills)
    found = fit_run(stills, run.reference, run.reader, program, priors, settings, progress, work)
    return replace(found, unread=run.unread)


def settings_of(run: Prepared, settings: Settings) -> Settings:
    """Settings with the run's resolution and read-out noise."""
    return replace(settings, d_min=run.d_min, read_noise=run.noise.read_noise)


def described(
    stills: Sequence[Still],
    bandwidth: float | None = None,
    thickness_mm: float | None = None,
    mu_per_mm: float | None = None,
) -> tuple[Still, ...]:
    """The stills with the wavelength of each shot and the bandwidth that their file states, or the
    bandwidth given, and with the sensor given."""

    def one(still: Still, said: FileBeam) -> Still:
        width, detector = bandwidth, still.detector
        if width is None:
            width = said.bandwidth or 0.0
        if thickness_mm is not None:
            detector = replace(detector, thickness_mm=0 * detector.thickness_mm + thickness_mm)
        if mu_per_mm is not None:
            detector = replace(detector, mu_per_mm=0 * detector.mu_per_mm + mu_per_mm)
        return replace(still, beam=replace(still.beam, bandwidth=width), detector=detector)

    said = beams_of(stills)
    own = with_own_wavelengths(stills, said)
    return tuple(one(*pair) for pair in zip(own, said, strict=True))
