"""What `guard check` finds beyond the file: guards, sources, policies that cannot act."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from guard.artifact import Artifact
from guard.config.schema import load_config
from guard.errors import ConfigError
from tests.guard.commands.running import run
from tests.guard.conftest import HASH, MakeArtifact, describe_model

pytestmark = pytest.mark.usefixtures("plain_terminal")

MODEL = '[[models]]\nname = "m"\nsource = "./m"\n'
GUARD = '[[guards]]\nname = "g"\nartifact = "g.safetensors"\n'
WORDS = '[[patterns]]\nname = "words"\nsource = "secrets"\n'
POLICY = '[policies.p]\nguards = ["g"]\n'
UPSTREAM = '[[upstreams]]\nname = "u"\nurl = "http://127.0.0.1:1"\n'
DEFAULT = '[server]\ndefault_policy = "p"\n'


def _check(folder: Path, text: str) -> tuple[int, list[str], list[str]]:
    """Exit code, problems and warnings."""
    (folder / "config.toml").write_text(text, "utf-8")
    result = run("check", folder / "config.toml", "--json")
    said: dict[str, Any] = json.loads(result.stdout)
    assert said["ok"] == (result.exit_code == 0)
    return result.exit_code, said["problems"], said.get("warnings", [])


@pytest.fixture
def folder(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    make_artifact().save(tmp_path / "g.safetensors")
    describe_model(tmp_path / "m")
    return tmp_path


def test_what_can_act_is_valid(folder: Path) -> None:
    assert _check(folder, DEFAULT + MODEL + GUARD + POLICY) == (0, [], [])


@pytest.mark.parametrize("policy", ["", "guards = []\n", 'action = "block"\n'])
def test_a_policy_without_guards_is_a_fault_of_the_file(folder: Path, policy: str) -> None:
    code, (problem,), _ = _check(folder, MODEL + f"[policies.p]\n{policy}")
    assert code == 1
    assert 'names no guard, so that everything would pass: name guards, or use "none"' in problem


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("./nowhere", "no directory"),
        ("no-such-model", "is no added model"),
        ("/not/here", "no directory"),
        ("./empty", "without config.json"),
    ],
)
def test_a_source_that_is_not_there_is_a_problem(folder: Path, source: str, reason: str) -> None:
    (folder / "empty").mkdir()
    text = MODEL.replace("./m", source) + GUARD + POLICY
    code, (problem,), _ = _check(folder, text)
    assert (code, problem.startswith("models[0].source: ")) == (1, True)
    assert reason in problem
    assert f"error: {problem}" in run("check", folder / "config.toml").stderr


@pytest.mark.parametrize("source", ["owner/name", "smollm2"])
def test_a_source_that_may_come_later_is_a_warning(folder: Path, source: str) -> None:
    code, problems, (warning,) = _check(folder, MODEL.replace("./m", source) + GUARD + POLICY)
    assert (code, problems) == (0, [])
    assert warning.startswith("models[0].source: ")
    assert f"warning: {warning}" in run("check", folder / "config.toml").stderr


def test_a_source_for_another_engine_is_a_problem(folder: Path) -> None:
    text = MODEL + 'engine = "diffusers"\n'
    code, (problem,), _ = _check(folder, text)
    assert code == 1
    assert "no model_index.json" in problem


def test_a_guard_of_another_architecture_is_a_problem(
    folder: Path, make_artifact: MakeArtifact
) -> None:
    describe_model(folder / "large", layers=12, width=64)
    text = MODEL.replace("./m", "./large") + GUARD + POLICY
    code, (problem,), _ = _check(folder, text)
    assert code == 1
    assert "fitted on 'tiny', of 4 layers and width 8, and fits no model" in problem
    both = MODEL + MODEL.replace('"m"', '"large"').replace("./m", "./large") + GUARD + POLICY
    assert _check(folder, both)[0] == 0


def test_a_guard_of_a_model_with_other_weights_is_a_warning(folder: Path) -> None:
    safetensors.numpy.save_file({"w": np.ones(3, "f4")}, folder / "m" / "model.safetensors")
    code, problems, (warning,) = _check(folder, MODEL + GUARD + POLICY)
    assert (code, problems) == (0, [])
    assert "no model of this configuration has its fingerprint" in warning
    assert "for a quantised, fine-tuned or newer copy of that model run `guard rebind`" in warning


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "oracle"}, "unknown method 'oracle'"),
        ({"settings": {"threshold": 0.5}}, "has no setting"),
        ({"tensors": {"gates": np.ones((1, 8), "f4")}}, "gates must be [sense layers, width]"),
    ],
)
def test_a_guard_that_a_server_would_not_load_is_a_problem(
    folder: Path, make_artifact: MakeArtifact, changes: dict[str, Any], reason: str
) -> None:
    sound = make_artifact()
    tensors = sound.tensors | changes.pop("tensors", {})
    make_artifact(tensors, **changes).save(folder / "g.safetensors")
    code, problems, _ = _check(folder, MODEL + GUARD + POLICY)
    assert code == 1
    assert any(problem.startswith("guards[0] (g): ") and reason in problem for problem in problems)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("threshold", 1e300),
        ("threshold", -1e10),
        ("recheck", 1e300),
        ("strength", 0.0),
        ("strength", 1e300),
        ("schedule", [0.0, 1e300]),
        ("sense_layers", [-1, 0]),
        ("pool", 0),
        ("pool", 1.5),
    ],
)
def test_a_fitted_setting_out_of_range_is_a_fault_of_the_file(
    folder: Path, make_artifact: MakeArtifact, setting: str, value: Any
) -> None:
    settings = dict(make_artifact().meta.settings) | {setting: value}
    make_artifact(settings=settings).save(folder / "g.safetensors")
    code, problems, _ = _check(folder, MODEL + GUARD + POLICY)
    assert code == 1
    assert any(f"guards[0].artifact: guard g: {setting} must be" in each for each in problems)


@pytest.mark.parametrize("value", ["1e300", "-1e300", "nan", "inf", "2e9"])
def test_a_threshold_of_the_file_out_of_range_is_a_fault(folder: Path, value: str) -> None:
    code, problems, _ = _check(folder, MODEL + GUARD + f"threshold = {value}\n" + POLICY)
    assert code == 1
    assert any("guards[0].threshold: " in problem for problem in problems)


@pytest.mark.parametrize("value", ["-1e9", "1e9", "0.0"])
def test_always_and_never_are_thresholds_of_a_gate(folder: Path, value: str) -> None:
    assert _check(folder, MODEL + GUARD + f"threshold = {value}\n" + POLICY)[0] == 0


@pytest.mark.parametrize("value", [-0.1, 1.1, 1e9, 1e300])
def test_the_threshold_of_a_classifier_of_text_is_a_probability(
    folder: Path, make_artifact: MakeArtifact, value: float
) -> None:
    tensors = {"weight": np.ones((1, 4), "f4"), "bias": np.zeros(1, "f4")}
    settings = {"kind": "logistic", "calibration": "temperature", "temperature": 1.0}
    fitted = {"method": "screen", "seams": ["text"]}
    path = folder / "g.safetensors"
    make_artifact(tensors, settings=settings | {"threshold": value}, **fitted).save(path)
    blocks = '[policies.p]\nguards = ["g"]\naction = "block"\n'
    code, problems, _ = _check(folder, GUARD + blocks)
    assert code == 1
    assert any("threshold must be 0 to 1" in problem for problem in problems)
    make_artifact(tensors, settings=settings | {"threshold": 0.5}, **fitted).save(path)
    code, (problem,), _ = _check(folder, GUARD + f"threshold = {value}\n" + blocks)
    assert "guards[0].threshold: guard g: threshold must be 0 to 1" in problem


def test_seams_that_are_not_the_methods_are_a_fault(
    folder: Path, make_artifact: MakeArtifact
) -> None:
    make_artifact(seams=["text"]).save(folder / "g.safetensors")
    code, problems, _ = _check(folder, MODEL + GUARD + POLICY)
    assert code == 1
    assert any("'steer', does not act at its seams (text)" in problem for problem in problems)


# -- policies --------------------------------------------------------------------------------------


def test_a_default_that_no_model_can_apply_is_a_problem(folder: Path) -> None:
    (folder / "m" / "model_index.json").write_text("{}", "utf-8")
    images = MODEL + 'engine = "diffusers"\n' + GUARD + POLICY
    code, problems, (warning,) = _check(folder, images)
    assert (code, problems) == (0, [])
    assert warning == "policies.p: none of its guards is for a model of this configuration"
    code, (problem,), _ = _check(folder, DEFAULT + images)
    assert code == 1
    assert problem.startswith("server.default_policy: no guard of 'p' is for a model")


def test_a_policy_that_waits_for_erasures_is_sound(folder: Path) -> None:
    server = f'{DEFAULT}admin_hash = "{HASH}"\n'
    empty = '[erasures]\nfolder = "kept"\n[policies.p]\nguards = []\n'
    code, problems, warnings = _check(folder, server + MODEL + empty)
    assert code == 0 and not problems and not any("erasures" in each for each in warnings)
    other = MODEL + 'engine = "vllm"\n'
    _, _, warnings = _check(folder, server + other + empty)
    assert any(each.startswith("erasures.folder: no model can forget") for each in warnings)


def test_a_proxys_default_needs_guards_that_act_there(folder: Path) -> None:
    text = GUARD + WORDS + POLICY + UPSTREAM
    code, (problem,), _ = _check(folder, DEFAULT + text)
    assert code == 1
    assert "policies.p: g act inside a model, which a proxy does not run" in problem
    other = '[policies.screened]\nguards = ["words"]\naction = "block"\n'
    own = '[proxy]\ndefault_policy = "screened"\n'
    code, problems, (warning,) = _check(folder, DEFAULT + own + text + other)
    assert (code, problems) == (0, [])
    assert warning.startswith("policies.p: ")


def test_a_policy_that_an_upstreams_plugin_applies_is_no_hole(folder: Path) -> None:
    delegates = '[policies.p.screen]\nupstream_policy = "careful"\n'
    plugin = UPSTREAM + "plugin = true\n"
    assert _check(folder, DEFAULT + GUARD + POLICY + delegates + plugin) == (0, [], [])
    assert _check(folder, DEFAULT + "[policies.p]\n" + delegates + plugin) == (0, [], [])
    # not without the plugin
    assert _check(folder, DEFAULT + GUARD + POLICY + delegates + UPSTREAM)[0] == 1
    assert _check(folder, DEFAULT + "[policies.p]\n" + delegates + UPSTREAM)[0] == 1


# -- digests ---------------------------------------------------------------------------------------


def test_an_altered_setting_is_refused_by_check_and_by_the_file(
    folder: Path, make_artifact: MakeArtifact
) -> None:
    path = folder / "g.safetensors"
    content = path.read_bytes()
    for old, new in ((b'\\"threshold\\":0.5', b'\\"threshold\\":9.5'), (b"harry", b"larry")):
        assert old in content
        path.write_bytes(content.replace(old, new))
        with pytest.raises(ConfigError, match="settings or tensors were altered"):
            load_config_of(folder)
        assert _check(folder, MODEL + GUARD + POLICY)[0] == 1


def load_config_of(folder: Path) -> None:
    (folder / "config.toml").write_text(MODEL + GUARD + POLICY, "utf-8")
    load_config(folder / "config.toml")


def test_an_artifact_without_its_digest_is_refused_until_it_is_signed(folder: Path) -> None:
    path = folder / "g.safetensors"
    artifact = Artifact.load(path)
    unsigned = {"guard": artifact.meta.canonical_json()}
    path.write_bytes(safetensors.numpy.save(artifact.tensors, unsigned))
    with pytest.raises(ConfigError, match=r"holds no digest of its settings.*artifacts sign"):
        load_config_of(folder)
    result = run("artifacts", "sign", path)
    assert result.exit_code == 0, result.output
    assert artifact.digest in result.stdout
    load_config_of(folder)
    assert Artifact.load(path).digest == artifact.digest


def test_an_altered_artifact_is_not_signed(folder: Path) -> None:
    path = folder / "g.safetensors"
    altered = path.read_bytes().replace(b'\\"threshold\\":0.5', b'\\"threshold\\":9.5')
    path.write_bytes(altered)
    result = run("artifacts", "sign", path)
    assert result.exit_code == 1
    assert "altered" in result.stderr
    assert path.read_bytes() == altered
