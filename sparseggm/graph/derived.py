"""Facts of immutable objects: computed at their first use, kept, and read-only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, cast, overload

import numpy.typing as npt

T = TypeVar("T")


class derived(Generic[T]):
    """As `functools.cached_property`, without its lock, which a forked child would find held for ever.

    Python 3.11 has one lock for all instances of a class, held while any fact is computed. Here two threads may compute
    the same fact at once; the first to finish is kept, and both get that one, so `is` stays meaningful.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Self | T:
        """Called until the instance's dictionary holds the fact; `setdefault` is atomic, and passes frozen classes."""
        if instance is None:
            return self
        return cast(T, vars(instance).setdefault(self.name, self.compute(instance)))


def make_read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, which nobody can write to from now on."""
    array.flags.writeable = False
    return array
