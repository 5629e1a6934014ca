"""Plain Python use: `model.generate` guarded, and the model as it was afterwards."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import guard
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, GuardConfig
from guard.errors import ContentBlocked, GuardFailed, PolicyUnfit, UnknownPolicy
from tests.guard.attach.language import answers, language_config
from tests.guard.toy_images import save_toy
from tests.steering.tiny import prompt, tiny_model


def _state(model: Any) -> tuple[str, list[Any]]:
    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.numpy().tobytes())
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), sorted(vars(module)))
        for name, module in model.named_modules()
    ]
    return digest.hexdigest(), hooks


def test_a_guard_that_fires_changes_the_answer_and_says_so(tmp_path: Path) -> None:
    model = tiny_model()
    bare = answers(model)
    with guard.attached(model, "loud", config=language_config(tmp_path, model)) as handle:
        steered = answers(model)
        verdicts = handle.verdicts()
    assert all(a != b for a, b in zip(bare, steered, strict=True))
    assert [verdict.outcome for verdict in verdicts] == ["steered", "steered"]
    assert all(verdict.guards[0].position == 0 for verdict in verdicts)


def test_a_silent_guard_gives_the_bare_answer(tmp_path: Path) -> None:
    model = tiny_model()
    bare = answers(model)
    with guard.attached(model, "silent", config=language_config(tmp_path, model)) as handle:
        assert answers(model) == bare
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass", "pass"]
        assert all(v.guards[0].score is not None for v in handle.verdicts())


def test_leaving_restores_the_model_bit_for_bit(tmp_path: Path) -> None:
    model = tiny_model()
    before, bare = _state(model), answers(model)
    with guard.attached(model, "loud", config=language_config(tmp_path, model)):
        answers(model)
    assert _state(model) == before
    assert answers(model) == bare


def test_an_exception_inside_restores_the_model_too(tmp_path: Path) -> None:
    model = tiny_model()
    before = _state(model)
    config = language_config(tmp_path, model)
    with pytest.raises(ZeroDivisionError), guard.attached(model, "loud", config=config):
        raise ZeroDivisionError
    assert _state(model) == before


def test_padding_does_not_change_what_a_row_reads(tmp_path: Path) -> None:
    model = tiny_model()
    with guard.attached(model, "silent", config=language_config(tmp_path, model)) as handle:
        answers(model)
        padded = handle.verdicts()[1].guards[0].score
        model.generate(input_ids=torch.tensor([prompt(5, 2)]), max_new_tokens=2, do_sample=False)
        alone = handle.verdicts()[0].guards[0].score
    assert padded == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("unfollowed", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 3}])
def test_what_cannot_be_followed_is_refused(tmp_path: Path, unfollowed: dict[str, int]) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    refused = pytest.raises(GuardFailed, match="cannot be guarded")
    with refused, guard.attached(model, "silent", config=config):
        answers(model, **unfollowed)


def test_beams_are_refused_where_the_generation_config_is_positional(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    refused = pytest.raises(GuardFailed, match="num_beams=2 cannot be guarded")
    with refused, guard.attached(model, "silent", config=config):
        model.generate(torch.tensor([prompt(5, 2)]), GenerationConfig(num_beams=2))


def test_leaving_an_inner_context_leaves_the_outer_one_standing(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    before = _state(model)
    with pytest.raises(GuardFailed), guard.attached(model, "silent", config=config):
        with guard.attached(model, "loud", config=config):
            pass
        answers(model, num_beams=2)
    assert _state(model) == before


def test_padding_on_the_right_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    refused = pytest.raises(GuardFailed, match="pad on the left")
    with refused, guard.attached(model, "silent", config=config):
        model(input_ids=torch.tensor([[5, 6, 0]]), attention_mask=torch.tensor([[1, 1, 0]]))


def test_block_raises_with_its_verdict(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model, action="block")
    with pytest.raises(ContentBlocked) as raised, guard.attached(model, "loud", config=config):
        answers(model)
    assert raised.value.verdict.outcome == "blocked"


def test_a_guard_of_another_model_is_refused(tmp_path: Path) -> None:
    config = language_config(tmp_path, tiny_model(seed=1))
    other = tiny_model(seed=2)
    refused = pytest.raises(GuardFailed, match="fit it on that model")
    with refused, guard.attached(other, "loud", config=config):
        pass


def test_nan_in_the_activations_fails_closed(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    with (
        pytest.raises(GuardFailed, match="NaN"),
        guard.attached(model, "silent", config=config),
        torch.no_grad(),
    ):
        model.model.layers[0].mlp.down_proj.weight[1, 1] = float("nan")
        answers(model)


def test_a_policy_for_images_does_not_leave_the_model_bare(tmp_path: Path) -> None:
    model = tiny_model()
    save_toy(tmp_path / "knife.safetensors")
    config = Config(
        guards=(GuardConfig(name="knife", artifact=tmp_path / "knife.safetensors"),),
        policies={"knife": PolicyConfig(guards=("knife",))},
    )
    with pytest.raises(PolicyUnfit), guard.attached(model, "knife", config=config):
        pass


def test_no_policy_at_all_is_not_taken_for_the_policy_none(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    bare = answers(model)
    with pytest.raises(GuardFailed, match="no policy is named"):
        guard.attached(model, config=config).__enter__()
    with guard.attached(model, "none", config=config) as handle:
        assert answers(model) == bare
        assert [verdict.outcome for verdict in handle.verdicts()] == ["pass", "pass"]


def test_an_unknown_policy_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    config = language_config(tmp_path, model)
    with pytest.raises(UnknownPolicy, match="no policy 'other'"):
        guard.attached(model, "other", config=config).__enter__()
