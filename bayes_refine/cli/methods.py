"""The names of methods on the command line, and the functions that they stand for."""

from __future__ import annotations

from enum import StrEnum
from functools import partial

from ..fitting import posterior_draws
from ..infer import guides


class MethodName(StrEnum):
    """How draws from the posterior are made."""

    map = "map"
    laplace = "laplace"
    svi = "svi"
    nuts = "nuts"


class GuideName(StrEnum):
    """The family of distributions by which ``svi`` approximates the posterior."""

    structured = "structured"
    mean_field = "mean-field"
    low_rank = "low-rank"


def method_of(
    name: MethodName, guide: GuideName, n_draws: int | None, chains: int, warmup: int
) -> posterior_draws.Method:
    """The method with its options bound; without ``n_draws``, with its default number of draws."""
    found: posterior_draws.Method
    match name:
        case MethodName.map:
            found = posterior_draws.at_mode
        case MethodName.laplace:
            found = posterior_draws.laplace
        case MethodName.svi:
            found = partial(posterior_draws.svi, guide=_guide(guide))
        case MethodName.nuts:
            found = partial(posterior_draws.nuts, n_chains=chains, n_warmup=warmup)
    return found if n_draws is None else partial(found, n_draws=n_draws)


def _guide(name: GuideName) -> guides.Guide:
    match name:
        case GuideName.structured:
            return guides.structured
        case GuideName.mean_field:
            return guides.mean_field
        case GuideName.low_rank:
            return guides.low_rank()
