"""Values at the border of a Gaussian: every method × every kind of value, and in which dtype the answer is."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pandas
import pytest

from sparseggm import Chain, DTypeError, GaussianGraphicalModel, NonFiniteError, ShapeError
from sparseggm.gaussian.scipy_adapter import SparsePrecisionCovariance
from tests.calls import TOPOLOGIES, VECTOR, Call, arrays_of, calls, gaussian

NAMES = list(calls(Chain(4)))
each_call = pytest.mark.parametrize("name", NAMES)
each_topology = pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)


def frame(array: Any, dtype: Any = np.float64) -> Any:
    """A data frame, or a series where there is one axis."""
    return pandas.DataFrame(array, dtype=dtype) if array.ndim == 2 else pandas.Series(array, dtype=dtype)


class Foreign:
    """An array of another library."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.array, dtype)


KINDS: dict[str, tuple[Any, str | None]] = {
    "float64": (lambda a: a, "float64"),
    "float32": (lambda a: a.astype(np.float32), "float32"),
    "float16": (lambda a: a.astype(np.float16), "float32"),
    "other byte order": (lambda a: a.astype(">f4"), "float32"),
    "strided": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], "float64"),
    "read-only": (lambda a: np.frombuffer(a.tobytes()).reshape(a.shape), "float64"),
    "frame": (frame, "float64"),
    "frame of float32": (lambda a: frame(a, np.float32), "float32"),
    "foreign": (lambda a: Foreign(a.astype(np.float32)), "float32"),
    "masked, nothing hidden": (lambda a: np.ma.array(a, mask=np.zeros(a.shape)), "float64"),
    "int64": (lambda a: a.astype(np.int64), None),
    "int8": (lambda a: a.astype(np.int8), None),
    "frame of integers": (lambda a: frame(a, int), None),
    "list": (lambda a: a.tolist(), None),
    "list of integers": (lambda a: a.astype(int).tolist(), None),
    "tuple of arrays": (lambda a: tuple(a.astype(np.float32)), None),
}
"""Each with the dtype it asks for; None where the others decide."""


def answer(call: Call, g: GaussianGraphicalModel, **changes: Any) -> list[Any]:
    return arrays_of(call.function(g, **{**call.values, **changes}))


@each_call
@each_topology
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", ["float32", "float64"])
def test_every_call_takes_every_kind_of_value(topology: Any, name: str, kind: str, own: str) -> None:
    """All values of that kind: in the wider of its dtype and the model's own, exactly as if that had been given."""
    call, g = calls(topology)[name], gaussian(topology, own)
    form, asked = KINDS[kind]
    models = [own] if call.uses_gaussian else []
    dtype = np.result_type(*[*models, asked or (own if models else "float64")])
    given = answer(call, g, **{word: form(array) for word, array in call.values.items()})
    plain = {word: array.astype(dtype) for word, array in call.values.items()}
    expected = answer(call, gaussian(topology, dtype), **plain)
    for one, other in zip(given, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, other)


@each_topology
@pytest.mark.parametrize("name", [name for name in NAMES if len(calls(Chain(4))[name].values) == 2])
def test_two_values_meet_in_the_wider_dtype(topology: Any, name: str) -> None:
    call = calls(topology)[name]
    words = list(call.values)
    for narrow in words:
        for form, dtype in ((lambda a: a.astype(np.float32), "float64"), (lambda a: a.astype(int), "float64")):
            for one in answer(call, gaussian(topology, np.float32), **{narrow: form(call.values[narrow])}):
                assert one.dtype == dtype


@each_topology
def test_gaussians_of_two_dtypes_meet_in_the_wider(topology: Any) -> None:
    """The narrow one's numbers are widened exactly, and the narrow one stays narrow."""
    narrow, wide = gaussian(topology, np.float32), gaussian(Chain(4)).moved_to([1, 2, 3, 4])
    exact = gaussian(topology)
    for q, p, same_q, same_p in ((narrow, wide, exact, wide), (wide, narrow, wide, exact)):
        kl = q.kl_divergence(p)
        assert kl.dtype == np.float64
        assert kl == same_q.kl_divergence(same_p)
        estimate = q.estimate_kl_divergence(p, num_probes=3, rng=0)
        assert estimate.value.dtype == np.float64
        assert estimate == same_q.estimate_kl_divergence(same_p, num_probes=3, rng=0)
    assert narrow.dtype == narrow.loc.dtype == np.float32


def test_scipy_hands_float64_to_a_float32_gaussian_and_loses_no_digit() -> None:
    g, x = gaussian(Chain(4), np.float32), VECTOR + 2.0**-40
    np.testing.assert_array_equal(SparsePrecisionCovariance(g).whiten(x), gaussian(Chain(4)).whiten(x))


REFUSED: dict[str, tuple[Any, str]] = {
    "complex": (lambda a: a * 1j, "must hold real numbers in at most float64, got complex128"),
    "longdouble": (lambda a: a.astype(np.longdouble), "must hold real numbers in at most float64, got "),
    "object": (lambda a: a.astype(object), "must hold real numbers in at most float64, got object"),
    "fractions": (lambda a: [[Fraction(1, 2)]], "must hold real numbers in at most float64, got object"),
    "strings": (lambda a: [str(v) for v in a.ravel()], "must hold real numbers in at most float64, got <U"),
    "dates": (lambda a: a.astype("M8[s]"), "must hold real numbers in at most float64, got datetime64"),
    "ragged": (lambda a: [[1.0], [1.0, 2.0]], "must be an array of real numbers, got list: "),
    "none": (lambda a: None, "must hold real numbers in at most float64, got object"),
    "masked": (lambda a: np.ma.array(a, mask=a == a.max()), "must have a value in every place, got a masked array"),
    "list of masked": (
        lambda a: [np.ma.array(row, mask=row == row.max()) for row in np.atleast_2d(a)],
        "must have a value in every place, got a masked array",
    ),
    "subclass": (lambda a: a.view(type("WithUnit", (np.ndarray,), {})), "must be a plain NumPy array, got WithUnit"),
}


@each_call
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_array_of_real_numbers_is_named_by_the_call_and_its_word(name: str, kind: str) -> None:
    call, (form, message) = calls(Chain(4))[name], REFUSED[kind]
    for word, array in call.values.items():
        with pytest.raises(DTypeError, match=f"^{re.escape(f'{name}: {word} {message}')}"):
            answer(call, gaussian(Chain(4)), **{word: form(array)})


@each_call
@each_topology
def test_values_of_a_wrong_shape_or_not_finite_are_named_by_the_call_and_its_word(topology: Any, name: str) -> None:
    call, g = calls(topology)[name], gaussian(topology)
    for word, array in call.values.items():
        with pytest.raises(ShapeError, match=rf"^{re.escape(name)}: .*{word}"):
            answer(call, g, **{word: np.ones((2, 9))})
        if word == "variance":
            continue
        for value in (np.nan, np.inf):
            bad = array.copy()
            bad[..., -1] = value
            with pytest.raises(ValueError, match=rf"^{re.escape(name)}: {word} must be finite, got {value}"):
                answer(call, g, **{word: bad})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fit"])
@each_topology
def test_batch_axes_that_do_not_broadcast_are_named_by_the_call(topology: Any, name: str) -> None:
    call, g = calls(topology)[name], gaussian(topology)
    three = GaussianGraphicalModel(np.zeros((3, 4)), factor=np.tile(g.factor, (3, 1)), topology=topology)
    batches = {word: np.resize(array, (2 + k, array.shape[-1])) for k, (word, array) in enumerate(call.values.items())}
    with pytest.raises(ShapeError, match=rf"^{re.escape(name)}: .* broadcast"):
        answer(call, three, **batches)


def test_gaussians_whose_batches_do_not_broadcast_are_named_by_the_call() -> None:
    two, three = (gaussian(Chain(4)).moved_to(np.zeros((count, 4))) for count in (2, 3))
    with pytest.raises(ShapeError, match=r"^kl_divergence: batch axes must broadcast"):
        two.kl_divergence(three)
    with pytest.raises(ShapeError, match=r"^estimate_kl_divergence: batch axes must broadcast"):
        two.estimate_kl_divergence(three, num_probes=2)


TINY, HUGE = np.full(7, 1e-30, np.float32), np.full(7, 1e30, np.float32)
OVERFLOWS: dict[str, tuple[Any, Any]] = {
    "variance": (TINY, lambda g: g.variance),
    "trace_covariance": (TINY, lambda g: g.trace_covariance()),
    "covariance_on": (TINY, lambda g: g.covariance_on([(1, 0)])),
    "correlation_on": (TINY, lambda g: g.correlation_on([(1, 0)])),
    "kl_divergence": (TINY, lambda g: g.kl_divergence()),
    "estimate_trace_covariance": (TINY, lambda g: g.estimate_trace_covariance(rng=0)),
    "estimate_kl_divergence": (TINY, lambda g: g.estimate_kl_divergence(num_probes=2, rng=0)),
    "colorize": (TINY, lambda g: g.colorize(HUGE[:4])),
    "whiten": (HUGE, lambda g: g.whiten(HUGE[:4])),
    "log_prob": (HUGE, lambda g: g.log_prob(HUGE[:4])),
    "precision": (HUGE, lambda g: g.precision),
    "information_vector": (HUGE, lambda g: g.moved_to(HUGE[:4]).information_vector),
}


@pytest.mark.parametrize("name", OVERFLOWS)
@each_topology
def test_a_result_beyond_the_dtype_is_named_by_the_call(topology: Any, name: str) -> None:
    """Whichever verb noticed."""
    factor, call = OVERFLOWS[name]
    pattern = topology.factor_pattern
    g = GaussianGraphicalModel(np.zeros(4, np.float32), factor=np.resize(factor, pattern.nnz), topology=topology)
    with pytest.raises(NonFiniteError, match=rf"^{name}: .* overflows float32"):
        call(g)
