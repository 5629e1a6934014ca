"""`[[models.adapters]]`: what is read, and each fault with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.config.schema import Config, load_config
from guard.errors import ConfigError
from server.auth import default_policy
from tests.guard.conftest import MakeArtifact
from tests.steering.adapters import save_settings

CONFIG = """\
[server]
default_policy = "plain"
[[models]]
name = "base"
source = "./model"
[[models.adapters]]
name = "one"
source = "adapters/one"
[[models.adapters]]
name = "two"
source = "adapters/one"
default_policy = "strict"
guards = "of-base"
[[guards]]
name = "hp"
artifact = "hp.safetensors"
[[patterns]]
name = "secrets"
source = "secrets"
[policies.strict]
guards = ["hp"]
[policies.plain]
guards = ["secrets"]
action = "block"
"""


@pytest.fixture
def folder(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    make_artifact().save(tmp_path / "hp.safetensors")
    adapter = tmp_path / "adapters" / "one"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").touch()
    save_settings(adapter, r=4, lora_alpha=8, target_modules=["q_proj"])
    return tmp_path


def read(folder: Path, text: str) -> Config:
    path = folder / "config.toml"
    path.write_text(text, "utf-8")
    return load_config(path)


def faults(folder: Path, old: str, new: str) -> list[str]:
    assert old in CONFIG
    with pytest.raises(ConfigError) as error:
        read(folder, CONFIG.replace(old, new, 1))
    return list(error.value.problems)


def test_adapters_are_read_with_paths_and_default_policies(folder: Path) -> None:
    config = read(folder, CONFIG)
    one, two = config.models[0].adapters
    assert one.source == two.source == folder / "adapters" / "one"
    assert (one.guards, two.guards) == (None, "of-base")
    assert config.default_policies == {"base": None, "one": None, "two": "strict"}
    assert default_policy(config, None, "one") == "plain"
    assert default_policy(config, None, "two") == "strict"
    of_model = read(folder, CONFIG.replace('./model"', './model"\ndefault_policy = "none"'))
    assert of_model.default_policies["one"] == "none"
    assert of_model.default_policies["two"] == "strict"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"one"', '"base"', (7, "models[0].adapters[0].name", "another model or adapter")),
        ('"two"', '"one"', (10, "models[0].adapters[1].name", "another model or adapter")),
        ('"strict"', '"strickt"', (12, "models[0].adapters[1].default_policy", '"strict"?')),
        ('"of-base"', '"all"', (13, "models[0].adapters[1].guards", "of-base")),
        ("source = \"adapters", 'sauce = 1\nsource = "adapters',
         (8, "models[0].adapters[0].sauce", 'did you mean "source"?')),
        ("adapters/one", "nowhere", (8, "models[0].adapters[0].source", "cannot be read")),
        ('"base"\n', '"base"\nengine = "vllm"\n', (7, "models[0].adapters", "leave it out")),
        ('"plain"', '"strict"', (6, "models[0].adapters[0]", 'guards = "of-base"')),
        ('guards = "of-base"\n', "", (9, "models[0].adapters[1]", "inside the model (hp)")),
    ],
)  # fmt: skip
def test_faults_have_their_lines(
    folder: Path, old: str, new: str, fault: tuple[int, str, str]
) -> None:
    line, place, words = fault
    found = [each for each in faults(folder, old, new) if f": {place}: " in each]
    assert len(found) == 1 and found[0].startswith(f"line {line}: ") and words in found[0]


def test_a_refused_adapter_is_a_fault_of_its_source(folder: Path) -> None:
    save_settings(folder / "adapters" / "one", use_dora=True, target_modules=["q_proj"])
    with pytest.raises(ConfigError) as error:
        read(folder, CONFIG)
    assert len(error.value.problems) == 2
    assert all("'use_dora'" in problem for problem in error.value.problems)
