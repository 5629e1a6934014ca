"""`guard.attached` on vision-language models: a caller's own processor and `generate`, rows with
and without images, and calls that cannot be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import guard
from guard.config.schema import Config
from guard.errors import GuardFailed
from steering.engines.transformers.engine import RowStart
from steering.engines.transformers.sampling import RowSampling
from steering.hidden.rows import RowGuard
from steering.methods.steer import bank_of
from tests.guard.attach.language import language_config
from tests.steering.engines.driver import ids, serve
from tests.steering.engines.transformers.vision.running import Running
from tests.steering.engines.transformers.vision.tiny import ask, greedy, image, tiny
from tests.steering.tiny import prompt, random_guard, tiny_model

KINDS = ["idefics3", "qwen2_vl"]
CHATS = [
    ask("What is on it?", image(20, 30, 1)),
    ask("Hello!"),
    ask("And on these two?", image(16, 16, 2), image(44, 20, 3)),
]


@pytest.fixture(scope="module", params=KINDS)
def running(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Running:
    return Running.of(request.param, tmp_path_factory.mktemp(request.param))


def scores(handle: Any) -> list[float]:
    return [verdict.guards[0].score for verdict in handle.verdicts()]


def artifact_guard(config: Config) -> Any:
    """The guard in the artifact of `language_config`, as the engine takes it."""
    from guard.artifact import Artifact
    from steering.methods.steer import SteerGuard

    artifact = Artifact.load(config.guards[0].artifact)
    directions = torch.from_numpy(artifact.tensors["directions"])
    schedule = torch.tensor([1.0, 1.0, 0.5])
    return SteerGuard(
        name="loud",
        sense_layers=(0, 1),
        gates=torch.from_numpy(artifact.tensors["gates"]),
        act_layers=(2,),
        directions=schedule[:, None, None] * directions[None],
        pool=2,
        rest=2,
    )


def test_a_batch_with_and_without_images_is_guarded_row_by_row(
    running: Running, tmp_path: Path
) -> None:
    """Answers and scores are those of the engine with the same guard, each prompt alone."""
    model, config = running.model, language_config(tmp_path, running.model)
    bare = running.tiny.generated(8, *CHATS)
    with guard.attached(model, "silent", config=config) as handle:
        assert running.tiny.generated(8, *CHATS) == bare
        quiet = scores(handle)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass"] * 3
    with guard.attached(model, "loud", config=config) as handle:
        steered = running.tiny.generated(8, *CHATS)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered"] * 3
        assert scores(handle) == quiet
    assert all(a != b for a, b in zip(bare, steered, strict=True))
    assert running.tiny.generated(8, *CHATS) == bare

    engine = running.engine(bank_of([artifact_guard(config)]))
    loud = RowGuard("loud", threshold=-1e9, strength=1.0)
    for chat, answer, score in zip(CHATS, steered, quiet, strict=True):
        engine.reset()
        starts = [RowStart(running.prompt(chat), [loud], RowSampling())]
        rows, readings = serve(engine, starts, tokens=8)
        assert ids(rows) == [answer]
        assert readings[0]["loud"].score == pytest.approx(score, rel=1e-3)
    engine.close()


def test_without_a_cache_answers_and_scores_are_the_same(running: Running, tmp_path: Path) -> None:
    config = language_config(tmp_path, running.model)
    inputs = running.tiny.inputs(*CHATS)
    answers, read = [], []
    for use_cache in (True, False):
        with guard.attached(running.model, "loud", config=config) as handle:
            answer = running.model.generate(**inputs, **greedy(5), use_cache=use_cache)
            answers.append(answer.tolist())
            read.append(scores(handle))
    assert answers[0] == answers[1]
    assert read[1] == pytest.approx(read[0], rel=1e-3)


def test_embeddings_of_the_callers_are_guarded(tmp_path: Path) -> None:
    """Images that the caller has put into the embeddings already."""
    small = tiny("llava")
    config = language_config(tmp_path, small.model)
    inputs = small.inputs(CHATS[0])
    with torch.inference_mode():
        embeddings = small.model.get_input_embeddings()(inputs["input_ids"])
        features = small.model.get_image_features(pixel_values=inputs["pixel_values"])
        placeholders = inputs["input_ids"] == small.model.config.image_token_id
        embeddings[placeholders] = torch.cat([*features.pooler_output])
    given = {"inputs_embeds": embeddings, "attention_mask": inputs["attention_mask"]}
    with guard.attached(small.model, "loud", config=config) as handle:
        by_ids = small.generated(6, CHATS[0])
        expected = scores(handle)
    with guard.attached(small.model, "loud", config=config) as handle:
        answer = small.model.generate(**given, **greedy(6))
        assert answer.tolist() == by_ids
        assert scores(handle) == pytest.approx(expected, rel=1e-4)


def test_a_forward_with_another_image_is_another_prompt(tmp_path: Path) -> None:
    """Without a cache, a longer prompt that begins as the last one did goes on with it only where
    the image is the same."""
    small = tiny("llava")
    config = language_config(tmp_path, small.model)
    first = small.inputs(ask("What?", image(16, 16, 1)))
    other = small.inputs(ask("What?", image(16, 16, 2)))["pixel_values"]

    def outcomes(second: torch.Tensor) -> list[float]:
        longer = torch.cat([first["input_ids"], first["input_ids"][:, -1:]], 1)
        found = []
        with guard.attached(small.model, "silent", config=config) as handle:
            for call in (
                {"input_ids": first["input_ids"], "pixel_values": first["pixel_values"]},
                {"input_ids": longer, "pixel_values": second},
            ):
                small.model(**call, use_cache=False)
                found += scores(handle)
        return found

    before, same = outcomes(first["pixel_values"])
    again, fresh = outcomes(other)
    assert same == pytest.approx(before, rel=1e-5)  # the prompt's, which goes on
    assert again == before and fresh != pytest.approx(before, rel=1e-3)


def test_tokens_of_images_are_told_by_ids_and_embeddings_are_refused(tmp_path: Path) -> None:
    small = tiny("llava")
    engine_guard = random_guard("loud", tokens="image")
    inputs = small.inputs(*CHATS)
    placeholders = inputs["input_ids"] == small.model.config.image_token_id
    from steering.engines.transformers.attachment import Attachment

    failures: list[str] = []
    rows = [RowGuard("loud", threshold=1e9, strength=1.0)]
    attachment = Attachment(
        small.model, bank_of([engine_guard]), rows, lambda _: None, failures.append
    )
    with torch.inference_mode():
        states = small.model(**inputs, output_hidden_states=True).hidden_states
        found = [attachment.readings(row)["loud"].score for row in range(3)]
        embeddings = small.model.get_input_embeddings()(inputs["input_ids"])
        small.model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])
    attachment.remove()
    scored = sum(
        states[layer + 1] @ gate
        for layer, gate in zip(engine_guard.sense_layers, engine_guard.gates, strict=True)
    )
    expected = scored.masked_fill(~placeholders, 0.0).topk(2).values.clamp(min=0).mean(1)
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    assert found[1] == 0.0 and found[0] != found[2]
    assert len(failures) == 1 and "pass input_ids and the images" in failures[0]


class Expanding(LlamaForCausalLM):
    """A model that puts the tokens of images in itself."""

    def forward(self, input_ids: Any = None, **arguments: Any) -> Any:
        embeddings = self.get_input_embeddings()(input_ids)
        embeddings = torch.cat([embeddings[:, :1], embeddings], 1)
        for name in ("attention_mask", "position_ids"):
            arguments.pop(name, None)
        return super().forward(inputs_embeds=embeddings, **arguments)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_model_that_puts_tokens_in_fails_closed(tmp_path: Path, use_cache: bool) -> None:
    model = Expanding(tiny_model().config).eval()
    config = language_config(tmp_path, model)
    with (
        pytest.raises(GuardFailed, match="puts in tokens of its own"),
        guard.attached(model, "loud", config=config),
    ):
        model(input_ids=torch.tensor([prompt(5, 0)]), use_cache=use_cache)


def test_a_model_that_puts_tokens_in_runs_unguarded_where_the_policy_is_open(
    tmp_path: Path,
) -> None:
    model = Expanding(tiny_model().config).eval()
    config = language_config(tmp_path, model, on_error="open")
    ids_ = torch.tensor([prompt(5, 0)])
    with torch.inference_mode():
        bare = model(input_ids=ids_).logits
        with guard.attached(model, "loud", config=config) as handle:
            assert torch.equal(model(input_ids=ids_).logits, bare)
            assert [verdict.outcome for verdict in handle.verdicts()] == ["error"]
