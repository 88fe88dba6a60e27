"""Keep the state of a fit after its last finished round on disk, to continue a stopped fit."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..measuring.ice_rings import Ring
from ..util.errors import InputError
from ..util.folder import flush_to_disk
from ..util.status import Status
from .crosswise_reference import CrosswiseReference, Known
from .measure_batch import Plan
from .one_round import Movement
from .problem import Run
from .state import State

STATE, RECORD = "state-{}.npz", "record.json"


@dataclass(frozen=True)
class Progress:
    """A fit between two rounds.

    Attributes:
        rounds: number of finished rounds. state: at which the next round measures.
        status: (n,) of images so far. kept: numbers that later rounds use.
        movement: one entry for each round.
        learned: numbers of the priors for the next round (``learned_priors``).
    """

    rounds: int
    state: State
    status: np.ndarray
    plan: Plan
    movement: tuple[Movement, ...]
    learned: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with the progress of one fit; it does not contain the statistics.

    Attributes:
        folder: made by :meth:`begin`.
        made_of: inputs, options and versions that the fit depends on, as JSON.
        option: of the command that goes on from here.
    """

    folder: Path
    made_of: Mapping[str, Any]
    option: str = "--resume"

    def begin(self) -> None:
        """Record what is fitted before any round is finished, if there is no record yet."""
        if read_record(self.folder) is None:
            self._record({"made_of": dict(self.made_of), "rounds": 0})

    def clear(self) -> None:
        """Delete the folder: the results are complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, progress: Progress, run: Run, more: More | None = None) -> None:
        """Replace the progress: the new state is complete on disk before the record names it.

        Args:
            more: what is to be saved besides.
        """
        arrays = {f"state/{k}": np.asarray(v) for k, v in progress.state.items()}
        if run.crosswise is not None:
            arrays |= {f"known/{k}": v for k, v in run.crosswise.known._asdict().items()}
            arrays |= {"fold": run.crosswise.fold, "intensity": run.crosswise.reference.intensity}
        record = {
            "made_of": dict(self.made_of),
            "rounds": progress.rounds,
            "status": [str(s) for s in progress.status],
            "plan": progress.plan._asdict(),
            "learned": dict(progress.learned),
            "movement": [asdict(m) for m in progress.movement],
            "ice": [[str(path), frame, v] for (path, frame), v in run.ice.found.items()],
        }
        if more is not None:
            arrays |= {f"more/{k}": v for k, v in more.arrays.items()}
            record["more"] = dict(more.told)
        name = STATE.format(progress.rounds)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            np.savez(content, **arrays)  # type: ignore[arg-type]
            (self.folder / name).write_bytes(content.getbuffer())
            flush_to_disk(self.folder / name)
            self._record(record | {"state_sha256": _sha256(content.getbuffer())})
            for old in self.folder.glob(STATE.format("*")):
                if old.name != name:
                    old.unlink()
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror or error}); make room for it"
            ) from None

    def _record(self, record: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{RECORD}.part"
        told = {**record, "sha256": _sha256(json.dumps(record).encode())}
        part.write_text(json.dumps(told), encoding="utf-8")
        flush_to_disk(part)
        os.replace(part, self.folder / RECORD)
        flush_to_disk(self.folder)

    def load(self, run: Run) -> tuple[Progress, Run] | None:
        """The saved progress, and the run with its intensities; None where nothing was saved.

        Raises:
            InputError: the progress is of other input, options or versions, or is damaged.
        """
        saved = self.read()
        return None if saved is None else (saved.progress, saved.onto(run))

    def read(self) -> Saved | None:
        """What was saved; None where nothing was. Raises as :meth:`load`."""
        record = read_record(self.folder)
        if record is None:
            return None
        for what, now in self.made_of.items():
            if record["made_of"].get(what) != json.loads(json.dumps(now)):
                raise InputError(
                    f"{self.folder.parent.parent}: {what} changed since the fit was stopped; "
                    f"leave out {self.option} to begin again"
                )
        if record["rounds"] == 0:
            return None
        try:
            content = (self.folder / STATE.format(record["rounds"])).read_bytes()
            if _sha256(content) != record["state_sha256"]:
                raise ValueError("the state was changed since it was written")
            with np.load(io.BytesIO(content)) as file:
                arrays = dict(file)
            state = {k[6:]: v for k, v in arrays.items() if k.startswith("state/")}
            status = np.array([s and Status.parse(s) for s in record["status"]], dtype=object)
            progress = Progress(
                record["rounds"],
                state,
                status,
                Plan(**record["plan"]),
                tuple(Movement(**m) for m in record["movement"]),
                record["learned"],
            )
            rings: dict[tuple[Hashable, int], tuple[Ring, ...]] = {
                (Path(path), frame): tuple(Ring(*ring) for ring in rings)
                for path, frame, rings in record["ice"]
            }
            more = {k[5:]: v for k, v in arrays.items() if k.startswith("more/")}
            return Saved(progress, arrays, rings, More(more, record.get("more", {})))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.folder}: is damaged ({error}); leave out {self.option} to begin again"
            ) from None


@dataclass(frozen=True)
class More:
    """What a checkpoint holds besides: arrays, and numbers and words as JSON."""

    arrays: Mapping[str, np.ndarray]
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """The content of a checkpoint: all its arrays, and rings as ``IceRings.found``."""

    progress: Progress
    arrays: Mapping[str, np.ndarray]
    rings: dict[tuple[Hashable, int], tuple[Ring, ...]]
    more: More

    def onto(self, run: Run) -> Run:
        """A run with the rings of its images and, without a reference, the intensities."""
        run.ice.found.update(self.rings)
        return run if run.crosswise is None else _knowing(run, run.crosswise, self.arrays)


def _knowing(run: Run, crosswise: CrosswiseReference, arrays: Mapping[str, np.ndarray]) -> Run:
    known = Known(**{k: arrays[f"known/{k}"] for k in Known._fields})
    reference = replace(crosswise.reference, intensity=arrays["intensity"])
    now = replace(crosswise, reference=reference, known=known, fold=arrays["fold"])
    return replace(run, ref=reference, crosswise=now)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The content of ``record.json``; None if there is no such file.

    Raises:
        InputError: the file is damaged: its content is not what its checksum says.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        said = record.pop("sha256")
        if _sha256(json.dumps(record).encode()) != said:
            raise ValueError("it was changed since it was written")
        return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); leave out --resume or --add to begin again"
        ) from None


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
