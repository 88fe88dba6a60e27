"""Make a run that can be fitted of experiments and images: photons, bandwidth, sensor, masks."""

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
from .beams import beams_of, rescaled, with_own_wavelengths
from .exposures import model_of
from .kept import Kept
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
    """Find gain, read-out noise, bandwidth and bad pixels of a run.

        with br.ImageReader(gain=5.5) as reader:
            run = br.prepare(br.read_experiments("indexed.expt"), reader, d_min=2.3)
            found = br.fit(run, br.load_model("still"))

    Args:
        reader: with the gain and the pedestal if they are known.  A gain that is not known is taken
            from the experiments, or estimated from the images, and set on the reader.
        d_min: Å; by default that of the reference.
        read_noise: photons rms a pixel; by default estimated from the images.
        bandwidth: rms fraction; by default that of the image files, else that of the beams.
        sensor: thickness (mm) and attenuation (per mm); None for those of the experiments.
        work: where images are read; by default this process.

    Raises:
        InputError: no image can be read, the gain cannot be found, the reference does not fit
            the crystals, or there is neither a reference nor d_min.
    """
    if d_min is None:
        if reference is None:
            raise InputError("without a reference, give the resolution limit d_min, in Å")
        d_min = float(reference.d.min())
    executor = IN_PROCESS if work is None else work.executor
    good, unread = readable(experiments.stills, reader, executor)
    stills = described(good, bandwidth, *sensor)
    if reference is not None:
        check_fits(reference, [s.crystal for s in stills], str(experiments.path))
    noise = noise_for(reader, stills, reader.gain, read_noise)
    _set_up(reader, stills, noise, None)
    bad = bad_pixels_of(reader, stills, noise.read_noise)
    _set_up(reader, stills, noise, bad)
    usable = replace(experiments, stills=stills)
    return Prepared(usable, reference, reader, noise, bad, d_min, unread)


def prepare_more(
    experiments: Experiments,
    reader: CountedImages,
    reference: Reference | None,
    kept: Kept,
    *,
    d_min: float,
    bandwidth: float | None = None,
    sensor: tuple[float | None, float | None] = (None, None),
    work: Work | None = None,
) -> Prepared:
    """As :func:`prepare`, for images that are added to a fit that was kept: what was found of the
    detector stays, and only new images are tried.

    Args:
        experiments: the images of the fit first, in their places (``kept.kept_first``).
    """
    executor = IN_PROCESS if work is None else work.executor
    n = len(kept.keys)
    new, unread = readable(experiments.stills[n:], reader, executor)
    sizes = kept.array("wavelength"), kept.array("bandwidth")
    old = [
        rescaled(still, wavelength / still.beam.wavelength)
        if wavelength != still.beam.wavelength
        else still
        for still, wavelength in zip(experiments.stills[:n], sizes[0], strict=True)
    ]
    old = [
        replace(still, beam=replace(still.beam, bandwidth=float(width)))
        for still, width in zip(old, sizes[1], strict=True)
    ]
    more = [with_sensor(still, *sensor) for still in old]
    stills = (*more, *described(new, bandwidth, *sensor))
    if reference is not None:
        check_fits(reference, [s.crystal for s in stills], str(experiments.path))
    noise, bad = kept.noise(), kept.bad_pixels()
    _set_up(reader, stills, noise, bad)
    usable = replace(experiments, stills=stills)
    return Prepared(usable, reference, reader, noise, bad, d_min, unread)


def _set_up(
    reader: CountedImages, stills: Sequence[Still], noise: DetectorNoise, bad: BadPixels | None
) -> None:
    """The gain on a reader that has none, where it is one, and bad pixels on its mask."""
    one_gain = all((s.detector.gain == s.detector.gain[0]).all() for s in stills)
    if reader.gain is None and one_gain:  # else each panel keeps its own; noise has the mean
        reader.gain = noise.gain
    if bad is not None and bad.mask.any():
        reader.usable = ~bad.mask if reader.usable is None else reader.usable & ~bad.mask


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
    """The stills with the wavelength of each shot, the bandwidth and the sensor.

    A bandwidth that is given counts before that of the image file, and this before the beam's own
    (of a CrystFEL geometry).
    """

    def one(still: Still, said: FileBeam) -> Still:
        width = bandwidth
        if width is None:
            width = said.bandwidth or still.beam.bandwidth
        still = replace(still, beam=replace(still.beam, bandwidth=width))
        return with_sensor(still, thickness_mm, mu_per_mm)

    said = beams_of(stills)
    own = with_own_wavelengths(stills, said)
    return tuple(one(*pair) for pair in zip(own, said, strict=True))


def with_sensor(
    still: Still, thickness_mm: float | None = None, mu_per_mm: float | None = None
) -> Still:
    """A still with the thickness and the attenuation of the sensor, where they are given."""
    detector = still.detector
    if thickness_mm is not None:
        detector = replace(detector, thickness_mm=0 * detector.thickness_mm + thickness_mm)
    if mu_per_mm is not None:
        detector = replace(detector, mu_per_mm=0 * detector.mu_per_mm + mu_per_mm)
    return still if detector is still.detector else replace(still, detector=detector)
