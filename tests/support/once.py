"""Cases of a test for all backends that one backend alone has to run."""

import pytest


def once(*cases):
    """The same cases, `backend_independent`: what they add is Python's.

    A case of several arguments is a tuple.
    """
    mark = pytest.mark.backend_independent
    return [
        pytest.param(*case, marks=mark)
        if isinstance(case, tuple)
        else pytest.param(case, marks=mark, id=getattr(case, "__name__", None))
        for case in cases
    ]
