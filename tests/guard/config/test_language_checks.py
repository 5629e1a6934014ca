"""Keys of policies that are for guards of language models."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.config.schema import load_config
from guard.errors import ConfigError
from tests.guard.conftest import MakeArtifact
from tests.guard.toy_images import save_toy

GUARDS = """\
[[guards]]
name = "hp"
artifact = "hp.safetensors"
[[guards]]
name = "knife"
artifact = "knife.safetensors"
[[patterns]]
name = "secrets"
source = "secrets"
[policies.p]
"""


@pytest.fixture
def folder(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    make_artifact().save(tmp_path / "hp.safetensors")
    save_toy(tmp_path / "knife.safetensors")
    return tmp_path


def faults(folder: Path, policy: str) -> list[str]:
    path = folder / "config.toml"
    path.write_text(GUARDS + policy, "utf-8")
    try:
        load_config(path)
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    "policy",
    [
        'guards = ["hp"]\naction = "say"\nmessage = "No."',
        'guards = ["hp", "secrets"]\naction = "say"\nmessage = "No."',
        'guards = ["hp", "knife"]\nactions = { hp = "say" }\nmessage = "No."',
        'guards = ["hp"]\nactions = { hp = "block" }\nscope = "turn"\nrewind = true',
    ],
)
def test_good_policies_pass(folder: Path, policy: str) -> None:
    assert faults(folder, policy) == []


@pytest.mark.parametrize(
    ("policy", "place", "reason"),
    [
        ('guards = ["hp"]\naction = "say"', "policies.p.message", 'what the action "say" says'),
        ('guards = ["hp"]\nactions = { hp = "say" }', "policies.p.message", "add it"),
        ('guards = ["hp"]\nactions = { hp = "redact" }', "policies.p.actions.hp", "steer"),
        (
            'guards = ["hp"]\nactions = { knife = "block" }',
            "policies.p.actions.knife",
            "no guard of",
        ),
        (
            'guards = ["hp", "knife"]\nactions = { knife = "block" }',
            "policies.p.actions.knife",
            "no guard of a language model",
        ),
        (
            'guards = ["hp", "secrets"]\nactions = { secrets = "block" }',
            "policies.p.actions.secrets",
            'in "screen", actions',
        ),
        (
            'guards = ["hp", "knife"]\naction = "say"\nmessage = "No."',
            "policies.p.action",
            "knife is none",
        ),
        ('guards = ["knife"]\naction = "say"\nmessage = "No."', "policies.p.action", "has none"),
        ('guards = ["knife"]\nscope = "turn"', "policies.p.scope", "has none: leave it out"),
        ('guards = ["secrets"]\nrewind = true', "policies.p.rewind", "has none: leave it out"),
        ('guards = ["hp"]\nscope = "message"', "policies.p.scope", "'conversation' or 'turn'"),
    ],
)
def test_faults_are_named(folder: Path, policy: str, place: str, reason: str) -> None:
    problems = faults(folder, policy)
    assert len(problems) == 1 and f": {place}: " in problems[0] and reason in problems[0]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ('action = "say"\nmessage = "No."', 'the action "say"'),
        ('actions = { hp = "block" }', "actions of single guards"),
        ("rewind = true", "rewind = true"),
        ('scope = "turn"', 'scope = "turn"'),
    ],
)
def test_vllm_does_not_know_them(folder: Path, key: str, reason: str) -> None:
    model = '[[models]]\nname = "m"\nsource = "m"\nengine = "vllm"\ndefault_policy = "p"\n'
    (problem,) = faults(folder, f'guards = ["hp"]\n{key}\n{model}')
    assert "models[0].engine: the default policy" in problem and reason in problem
    other = model.replace("vllm", "transformers")
    assert faults(folder, f'guards = ["hp"]\n{key}\n{other}') == []


def test_overlays_of_linear_layers_are_for_transformers_and_for_prompts(
    folder: Path, make_artifact: MakeArtifact
) -> None:
    overlay = make_artifact(method="language-overlay", seams=["linear"])
    overlay.save(folder / "hp.safetensors")
    model = '[[models]]\nname = "m"\nsource = "m"\nengine = "vllm"\ndefault_policy = "p"\n'
    (problem,) = faults(folder, f'guards = ["hp"]\n{model}')
    assert "models[0].engine: the default policy" in problem
    assert "has hp, which overlays linear layers, and vLLM does not" in problem
    assert faults(folder, f'guards = ["hp"]\n{model.replace("vllm", "transformers")}') == []
    again = GUARDS.replace('"hp.safetensors"', '"hp.safetensors"\nrecheck = 0.5', 1)
    path = folder / "config.toml"
    path.write_text(f'{again}guards = ["hp"]\n', "utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    (problem,) = error.value.problems
    assert "guards[0].recheck: overlays linear layers and decides on the prompt alone" in problem
