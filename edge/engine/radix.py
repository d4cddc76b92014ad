"""A radix tree over token ids: which of the sequences put in shares the longest beginning with a given one. Pure.

An edge carries a run of tokens, a node may carry items whose tokens end there. Finding costs the length of what matches,
however many sequences are kept (SGLang's RadixAttention, arXiv 2312.07104, uses the same structure).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
Tokens = Sequence[int]


class _Node(Generic[T]):
    __slots__ = ("children", "depth", "edge", "items", "parent")

    def __init__(self, edge: Tokens, parent: _Node[T] | None) -> None:
        self.edge = edge
        self.parent = parent
        self.depth: int = len(edge) + (parent.depth if parent is not None else 0)
        self.children: dict[int, _Node[T]] = {}
        self.items: list[T] = []


class RadixTree(Generic[T]):
    """Items under their tokens. Every leaf carries at least one item."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node((), None)
        self._places: dict[T, _Node[T]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def insert(self, tokens: Tokens, item: T) -> None:
        """Put an item in; it must not be in already."""
        assert item not in self._places
        node, matched = self._root, 0
        while matched < len(tokens):
            child = node.children.get(tokens[matched])
            if child is None:
                child = _Node(tuple(tokens[matched:]), node)
                node.children[tokens[matched]] = child
                node, matched = child, len(tokens)
                break
            common = _common(child.edge, tokens, matched)
            if common < len(child.edge):
                child = self._split(child, common)
            node, matched = child, matched + common
        node.items.append(item)
        self._places[item] = node

    def remove(self, item: T) -> None:
        """Take an item out."""
        node = self._places.pop(item)
        node.items.remove(item)
        while node.parent is not None and not node.items and not node.children:
            del node.parent.children[node.edge[0]]
            node = node.parent
        if node.parent is not None and not node.items and len(node.children) == 1:
            self._join(node)

    def matches(self, tokens: Tokens) -> Iterator[tuple[int, T]]:
        """All items that share a beginning with `tokens`, those that share most first, each with the length shared."""
        path: list[tuple[int, _Node[T]]] = []
        node, matched = self._root, 0
        while matched < len(tokens) and (child := node.children.get(tokens[matched])) is not None:
            common = _common(child.edge, tokens, matched)
            matched += common
            path.append((matched, child))
            if common < len(child.edge):
                break
            node = child
        seen: _Node[T] | None = None
        for length, node in reversed(path):
            yield from ((length, item) for item in self._below(node, but=seen))
            seen = node

    def along(self, tokens: Tokens) -> Iterator[tuple[int, T]]:
        """Items whose whole tokens are a beginning of `tokens`, shortest first, each with its length."""
        node, matched = self._root, 0
        while True:
            for item in node.items:
                yield matched, item
            child = node.children.get(tokens[matched]) if matched < len(tokens) else None
            if child is None or _common(child.edge, tokens, matched) < len(child.edge):
                return
            node, matched = child, matched + len(child.edge)

    def shared(self, item: T) -> int:
        """How many of an item's first tokens another item has too."""
        node = self._places[item]
        if len(node.items) > 1 or node.children:
            return node.depth
        while node.parent is not None:
            node = node.parent
            if node.items or len(node.children) > 1:
                return node.depth
        return 0

    def _below(self, node: _Node[T], but: _Node[T] | None) -> Iterator[T]:
        waiting = [node]
        while waiting:
            node = waiting.pop()
            yield from node.items
            waiting.extend(child for child in node.children.values() if child is not but)

    def _split(self, node: _Node[T], at: int) -> _Node[T]:
        """Cut a node's edge; returns the new upper part."""
        parent = node.parent
        assert parent is not None
        upper: _Node[T] = _Node(node.edge[:at], parent)
        parent.children[node.edge[0]] = upper
        node.edge, node.parent = node.edge[at:], upper
        upper.children[node.edge[0]] = node
        return upper

    @staticmethod
    def _join(node: _Node[T]) -> None:
        """A node without items and with one child is no fork any more: child and node become one."""
        (child,) = node.children.values()
        parent = node.parent
        assert parent is not None
        child.edge, child.parent = (*node.edge, *child.edge), parent
        parent.children[child.edge[0]] = child


def _common(edge: Tokens, tokens: Tokens, start: int) -> int:
    """How many tokens of `edge` stand in `tokens` from `start` on."""
    length = min(len(edge), len(tokens) - start)
    if tuple(edge[:length]) == tuple(tokens[start : start + length]):
        return length
    return next(i for i in range(length) if edge[i] != tokens[start + i])
