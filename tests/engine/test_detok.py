"""What leaves the text gate: whole characters, never a part of a stop string, logprobs with their text."""

from hypothesis import given
from hypothesis import strategies as st

from edge.engine.detok import TextGate
from edge.messages import TokenLogprob


def drain(gate: TextGate, pieces: list[bytes]) -> tuple[str, bool]:
    text = ""
    for piece in pieces:
        released = gate.push(piece)
        text += released.text
        if released.stopped:
            return text, True
    return text + gate.finish().text, False


def test_a_character_split_over_tokens_comes_out_whole() -> None:
    gate = TextGate()
    assert gate.push(b"20 \xc2").text == "20 "
    assert gate.push(b"\xb0").text == "°"
    assert gate.push(b"C").text == "C"


def test_an_incomplete_character_at_the_end_is_a_replacement_character() -> None:
    gate = TextGate()
    gate.push(b"a\xe2\x82")
    assert gate.finish().text == "�"


def test_a_stop_string_over_several_tokens_never_leaks_a_part() -> None:
    gate = TextGate(("<end>",))
    assert gate.push(b"go <e").text == "go "
    assert gate.push(b"n").text == ""
    released = gate.push(b"d> more")
    assert (released.text, released.stopped) == ("", True)


def test_a_false_start_of_a_stop_string_is_released() -> None:
    gate = TextGate(("<end>",))
    gate.push(b"a <e")
    assert gate.push(b"gg").text == "<egg"


def test_the_earliest_of_several_stops_wins() -> None:
    assert drain(TextGate(("world", "lo")), [b"hello world"]) == ("hel", True)


def test_logprobs_come_with_the_text_that_they_belong_to() -> None:
    gate = TextGate(("STOP",))
    one, two, three = (TokenLogprob(b, -0.5) for b in (b"x", b"ST", b"ay"))
    assert gate.push(b"x", one).logprobs == (one,)
    assert gate.push(b"ST", two).logprobs == ()
    assert gate.push(b"ay", three).logprobs == (two, three)


def test_logprobs_of_a_stop_string_are_not_released() -> None:
    gate = TextGate(("STOP",))
    kept, cut = TokenLogprob(b"x", -0.1), TokenLogprob(b"STOP", -0.2)
    assert gate.push(b"x", kept).logprobs == (kept,)
    released = gate.push(b"STOP", cut)
    assert (released.logprobs, released.stopped) == ((), True)


def test_logprobs_of_parts_of_a_character_wait_for_the_character() -> None:
    gate = TextGate()
    first, second = TokenLogprob(b"\xc2", -0.1), TokenLogprob(b"\xb0", -0.2)
    assert gate.push(b"\xc2", first).logprobs == ()
    assert gate.push(b"\xb0", second).logprobs == (first, second)


@given(st.text(), st.lists(st.text(min_size=1, max_size=4), max_size=3), st.data())
def test_any_split_gives_the_text_up_to_the_first_stop(text: str, stops: list[str], data: st.DataObject) -> None:
    raw = text.encode("utf-8", "replace")
    text = raw.decode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    places = [text.find(stop) for stop in stops if stop in text]
    out, stopped = drain(TextGate(tuple(stops)), pieces)
    if not places:
        assert (out, stopped) == (text, False)
    else:
        # Which stop is met first depends on where the tokens end: any released text ends before some stop.
        assert stopped
        assert text.startswith(out)
        assert not any(stop in out for stop in stops)
