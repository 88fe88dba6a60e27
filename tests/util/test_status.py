import pickle

import numpy as np
import pytest

from bayes_refine.util.status import Kind, Status, settled, usable


def test_a_status_is_its_text_and_more():
    status = Status(Kind.NOT_READ, "a.h5: no such file")
    assert status == "not read (a.h5: no such file)"
    assert (status.kind, status.detail) == (Kind.NOT_READ, "a.h5: no such file")
    assert Status(Kind.CONVERGED) == "converged"


@pytest.mark.parametrize("detail", ["", "3", "(a) b.h5 (c)"])
@pytest.mark.parametrize("kind", list(Kind))
def test_text_and_pickle_bring_it_back(kind, detail):
    status = Status(kind, detail)
    for back in (Status.parse(str(status)), pickle.loads(pickle.dumps(status))):
        assert back == status and (back.kind, back.detail) == (kind, detail)


def test_what_is_no_status_is_refused():
    with pytest.raises(ValueError, match="no status"):
        Status.parse("convergedish")


def test_usable_ones():
    status = np.array([Status(kind, "x") for kind in Kind], object)
    assert [k for k, good in zip(Kind, usable(status), strict=True) if good] == [
        Kind.CONVERGED,
        Kind.NOT_CONVERGED,
    ]
    assert list(usable(status.astype(str))) == list(usable(status))
    assert list(settled(np.array([True, False]))) == ["converged", "not converged"]
    assert all(kind.meaning.endswith(".") for kind in Kind)
