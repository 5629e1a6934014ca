"""Plain Python use with guards of finished images, on several families."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import guard
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.errors import ContentBlocked, GuardFailed
from steering.engines.diffusion.families import Family
from tests.guard.toy_images import save_drawn_latents
from tests.steering.engines.diffusion import tiny
from tests.steering.engines.diffusion.test_attachment import call

PROMPTS = ["a knife", "a cat"]
NEVER, ALWAYS = 1e6, -1e6


class Case:
    """A tiny pipeline with an untrained classifier on its latents."""

    def __init__(self, name: str, folder: Path) -> None:
        self.family: Family = tiny.built(name)
        self.pipeline: Any = self.family.pipeline
        self._path = folder / "look.safetensors"

    def scores(self, latents: Tensor) -> list[float]:
        """The classifier's score of each row, computed without the pipeline."""
        net = save_drawn_latents(self._path, self.family)
        scores: list[float] = net(self.family.unpacked(latents)).mean(1).tolist()
        return scores

    def config(self, threshold: float, *, channels: int | None = None, **policy: Any) -> Config:
        save_drawn_latents(self._path, self.family, channels=channels, threshold=threshold)
        return Config(
            guards=(GuardConfig(name="look", artifact=self._path),),
            policies={"test": PolicyConfig(guards=("look",), **policy)},
        )

    def generate(self, prompt: Any = "a knife", **arguments: Any) -> Tensor:
        """Finished latents of the pipeline's call."""
        with torch.no_grad():
            return call(self.family, prompt, **arguments)


@pytest.fixture(params=tiny.PIPELINES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, tmp_path)


@pytest.fixture
def emoji(tmp_path: Path) -> Case:
    return Case("emoji", tmp_path)


def wrapped(pipeline: Any) -> set[str]:
    """The methods of the pipeline or its scheduler that are replaced."""
    names = {"step", "maybe_free_model_hooks", "encode_prompt", "check_inputs"}
    return names & {*vars(pipeline), *vars(pipeline.scheduler)}


@pytest.mark.parametrize("action", ["refine", "block"])
def test_an_image_that_shows_the_concept_is_not_returned(case: Case, action: str) -> None:
    with guard.attached(case.pipeline, "test", config=case.config(ALWAYS, action=action)) as handle:
        with pytest.raises(ContentBlocked, match="fired on row 0") as caught:
            case.generate(PROMPTS)
        (entry,) = caught.value.verdict.guards
        assert caught.value.verdict.outcome == "blocked"
        assert (entry.action, entry.fired, entry.position) == ("block", True, 2)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["blocked"] * 2


def test_observing_changes_no_bits_and_leaves_no_hooks(case: Case) -> None:
    bare, before = case.generate(PROMPTS), tiny.weights_hash(case.pipeline)
    with guard.attached(
        case.pipeline, "test", config=case.config(ALWAYS, action="observe")
    ) as handle:
        assert wrapped(case.pipeline) >= {"step", "maybe_free_model_hooks"}
        assert torch.equal(case.generate(PROMPTS), bare)
        verdicts = handle.verdicts()
    assert [verdict.outcome for verdict in verdicts] == ["pass", "pass"]
    assert all(entry.fired and entry.position == 2 for v in verdicts for entry in v.guards)
    scores = [verdict.guards[0].score for verdict in verdicts]
    assert scores == pytest.approx(case.scores(bare), rel=1e-4, abs=1e-4)
    assert scores[0] != scores[1]
    assert wrapped(case.pipeline) == set()
    assert torch.equal(case.generate(PROMPTS), bare)
    assert tiny.weights_hash(case.pipeline) == before


def test_a_silent_guard_leaves_every_bit(case: Case) -> None:
    bare = case.generate(PROMPTS)
    with guard.attached(case.pipeline, "test", config=case.config(NEVER)) as handle:
        assert torch.equal(case.generate(PROMPTS), bare)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass"] * 2


@pytest.mark.parametrize("name", ["stable diffusion", "flux", "wan"])
def test_several_images_of_several_prompts_are_kept_apart(name: str, tmp_path: Path) -> None:
    case = Case(name, tmp_path)
    argument = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
    bare = case.generate(PROMPTS, **{argument: 2})
    scores = case.scores(bare)
    assert len(scores) == 4
    # between the two largest, so that a single row fires, whichever it is
    second, first = sorted(scores)[-2:]
    limit, worst = (first + second) / 2, scores.index(first)
    flagging = case.config(limit, action="flag")
    with guard.attached(case.pipeline, "test", config=flagging) as handle:
        assert torch.equal(case.generate(PROMPTS, **{argument: 2}), bare)
        outcomes = [verdict.outcome for verdict in handle.verdicts()]
    assert outcomes == ["flagged" if row == worst else "pass" for row in range(4)]
    with (
        guard.attached(case.pipeline, "test", config=case.config(limit)),
        pytest.raises(ContentBlocked, match=f"fired on row {worst}"),
    ):
        case.generate(PROMPTS, **{argument: 2})


@pytest.mark.parametrize("output_type", ["latent", "np", "pil"])
def test_every_output_type_is_guarded(emoji: Case, output_type: str) -> None:
    with (
        guard.attached(emoji.pipeline, "test", config=emoji.config(ALWAYS)),
        pytest.raises(ContentBlocked),
        torch.no_grad(),
    ):
        emoji.pipeline("a cat", num_inference_steps=2, output_type=output_type)


def test_a_replacement_cannot_be_generated_by_an_attached_pipeline(emoji: Case) -> None:
    """The pipeline's call generates its own prompt."""
    settings = emoji.config(ALWAYS, fallback="replace", replacement="a cat")
    with (
        guard.attached(emoji.pipeline, "test", config=settings),
        pytest.raises(ContentBlocked) as caught,
    ):
        emoji.generate()
    assert caught.value.verdict.guards[0].action == "block"


def test_a_scheduler_set_later_is_not_followed(emoji: Case) -> None:
    original = emoji.pipeline.scheduler
    with (
        pytest.raises(GuardFailed, match="own scheduler"),
        guard.attached(emoji.pipeline, "test", config=emoji.config(NEVER)),
    ):
        emoji.generate()  # with the original scheduler
        emoji.pipeline.scheduler = deepcopy(type(original).from_config(original.config))
        emoji.generate()
    assert "step" not in vars(original) and "step" not in vars(emoji.pipeline.scheduler)
    emoji.generate()


def test_wrappers_of_other_tools_are_restored(emoji: Case) -> None:
    """They also run while the guard is attached."""
    pipeline, ends, steps = emoji.pipeline, list[str](), list[str]()
    end, step = pipeline.maybe_free_model_hooks, pipeline.scheduler.step

    def ended() -> None:
        ends.append("end")
        end()

    def stepped(*args: Any, **kwargs: Any) -> Any:
        steps.append("step")
        return step(*args, **kwargs)

    pipeline.maybe_free_model_hooks, pipeline.scheduler.step = ended, stepped
    # pipelines look for arguments that a scheduler's step may have
    stepped.__wrapped__ = step  # type: ignore[attr-defined]
    with guard.attached(pipeline, "test", config=emoji.config(NEVER)):
        emoji.generate()
        assert pipeline.maybe_free_model_hooks is not ended
    assert pipeline.maybe_free_model_hooks is ended and pipeline.scheduler.step is stepped
    assert ends == ["end"] and steps == ["step"] * 2


def test_leaving_by_an_error_removes_everything(emoji: Case) -> None:
    before = dict(vars(emoji.pipeline))
    with (
        pytest.raises(RuntimeError, match="in the caller"),
        guard.attached(emoji.pipeline, "test", config=emoji.config(NEVER)),
    ):
        raise RuntimeError("in the caller")
    assert vars(emoji.pipeline) == before and wrapped(emoji.pipeline) == set()


def test_a_call_that_failed_does_not_affect_the_next(emoji: Case) -> None:
    def breaks(_pipeline: Any, step: int, _time: Any, inputs: Any) -> Any:
        if step == 1:
            raise RuntimeError("in the callback")
        return inputs

    bare = emoji.generate("a cat", num_inference_steps=3)
    with guard.attached(
        emoji.pipeline, "test", config=emoji.config(ALWAYS, action="observe")
    ) as handle:
        with pytest.raises(RuntimeError, match="in the callback"):
            emoji.generate("a knife", callback_on_step_end=breaks)
        assert torch.equal(emoji.generate("a cat", num_inference_steps=3), bare)
        (verdict,) = handle.verdicts()
    # only the steps of that call count
    assert verdict.guards[0].position == 3
    assert verdict.guards[0].score == pytest.approx(emoji.scores(bare)[0], rel=1e-4)


def test_nan_in_latents_fails_closed_or_open(emoji: Case) -> None:
    latents = emoji.family.noise([1, 2])
    latents[1, 0, 0, 0] = torch.nan
    with (
        guard.attached(emoji.pipeline, "test", config=emoji.config(NEVER)),
        pytest.raises(GuardFailed, match="met NaN") as caught,
    ):
        emoji.generate(PROMPTS, latents=latents)
    assert caught.value.verdict is not None and caught.value.verdict.request_id == "row-1"
    opened = emoji.config(NEVER, on_error="open")
    with guard.attached(emoji.pipeline, "test", config=opened) as handle:
        emoji.generate(PROMPTS, latents=latents)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass", "error"]


def test_a_classifier_of_another_autoencoder_is_refused(case: Case) -> None:
    settings = case.config(NEVER)
    with torch.no_grad():
        next(case.family.autoencoder.parameters()).add_(1.0)
    with (
        pytest.raises(GuardFailed, match="cannot be applied: look.*fitted on"),
        guard.attached(case.pipeline, "test", config=settings),
    ):
        pass


def test_another_denoiser_with_the_same_autoencoder_is_guarded(emoji: Case) -> None:
    """A fine-tuned model, say."""
    settings = emoji.config(ALWAYS)
    with torch.no_grad():
        next(emoji.family.denoiser.parameters()).add_(1.0)
    with guard.attached(emoji.pipeline, "test", config=settings), pytest.raises(ContentBlocked):
        emoji.generate()


def test_another_number_of_channels_is_refused_before_generating(
    case: Case,
) -> None:
    channels = case.family.channels
    message = f"takes latents of {channels + 1} channels, the model's have {channels}"
    with (
        pytest.raises(GuardFailed, match=f"cannot be applied: look.*{message}"),
        guard.attached(case.pipeline, "test", config=case.config(NEVER, channels=channels + 1)),
    ):
        pass
