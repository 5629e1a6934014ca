"""WordNet's nouns are read from its files, and from the extract that comes with the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.data.nouns.extract import extracted
from guard.data.nouns.nouns import Nouns, sense_of
from guard.data.nouns.wordnet import WordNet

DATA = """\
  1 This line belongs to the licence.
00000010 06 n 02 tool 0 implement 0 001 ~ 00000020 n 0000 | what one works with
00000020 06 n 01 knife 0 003 @ 00000010 n 0000 ~ 00000030 n 0000 %p 00000050 n 0000 | a tool that \
cuts; used as a weapon (at times); "he drew his knife"
00000030 06 n 02 bread_knife 0 slicer 1 001 @ 00000020 n 0000 | knife for cutting bread; a long edge
00000040 13 n 01 slicer 0 000 | golf stroke that curves
00000050 06 n 01 blade 0 001 #p 00000020 n 0000 | the flat part
"""
SENSES = """\
blade%1:06:00:: 00000050 1 4
bread_knife%1:06:00:: 00000030 1 0
implement%1:06:00:: 00000010 1 0
knife%1:06:00:: 00000020 1 6
knife%2:35:00:: 00000099 1 9
slicer%1:06:00:: 00000030 2 0
slicer%1:13:00:: 00000040 1 1
tool%1:06:00:: 00000010 1 7
"""


@pytest.fixture
def nouns(tmp_path: Path) -> WordNet:
    (tmp_path / "data.noun").write_text(DATA, "utf-8")
    (tmp_path / "index.sense").write_text(SENSES, "utf-8")
    return WordNet(tmp_path)


def test_words_senses_and_their_files_are_read(nouns: WordNet) -> None:
    assert nouns.synsets[30].words == ("bread knife", "slicer")
    assert nouns.synsets[30].file == "artifact" and nouns.synsets[40].file == "food"
    assert nouns.synsets[20].parts == [50]
    # the verb is not counted
    assert nouns.uses["knife"] == 6
    assert nouns.of_word["slicer"] == [30, 40] and nouns.first["slicer"] == 40


def test_hyponyms_are_below_and_hypernyms_above(nouns: WordNet) -> None:
    assert nouns.below(["knife%1:06:00::"]) == {20, 30}
    assert nouns.over([30]) == {30, 20, 10}


def test_the_extract_is_read_as_the_same_tree(nouns: WordNet) -> None:
    read = Nouns([sense_of(at, line) for at, line in enumerate(extracted(nouns).splitlines())])
    (knife,) = read.senses("Knife")
    assert knife.gloss == "a tool that cuts" and knife.words[0].uses == 6
    assert [each.words[0].text for each in read.below(knife)] == ["bread knife"]
    assert [each.words[0].text for each in read.over(knife)] == ["tool"]
    # the commonest sense first
    assert [each.gloss for each in read.senses("slicer")] == [
        "golf stroke that curves",
        "knife for cutting bread",
    ]
