"""Plain Python use: `pipeline("a prompt")` guarded, and the pipeline restored afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, UNet2DModel

import guard
from guard.artifact import Artifact
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig, ServerConfig
from guard.errors import (
    ConfigError,
    ContentBlocked,
    GuardFailed,
    ModelError,
    PolicyUnfit,
    UnknownPolicy,
)
from tests.guard.attach.language import language_config
from tests.server.tiny_pipeline import NAN_WORD, save_guards, save_pipeline
from tests.steering.engines.diffusion.tiny import weights_hash
from tests.steering.tiny import tiny_model

KNIFE, CAT = "a knife", "a cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    save_guards(path, save_pipeline(path / "model"))
    return path


@pytest.fixture
def pipeline(folder: Path) -> Any:
    loaded = StableDiffusionPipeline.from_pretrained(folder / "model", safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def config(folder: Path, *guards: str, **policy: Any) -> Config:
    """Every guard of the folder, and a policy "test" of those that are named."""
    names = ("knife", "other", "guide", "overlay")
    return Config(
        guards=tuple(
            GuardConfig(name=name, artifact=folder / f"{name}.safetensors") for name in names
        ),
        policies={"test": PolicyConfig(guards=guards or ("knife",), **policy)},
    )


def generate(pipeline: Any, prompt: Any, *, guidance_scale: float = 3.0, **arguments: Any) -> Any:
    prompts = prompt if isinstance(prompt, dict) else {"prompt": prompt}
    return pipeline(
        **prompts,
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **arguments,
    ).images


def test_a_prompt_that_fires_is_refined_and_others_keep_their_bits(
    pipeline: Any, folder: Path
) -> None:
    prompts = [KNIFE, CAT]
    bare, before = generate(pipeline, prompts), weights_hash(pipeline)
    with guard.attached(pipeline, "test", config=config(folder)) as handle:
        assert handle.verdicts() == ()
        guarded = generate(pipeline, prompts)
        first, second = handle.verdicts()
    assert not np.array_equal(guarded[0], bare[0]) and np.array_equal(guarded[1], bare[1])
    assert (first.outcome, second.outcome) == ("refined", "pass")
    assert (first.request_id, second.request_id) == ("row-0", "row-1")
    (entry,) = first.guards
    assert entry.fired and entry.action == "refine" and entry.concept == "object/knife"
    assert entry.steps == 1 and entry.threshold < (entry.score or 0)
    assert np.array_equal(generate(pipeline, prompts), bare)
    assert weights_hash(pipeline) == before


def test_leaving_restores_the_pipeline_even_after_an_error(pipeline: Any, folder: Path) -> None:
    generate(pipeline, CAT)
    before, encode = dict(vars(pipeline)), pipeline.encode_prompt
    with (
        pytest.raises(RuntimeError, match="in the caller"),
        guard.attached(pipeline, "test", config=config(folder)),
    ):
        assert vars(pipeline) != before
        raise RuntimeError("in the caller")
    assert vars(pipeline) == before
    assert pipeline.encode_prompt == encode


def test_prompt_embeddings_of_a_caller_are_guarded(pipeline: Any, folder: Path) -> None:
    with torch.no_grad():
        embeds, negative = pipeline.encode_prompt("knife " * 8, "cpu", 1, True)
    inputs = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    bare = generate(pipeline, inputs)
    with guard.attached(pipeline, "test", config=config(folder)) as handle:
        guarded = generate(pipeline, inputs)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["refined"]
    assert not np.array_equal(guarded, bare)


@pytest.mark.parametrize("prompt", [KNIFE, "knife", "a cat and a knife", "knife " * 8])
def test_embeddings_of_a_prompt_that_fires_fire_as_well(
    pipeline: Any, folder: Path, prompt: str
) -> None:
    with torch.no_grad():
        embeds, negative = pipeline.encode_prompt(prompt, "cpu", 1, True)
    with guard.attached(pipeline, "test", config=config(folder)) as handle:
        generate(pipeline, prompt)
        (told,) = handle.verdicts()
        generate(pipeline, {"prompt_embeds": embeds, "negative_prompt_embeds": negative})
        (verdict,) = handle.verdicts()
    assert verdict.outcome == told.outcome
    assert (verdict.guards[0].score or 0.0) >= (told.guards[0].score or 0.0) - 1e-4


@pytest.mark.parametrize("prompt", [CAT, "a dog"])
def test_embeddings_that_do_not_fire_keep_their_bits(
    pipeline: Any, folder: Path, prompt: str
) -> None:
    with torch.no_grad():
        embeds, negative = pipeline.encode_prompt(prompt, "cpu", 1, True)
    inputs = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    bare = generate(pipeline, inputs)
    with guard.attached(pipeline, "test", config=config(folder)) as handle:
        assert np.array_equal(generate(pipeline, inputs), bare)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass"]


def test_text_past_the_encoders_length_is_read(pipeline: Any, folder: Path) -> None:
    hidden = "cat " * 10 + "knife " * 10
    bare = generate(pipeline, hidden)
    with guard.attached(pipeline, "test", config=config(folder)) as handle:
        guarded = generate(pipeline, hidden)
        (verdict,) = handle.verdicts()
    # it does not condition the image: there is nothing to refine
    assert verdict.guards[0].fired and np.array_equal(guarded, bare)
    blocking = config(folder, action="block")
    with (
        guard.attached(pipeline, "test", config=blocking),
        pytest.raises(ContentBlocked, match="row 1"),
    ):
        generate(pipeline, [CAT, hidden])


@pytest.mark.parametrize(("action", "outcome"), [("observe", "pass"), ("flag", "flagged")])
def test_a_policy_that_does_not_act_changes_no_bit(
    pipeline: Any, folder: Path, action: str, outcome: str
) -> None:
    bare = generate(pipeline, KNIFE)
    with guard.attached(pipeline, "test", config=config(folder, action=action)) as handle:
        assert np.array_equal(generate(pipeline, KNIFE), bare)
        (verdict,) = handle.verdicts()
    assert verdict.outcome == outcome and verdict.guards[0].fired


def test_a_policy_that_blocks_generates_nothing(pipeline: Any, folder: Path) -> None:
    with guard.attached(pipeline, "test", config=config(folder, action="block")) as handle:
        with pytest.raises(ContentBlocked, match="row 1") as caught:
            generate(pipeline, [CAT, KNIFE])
        assert caught.value.verdict.outcome == "blocked"
        generate(pipeline, CAT)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass"]


def test_a_prompt_that_cannot_be_refined_is_blocked(
    pipeline: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steering.images.embedding import Refinement
    from steering.methods.nearest import NearestGuards

    def fail(self: Any, text: Any, due: Any, threshold: Any, strength: Any) -> Refinement:
        return Refinement(text, due.any(1).long(), torch.full_like(strength, 99.0))

    monkeypatch.setattr(NearestGuards, "act", fail)
    settings = config(folder, fallback="replace", replacement=CAT)
    with (
        guard.attached(pipeline, "test", config=settings),
        pytest.raises(ContentBlocked) as caught,
    ):
        generate(pipeline, KNIFE)
    assert caught.value.verdict.guards[0].action == "block"


def test_nan_fails_closed_or_open_as_the_policy_says(pipeline: Any, folder: Path) -> None:
    with (
        guard.attached(pipeline, "test", config=config(folder)),
        pytest.raises(GuardFailed, match="met NaN") as caught,
    ):
        generate(pipeline, [CAT, f"a {NAN_WORD}"])
    assert caught.value.verdict is not None
    assert caught.value.verdict.guards[0].error is not None
    open_policy = config(folder, on_error="open")
    with guard.attached(pipeline, "test", config=open_policy) as handle:
        generate(pipeline, [CAT, f"a {NAN_WORD}"])
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass", "error"]


def test_guards_of_the_guidance_act_at_each_step(pipeline: Any, folder: Path) -> None:
    bare, before = generate(pipeline, [KNIFE, CAT]), dict(vars(pipeline))
    settings = config(folder, "guide", action="steer")
    with guard.attached(pipeline, "test", config=settings) as handle:
        guarded = generate(pipeline, [KNIFE, CAT])
        assert [verdict.outcome for verdict in handle.verdicts()] == ["steered", "pass"]
    with (
        pytest.raises(GuardFailed, match="acts on guidance"),
        guard.attached(pipeline, "test", config=settings),
    ):
        generate(pipeline, KNIFE, guidance_scale=1.0)
    assert not np.array_equal(guarded[0], bare[0]) and np.array_equal(guarded[1], bare[1])
    # a call keeps its arguments on the pipeline
    generate(pipeline, CAT)
    assert vars(pipeline) == before
    flagging = config(folder, "guide", action="flag")
    with guard.attached(pipeline, "test", config=flagging) as handle:
        generate(pipeline, KNIFE)
        assert handle.verdicts()[0].outcome == "flagged"


def test_only_rows_that_fire_are_generated_with_the_overlay(pipeline: Any, folder: Path) -> None:
    prompts = [KNIFE, CAT]
    bare, before = generate(pipeline, prompts), weights_hash(pipeline)
    settings = config(folder, "overlay", action="overlay")
    with guard.attached(pipeline, "test", config=settings) as handle:
        guarded = generate(pipeline, prompts, num_images_per_prompt=2)
        assert [v.outcome for v in handle.verdicts()] == ["overlaid"] * 2 + ["pass"] * 2
        again = generate(pipeline, prompts)
        first, second = handle.verdicts()
        assert (first.outcome, second.outcome) == ("overlaid", "pass")
        assert first.guards[0].action == "overlay"
        assert np.array_equal(generate(pipeline, CAT), generate(pipeline, CAT))
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass"]
    assert not np.array_equal(again[0], bare[0]) and np.array_equal(again[1], bare[1])
    unguarded = generate(pipeline, prompts, num_images_per_prompt=2)
    changed = [not np.array_equal(a, b) for a, b in zip(guarded, unguarded, strict=True)]
    assert changed == [True, True, False, False]
    assert np.array_equal(generate(pipeline, prompts), bare) and weights_hash(pipeline) == before
    modules = pipeline.unet.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_both_predictions_of_guidance_are_those_of_the_edited_model(
    pipeline: Any, folder: Path
) -> None:
    prompts = [KNIFE, CAT]
    bare = generate(pipeline, prompts)
    with guard.attached(pipeline, "test", config=config(folder, "overlay", action="overlay")):
        guarded = generate(pipeline, prompts)
    tensors = Artifact.load(folder / "overlay.safetensors").tensors
    layers = dict(pipeline.unet.named_modules())
    with torch.no_grad():
        for name, writes in tensors.items():
            if name.startswith("writes."):
                edit = torch.from_numpy(writes.T @ tensors["reads.0"])
                layers[name.removeprefix("writes.")].weight += edit
    edited = generate(pipeline, prompts)
    assert np.abs(guarded[0] - edited[0]).max() < 1e-4
    assert np.abs(guarded[0] - bare[0]).max() > 1e-3, "the edit has no effect"
    assert np.array_equal(guarded[1], bare[1])


def test_an_overlay_that_only_observes_hooks_nothing(pipeline: Any, folder: Path) -> None:
    bare = generate(pipeline, KNIFE)
    flagging = config(folder, "overlay", action="flag")
    with guard.attached(pipeline, "test", config=flagging) as handle:
        assert not any(module._forward_hooks for module in pipeline.unet.modules())
        assert np.array_equal(generate(pipeline, KNIFE), bare)
        assert handle.verdicts()[0].outcome == "flagged"


def test_a_denoiser_run_on_other_rows_fails_the_guard(pipeline: Any, folder: Path) -> None:
    settings = config(folder, "overlay", action="overlay")
    states = torch.zeros(3, 12, 16)
    with (
        pytest.raises(GuardFailed, match="other rows than the call's prompts"),
        guard.attached(pipeline, "test", config=settings),
    ):
        generate(pipeline, [KNIFE, CAT])
        pipeline.unet(torch.zeros(3, 4, 8, 8), 1, encoder_hidden_states=states)


def test_adapters_added_later_fail_the_guard(pipeline: Any, folder: Path) -> None:
    (attention,) = [
        m
        for n, m in pipeline.unet.named_modules()
        if n.endswith("mid_block.attentions.0.transformer_blocks.0.attn2")
    ]
    settings = config(folder, "overlay", action="overlay")
    with (
        pytest.raises(GuardFailed, match="attn2.to_v was not run"),
        guard.attached(pipeline, "test", config=settings),
    ):
        generate(pipeline, KNIFE)
        attention.to_v = torch.nn.Sequential(attention.to_v, torch.nn.Identity())
        attention.to_v[0] = torch.nn.Linear(16, 16, bias=False)
        generate(pipeline, KNIFE)


def test_a_guard_for_another_encoder_is_refused(pipeline: Any, folder: Path) -> None:
    with (
        pytest.raises(GuardFailed, match="policy 'test' cannot be applied: other"),
        guard.attached(pipeline, "test", config=config(folder, "other")),
    ):
        pass


def test_a_call_that_cannot_be_followed_fails_the_guard(pipeline: Any, folder: Path) -> None:
    with (
        pytest.raises(GuardFailed, match="ip_adapter_image"),
        guard.attached(pipeline, "test", config=config(folder)),
    ):
        generate(pipeline, CAT, ip_adapter_image_embeds=[torch.zeros(2, 1, 1, 16)])


def test_other_pipelines_are_refused(folder: Path) -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    other = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    with (
        pytest.raises(ModelError, match="DDPMPipeline is not supported"),
        guard.attached(other, "test", config=config(folder)),
    ):
        pass


def test_policies_are_those_of_the_configuration(pipeline: Any, folder: Path) -> None:
    with pytest.raises(UnknownPolicy), guard.attached(pipeline, "no", config=config(folder)):
        pass
    with pytest.raises(ConfigError), guard.attached(pipeline, config=folder / "no.toml"):
        pass
    settings = config(folder).model_copy(update={"server": ServerConfig(default_policy="test")})
    with guard.attached(pipeline, config=settings) as handle:
        assert handle.policy == "test"
    bare = generate(pipeline, KNIFE)
    with guard.attached(pipeline, "none", config=settings) as handle:
        assert np.array_equal(generate(pipeline, KNIFE), bare)
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass"]


def test_a_policy_of_another_kind_of_files_does_not_pass_unguarded(
    pipeline: Any, tmp_path: Path
) -> None:
    words = language_config(tmp_path, tiny_model())
    with pytest.raises(PolicyUnfit), guard.attached(pipeline, "loud", config=words):
        pass
