"""Subclasses of arrays: honoured where nothing of them is lost by it, else refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseggm import Chain, DTypeError, Grid, Pattern, gershgorin, parametrize
from tests.numerics import Array
from tests.verbs import PAIRS, VERBS, arguments


class WithUnit(np.ndarray):
    """What a library of units, or of labels, would make of an array."""


def masked(array: Array) -> Array:
    mask = np.zeros(array.shape, bool)
    mask[..., -1] = True
    return np.ma.array(array, mask=mask)


def on_disk(array: Array, folder: Path) -> Array:
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    array.tofile(path)
    return np.memmap(path, array.dtype, "r", shape=array.shape)


def honoured(folder: Path) -> dict[str, Any]:
    """Ways to hand over an array of two axes in another class."""
    return {
        "memmap": lambda array: on_disk(array, folder),
        "matrix": np.matrix,
        "masked array in which nothing is": np.ma.asarray,
    }


REFUSED = {
    "masked": (masked, "must have a value in every place, got a masked array with masked entries"),
    "unit": (lambda array: array.view(WithUnit), "must be a plain NumPy array, got WithUnit, whose meaning would be"),
}

each_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))


@each_verb
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_verb_takes_a_matrix_or_a_memory_map_as_the_array_it_is(verb, tmp_path: Path) -> None:
    pattern = Grid(2, 3).precision_pattern.filled()
    plain = arguments(verb, pattern, 0, (3,))
    for name, form in honoured(tmp_path).items():
        given = {key: form(array) if key in verb.arrays else array for key, array in plain.items()}
        result = verb(pattern, given)
        assert type(result) is np.ndarray, name
        np.testing.assert_array_equal(result, verb(pattern, plain), err_msg=name)


@pytest.mark.parametrize(("verb", "operand"), PAIRS, ids=[f"{verb}-{operand}" for verb, operand in PAIRS])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_verb_refuses_what_would_lose_its_meaning(verb, operand: str, kind: str) -> None:
    form, message = REFUSED[kind]
    pattern = Chain(4).factor_pattern
    given = arguments(verb, pattern, 0, (3,))
    given[operand] = form(given[operand])
    with pytest.raises(DTypeError, match=f"^{verb.name}: {operand} {message}"):
        verb(pattern, given)


# ---------------------------------------------------------------------- packing

PATTERN = Chain(3).factor_pattern
PACKINGS: dict[str, Any] = {
    "Chain(n=3).pack: precision": (Chain(3).pack, 2 * np.eye(3)),
    "Chain(n=3).pack: diagonal": (lambda diagonal: Chain(3).pack((diagonal, np.ones((1, 2)))), np.ones((1, 3))),
    "Chain(n=3).pack: couplings": (lambda couplings: Chain(3).pack((np.ones((1, 3)), couplings)), np.ones((1, 2))),
    "Chain(n=3).unpack: values": (lambda values: Chain(3).unpack(values)[0], np.ones((2, 5))),
    "Pattern.values_of: the matrix": (PATTERN.values_of, 2 * np.eye(3)),
    "Pattern.to_dense: values": (PATTERN.to_dense, np.ones((2, 5))),
    "Pattern.to_banded: values": (PATTERN.to_banded, np.ones((2, 5))),
    "Pattern.from_banded: ab": (lambda ab: Pattern.from_banded(ab)[1], np.ones((2, 3))),
}
"""Every way between packed values and matrices: the start of its messages, the call, a good argument of two axes."""

each_packing = pytest.mark.parametrize(("start", "call", "array"), [(k, *v) for k, v in PACKINGS.items()], ids=PACKINGS)


@each_packing
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_packing_takes_a_matrix_or_a_memory_map_as_the_array_it_is(start, call, array, tmp_path: Path) -> None:
    for name, form in honoured(tmp_path).items():
        result = call(form(array))
        assert type(result) is np.ndarray, name
        np.testing.assert_array_equal(result, call(array), err_msg=name, strict=True)


@each_packing
@pytest.mark.parametrize("kind", REFUSED)
def test_packing_refuses_what_would_lose_its_meaning(start: str, call: Any, array: Array, kind: str) -> None:
    form, message = REFUSED[kind]
    with pytest.raises(DTypeError, match=f"^{re.escape(start)} {message}"):
        call(form(array))


@each_packing
def test_packing_says_that_it_needs_an_array(start: str, call: Any, array: Array) -> None:
    """But for `pack` and `unpack`, which take lists."""
    if start.startswith("Chain"):
        np.testing.assert_array_equal(call(array.tolist()), call(array))
    else:
        with pytest.raises(DTypeError, match=f"^{re.escape(start)} must be a NumPy array, got list\\.$"):
            call(array.tolist())


# Each takes an array with an axis of five, of arrays or tensors alike.
BOTH_KINDS = {
    **{name: getattr(parametrize, name) for name in ("factor", "dominant", "spectral")},
    **{name: getattr(gershgorin, name) for name in ("discs", "slack", "bounds", "condition_bound")},
}


def call_on_five(name: str, five: Any) -> Any:
    function = BOTH_KINDS[name]
    return function(Chain(3) if name in ("factor", "dominant", "spectral") else Chain(3).precision_pattern, five)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("name", BOTH_KINDS)
def test_what_takes_arrays_and_tensors_refuses_all_else(name: str) -> None:
    values = np.array([2.0, 0.1, 2.0, 0.1, 2.0])
    np.testing.assert_array_equal(np.ravel(call_on_five(name, np.matrix(values))), np.ravel(call_on_five(name, values)))
    with pytest.raises(DTypeError, match=r"must be a NumPy array or a tensor, got list\.$"):
        call_on_five(name, values.tolist())
    with pytest.raises(DTypeError, match=r"got a masked array with masked entries"):
        call_on_five(name, np.ma.masked_less(values, 1.0))


def test_gershgorin_weights_are_of_the_same_classes() -> None:
    pattern, precision = Chain(2).precision_pattern, np.array([2.0, 1.0, 2.0])
    with pytest.raises(DTypeError, match=r"weights must be a NumPy array or a tensor, got list\.$"):
        gershgorin.slack(pattern, precision, weights=[1.0, 1.0])
    with pytest.raises(DTypeError, match=r"weights must have a value in every place"):
        gershgorin.slack(pattern, precision, np.ma.masked_greater(np.array([1.0, 2.0]), 1.5))
