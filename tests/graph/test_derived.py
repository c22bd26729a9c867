"""`derived`: a fact is computed at its first use and kept, without a lock."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sparseggm.graph.derived import derived


@dataclass(frozen=True)
class Square:
    side: int

    @derived
    def area(self) -> list[int]:
        """Side times side."""
        computed.append(self.side)
        return [self.side**2]


computed: list[int] = []


def test_a_fact_of_a_frozen_object_is_computed_once_and_is_no_part_of_its_value() -> None:
    square, other = Square(3), Square(3)
    computed.clear()
    assert square.area is square.area
    assert computed == [3]
    assert square == other
    assert hash(square) == hash(other)
    assert repr(square) == "Square(side=3)"
    for copied in (copy.copy(square), pickle.loads(pickle.dumps(square))):
        assert copied.area == [9]


def test_the_class_has_the_description() -> None:
    assert isinstance(Square.area, derived)
    assert Square.area.__doc__ == "Side times side."


def test_threads_that_compute_the_same_fact_at_once_get_the_same_object() -> None:
    class Slow:
        @derived
        def fact(self) -> object:
            both_are_here.wait(timeout=30)  # with a lock, the second would not come
            return object()

    slow, both_are_here = Slow(), threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: slow.fact, range(2))
    assert first is second is slow.fact
