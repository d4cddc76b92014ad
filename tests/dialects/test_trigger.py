"""A lazy grammar begins where a call begins: nowhere earlier, and wherever the tokens cut the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.dialects.reasoning import ReasoningTags
from edge.dialects.trigger import TriggerWatch

THINK = ReasoningTags("<think>", "</think>")
HERMES = ("<tool_call>", None)
LLAMA3 = ('{"name":', "<|python_tag|>")
AT_ONCE = (None, None)


def watch(
    form: tuple[str | None, str | None], *, reasoning: ReasoningTags | None = None, reasoning_open: bool = False
) -> TriggerWatch:
    return TriggerWatch(form[0], lead=form[1], reasoning=reasoning, reasoning_open=reasoning_open)


def begins_at(reader: TriggerWatch, text: str) -> int | None:
    """How many bytes were read when the grammar began, fed one at a time."""
    for at in range(len(text)):
        if reader.feed(text[at : at + 1].encode()) is not None:
            return at + 1
    return None


@pytest.mark.parametrize(
    ("form", "text", "before"),
    [
        (HERMES, "Sure. <tool_call>{", "Sure. <tool_call>"),
        (HERMES, "<tool_c <tool_call>", "<tool_c <tool_call>"),
        (HERMES, "<tool_call", None),
        (LLAMA3, '{"name": "f"', '{"name":'),
        (LLAMA3, '\n {"name": "f"', '\n {"name":'),
        (LLAMA3, '<|python_tag|>{"name": "f"', '<|python_tag|>{"name":'),
        (LLAMA3, 'ok <|python_tag|>\n{"name":', 'ok <|python_tag|>\n{"name":'),
        (LLAMA3, 'As JSON: {"name": "Ada"}', None),
        (LLAMA3, '[{"name": "Ada"}]', None),
        (LLAMA3, '{"names": 1} {"name": "Ada"}', None),
        (LLAMA3, '<|python_tag|>search("x") {"name": "Ada"}', None),
    ],
)
def test_the_grammar_begins_behind_the_trigger(form: tuple[str, str | None], text: str, before: str | None) -> None:
    assert begins_at(watch(form), text) == (None if before is None else len(before))


@pytest.mark.parametrize(
    ("form", "opened", "text", "before"),
    [
        (AT_ONCE, True, "hm, {</think>{", "hm, {</think>"),
        (HERMES, True, "a <tool_call> would do</think><tool_call>{", "a <tool_call> would do</think><tool_call>"),
        (HERMES, False, " <think><tool_call>?</think><tool_call>", " <think><tool_call>?</think><tool_call>"),
        (HERMES, False, "<thin <tool_call>", "<thin <tool_call>"),
        (HERMES, False, "a <think> <tool_call>", "a <think> <tool_call>"),
        (LLAMA3, False, '<think>{"name": 1}</think>\n{"name":', '<think>{"name": 1}</think>\n{"name":'),
    ],
)
def test_nothing_in_reasoning_begins_a_grammar(
    form: tuple[str | None, str | None], opened: bool, text: str, before: str
) -> None:
    assert begins_at(watch(form, reasoning=THINK, reasoning_open=opened), text) == len(before)


def test_text_of_the_same_token_behind_the_trigger_is_the_grammars() -> None:
    assert watch(HERMES).feed(b'x<tool_call>{"na') == b'{"na'
    assert watch(LLAMA3).feed(b' {"name": "f') == b' "f'
    assert watch(AT_ONCE, reasoning=THINK, reasoning_open=True).feed(b"</think>\n\n") == b""


@given(data=st.data())
def test_where_a_grammar_begins_does_not_depend_on_the_cuts(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([HERMES, LLAMA3]))
    scraps = ["<tool_call>", '{"name":', "<|python_tag|>", "<think>", "</think>", " ", "\n", "x", "<", "{", "ü"]
    text = "".join(data.draw(st.lists(st.sampled_from(scraps), max_size=8)))
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    reader, single = watch(form, reasoning=THINK), watch(form, reasoning=THINK)
    begun = None
    for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        rest = reader.feed(raw[a:b])
        if rest is not None:
            begun = b - len(rest)
            break
    expected = None
    for at in range(len(raw)):
        if single.feed(raw[at : at + 1]) is not None:
            expected = at + 1
            break
    assert begun == expected
