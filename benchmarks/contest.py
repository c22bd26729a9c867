"""A row of the table: contestants solve one problem; answers are compared, and times set beside the goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import sparseggm as sg
from benchmarks.peers import MissingPeerError
from benchmarks.timing import COPIED, Call, copy, interleaved

Array = npt.NDArray[Any]
Answer = Callable[[Any], Sequence[Any]]

LIMIT = "memory limit"

MANY = 12
"""A row with more ratios is summarised."""


class DisagreementError(AssertionError):
    """A peer's answer differs from ours, so their times cannot be compared."""


@dataclass(frozen=True)
class Setting:
    """The length and size of a measurement.

    Args:
        rounds: interleaved rounds; the median counts.
        seconds: time of each contestant in each round.
        scale: divides the sizes, for a quick look; 1 is the real setting.
    """

    rounds: int = 7
    seconds: float = 0.1
    scale: int = 1

    def size(self, full: int, least: int = 2) -> int:
        """A size of the real setting, scaled."""
        return max(full // self.scale, least)


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Args:
        call: the call that is timed.
        answer: makes, from the result of `call`, arrays that must agree with ours, in order, with None in place of an
            array that cannot (other random samples). None: another model, with comparable work but another answer.
    """

    call: Callable[[], Any]
    answer: Answer | None = tuple


@dataclass(frozen=True)
class Ratio:
    """One figure of a row, and its goal.

    Args:
        of: its description: "against JAX, jit scan", "of the memory limit", "slope".
        value: measured.
        goal: None for a figure that is only shown.
        sense: whether the goal is a least or a largest value.
        unit: "×", "s" or "".
    """

    of: str
    value: float
    goal: float | None = None
    sense: Literal["≥", "≤"] = "≥"
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None without a goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.sense == "≥" else self.value <= self.goal

    @property
    def lead(self) -> float:
        """The factor by which the ratio is better than its goal; below 1, the goal is missed."""
        if self.goal is None:
            raise ValueError(f"{self.of}: has no goal to compare with.")
        return self.value / self.goal if self.sense == "≥" else self.goal / max(self.value, 1e-3)


@dataclass(frozen=True)
class Result:
    """A measured row.

    Args:
        work: a description of the work.
        seconds: of each contestant.
        ratios: ours against peers and limits, in the order of the goals.
        missing: peers that are not installed, with the commands that install them.
    """

    work: str
    seconds: dict[str, float]
    ratios: list[Ratio] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def telling(self) -> list[Ratio]:
        """All ratios; where there are many, those that miss their goal, or else the one nearest to missing it."""
        judged = [ratio for ratio in self.ratios if ratio.goal is not None]
        if len(self.ratios) <= MANY or not judged:
            return self.ratios
        return [ratio for ratio in judged if not ratio.met] or [min(judged, key=lambda ratio: ratio.lead)]


@dataclass(frozen=True)
class Peer:
    """Another way to do the work, made when its turn comes, and the goal: how many times as fast we must be."""

    make: Callable[[], Contestant]
    goal: float | None = None


def race(
    setting: Setting,
    work: str,
    ours: Contestant,
    peers: dict[str, Peer] | None = None,
    *,
    tolerance: float = 1e-8,
    bytes_moved: int = 0,
    limit_goal: float | None = None,
) -> Result:
    """Compare the answers once, time all in interleaved rounds, and set the ratios beside the goals.

    Args:
        tolerance: largest |theirs − ours| / max |ours| of each array of the answer.
        bytes_moved: the bytes that any implementation must read and write; 0: arithmetic bounds the work.
        limit_goal: goal for the memory limit divided by our time. The limit is the time that `bytes_moved` take at the
            bandwidth of a copy by as many threads as ours, measured in the same rounds.
    Raises:
        DisagreementError: an answer differs.
    """
    made, missing, peers = {}, {}, peers or {}
    for name, peer in peers.items():
        try:
            made[name] = peer.make()
        except MissingPeerError as absent:
            missing[name] = absent.install
    require_agreement(work, ours, made, tolerance)
    calls: dict[str, Call] = {"sparseggm": ours.call} | {name: contestant.call for name, contestant in made.items()}
    if bytes_moved:
        calls[LIMIT] = copy(sg.get_num_threads())
    seconds = interleaved(calls, setting.rounds, setting.seconds)
    if bytes_moved:
        seconds[LIMIT] *= bytes_moved / (2 * COPIED)
    ratios = [Ratio(f"as fast as {name}", seconds[name] / seconds["sparseggm"], peers[name].goal) for name in made]
    if bytes_moved:
        ratios.insert(0, Ratio("of the memory limit", seconds[LIMIT] / seconds["sparseggm"], limit_goal))
    return Result(work, seconds, ratios, missing)


def require_agreement(work: str, ours: Contestant, peers: dict[str, Contestant], tolerance: float) -> None:
    """Raise if a peer's answer differs from ours."""
    compared = {name: peer for name, peer in peers.items() if peer.answer is not None}
    if not compared or ours.answer is None:
        return
    expected = [np.asarray(array) for array in ours.answer(ours.call())]
    for name, peer in compared.items():
        assert peer.answer is not None
        for index, (found, own) in enumerate(zip(peer.answer(peer.call()), expected, strict=True)):
            if found is None:
                continue
            theirs = np.asarray(found)
            error = np.abs(theirs - own).max() / np.abs(own).max() if theirs.shape == own.shape else np.inf
            if not error <= tolerance:
                raise DisagreementError(
                    f"{work}: array {index} of {name} differs from ours: max |Δ| / max |ours| = {error:.2g}, shapes "
                    f"{theirs.shape} and {own.shape}; needed {tolerance:.2g}."
                )
