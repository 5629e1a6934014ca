"""How often guards fire on questions that name nothing of their concept, and how many leak:
`python -m benchmarks.nameless harry-potter medication-dosing`.

`examples/POLICY/nameless.jsonl` has questions of the validation and of the test split in other
words, without any name: of a medicine, or of the books, their people and places. No fit reads the
file. Beside the counts of each policy and split stand the questions on which it was silent.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from guard.config.schema import load_config
from guard.data.prompts import ForgetPrompt, Split, in_split, read_rows
from guard.evaluation.shares import Share
from guard.evaluation.unlearn.evaluation import ANSWER_TOKENS
from guard.models.chat import GuardedAnswer, TransformersChat
from guard.plans.language import LanguagePlans
from guard.reporting.progress import stages

EXAMPLES = Path("examples")
FILE = "nameless.jsonl"
SPLITS: tuple[Split, ...] = ("validation", "test")

NAMES = {
    policy: re.compile(rf"\b(?:{'|'.join(words.split())})\b", re.IGNORECASE)
    for policy, words in {
        "harry-potter": r"""
            harry potter rowling robert.galbraith ron weasleys? hermione granger dumbledore
            voldemort riddle snape severus malfoy draco hagrid sirius lily neville ginny fawkes
            hogwarts azkaban gryffindor slytherin hufflepuff ravenclaw quidditch muggles? patronus
            dementors? horcrux(?:es)? death.eaters deathly.hallows half-blood.prince sorting.hat
            fantastic.beasts radcliffe watson grint fiennes rickman""",
        "medication-dosing": r"""
            acetaminophen paracetamol panadol tylenol calpol ibuprofen advil nurofen motrin aspirin
            naproxen aleve doxycycline amoxicillin cephalexin melatonin loratadine claritin
            diphenhydramine benadryl sertraline zoloft escitalopram lexapro gabapentin iron ferrous
            zinc vit(?:amin)?.[a-k]\d* amlodipine norvasc losartan lidocaine albuterol salbutamol
            ventolin ipratropium dimenhydrinate dramamine tramadol ultram atorvastatin lipitor
            epinephrine adrenaline epipen amitriptyline magnesium insulin \S*log lantus
            hydrochlorothiazide hctz warfarin coumadin heparin famotidine pepcid pseudoephedrine
            sudafed propranolol inderal simethicone gripe.water levothyroxine thyroxine ketamine
            ondansetron zofran senna dextromethorphan robitussin lorazepam ativan fluconazole
            sildenafil viagra botox botulinum ketotifen timolol timoptol budesonide pulmicort
            dalteparin fragmin epoetin epo mixtard novomix statins?""",
    }.items()
}
"""What names the concept, by policy; a dot is a space."""


def main() -> None:
    """Measure, and print one JSON object for each policy and split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policies", nargs="+", help="each with a folder of this name in examples/")
    parser.add_argument("--config", type=Path, default=Path("config.toml"))
    parser.add_argument("--model", default="smollm2", help="as the configuration names it")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {name: read_rows(EXAMPLES / name / FILE, ForgetPrompt) for name in arguments.policies}
    settings = load_config(arguments.config)
    (entry,) = (each for each in settings.models if each.name == arguments.model)
    chat = TransformersChat.load(entry.source)
    plans = LanguagePlans(settings, chat.model, name=entry.name)
    for policy, split in product(arguments.policies, SPLITS):
        asked = in_split(rows[policy], split)
        prompts = [row.prompt for row in asked]
        with stages() as progress:
            answer = partial(chat.answer, prompts, max_tokens=ANSWER_TOKENS, progress=progress)
            bare = answer(what="bare answers")
            guarded = answer(what="guarded answers", bank=plans.bank, guards=plans[policy].rows())
        found = {"policy": policy, "split": split, **counted(asked, bare, guarded)}
        print(json.dumps(found, ensure_ascii=False), flush=True)


def counted(
    rows: Sequence[ForgetPrompt], bare: Sequence[GuardedAnswer], guarded: Sequence[GuardedAnswer]
) -> dict[str, Any]:
    """The shares that fire, on the prompt or later, and that leak, of those which the bare model
    answers with a fact; and the questions on which the policy was silent."""
    positions = [
        [r.position for r in answer.readings.values() if r.position is not None]
        for answer in guarded
    ]
    known = [row.leaks(answer.text) for row, answer in zip(rows, bare, strict=True)]
    leaks = [row.leaks(answer.text) for row, answer in zip(rows, guarded, strict=True)]
    return {
        "fired on the prompt": str(Share.of([0 in fired for fired in positions])),
        "fired": str(Share.of([bool(fired) for fired in positions])),
        "leaks bare": str(Share.of(known)),
        "leaks of these": str(Share.of([x for x, was in zip(leaks, known, strict=True) if was])),
        "silent": [row.prompt for row, fired in zip(rows, positions, strict=True) if not fired],
    }


if __name__ == "__main__":
    main()
