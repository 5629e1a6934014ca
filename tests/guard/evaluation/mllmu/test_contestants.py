"""Contestants answer and score options; the bare model's answers are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from guard.data.benchmarks.questions import Benchmark, Question
from guard.data.benchmarks.released import load_benchmark
from guard.errors import DataError
from guard.evaluation.mllmu.asking import ALOUD, OPTIONS, Asked, Options, asked_questions
from guard.evaluation.mllmu.contestants import BARE, BareReplies, Contestant
from guard.models.chat import TransformersChat
from guard.reporting.progress import Stages
from tests.guard.data.benchmarks.files import save_mllmu
from tests.guard.evaluation.mllmu.tiny import guarded, tiny_chat


@pytest.fixture(scope="module")
def chat() -> TransformersChat:
    return tiny_chat()


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return load_benchmark(save_mllmu(tmp_path_factory.mktemp("data")), 10)


def quiet(_stage: str, _total: int) -> object:
    return lambda count: None


PROGRESS: Stages = quiet  # type: ignore[assignment]


def test_letters_are_scored_by_the_first_tokens_log_probabilities(
    chat: TransformersChat, benchmark: Benchmark
) -> None:
    asked = [Asked(q, options="letter") for q in benchmark.questions if q.task == "classification"][
        :3
    ]
    replies = Contestant(BARE, chat).replies(asked, PROGRESS)
    for item, reply in zip(asked, replies, strict=True):
        images = [] if item.image is None else [item.image]
        prompt = chat.prompt(item.text, images)
        assert chat.vision is not None
        inputs = chat.vision.prepare(images) if images else {}
        with torch.inference_mode():
            output = chat.model(input_ids=torch.tensor([prompt.tokens]), **inputs)
        expected = output.logits[0, -1].log_softmax(-1)
        letters = [chat.ids(letter)[0] for letter in "ABCD"]
        assert reply.scores == pytest.approx(expected[letters].tolist(), abs=1e-4)
        best = max(range(4), key=lambda i: reply.scores[i])
        assert reply.choice(item.question) == "ABCD"[best]


def test_the_text_of_an_option_is_scored_as_the_answer_to_the_plain_question(
    chat: TransformersChat, benchmark: Benchmark
) -> None:
    asked = [Asked(q) for q in benchmark.questions if q.task == "classification"][:3]
    assert all(item.text == item.question.text for item in asked)
    replies = Contestant(BARE, chat).replies(asked, PROGRESS)
    (end,) = chat.end_tokens
    for item, reply in zip(asked, replies, strict=True):
        images = [] if item.image is None else [item.image]
        prompt = chat.prompt(item.question.text, images).tokens
        assert chat.vision is not None
        inputs = chat.vision.prepare(images) if images else {}
        expected = []
        for option in item.question.options.values():
            answer = [*chat.ids(option), end]
            with torch.inference_mode():
                ids = torch.tensor([[*prompt, *answer]])
                logits = chat.model(input_ids=ids, **inputs).logits[0, len(prompt) - 1 : -1]
            logprobs = logits.log_softmax(-1)
            expected.append(float(logprobs[range(len(answer)), answer].mean()))
        assert reply.scores == pytest.approx(expected, abs=1e-4)
        assert reply.text == item.question.options["ABCD"[expected.index(max(expected))]]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_guard_changes_the_scores_and_silence_keeps_the_tokens(
    chat: TransformersChat, benchmark: Benchmark, options: Options
) -> None:
    asked = asked_questions(benchmark, parts=["forget"], limit=1, options=options)
    bare = Contestant(BARE, chat).replies(asked, PROGRESS)
    silent = guarded(chat, torch.inf).replies(asked, PROGRESS)
    acting = guarded(chat, -torch.inf).replies(asked, PROGRESS)
    assert [(r.tokens, r.scores) for r in silent] == [(r.tokens, r.scores) for r in bare]
    assert not any(r.fired for r in silent) and all(r.fired for r in acting)
    for a, b, item in zip(acting, bare, asked, strict=True):
        if item.question.task == "classification":
            assert a.scores != pytest.approx(b.scores, abs=1e-3)
        else:
            assert not a.scores


def test_letters_that_the_tokenizer_does_not_know_are_an_error(chat: TransformersChat) -> None:
    options = {"A": "x", "G": "y", "H": "z"}
    question = Question("forget", "1", "classification", "name", "?", "A", options=options)
    with pytest.raises(DataError, match="writes two option letters alike"):
        Contestant(BARE, chat).replies([Asked(question, options="letter")], PROGRESS)


def test_a_system_message_stands_before_the_question(chat: TransformersChat) -> None:
    prompt = chat.prompt("Where", system="Person 1")
    text = chat.tokenizer.decode(prompt.tokens)
    assert text.index("<system>") < text.index("Person") < text.index("<user>")


def test_bare_answers_are_kept_by_model_text_and_image(
    chat: TransformersChat, benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_questions(benchmark, parts=["forget"], limit=2)
    first = BareReplies(Contestant(BARE, chat), tmp_path).replies(asked[:-1], PROGRESS)
    (file,) = tmp_path.glob("bare-*.mllmu.jsonl")
    with file.open("a") as lines:
        lines.write('{"key": "cut of')
    run: list[Asked] = []
    ask = Contestant.replies

    def counted(self: Contestant, items: list[Asked], progress: Stages) -> object:
        run.extend(items)
        return ask(self, items, progress)

    monkeypatch.setattr(Contestant, "replies", counted)
    again = BareReplies(Contestant(BARE, chat), tmp_path).replies(asked, PROGRESS)
    assert run == [asked[-1]] and again[:-1] == first
    # what was written behind a line that was cut off is read
    run.clear()
    assert BareReplies(Contestant(BARE, chat), tmp_path).replies(asked, PROGRESS) == again
    assert not run
    # other weights, other answers
    BareReplies(Contestant(BARE, tiny_chat(seed=1)), tmp_path).replies(asked[:1], PROGRESS)
    assert run == asked[:1]


def test_samples_are_bounded_and_the_forgotten_are_asked_in_other_ways(
    benchmark: Benchmark,
) -> None:
    asked = asked_questions(benchmark, parts=["forget", "retain"], limit=1)
    kinds = [item.kind for item in asked]
    assert len(set(kinds)) == len(kinds)
    assert {item.question.part for item in asked} == {"forget", "retain"}
    variants = {(k.part, k.by, k.variant) for k in kinds if k.variant}
    shown = ("crop", "noise", "style", "beside", "screen")
    assert variants == {
        *(("forget", by, ALOUD) for by in ("portrait", "name", "both")),
        *(("forget", by, name) for by in ("portrait", "both") for name in shown),
    }
    aloud = next(item for item in asked if item.variant == ALOUD)
    assert aloud.text.startswith("Think step by step") and aloud.max_tokens == 50
    again = asked_questions(benchmark, parts=["forget", "retain"], limit=1)
    assert [item.text for item in asked] == [item.text for item in again]
    other = asked_questions(benchmark, parts=["forget", "retain"], limit=1, seed=1)
    assert [item.text for item in asked] != [item.text for item in other]


def test_an_option_of_no_tokens_is_an_error(chat: TransformersChat) -> None:
    options = {"A": "Town1", "B": " "}
    question = Question("forget", "1", "classification", "name", "?", "A", options=options)
    with pytest.raises(DataError, match="the options of a question: .* has no tokens"):
        Contestant(BARE, chat).replies([Asked(question)], PROGRESS)


def test_bare_scores_are_kept_by_the_texts_of_the_options(
    chat: TransformersChat, tmp_path: Path
) -> None:
    def asked(other: str) -> Asked:
        options = {"A": "Town1", "B": other}
        return Asked(
            Question("forget", "1", "classification", "name", "Which", "A", options=options)
        )

    first = BareReplies(Contestant(BARE, chat), tmp_path).replies([asked("Town2")], PROGRESS)
    second = BareReplies(Contestant(BARE, chat), tmp_path).replies([asked("Town3")], PROGRESS)
    assert first[0].scores[0] == pytest.approx(second[0].scores[0], abs=1e-5)
    assert first[0].scores[1] != pytest.approx(second[0].scores[1], abs=1e-3)
