"""A lineage graph: boxes in columns from left to right, each after all that it was made from; templates draw it as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Box", "Drawing", "Node", "drawn"]

_WIDTH, _HEIGHT = 172, 50
_ACROSS, _DOWN = 36, 18
_MARGIN = 4
_TITLE, _NOTE = 22, 25
"""The most characters of the two lines; all of them are the box's tooltip."""


@dataclass(frozen=True, slots=True)
class Node:
    """Something in the graph: two lines of text, a kind that its style goes by, and where it leads."""

    title: str
    note: str
    kind: str
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A node in its place."""

    node: Node
    x: int
    y: int
    width: int = _WIDTH
    height: int = _HEIGHT

    @property
    def title(self) -> str:
        return _cut(self.node.title, _TITLE)

    @property
    def note(self) -> str:
        return _cut(self.node.note, _NOTE)


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes, and the paths of the arrows between them."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    paths: tuple[str, ...]


def drawn(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> Drawing:
    """Return the graph; edges go from the name of what was there before to that of what was made of it, without circles."""
    columns = _columns(nodes, edges)
    tallest = max(len(column) for column in columns)
    places: dict[str, Box] = {}
    for across, column in enumerate(columns):
        offset = (tallest - len(column)) * (_HEIGHT + _DOWN) // 2
        for down, name in enumerate(column):
            x, y = _MARGIN + across * (_WIDTH + _ACROSS), _MARGIN + offset + down * (_HEIGHT + _DOWN)
            places[name] = Box(nodes[name], x, y)
    return Drawing(
        width=2 * _MARGIN + len(columns) * (_WIDTH + _ACROSS) - _ACROSS,
        height=2 * _MARGIN + tallest * (_HEIGHT + _DOWN) - _DOWN,
        boxes=tuple(places.values()),
        paths=tuple(_path(places[source], places[target]) for source, target in edges),
    )


def _columns(nodes: Mapping[str, Node], edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return the names by column; within one, near the middle of what they are made from."""
    before: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        before[target].append(source)
    depth: dict[str, int] = {}

    def deep(name: str) -> int:
        if name not in depth:
            depth[name] = 0
            depth[name] = 1 + max((deep(source) for source in before[name]), default=-1)
        return depth[name]

    columns: list[list[str]] = [[] for _ in range(1 + max(map(deep, nodes)))]
    rank: dict[str, float] = {}
    for name in sorted(nodes, key=lambda name: depth[name]):
        above = [rank[source] for source in before[name]]
        rank[name] = sum(above) / len(above) if above else float(len(columns[depth[name]]))
        columns[depth[name]].append(name)
    return [sorted(column, key=lambda name: rank[name]) for column in columns]


def _path(source: Box, target: Box) -> str:
    x1, y1 = source.x + _WIDTH, source.y + _HEIGHT // 2
    x2, y2 = target.x - 2, target.y + _HEIGHT // 2
    bend = max(16, (x2 - x1) // 2)
    return f"M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
