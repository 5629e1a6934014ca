"""Text of growing token sequences: what is sent, what is buffered, where it stops."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from server.services.text_rows import TokenText


@cache
def byte_tokenizer() -> Any:
    """One token for each byte, so that characters and stop strings span several tokens."""
    letters = sorted(ByteLevel.alphabet())
    pairs = {"".join(pair): 256 + i for i, pair in enumerate([("a", "b"), ("b", "c")])}
    vocabulary = {letter: i for i, letter in enumerate(letters)} | pairs
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def ids_of(text: str) -> list[int]:
    (word,) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    vocabulary = byte_tokenizer().get_vocab()
    return [vocabulary[letter] for letter in word[0]]


def run(ids: list[int], stop: tuple[str, ...]) -> tuple[list[str], str | None]:
    text = TokenText(byte_tokenizer(), stop)
    sent = []
    for token in ids:
        new, stopped = text.push(token)
        sent.append(new)
        if stopped is not None:
            return sent, stopped
    return [*sent, text.rest()], None


def naive(ids: list[int], stop: tuple[str, ...]) -> tuple[str, str | None]:
    """Decode the whole text after each token; cut before its first stop string."""
    for count in range(1, len(ids) + 1):
        text = byte_tokenizer().decode(ids[:count])
        matches = sorted((text.index(end), end) for end in stop if end in text)
        if matches:
            return text[: matches[0][0]], matches[0][1]
    return text, None


texts = st.text(st.sampled_from("abcé€😀 "), min_size=1, max_size=30)
stops = st.lists(st.text(st.sampled_from("abcé "), min_size=1, max_size=4), max_size=3)


@settings(max_examples=150, deadline=None)
@given(texts, stops)
def test_sent_text_is_the_decoded_text_before_the_first_stop_string(
    text: str, stop: list[str]
) -> None:
    sent, stopped = run(ids_of(text), tuple(stop))
    assert ("".join(sent), stopped) == naive(ids_of(text), tuple(stop))


def test_no_part_of_a_stop_string_is_ever_sent() -> None:
    sent, stopped = run(ids_of("one END"), ("END",))
    assert stopped == "END" and sent == ["o", "n", "e", " ", "", "", ""]


def test_a_broken_off_stop_string_is_sent() -> None:
    sent, stopped = run(ids_of("an ENtity"), ("END",))
    assert stopped is None and sent[:7] == ["a", "n", " ", "", "", "ENt", "i"]


def test_a_character_of_several_tokens_is_sent_whole() -> None:
    sent, _ = run(ids_of("a😀b"), ())
    assert [part for part in sent if part] == ["a", "😀", "b"]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_half_a_character_at_the_end_is_not_sent(cut: int) -> None:
    sent, _ = run(ids_of("a😀")[: 1 + cut], ())
    assert "".join(sent) == "a"
