"""The disguises of garak and PyRIT, from their own code.

Both pull in half a cloud: `pip install --no-deps --target FOLDER garak pyrit` is enough here, since
their converters are pure functions, and stand-ins take the place of all that they import and do not
call.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

Disguise = Callable[[str], str]

_GARAK = (
    *("Base64", "Base16", "Base32", "Ascii85", "Hex", "QP", "UU", "Mime", "ROT13", "Braille"),
    *("Atbash", "Morse", "Nato"),
)
_PYRIT: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ascii_smuggler": ("token_smuggling.ascii_smuggler_converter", {}),
    "sneaky_bits": ("token_smuggling.sneaky_bits_smuggler_converter", {}),
    "atbash": ("atbash_converter", {}),
    "base64": ("base64_converter", {}),
    "binary": ("binary_converter", {}),
    "quoted-printable": ("bin_ascii_converter", {"encoding_func": "quoted-printable"}),
    "uuencode": ("bin_ascii_converter", {"encoding_func": "UUencode"}),
    "hex": ("bin_ascii_converter", {"encoding_func": "hex"}),
    "braille": ("braille_converter", {}),
    "caesar 5": ("caesar_converter", {"caesar_offset": 5}),
    "character_space": ("character_space_converter", {}),
    "diacritic": ("diacritic_converter", {}),
    "emoji": ("emoji_converter", {}),
    "flip": ("flip_converter", {}),
    "insert_punctuation": ("insert_punctuation_converter", {}),
    "leetspeak": ("leetspeak_converter", {}),
    "morse": ("morse_converter", {}),
    "nato": ("nato_converter", {}),
    "random_capital_letters": ("random_capital_letters_converter", {}),
    "rot13": ("rot13_converter", {}),
    "string_join": ("string_join_converter", {}),
    "superscript": ("superscript_converter", {}),
    "unicode_confusable": ("unicode_confusable_converter", {}),
    "unicode_sub": ("unicode_sub_converter", {}),
    "url": ("url_converter", {}),
    "zalgo": ("zalgo_converter", {}),
    "zero_width": ("zero_width_converter", {}),
}


def of_garak(folder: Path) -> dict[str, Disguise]:
    """The encodings of garak's probes, from a folder with the package."""
    path = folder / "garak" / "probes" / "encoding.py"
    with _StandIns(("garak", "ecoji", "base2048", "zalgolib")):
        importlib.import_module("garak.probes").Probe = type("Probe", (), {"DEFAULT_PARAMS": {}})  # type: ignore[attr-defined]
        module = types.ModuleType("encoding")
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
    functions = {
        name: getattr(vars(module).get(f"Inject{name}"), "encoding_funcs", ()) for name in _GARAK
    }
    return {
        f"garak {name}": _text_of(function)
        for name, choices in functions.items()
        for function in choices[:1]
    }


def of_pyrit(folder: Path) -> dict[str, Disguise]:
    """PyRIT's converters, from a folder with the package."""
    found: dict[str, Disguise] = {}
    package = types.ModuleType("pyrit.converter")
    package.__path__ = [str(folder / "pyrit" / "converter")]
    base = types.ModuleType("pyrit.converter.converter")
    vars(base)["Converter"] = _Converter
    vars(base)["ConverterResult"] = lambda output_text, output_type: output_text
    with _StandIns(("pyrit", "confusable_homoglyphs", "confusables")):
        sys.modules["pyrit.converter"] = package
        sys.modules["pyrit.converter.converter"] = base
        for name, (module, settings) in _PYRIT.items():
            try:
                loaded = importlib.import_module(f"pyrit.converter.{module}")
                kind = next(
                    value
                    for value in vars(loaded).values()
                    if isinstance(value, type)
                    and value.__module__ == loaded.__name__
                    and value.__name__.endswith("Converter")
                )
                converter = kind(**settings)
                asyncio.run(converter.convert_async(prompt="say it"))
            except Exception as error:  # what it needs is not here
                print(f"PyRIT's {name} is left out: {error!r}", file=sys.stderr)
                continue
            found[f"PyRIT {name}"] = _awaited(converter)
    return found


class _Converter:
    """In place of PyRIT's class, which records what it is."""

    def input_supported(self, kind: str) -> bool:
        return kind == "text"

    def _get_random_generator(self, **_: object) -> random.Random:
        return random.Random(0)


def _awaited(converter: Any) -> Disguise:
    return lambda text: str(asyncio.run(converter.convert_async(prompt=text)))


def _text_of(function: Any) -> Disguise:
    def disguise(text: str) -> str:
        written = function(text.encode())
        return written.decode() if isinstance(written, bytes) else str(written)

    return disguise


class _StandIns:
    """While it is entered, modules under some names are stand-ins unless they are there already."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)
        for name in self._names:
            importlib.import_module(name)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        for name in [name for name in sys.modules if name.partition(".")[0] in self._names]:
            del sys.modules[name]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self._names or name.startswith("pyrit.converter."):
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        module = MagicMock(name=spec.name)
        module.__path__ = []
        module.__spec__ = spec
        return module

    def exec_module(self, module: Any) -> None:
        """There is nothing to run."""
