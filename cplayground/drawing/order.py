"""Order and height of the boxes: few crossings, and curves that are nearly level."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

_ROUNDS = 12
_EXCHANGED = 200  # curves; exchanging neighbours is too slow for more


class Edge(NamedTuple):
    """A curve from a row of a table at the left to a box of a stack at the right."""

    table: int
    row: int
    stack: int
    box: int


class Order(NamedTuple):
    """Tables and stacks from the top, and the boxes of each stack from the top."""

    tables: tuple[int, ...]
    stacks: tuple[int, ...]
    boxes: tuple[tuple[int, ...], ...]


def crossings(edges: Sequence[Edge], order: Order) -> int:
    """Count the pairs of curves that cross."""
    rank = {table: place for place, table in enumerate(order.tables)}
    place = {
        (stack, box): (place, inner)
        for place, stack in enumerate(order.stacks)
        for inner, box in enumerate(order.boxes[stack])
    }
    ends = sorted((rank[e.table], e.row, place[e.stack, e.box]) for e in edges)
    count = 0
    seen: list[tuple[int, int]] = []
    at = 0
    while at < len(ends):
        # Curves of one row do not cross; they are judged before the row is added.
        last = at
        while last < len(ends) and ends[last][:2] == ends[at][:2]:
            count += len(seen) - _after(seen, ends[last][2])
            last += 1
        for _, _, end in ends[at:last]:
            insort(seen, end)
        at = last
    return count


def _after(seen: list[tuple[int, int]], end: tuple[int, int]) -> int:
    # Two curves that end at the same box do not cross.
    return bisect_left(seen, (end[0], end[1] + 1))


def ordered(edges: Sequence[Edge], groups: Sequence[int], stacks: Sequence[int]) -> Order:
    """Return an order with few crossings: the barycentre method, then neighbours are exchanged.

    ``groups`` gives each table's group, whose tables stay together; ``stacks`` gives each
    stack's number of boxes.  Tables keep their order unless another one halves the crossings:
    a reader looks for parents above children, and for a pipeline in its order.
    """
    by_table: list[list[Edge]] = [[] for _ in groups]
    by_stack: list[list[Edge]] = [[] for _ in stacks]
    for edge in edges:
        by_table[edge.table].append(edge)
        by_stack[edge.stack].append(edge)
    tables: tuple[int, ...] = tuple(sorted(range(len(groups)), key=lambda t: (groups[t], t)))
    kept = _better(edges, _right(tables, by_table, by_stack, stacks), None)
    best, least = kept
    order = best
    for _ in range(_ROUNDS):
        following = _left(order, by_table, groups)
        if least == 0 or following == order.tables:
            break
        order = _right(following, by_table, by_stack, stacks)
        count = crossings(edges, order)
        if count < least:
            best, least = order, count
    moved = _better(edges, best, groups)
    return moved[0] if 2 * moved[1] < kept[1] else kept[0]


def _better(edges: Sequence[Edge], order: Order, groups: Sequence[int] | None) -> tuple[Order, int]:
    """Exchange neighbours while that makes crossings fewer; tables only if groups are given."""
    count = crossings(edges, order)
    before = count + 1
    while 0 < count < before and len(edges) <= _EXCHANGED:
        before = count
        for move in _moves(order, groups):
            candidate = move(order)
            found = crossings(edges, candidate)
            if found < count:
                order, count = candidate, found
    return order, count


def _mean(values: Iterable[float], otherwise: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else otherwise


def _right(
    tables: tuple[int, ...],
    by_table: Sequence[Sequence[Edge]],
    by_stack: Sequence[Sequence[Edge]],
    sizes: Sequence[int],
) -> Order:
    """Order stacks, and the boxes of each, by the mean place of the rows that point to them."""
    rows = sorted({(table, edge.row) for table in tables for edge in by_table[table]})
    rank = {table: place for place, table in enumerate(tables)}
    rows.sort(key=lambda row: (rank[row[0]], row[1]))
    place = {row: float(number) for number, row in enumerate(rows)}
    means = [_mean((place[e.table, e.row] for e in edges), 1e9) for edges in by_stack]
    boxes = []
    for edges, size in zip(by_stack, sizes):
        of_box: list[list[float]] = [[] for _ in range(size)]
        for edge in edges:
            of_box[edge.box].append(place[edge.table, edge.row])
        inner = [_mean(found, 1e9) for found in of_box]
        boxes.append(tuple(sorted(range(size), key=lambda box: (inner[box], box))))
    stacks = tuple(sorted(range(len(sizes)), key=lambda stack: (means[stack], stack)))
    return Order(tables, stacks, tuple(boxes))


def _left(
    order: Order, by_table: Sequence[Sequence[Edge]], groups: Sequence[int]
) -> tuple[int, ...]:
    place: dict[tuple[int, int], float] = {}
    for stack in order.stacks:
        for box in order.boxes[stack]:
            place[stack, box] = float(len(place))
    means = [
        _mean((place[e.stack, e.box] for e in edges), float(number))
        for number, edges in enumerate(by_table)
    ]
    of_group: dict[int, list[float]] = {}
    for group, mean in zip(groups, means):
        of_group.setdefault(group, []).append(mean)
    middle = {group: sum(found) / len(found) for group, found in of_group.items()}
    return tuple(
        sorted(range(len(groups)), key=lambda t: (middle[groups[t]], groups[t], means[t], t))
    )


def _moves(order: Order, groups: Sequence[int] | None) -> Iterator[Callable[[Order], Order]]:
    for at in range(len(order.stacks) - 1):
        yield partial(_with_stacks, at)
    for at in range(len(order.tables) - 1 if groups else 0):
        yield partial(_with_tables, at, groups or ())
    for stack, boxes in enumerate(order.boxes):
        for at in range(len(boxes) - 1):
            yield partial(_with_boxes, at, stack)


def _with_stacks(at: int, order: Order) -> Order:
    return order._replace(stacks=_swapped(order.stacks, at))


def _with_tables(at: int, groups: Sequence[int], order: Order) -> Order:
    if groups[order.tables[at]] != groups[order.tables[at + 1]]:
        return order
    return order._replace(tables=_swapped(order.tables, at))


def _with_boxes(at: int, stack: int, order: Order) -> Order:
    changed = list(order.boxes)
    changed[stack] = _swapped(changed[stack], at)
    return order._replace(boxes=tuple(changed))


def _swapped(items: tuple[int, ...], at: int) -> tuple[int, ...]:
    return (*items[:at], items[at + 1], items[at], *items[at + 2 :])


def placed(
    wanted: Sequence[float], heights: Sequence[float], gaps: Sequence[float]
) -> tuple[float, ...]:
    """Return the tops of boxes in a column: as near to those wanted as heights and gaps permit.

    Squares of the distances are least (pool adjacent violators); no top is above 0.  ``gaps``
    gives the space above each box; the first one's is not used.
    """
    offsets = [0.0]
    for height, gap in zip(heights, gaps[1:]):
        offsets.append(offsets[-1] + height + gap)
    pools: list[tuple[float, int]] = []  # sum of what is wanted, number of boxes
    for want, offset in zip(wanted, offsets):
        pools.append((want - offset, 1))
        while len(pools) > 1 and _level(pools[-2]) > _level(pools[-1]):
            total, size = pools.pop()
            pools[-1] = (pools[-1][0] + total, pools[-1][1] + size)
    levels = [max(0.0, _level(pool)) for pool in pools for _ in range(pool[1])]
    return tuple(level + offset for level, offset in zip(levels, offsets))


def _level(pool: tuple[float, int]) -> float:
    return pool[0] / pool[1]
