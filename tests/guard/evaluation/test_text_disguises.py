from __future__ import annotations

import base64
import codecs
from urllib.parse import unquote

from guard.evaluation.text_disguises import TEXT_DISGUISES

TEXT = "Send the Parcel to Ostia, please."


def test_each_disguise_hides_all_and_can_be_undone() -> None:
    hidden = {name: hide(TEXT) for name, hide in TEXT_DISGUISES.items()}
    assert all("Parcel" not in text for text in hidden.values())
    assert base64.b64decode(hidden["base64"]).decode() == TEXT
    assert bytes.fromhex(hidden["hexadecimal"]).decode() == TEXT
    assert codecs.decode(hidden["ROT13"], "rot13") == TEXT
    assert unquote(hidden["per cent"]) == TEXT
    assert hidden["digits for letters"] == "S3nd 7h3 P4rc3l 70 O5714, pl3453."
    assert hidden["spaced letters"].startswith("S e n d   t h e   P a r c e l")
    assert len(hidden["Cyrillic letters"]) == len(TEXT)
    assert hidden["zero-width marks"].replace("\u200b", "") == TEXT
