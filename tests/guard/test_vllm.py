"""What the vLLM plugin decides before vLLM does anything; the rest is tested in vLLM itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guard.artifact import Artifact
from guard.config import Config, load_config
from guard.errors import ConfigError
from guard.vllm import Policies, salted
from tests.guard.conftest import MakeArtifact

CONFIG = """
[server]
default_policy = "{default}"
[[guards]]
name = "hp"
artifact = "hp.safetensors"
[[guards]]
name = "drawn"
artifact = "drawn.safetensors"
[policies.hp]
guards = ["hp"]
[policies.watch]
guards = ["hp"]
action = "observe"
[policies.drawn]
guards = ["drawn"]
"""


@pytest.fixture
def configured(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    make_artifact().save(tmp_path / "hp.safetensors")
    make_artifact(method="cgce", seams=["embedding"]).save(tmp_path / "drawn.safetensors")
    return tmp_path


def config_of(folder: Path, default: str = "none", more: str = "") -> Config:
    (folder / "config.toml").write_text(CONFIG.format(default=default) + more, "utf-8")
    return load_config(folder / "config.toml")


def test_a_request_has_the_policy_that_it_asks_for_or_the_default(configured: Path) -> None:
    policies = Policies.of(config_of(configured, "watch"))
    assert policies.asked(None) == policies.asked({"other": 1}) == "watch"
    assert policies.asked({"guard_policy": "hp"}) == "hp"
    # one that has guards for pictures alone would leave it unguarded
    for unknown in ("drawn", "ghost", "", 1, None, ["hp"], {"hp": 1}, "hp" * 10**6):
        with pytest.raises(ValueError, match="there is no policy") as refused:
            policies.asked({"guard_policy": unknown})
        assert len(str(refused.value)) < 200


def test_with_keys_only_what_all_may_ask_for_is_there(configured: Path) -> None:
    key = '[[keys]]\nhash = "sha256:{}"\ntenant = "t"\npolicies = [{}]\n'
    keys = key.format("a" * 64, '"hp", "watch"') + key.format("b" * 64, '"watch"')
    policies = Policies.of(config_of(configured, "hp", keys))
    assert set(policies.salts) == {"hp", "watch"}
    policies = Policies.of(config_of(configured, "watch", keys))
    assert set(policies.salts) == {"watch"}


def test_a_default_without_a_guard_for_text_is_refused(configured: Path) -> None:
    with pytest.raises(ConfigError, match="'drawn' has no guard for a language model"):
        Policies.of(config_of(configured, "drawn"))


def test_plans_that_make_other_states_have_other_salts(
    configured: Path, make_artifact: MakeArtifact
) -> None:
    salts = Policies.of(config_of(configured)).salts
    assert salts["none"] is None and None not in (salts["hp"], salts["watch"])
    assert salts["hp"] != salts["watch"]
    other = make_artifact(concept="character/somebody-else")
    other.save(configured / "hp.safetensors")
    assert Artifact.load(configured / "hp.safetensors").digest == other.digest
    assert Policies.of(config_of(configured)).salts["hp"] != salts["hp"]


def test_a_salt_that_is_given_is_never_that_of_a_plan() -> None:
    assert salted(None, None) is None
    plan = salted(None, "plan")
    found = [
        plan,
        salted(plan, None),
        salted("", None),
        salted("mine", None),
        salted("mine", "plan"),
    ]
    assert None not in found and len(set(found)) == len(found)


def test_without_a_configuration_nothing_is_touched() -> None:
    code = (
        "import sys; from guard.vllm import register; register(); "
        "sys.exit(any(name.split('.')[0] in ('vllm', 'torch') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PATH": ""}, check=False)
    assert done.returncode == 0
