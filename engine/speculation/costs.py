"""Cost tables: seconds of a forward pass by number of rows, measured, refined at run time, kept on disk.

Independent of models and devices: the caller measures the points and names the table. No torch.

    table = CostTable({1: 0.042, 8: 0.050, 64: 0.162})
    table.seconds(10)           # between the points
    table.observe(8, 0.055)     # a forward pass that just ran
    save_tables(path, {"machine model dtype threads target": table})
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

# The share of an observed error that is applied to all points, since machines slow down at every size. The
# first observations count for more, as in a mean: the initial measurement covers the device, but not
# everything that the host does around it.
SHARED_RATE = 1 / 16
# The share applied to the neighbouring points. A higher one would make frequently observed sizes look cheap …
LOCAL_RATE = 1 / 128
STALE = 512  # … but it rises for points not seen for about this many observations, whose values are old
HOST_RATE = 1 / 32
MAX_SURPRISE = 2.0  # an observation counts as off by at most this factor

Floats = npt.NDArray[np.float64]


class Points(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table on disk: ``rows`` ascending from at least 1, and positive ``seconds``, one for each."""

    rows: list[int]
    seconds: list[float]

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.seconds):
            raise ValueError("a cost table needs at least one point, and as many seconds as rows")
        if self.rows[0] < 1 or any(b <= a for a, b in zip(self.rows, self.rows[1:], strict=False)):
            raise ValueError(f"rows must rise from at least 1, got {self.rows}")
        if not all(0 < s < float("inf") for s in self.seconds):
            raise ValueError(f"seconds must be positive and finite, got {self.seconds}")


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["specvlm-costs-1"]
    tables: dict[str, Points]


class CostTable:
    """A piecewise linear cost function of the number of rows.

    It is constant below the first point and continues with the last slope, if that is positive, beyond the
    last one. It need not be monotonic. A single point is a constant cost.

    ``points``: seconds by rows. Raises ``ValueError`` for rows below 1 or seconds that are not positive.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        ordered = Points(sorted(points), [points[rows] for rows in sorted(points)])
        self._rows: Floats = np.array(ordered.rows, np.float64)
        self._seconds: Floats = np.array(ordered.seconds, np.float64)
        self._num_seen = 0
        self._unseen: Floats = np.zeros(len(self._rows))  # observations since each point was last seen

    @property
    def points(self) -> dict[int, float]:
        return dict(zip(self._rows.astype(int).tolist(), self._seconds.tolist(), strict=True))

    def seconds(self, rows: float) -> float:
        """Return the expected seconds of a forward pass of ``rows`` rows, which need not be an integer."""
        return float(self.curve(np.array([rows], np.float64))[0])

    def curve(self, rows: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> Floats:
        """``seconds`` for an array of row counts of any shape."""
        inside: Floats = np.interp(rows, self._rows, self._seconds)
        if len(self._rows) == 1:
            return inside
        rise = max(0.0, float(self._seconds[-1] - self._seconds[-2]))
        slope = rise / float(self._rows[-1] - self._rows[-2])
        beyond: Floats = np.maximum(rows - self._rows[-1], 0.0)
        return inside + slope * beyond

    def observe(self, rows: float, seconds: float) -> None:
        """Update the table, a slow running mean, with a forward pass of ``rows`` rows that took ``seconds``.

        An observation that is far off was disturbed and counts as off by at most ``MAX_SURPRISE``. Beyond the
        last point the error says little about any single point, so it moves all of them slightly. Raises
        ``ValueError`` for seconds that are not positive.
        """
        if not 0 < seconds < float("inf"):
            raise ValueError(f"seconds must be positive and finite, got {seconds}")
        expected = self.seconds(rows)
        error = min(max(seconds / expected, 1 / MAX_SURPRISE), MAX_SURPRISE) - 1
        beyond = rows > self._rows[-1]
        self._num_seen += 1
        if beyond:
            self._seconds *= 1 + LOCAL_RATE * error
            return
        self._seconds *= 1 + max(SHARED_RATE, 1 / (1 + self._num_seen)) * error
        right = int(np.searchsorted(self._rows, rows))
        left = max(right - 1, 0)
        share = 1.0
        if right > left:
            share = float((rows - self._rows[left]) / (self._rows[right] - self._rows[left]))
        self._unseen += 1
        for point, part in ((left, 1 - share), (right, share)):
            if part > 0:
                rate = min(max(LOCAL_RATE, self._unseen[point] / STALE), 1 / 2)
                self._seconds[point] *= 1 + rate * part * error
                self._unseen[point] = 0

    def to_points(self) -> Points:
        return Points(self._rows.astype(int).tolist(), self._seconds.tolist())

    @classmethod
    def from_points(cls, points: Points) -> CostTable:
        return cls(dict(zip(points.rows, points.seconds, strict=True)))


@dataclass(slots=True, frozen=True)
class DraftCosts:
    """The cost of drafting.

    ``extend``: the pass over newly accepted tokens that also yields the first level, by its rows. ``level``:
    each further level, by the rows of all sequences' frontiers; ``None`` if deeper levels cost nothing (for
    look-up, ``extend`` holds seconds by number of sequences).
    """

    extend: CostTable
    level: CostTable | None = None

    def seconds(self, levels: int, extend_rows: int, frontier_rows: int) -> float:
        """Return the seconds of drafting ``levels`` levels, at least 1."""
        first = self.extend.seconds(extend_rows)
        return first + (levels - 1) * (self.level.seconds(frontier_rows) if self.level is not None else 0.0)

    def observe(self, levels: int, extend_rows: int, frontier_rows: int, seconds: float) -> None:
        """Record that drafting took ``seconds`` in total; the error is shared in proportion."""
        ratio = seconds / self.seconds(levels, extend_rows, frontier_rows)
        self.extend.observe(extend_rows, ratio * self.extend.seconds(extend_rows))
        if self.level is not None and levels > 1:
            self.level.observe(frontier_rows, ratio * self.level.seconds(frontier_rows))


class HostCosts:
    """Running means of the seconds of a step outside of the target's forward pass and drafting, by kind."""

    def __init__(self) -> None:
        self._plain: float | None = None
        self._tree: float | None = None

    @property
    def knows_plain(self) -> bool:
        return self._plain is not None

    @property
    def plain(self) -> float:
        """The host time of a plain step; 0 until one has been observed."""
        return self._plain or 0.0

    @property
    def with_trees(self) -> float:
        """The host time of a step that verifies trees; that of a plain one until both kinds were observed."""
        return self.plain if self._plain is None or self._tree is None else max(self._plain, self._tree)

    def observe(self, seconds: float, *, speculating: bool) -> None:
        if speculating:
            self._tree = _running_mean(self._tree, seconds)
        else:
            self._plain = _running_mean(self._plain, seconds)


def _running_mean(mean: float | None, seconds: float) -> float:
    """Update a running mean; an outlier, from a busy machine, counts as about twice the mean at most."""
    return seconds if mean is None else mean + HOST_RATE * (min(seconds, 2 * mean + 1e-3) - mean)


def load_tables(path: Path) -> dict[str, CostTable]:
    """Load the tables stored at ``path``, by key.

    Returns none if the file is missing, unreadable, in another format or owned by another user; costs are
    then measured again.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                log.warning("ignoring the cost tables at %s: the file belongs to another user", path)
                return {}
            kept = msgspec.json.decode(file.read(), type=_File)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("ignoring the cost tables at %s: %s", path, error)
        return {}
    return {key: CostTable.from_points(points) for key, points in kept.tables.items()}


def save_tables(path: Path, tables: Mapping[str, CostTable]) -> None:
    """Store these tables at ``path``, next to those with other keys, readable by this user only.

    The file is replaced atomically: a reader sees the old one or the new one. Raises ``OSError``.
    """
    merged = {**load_tables(path), **tables}
    kept = _File("specvlm-costs-1", {key: table.to_points() for key, table in merged.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=path.name, dir=path.parent)  # created with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(kept))
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise
