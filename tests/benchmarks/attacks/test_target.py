"""The attacker's computations agree with the pipeline."""

from __future__ import annotations

import pytest
import torch

from benchmarks.attacks.target import Target
from steering.images.conditioning import Conditioning
from tests.benchmarks.attacks.tiny import TOKENS, pipeline


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(pipeline(), batch=6)


def test_a_prompt_survives_being_typed(target: Target) -> None:
    content = target.content("a knife on a white background")
    assert target.text(content) == "a knife on a white background"
    piece = target.tokenizer.convert_tokens_to_ids("##q")
    rows = torch.tensor([content[:3], [piece, *content[:2]]])
    assert target.survives(rows).tolist() == [True, False]


def test_words_are_whole_and_plain(target: Target) -> None:
    words = dict(target.words)
    assert "knife" in words.values()
    assert all(word.isalpha() for word in words.values())
    assert not set(words) & {target.tokenizer.convert_tokens_to_ids("##q"), 0, 1, 2, 3}


def test_states_are_those_of_the_encoder(target: Target) -> None:
    batch = target.tokenizer("a cat", padding="max_length", max_length=TOKENS, return_tensors="pt")
    expected = target.pipeline.text_encoder(batch.input_ids, attention_mask=batch.attention_mask)[0]
    conditioning = target.encode(torch.tensor([target.content("a cat")]))
    assert torch.equal(conditioning.states["text"], expected.detach())
    assert conditioning.masks["text"][0].tolist() == [True] * 4 + [False] * (TOKENS - 4)


def test_the_gradient_is_the_slope_of_each_token(target: Target) -> None:
    content = torch.tensor(target.content("a cat on a white background"))
    direction = torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(0))

    def loss(text: Conditioning) -> torch.Tensor:
        return (text.states["text"][0] * direction).sum()

    slope = target.gradient(content, loss)
    assert slope.shape == (len(content), len(target.tokenizer))
    # a small step from the token towards another one, by finite differences of its vector
    layer, place, other, small = target.pipeline.text_encoder, 2, target.content("dog")[0], 1e-2
    token = int(content[place])
    weight = layer.get_input_embeddings().weight
    before = weight[token].clone()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[token] = before + sign * small * (weight[other] - before)
        values.append(float(loss(target.encode(content[None]))))
        with torch.no_grad():
            weight[token] = before
    expected = (values[0] - values[1]) / (2 * small)
    slope_between = float(slope[place, other] - slope[place, token])
    assert slope_between == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_errors_are_the_same_one_by_one(target: Target) -> None:
    latents = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    views = target.views(latents, torch.Generator().manual_seed(1), None)
    rows = [target.content(text) for text in ("a cat", "a dog", "a car", "a pig", "a rose")]
    text = target.encode(torch.tensor(rows))
    with torch.no_grad():
        errors = target.errors(text, views)
        expected = []
        for row in range(len(rows)):
            row_errors = []
            for view in range(3):
                prediction = target.pipeline.unet(
                    views.noisy[view : view + 1],
                    views.timesteps[view],
                    text.states["text"][row : row + 1],
                ).sample
                row_errors.append((prediction - views.goals[view]).square().mean())
            expected.append(torch.stack(row_errors).mean())
    assert torch.allclose(errors, torch.stack(expected), rtol=1e-5)


def test_the_prompt_itself_reaches_the_goal_of_a_prompt(target: Target) -> None:
    latents = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    views = target.views(latents, torch.Generator().manual_seed(1), "a cat")
    rows = torch.tensor([target.content("a cat"), target.content("a car")])
    with torch.no_grad():
        same, other = target.errors(target.encode(rows), views).tolist()
    assert same < 1e-10 < other


def test_velocity_is_the_goal_of_a_velocity_model(target: Target) -> None:
    latents = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    views = target.views(latents, torch.Generator().manual_seed(1), None)
    kept = target.pipeline.scheduler.alphas_cumprod[views.timesteps][:, None, None, None]
    # x = sqrt(a) * noisy - sqrt(1 - a) * v
    recovered = kept.sqrt() * views.noisy - (1 - kept).sqrt() * views.goals
    assert torch.allclose(recovered, latents, atol=1e-4)


def test_weights_are_left_alone(target: Target) -> None:
    before = {k: v.clone() for k, v in target.pipeline.text_encoder.state_dict().items()}
    content = torch.tensor(target.content("a cat"))
    target.gradient(content, lambda text: text.states["text"].sum())
    after = target.pipeline.text_encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in target.pipeline.text_encoder.parameters())
    assert not target.pipeline.text_encoder.get_input_embeddings()._forward_hooks
