"""Characters that pass for Latin letters and marks: a small table of the usual ones.

A character has one reading, the glyph that it resembles most, so that a text can be folded
character by character. The table covers Cyrillic, Greek, Armenian, Cherokee, Canadian syllabics,
phonetic letters, small capitals and letters turned upside down; characters that Unicode calls
compatible (fullwidth, mathematical, circled, ligatures) are left to NFKD.
"""

from __future__ import annotations

from typing import Final

_SMALL: Final = {
    "a": "ɑɐɒαаᴀ∀⍺ᗅ",
    "ae": "æӕᴁ",
    "b": "ʙвьъβƀɓƃᖯᗷЬ",
    "c": "ᴄсϲƈȼɔↄ∁ᑕ",
    "d": "ᴅԁđɖɗðᗞᑯᶁ",
    "e": "ᴇеεєҽəɛǝɘɇ∃℮",
    "f": "ꜰƒғϝꞙɟᖴք",
    "g": "ɢɡցǥɠԍ",
    "h": "ʜнһħɦɥհᕼ",
    "i": "ɪıіιɩɨᴉ",
    "j": "ᴊјȷϳɉʝյ",
    "k": "ᴋкκқҝҟӄƙʞ",
    "l": "ʟӏłƚɫɭǀլᒪ",
    "m": "ᴍмɱɯϻᗰ",
    "n": "ɴпиηոռɲŋƞᴎᑎ",
    "o": "ᴏоοσօøɵөθ",
    "oe": "œɶ",
    "p": "ᴘрρƥᑭ",
    "q": "ԛզգɋʠ",
    "r": "ʀгɼɽɹɾяʁɍᖇ",
    "s": "ꜱѕʂςȿ",
    "t": "ᴛтτƭʈŧʇ⟙⊤",
    "u": "ᴜυսʋʊцʉμᑌ∪",
    "v": "ᴠνѵʌ∨ᐯ",
    "w": "ᴡԝωшщѡʍաⱳᗯ",
    "x": "хχҳӽ×⨯᙭",
    "y": "ʏуγүұʎყƴɏ",
    "z": "ᴢʐʑƶȥζʒ",
}
# Capitals whose small form resembles another letter, or that have no small form.
_CAPITAL: Final = {
    "A": "Ꭺ",
    "B": "Ᏼ",
    "C": "Ꮯ",
    "D": "Ꭰ",
    "E": "Ꭼ",
    "G": "Ꮐ",
    "H": "ΗᎻ",
    "I": "Ꭵ",
    "J": "Ꭻ",
    "K": "Ꮶ",
    "L": "Ꮮ",
    "M": "ΜᎷ",
    "N": "Ν",
    "P": "Ꮲ",
    "R": "ᎡᏒ",
    "S": "ՏᏚ",
    "T": "Ꭲ",
    "U": "Ս",
    "V": "Ꮩ",
    "W": "Ꮃ",
    "Y": "ΥᎩ",
    "Z": "Ꮓ",
}
_MARKS: Final = {
    "-": "‐‑‒–—―−﹘⁃➖",
    "'": "‘’‚‛′ʹʻʼˈ´",
    '"': "“”„‟″",
    ".": "。｡",
    ",": "，、",
    "/": "⁄∕╱⧸",
    ":": "∶꞉ː։",
    "*": "∗⁎✱",
    "|": "∣",
    "!": "ǃ",
    "3": "з",
}

CONFUSABLES: Final[dict[str, str]] = {
    lookalike: reading
    for table in (_SMALL, _CAPITAL, _MARKS)
    for reading, lookalikes in table.items()
    for lookalike in lookalikes
}
"""The reading of each lookalike; a capital that is missing is read as its small form is."""

TWINS: Final = frozenset("авсԁеһіјӏкмнорԛѕтуѵԝхүαικνορτυχցհոսօզАВЕНІЈКМОРСТУХΑΒΕΗΙΚΜΝΟΡΤΥΧΖՏՍ")
"""Lookalikes that most typefaces show exactly as a Latin letter."""

_SQUARED: Final = (0x1F130, 0x1F150, 0x1F170, 0x1F1E6)
CONFUSABLES.update({chr(first + k): chr(ord("A") + k) for first in _SQUARED for k in range(26)})
