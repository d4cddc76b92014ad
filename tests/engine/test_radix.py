"""The radix tree beside a plain list of sequences: same answers, and the shape that its speed rests on."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge.engine.radix import RadixTree, _Node

TOKENS = st.lists(st.integers(0, 2), max_size=8)


def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def check_shape(tree: RadixTree[int], known: dict[int, list[int]]) -> None:
    """No empty leaf, no inner node that is no fork, every item where its tokens end."""
    seen: dict[int, list[int]] = {}

    def walk(node: _Node[int], tokens: list[int]) -> None:
        assert node.depth == len(tokens)
        seen.update((item, tokens) for item in node.items)
        if node.parent is not None:
            assert node.edge
            assert node.items or len(node.children) > 1
        for first, child in node.children.items():
            assert child.parent is node and child.edge[0] == first
            walk(child, [*tokens, *child.edge])

    walk(tree._root, [])
    assert seen == known
    assert len(tree) == len(known)


def check_answers(tree: RadixTree[int], known: dict[int, list[int]], asked: list[int]) -> None:
    found = list(tree.matches(asked))
    assert {item: length for length, item in found} == {i: n for i, t in known.items() if (n := common(t, asked))}
    assert len(found) == len({item for _, item in found})
    assert all(a >= b for (a, _), (b, _) in pairwise(found))
    along = list(tree.along(asked))
    assert sorted(along) == sorted((len(t), i) for i, t in known.items() if asked[: len(t)] == t)
    assert [length for length, _ in along] == sorted(length for length, _ in along)
    for item, tokens in known.items():
        assert tree.shared(item) == max((common(tokens, t) for i, t in known.items() if i != item), default=0)


@given(st.lists(st.tuples(TOKENS, st.booleans(), TOKENS), max_size=25))
def test_it_answers_as_a_list_of_sequences_would(turns: list[tuple[list[int], bool, list[int]]]) -> None:
    tree: RadixTree[int] = RadixTree()
    known: dict[int, list[int]] = {}
    for number, (tokens, removes, asked) in enumerate(turns):
        if removes and known:
            gone = sorted(known)[sum(tokens) % len(known)]
            tree.remove(gone)
            del known[gone]
        else:
            tree.insert(tokens, number)
            known[number] = tokens
        check_shape(tree, known)
        check_answers(tree, known, asked)


@given(st.lists(TOKENS, max_size=10), st.randoms())
def test_an_emptied_tree_is_as_new(sequences: list[list[int]], order: object) -> None:
    tree: RadixTree[int] = RadixTree()
    for number, tokens in enumerate(sequences):
        tree.insert(tokens, number)
    numbers = list(range(len(sequences)))
    order.shuffle(numbers)  # type: ignore[attr-defined]
    for number in numbers:
        tree.remove(number)
    assert not tree._root.children and not tree._root.items and len(tree) == 0


def test_the_longest_match_comes_first_whatever_was_put_in_first() -> None:
    tree: RadixTree[str] = RadixTree()
    tree.insert([1, 2], "short")
    tree.insert([1, 2, 3, 4, 5], "long")
    tree.insert([1, 2, 3, 9], "fork")
    tree.insert([7], "other")
    assert list(tree.matches([1, 2, 3, 4, 6])) == [(4, "long"), (3, "fork"), (2, "short")]


def test_a_query_that_ends_inside_an_edge_matches_what_lies_below_it() -> None:
    tree: RadixTree[str] = RadixTree()
    tree.insert([1, 2, 3, 4], "whole")
    assert list(tree.matches([1, 2])) == [(2, "whole")]
    assert list(tree.along([1, 2])) == []
