"""What every verb promises besides its value: memory, layout, dtype, shapes, and what it raises, word for word."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.linalg
from sparseggm import (
    DTypeError,
    NonFiniteError,
    NonPositiveError,
    NotPositiveDefiniteError,
    Pattern,
    PatternError,
    ShapeError,
    adjoints,
    linalg,
)
from tests import numerics
from tests.numerics import WIDE, Array
from tests.strategies import (
    BATCHES,
    FOUR_CYCLE,
    STORAGES,
    Shape,
    dense,
    dtypes,
    named_patterns,
    scaled_distance_values,
    seeds,
    stored,
)
from tests.verbs import PAIRS, VECTORS, VERBS, Verb, arguments, size_of

each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
each_operand = pytest.mark.parametrize(("verb", "name"), PAIRS, ids=[f"{verb}-{name}" for verb, name in PAIRS])
each_number = pytest.mark.parametrize(
    ("verb", "name"),
    [(verb, name) for verb in VERBS.values() for name in verb.operands if name not in verb.arrays],
    ids=str,
)
each_dividing_verb = pytest.mark.parametrize(
    "verb", [verb for verb in VERBS.values() if verb.needs_positive_diagonal], ids=str
)
each_pair = pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if len(verb.arrays) > 1], ids=str)
batch_pairs = st.sampled_from(BATCHES)


def pattern_for(verb: Verb) -> Pattern:
    return verb.on(FOUR_CYCLE)


# ---------------------------------------------------------------------- memory and layout


@each_verb
@given(named=named_patterns(3), batches=batch_pairs, dtype=dtypes, seed=seeds)
def test_result_is_new_memory_of_the_dtype_and_shape_promised(verb, named, batches, dtype, seed) -> None:
    pattern = verb.on(named[1])
    given_arguments = arguments(verb, pattern, seed, *batches, dtype=dtype)
    result = verb(pattern, given_arguments)
    batch = given_arguments[verb.batch_of].shape[:-1] if verb.batch_of else verb.batch(given_arguments)
    own = () if verb.result == "scalar" else (size_of(verb.result, pattern),)
    assert isinstance(result, np.ndarray)
    assert result.shape == (*batch, *own)
    assert result.dtype == (verb.dtype or dtype)
    assert result.flags.writeable
    assert result.flags.c_contiguous
    assert not any(np.may_share_memory(result, array) for array in given_arguments.values())


@each_verb
@given(named=named_patterns(3), batches=batch_pairs, dtype=dtypes, seed=seeds, how=st.sampled_from(STORAGES))
def test_inputs_are_untouched_and_their_layout_is_irrelevant(verb, named, batches, dtype, seed, how) -> None:
    pattern = verb.on(named[1])
    plain = arguments(verb, pattern, seed, *batches, dtype=dtype)
    laid_out = {name: stored(array, how) for name, array in plain.items()}
    expected = verb(pattern, plain)
    np.testing.assert_array_equal(verb(pattern, laid_out), expected, strict=True)
    for name, array in arguments(verb, pattern, seed, *batches, dtype=dtype).items():
        np.testing.assert_array_equal(plain[name], array, strict=True)
        np.testing.assert_array_equal(laid_out[name], array, strict=True)


@each_verb
@given(named=named_patterns(3), batches=batch_pairs, dtype=dtypes, seed=seeds)
def test_a_batch_is_its_elements_to_the_last_bit(verb, named, batches, dtype, seed) -> None:
    pattern = verb.on(named[1])
    given_arguments = arguments(verb, pattern, seed, *batches, dtype=dtype)
    batch = verb.batch(given_arguments)
    spread = {name: array_of_batch(verb, name, array, batch) for name, array in given_arguments.items()}
    result = verb(pattern, given_arguments)
    result = np.broadcast_to(result, (*batch, *(() if verb.result == "scalar" else result.shape[-1:])))
    for index in np.ndindex(batch):
        single = verb(pattern, {name: np.asarray(array[index]) for name, array in spread.items()})
        np.testing.assert_array_equal(result[index], single)


def array_of_batch(verb: Verb, name: str, array: Array, batch: Shape) -> Array:
    return np.broadcast_to(array, (*batch, *array.shape[-1:]) if name in verb.arrays else batch)


# ---------------------------------------------------------------------- shapes, dtypes, patterns


@each_operand
def test_a_wrong_last_axis_is_named_with_the_size_needed(verb: Verb, name: str) -> None:
    pattern = pattern_for(verb)
    bad = arguments(verb, pattern, 0, (3,))
    need = bad[name].shape[-1]
    bad[name] = bad[name][..., :-1]
    meaning = "the size of the pattern" if verb.operands[name] in VECTORS else "the nnz of the pattern"
    message = f"{verb.name}: {name} must end in {need}, {meaning}, got shape (3, {need - 1})."
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        verb(pattern, bad)


@each_operand
def test_a_scalar_is_a_shape_error(verb: Verb, name: str) -> None:
    bad = arguments(verb, pattern_for(verb)) | {name: np.array(1.0)}
    with pytest.raises(ShapeError, match=f"^{verb.name}: {name} must end in .*, got shape \\(\\)\\.$"):
        verb(pattern_for(verb), bad)


@each_operand
@pytest.mark.parametrize("dtype", ["int64", "float16", "complex128", "longdouble", ">f8"])
def test_other_dtypes_are_refused_by_name(verb: Verb, name: str, dtype: str) -> None:
    bad = arguments(verb, pattern_for(verb))
    bad[name] = bad[name].astype(dtype)
    if bad[name].dtype.isnative and bad[name].dtype == np.float64:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(DTypeError, match=f"^{verb.name}: {name} must be float32 or float64 in native byte order, got "):
        verb(pattern_for(verb), bad)


@each_operand
def test_a_list_is_refused_by_name(verb: Verb, name: str) -> None:
    bad = arguments(verb, pattern_for(verb))
    bad[name] = bad[name].tolist()
    with pytest.raises(DTypeError, match=f"^{verb.name}: {name} must be a NumPy array, got list\\.$"):
        verb(pattern_for(verb), bad)


@each_number
def test_one_number_a_batch_element_is_an_array_of_the_dtype_and_batch(verb: Verb, name: str) -> None:
    """An address of something else was once read as if it were."""
    good = arguments(verb, pattern_for(verb), 0, (3,))
    for bad, error, message in (
        (good[name].tolist(), DTypeError, "must be a NumPy array, got list"),
        (good[name].astype(np.int64), DTypeError, "must be float32 or float64 in native byte order, got "),
        (good[name].astype(np.float16), DTypeError, "must be float32 or float64 in native byte order, got "),
        (good[name][:2], ShapeError, ""),
    ):
        with pytest.raises(error, match=f"^{verb.name}: .*{message}"):
            verb(pattern_for(verb), good | {name: bad})
    if verb.operands[name] == "number":
        with pytest.raises(DTypeError, match=f"^{verb.name}: all arguments must have one dtype, got "):
            verb(pattern_for(verb), good | {name: good[name].astype(np.float32)})


@each_pair
@pytest.mark.parametrize("which", [0, 1])
def test_two_dtypes_in_one_call_are_refused(verb: Verb, which: int) -> None:
    bad = arguments(verb, pattern_for(verb))
    name = verb.arrays[which]
    bad[name] = bad[name].astype(np.float32)
    with pytest.raises(DTypeError, match=f"^{verb.name}: all arguments must have one dtype, got "):
        verb(pattern_for(verb), bad)


@each_pair
def test_batches_that_do_not_fit_are_named(verb: Verb) -> None:
    bad = arguments(verb, pattern_for(verb), 0, (3,))
    first, second = verb.arrays[:2]
    bad[second] = bad[second][:2]
    need = "batch shapes must be equal" if verb.is_one_batch else "batch axes must broadcast"
    with pytest.raises(ShapeError, match=f"^{verb.name}: {need}, got ") as caught:
        verb(pattern_for(verb), bad)
    assert f"(3,) of {first}" in str(caught.value)
    assert f"(2,) of {second}" in str(caught.value)


def test_outer_refuses_a_batch_shape_that_its_terms_cannot_be_summed_to() -> None:
    x = np.ones((2, 4))
    with pytest.raises(ShapeError, match=re.escape("outer: batch_shape (3, 2) must broadcast to (2,)")):
        linalg.outer(FOUR_CYCLE, x, x, batch_shape=(3, 2))
    with pytest.raises(ShapeError, match=r"^outer: batch axes must broadcast, got "):
        linalg.outer(FOUR_CYCLE, x, x, batch_shape=(3,))


@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if verb.needs_closed], ids=str)
def test_the_calculus_of_cholesky_asks_for_a_closed_pattern(verb: Verb) -> None:
    with pytest.raises(PatternError, match=f"^{verb.name}: the pattern must be closed under elimination"):
        verb(FOUR_CYCLE, arguments(verb, FOUR_CYCLE))


def test_selected_inverse_refuses_a_pattern_that_is_not_closed_or_too_small() -> None:
    factor = arguments(VERBS["selected_inverse"], FOUR_CYCLE)["factor"]
    with pytest.raises(PatternError, match=r"^selected_inverse: `on` must be closed under elimination"):
        linalg.selected_inverse(FOUR_CYCLE, factor, on=FOUR_CYCLE)
    with pytest.raises(PatternError, match=r"^selected_inverse: entry \(3, 0\) is not in Pattern\(n=4, nnz=5, "):
        linalg.selected_inverse(FOUR_CYCLE, factor, on=Pattern.from_edges(4, [(1, 0)]))
    with pytest.raises(PatternError, match=r"^selected_inverse_vjp: `on` must be closed under elimination"):
        adjoints.selected_inverse_vjp(FOUR_CYCLE, factor, factor, on=FOUR_CYCLE)


# ---------------------------------------------------------------------- values that are not numbers


@each_operand
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinity_are_named_wherever_they_stand(verb: Verb, name: str, value: float, dtype: str) -> None:
    if verb.judges:
        pytest.skip("which is an answer here, see the next test")
    pattern = pattern_for(verb)
    size = size_of(verb.operands[name], pattern)
    read = pattern.diagonal if verb.name in ("logdet", "entropy") else range(size)  # log det reads the diagonal alone
    for place in read:
        bad = arguments(verb, pattern, 0, (2,), dtype=dtype)
        bad[name][1, place] = value
        with pytest.raises(
            NonFiniteError, match=f"^{verb.name}: {name} must be finite, got {value} at .*batch element \\(1,\\)\\.$"
        ):
            verb(pattern, bad)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_attempt_at_what_is_no_number_does_not_succeed(value: float) -> None:
    for place in range(FOUR_CYCLE.nnz):
        bad = arguments(VERBS["cholesky"], FOUR_CYCLE, 0, (3,))["precision"]
        bad[1, place] = value
        assert linalg.attempt_cholesky(FOUR_CYCLE, bad)[1].tolist() == [True, False, True]


def test_the_place_of_a_nan_is_its_entry_or_column() -> None:
    factor, x = np.ones(8), np.ones(4)
    factor[2] = np.nan  # column 0 of the four-cycle holds rows 0, 1, 3
    with pytest.raises(NonFiniteError, match=re.escape("matmul: factor must be finite, got nan at entry (3, 0).")):
        linalg.matmul(FOUR_CYCLE, factor, x)
    x[2] = np.inf
    with pytest.raises(NonFiniteError, match=re.escape("matmul: x must be finite, got inf at column 2.")):
        linalg.matmul(FOUR_CYCLE, np.ones(8), x)


@each_verb
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_overflowing_result_is_an_error(verb: Verb, dtype: str) -> None:
    if verb.name in ("logdet", "entropy", "precision_logdet", "cholesky", "attempt_cholesky"):
        pytest.skip("cannot overflow: |log L| is small, and |L_ij| ≤ √P_ii")
    if "levels" in verb.name:
        pytest.skip("cannot overflow: bounds are moved to 1e15, samples are within them; gradients may be infinite")
    pattern, large = pattern_for(verb), np.finfo(dtype).max ** 0.9
    huge = {name: array * array.dtype.type(large) for name, array in arguments(verb, pattern, dtype=dtype).items()}
    divisor = "precision" if verb.name == "precision_solve" else "factor"
    multiplies = verb.name.startswith(("matmul", "log_prob", "kl_from_normal"))
    if divisor in huge and verb.result != "gram" and not multiplies:
        huge[divisor] = arguments(verb, pattern, dtype=dtype)[divisor] / huge[divisor].dtype.type(large)
    with pytest.raises(NonFiniteError, match=f": the arguments are finite but the result overflows {dtype}"):
        verb(pattern, huge)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_trace_beyond_the_dtype_is_an_error_though_each_variance_fits(dtype: str) -> None:
    pattern = Pattern.from_edges(3, [])
    factor = np.full(3, 1.05 / np.sqrt(np.finfo(dtype).max), dtype)
    assert np.isfinite(linalg.marginal_variances(pattern, factor)).all()
    with pytest.raises(NonFiniteError, match=r"^trace_inverse: the arguments are finite but the result"):
        linalg.trace_inverse(pattern, factor)


@each_dividing_verb
@pytest.mark.parametrize("value", [0.0, -2.0])
@pytest.mark.parametrize("column", [0, 3])
def test_a_diagonal_that_is_not_positive_is_named(verb: Verb, value: float, column: int) -> None:
    pattern = pattern_for(verb)
    bad = arguments(verb, pattern, 0, (2, 2))
    bad["factor"][1, 0, pattern.diagonal[column]] = value
    end = f"the diagonal of factor must be positive, got {value:.3g} at column {column} of 4, batch element (1, 0)."
    with pytest.raises(NonPositiveError, match=f"^{verb.name}: {re.escape(end)}$"):
        verb(pattern, bad)


@pytest.mark.parametrize("name", ["solve", "solve_t"])
def test_a_zero_on_the_diagonal_cannot_be_solved_with(name: str) -> None:
    bad = arguments(VERBS[name], FOUR_CYCLE)
    bad["factor"][FOUR_CYCLE.diagonal[2]] = 0.0
    with pytest.raises(NonPositiveError, match=f"^{name}: the diagonal of factor must be .*, got 0 at column 2 of 4"):
        VERBS[name](FOUR_CYCLE, bad)


@pytest.mark.parametrize("name", ["solve", "solve_t", "matmul", "matmul_t", "gram"])
def test_a_negative_diagonal_is_allowed_where_the_equation_makes_sense(name: str) -> None:
    arrays = arguments(VERBS[name], FOUR_CYCLE)
    flipped = arrays | {"factor": -arrays["factor"]}
    sign = 1 if name == "gram" else -1
    np.testing.assert_array_equal(VERBS[name](FOUR_CYCLE, flipped), sign * VERBS[name](FOUR_CYCLE, arrays))


# ---------------------------------------------------------------------- failure of Cholesky


def test_failure_names_the_first_matrix_its_column_and_its_pivot() -> None:
    pattern = Pattern.from_edges(3, [(1, 0), (2, 1)])
    precision = np.tile([4.0, 2.0, 4.0, 0.0, 1.0], (2, 3, 1))
    precision[0, 2, 2] = 0.5  # pivot 0.5 − (2/2)² at column 1
    precision[1, 0, 4] = -7.0
    with pytest.raises(NotPositiveDefiniteError) as caught:
        linalg.cholesky(pattern, precision)
    failure = caught.value
    assert str(failure) == "cholesky: not positive definite: pivot -0.5 at column 1 of 3, batch element (0, 2)."
    assert (failure.batch_index, failure.column, failure.pivot) == ((0, 2), 1, -0.5)
    assert isinstance(failure, np.linalg.LinAlgError)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_pivot_that_is_not_positive_fails_without_batch_axes(value: float) -> None:
    pattern = Pattern.from_edges(2, [])
    with pytest.raises(NotPositiveDefiniteError) as caught:
        linalg.cholesky(pattern, np.array([1.0, value]))
    assert (caught.value.batch_index, caught.value.column, caught.value.pivot) == ((), 1, value)


@given(
    named=named_patterns(4, "precision"),
    seed=seeds,
    dtype=dtypes,
    margins=st.sampled_from([-1e4, -10.0, -2.0, -0.5, 0.0, 0.5, 2.0, 10.0, 1e4]),
)
def test_cholesky_fails_where_it_must_and_succeeds_where_it_must(named, seed, dtype, margins) -> None:
    """Higham's Theorem 10.7, at distances of a few margins on both sides of singular; between them, either."""
    pattern, rng = named[1], np.random.default_rng(seed)
    margin = numerics.failure_margin(pattern.n, np.dtype(dtype))
    couplings = rng.standard_normal(pattern.nnz)
    values = scaled_distance_values(rng, pattern, couplings, np.float64(margins * margin)).astype(dtype)
    H = scaled_to_unit_diagonal(dense(pattern, values, symmetric=True))
    try:
        linalg.cholesky(pattern, values)
        assert not is_below(H, -margin), "succeeded though P is indefinite by more than rounding explains"
    except NotPositiveDefiniteError:
        assert not is_above(H, margin), "failed though P is positive definite by more than rounding explains"


def scaled_to_unit_diagonal(precision: Array) -> Array:
    root = np.sqrt(np.diagonal(precision))
    return precision / root[:, None] / root


def is_above(H: Array, margin: Array) -> bool:
    """A proof of λ_min(H) > margin: a shifted matrix has a Cholesky factor, by the same theorem in WIDE."""
    n = len(H)
    try:
        reference.linalg.cholesky(H - np.eye(n) * (margin + 2 * numerics.failure_margin(n, WIDE)))
    except np.linalg.LinAlgError:
        return False
    return True


def is_below(H: Array, margin: Array) -> bool:
    """A proof of λ_min(H) < margin: a vector whose Rayleigh quotient is."""
    x = np.linalg.eigh(H.astype(np.float64))[1][:, 0].astype(WIDE)
    return bool(x @ H @ x < margin * (x @ x) - numerics.gamma(3 * len(H), WIDE) * (abs(x) @ abs(H) @ abs(x)))
