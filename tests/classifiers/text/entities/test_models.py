"""Entities by models of spaCy and of transformers, through Presidio's recognisers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("presidio_analyzer", reason="pip install 'inference-guard[ner]'")

from classifiers.text.entities.recognizer import EntityRecognizer  # noqa: E402
from classifiers.text.entities.sources import load_entities  # noqa: E402
from tests.classifiers.text.entities.tiny_models import (  # noqa: E402
    relabelled,
    save_ruler,
    save_token_classifier,
    save_trained_pipeline,
)
from tests.processor_time import grows_linearly  # noqa: E402

SAVED: dict[str, Callable[[Path], Path]] = {
    "ruler": save_ruler,
    "pipeline": save_trained_pipeline,
    "transformers": save_token_classifier,
}
TEXT = "Alan Turing lives in Paris. The report is late."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of each model, made once."""
    folder = tmp_path_factory.mktemp("models")

    def of(name: str) -> Path:
        made = folder / name
        return made if made.exists() else SAVED[name](made)

    return of


def _load(folder: Path, *entities: str, language: str | None = None) -> EntityRecognizer:
    return load_entities(str(folder), entities or ("PERSON", "LOCATION"), language)


@pytest.mark.parametrize("name", SAVED)
def test_names_have_presidios_names_places_and_confidence(
    saved: Callable[[str], Path], name: str
) -> None:
    found = _load(saved(name), language="en").find(TEXT)
    assert [(TEXT[m.start : m.end].rstrip("."), m.label) for m in found] == [
        ("Alan Turing", "PERSON"),
        ("Paris", "LOCATION"),
    ]
    confidences = {match.confidence for match in found}
    if name == "transformers":
        assert all(0.5 < each < 1 for each in confidences) and len(confidences) == 2
    else:
        assert confidences == {0.85}, "Presidio's, since spaCy tells none"


@pytest.mark.parametrize("name", SAVED)
def test_what_is_not_asked_for_is_not_found(
    saved: Callable[[str], Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    recognizer = _load(saved(name), "LOCATION")
    with caplog.at_level(logging.WARNING):
        found = recognizer.find(TEXT + " The Difference Engine is there.")
    assert [match.label for match in found] == ["LOCATION"]
    assert not caplog.records, "nothing is logged of a text"


@pytest.mark.parametrize("name", SAVED)
def test_a_long_text_is_read_to_its_end(saved: Callable[[str], Path], name: str) -> None:
    text = "Please write to Grace Hopper today. " * 200
    found = _load(saved(name)).find(text)
    assert [match.start for match in found] == list(range(16, len(text), 36))
    assert {text[match.start : match.end] for match in found} == {"Grace Hopper"}


@pytest.mark.parametrize("name", SAVED)
def test_half_a_character_hides_no_name(saved: Callable[[str], Path], name: str) -> None:
    text = "Alan Turing lives in Paris. \ud83d"
    found = _load(saved(name), "PERSON").find(text)
    assert [(match.start, match.end) for match in found] == [(0, 11)]


@pytest.mark.parametrize("name", SAVED)
def test_an_entity_that_a_model_does_not_find_is_refused(
    saved: Callable[[str], Path], name: str
) -> None:
    with pytest.raises(ValueError, match="does not find NRP, but LOCATION, P.*name these in 'ent"):
        _load(saved(name), "PERSON", "NRP")


def test_a_label_of_the_models_own_counts_under_its_name(saved: Callable[[str], Path]) -> None:
    text = "The Difference Engine is in London."
    (match,) = _load(saved("ruler"), "PRODUCT").find(text)
    assert text[match.start : match.end] == "Difference Engine" and match.label == "PRODUCT"


def test_a_model_whose_positions_begin_later_reads_long_texts(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForTokenClassification

    folder = save_token_classifier(tmp_path / "model")
    tokens = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    labels = {0: "O", 1: "B-PER"}
    config = RobertaConfig(
        vocab_size=tokens,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        pad_token_id=1,
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
    )
    RobertaForTokenClassification(config).save_pretrained(folder)
    _load(folder, "PERSON").find("Ada " * 200)


def test_labels_without_a_name_for_it_are_the_models_own(tmp_path: Path) -> None:
    folder = save_token_classifier(tmp_path / "model")
    relabelled(folder, {"B-PER": "B-HERO", "I-PER": "I-HERO"})
    (match,) = load_entities(str(folder), ["HERO"], None).find(TEXT)
    assert TEXT[match.start : match.end] == "Alan Turing"


def test_a_pipeline_for_another_language_is_refused(tmp_path: Path) -> None:
    folder = save_ruler(tmp_path / "model", "de")
    with pytest.raises(ValueError, match="is for 'de', not for 'en'"):
        _load(folder, language="en")
    assert _load(folder, language="de").find(TEXT) == _load(folder).find(TEXT)


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [("ruler", "config.cfg", "spaCy cannot load it: "), ("transformers", "config.json", "transf")],
)
def test_a_damaged_model_is_told_in_one_line(
    tmp_path: Path, name: str, file: str, reason: str
) -> None:
    folder = SAVED[name](tmp_path / "model")
    (folder / file).write_text('{"model_type": "no such"}', "utf-8")
    with pytest.raises(ValueError, match=reason) as caught:
        _load(folder)
    assert "\n" not in str(caught.value)


def test_a_failing_model_is_no_text_without_names(
    saved: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Presidio's recogniser logs it and returns nothing."""
    from transformers import TokenClassificationPipeline

    recognizer = _load(saved("transformers"))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(TokenClassificationPipeline, "__call__", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        recognizer.find(TEXT)
    monkeypatch.undo()
    assert recognizer.find(TEXT)


def test_a_text_of_more_tokens_than_a_model_reads_is_not_cut_off(tmp_path: Path) -> None:
    recognizer = _load(save_token_classifier(tmp_path / "model", positions=24))
    text = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3 + TEXT
    assert [match.label for match in recognizer.find(text)][-2:] == ["PERSON", "LOCATION"]


@pytest.mark.parametrize("nasty", ["(", "😀", "_-", "x", "/a", "'s ", "Ab ", "&lt;"])
def test_a_hostile_text_takes_time_linear_in_its_length(
    saved: Callable[[str], Path], nasty: str
) -> None:
    recognizer = _load(saved("ruler"))
    assert grows_linearly(
        lambda size: recognizer.find((nasty * size)[:size]), 40_000, constant=0.2, factor=16
    )


def test_a_name_on_the_border_of_two_chunks_is_one() -> None:
    text = "word " * 180 + "Ada Lovelace " + "word " * 400
    name = text.index("Ada")

    def analyze(chunk: str) -> list[SimpleNamespace]:
        at = chunk.find("Ada")
        found = chunk[at : at + 12].rstrip()
        # cut off, it is found in part
        return (
            [SimpleNamespace(entity_type="PERSON", start=at, end=at + len(found), score=0.9)]
            if at >= 0
            else []
        )

    for shift in range(60):
        moved = "x" * shift + text
        (match,) = EntityRecognizer(analyze, ["PERSON"]).find(moved)
        assert (match.start, match.end) == (name + shift, name + shift + 12)


def test_the_vocabulary_of_a_pipeline_does_not_grow_with_what_is_read(tmp_path: Path) -> None:
    import spacy

    made: list[object] = []
    original = spacy.load

    def load(*arguments: object, **options: object) -> object:
        made.append(original(*arguments, **options))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spacy, "load", load)
        recognizer = _load(save_ruler(tmp_path / "model"))
    strings = made[0].vocab.strings  # type: ignore[attr-defined]
    recognizer.find(TEXT)
    before = len(strings)
    recognizer.find(" ".join(f"qx{number}" for number in range(500)))
    assert len(strings) == before


def test_weights_of_pickle_are_never_loaded(tmp_path: Path) -> None:
    from classifiers.text.entities.sources import fault_of

    folder = save_token_classifier(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    fault = fault_of(str(folder))
    assert fault is not None and "safetensors" in fault
    with pytest.raises(ValueError, match="cannot load it"):
        _load(folder)
    assert json.loads((folder / "config.json").read_text("utf-8"))["id2label"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[PERSON_1]", []),
        ("Write to [PERSON_12] now", ["Write to ", " now"]),
        (r"\[US\_SSN\_2\]", []),
        ("%5BUS_SSN_2%5D Ada", [" Ada"]),
        ("PERSON_1, LOCATION_3", []),
        ("Ada_1 Lovelace", ["Ada_1 Lovelace"]),
        ("[12]", []),
    ],
)
def test_placeholders_of_what_was_cut_out_are_no_names(text: str, found: list[str]) -> None:
    def analyze(chunk: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(entity_type="PERSON", start=0, end=len(chunk), score=0.9)]

    matches = EntityRecognizer(analyze, ["PERSON"]).find(text)
    assert [text[match.start : match.end] for match in matches] == found
