"""Experiment lists with something wrong at a random place: one sentence, or a sane result."""

from __future__ import annotations

import copy
import json
import math
import random
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_refine.io.expt import read_experiments, write_experiments
from bayes_refine.util.errors import InputError

from ..outcomes import check_inspected, here
from ..sane import check_experiments
from ..sound import sound

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 7, 10**18, -(10**18), 10**400, 0.0, -0.0, 1.5, -1.5, 1e-300),
    *(1e300, -1e300, 1e9, math.nan, math.inf, -math.inf, "", "0", "nan", "abc", "\x00", "\ud800"),
    *("$\\frac$", "=cmd|' /C calc'!A0", "../../etc/passwd", "a" * 5000, "####", "é", "{", "C 2y"),
    *([], {}, [[]], [None], [0], [0, 0], [0, 0, 0], [1, 2, 3, 4], [1e300] * 3, [math.nan] * 3),
    *([1.0, 0.0, 0.0], [0.0, 0.0, 1.0], {"a": 1}, [{}], ["x"], [[1, 2, 3]], [["a"]]),
]


@lru_cache
def documents() -> list[dict[str, Any]]:
    """A simulated run of one panel, one of four tiles, and one as a sequence with scans."""
    plain = json.loads((sound() / "indexed.expt").read_text())
    tiles = copy.deepcopy(plain)
    panel = tiles["detector"][0]["panels"][0]
    half = [n // 2 for n in panel["image_size"]]
    tiles["detector"][0]["panels"] = [
        {
            **copy.deepcopy(panel),
            "image_size": half,
            "raw_image_offset": [i * half[0], j * half[1]],
            "origin": [
                panel["origin"][0] + i * half[0] * panel["pixel_size"][0],
                panel["origin"][1] + j * half[1] * panel["pixel_size"][1],
                panel["origin"][2],
            ],
            "mask": [[1, 2, 3, 4]],
        }
        for j in range(2)
        for i in range(2)
    ]
    root = tiles["detector"][0]["hierarchy"]
    frame = {key: panel[key] for key in ("fast_axis", "slow_axis")} | {"origin": [0.0, 0.0, 0.0]}
    root["children"] = [
        {**frame, "children": [{"panel": 0}, {"panel": 1}]},
        {**frame, "children": [{"panel": 2}, {"panel": 3}]},
    ]
    sequence = copy.deepcopy(plain)
    images = sequence["imageset"][0]
    images |= {"__id__": "ImageSequence", "template": images.pop("images")[0]}
    images["single_file_indices"] = [0, 1, 2]
    sequence["imageset"] = [images]
    sequence["scan"] = [
        {
            "image_range": [n + 1, n + 1],
            "properties": {"oscillation": [0.0], "oscillation_width": [0.0]},
        }
        for n in range(3)
    ]
    for n, entry in enumerate(sequence["experiment"]):
        entry |= {"imageset": 0, "scan": n}
    return [plain, tiles, sequence]


def places(value: Any, place: tuple = ()):
    """Every place in a document, as the keys that lead to it."""
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        if isinstance(child, dict | list):
            yield from places(child, (*place, key))
        else:
            yield (*place, key)


def at(value: Any, place: tuple) -> Any:
    for key in place:
        value = value[key]
    return value


def mutated(document: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """A copy with one to three changes at random places, and what they were."""
    out, told = copy.deepcopy(document), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        everywhere = list(places(out))
        # as many of short paths as of long ones: most places are numbers of panels
        depth = rng.choice(sorted({len(p) for p in everywhere}))
        place = rng.choice([p for p in everywhere if len(p) == depth])
        parent, key = at(out, place[:-1]), place[-1]
        kind = rng.choice(["value", "value", "delete", "swap", "scale", "repeat", "wrap", "rename"])
        if kind == "value":
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == "delete":
            del parent[key]
        elif kind == "swap":
            other = rng.choice(everywhere)
            if other[: len(place)] == place or place[: len(other)] == other:
                continue
            there, value = at(out, other[:-1]), copy.deepcopy(parent[key])
            parent[key], there[other[-1]] = copy.deepcopy(there[other[-1]]), value
        elif kind == "scale" and isinstance(parent[key], int | float):
            parent[key] *= rng.choice([-1, 0, 2, 0.5, 1e-6, 1e6, 1e30])
        elif kind == "repeat" and isinstance(parent, list):
            parent.extend(copy.deepcopy(parent[key]) for _ in range(rng.choice([1, 2, 50])))
        elif kind == "wrap":
            for _ in range(rng.choice([1, 2, 120])):
                parent[key] = rng.choice([[parent[key]], {"children": [parent[key]]}])
        elif kind == "rename" and isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        told.append(f"{kind} {place}")
    return out, "; ".join(told)


def encoded(document: dict[str, Any], rng: random.Random) -> bytes:
    """The text of a document, one in ten damaged."""
    # the C encoder refuses what is nested deep, as readers do
    text = json.dumps(document).encode() if _depth(document) < 800 else b"[" * 100_000
    if rng.random() < 0.1:
        cut = rng.randrange(len(text))
        damage = [text[:cut], text[:cut] + b"\xff" + text[cut:], text[:cut] + text[cut + 1 :]]
        return rng.choice([*damage, b"\xef\xbb\xbf" + text])
    return text


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        depth += 1
    return depth


def outcome(generator: np.random.Generator, folder: Path) -> str:
    """What became of a damaged list."""
    rng = random.Random(int(generator.integers(2**62)))
    document, told = mutated(rng.choice(documents()), rng)
    path = folder / "in.expt"
    path.write_bytes(encoded(document, rng))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*the mask file")
        check_inspected(path)
        try:
            experiments = read_experiments(path)
        except InputError as error:
            text = str(error)
            assert text.isprintable() and str(path) in text and len(text) < 1000, (told, text)
            return "refused"
        check_experiments(experiments)
        write_experiments(folder / "out.expt", experiments)
        again = read_experiments(folder / "out.expt")
    assert [s.identifier for s in again.stills] == [s.identifier for s in experiments.stills], told
    return "left out" if experiments.left_out else "read"


KINDS = {".expt": outcome}


def test_mutated_lists(tmp_path):
    assert {"refused", "read"} <= set(here(KINDS, seed=0, n=60, folder=tmp_path)[".expt"])


@pytest.mark.slow
@pytest.mark.parametrize("block", range(1, 21))
def test_many_mutated_lists(tmp_path, block):
    assert {"refused", "read"} <= set(here(KINDS, seed=block, n=100, folder=tmp_path)[".expt"])
