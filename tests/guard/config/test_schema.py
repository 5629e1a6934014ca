from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guard.config import schema as module
from guard.config.policy_schema import PolicyConfig
from guard.config.schema import load_config
from guard.errors import ConfigError, UnknownPolicy
from tests.guard.conftest import GOOD, HASH, MakeArtifact

BAD = """\
# a comment
[server]
port = "8000"
host = '''
127.0.0.1'''
prot = 1
default_policy = "strickt"

[[models]]
source = "smollm2"
dtype = "int8"

[[guards]]
name = "hp"
artifact = "missing.safetensors"
threshold = nan

[[guards]]
name = "hp"
artifact = "damaged.safetensors"
strength = 11

[policies]
none = {guards = []}

[policies.strict]
guards = [
  "hp",
  "harry",
  "hp",
]
action = "stear"

[[keys]]
hash = "sk-secret"
tenant = "acme"
policies = ["strict", "lax"]
requests_per_minute = 0
[extra]
"""


def problems(folder: Path, text: str | bytes) -> list[str]:
    path = folder / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return list(error.value.problems)


def test_the_audit_key_is_relative_too_and_is_for_an_audit_log(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[server]\naudit_log = "audit.jsonl"\naudit_key = "audit.pem"\n', "utf-8")
    assert load_config(path).server.audit_key == tmp_path / "audit.pem"
    (problem,) = problems(tmp_path, '[server]\naudit_key = "audit.pem"\n')
    assert "signs the audit log: add 'audit_log'" in problem


def test_a_valid_file_is_read_with_paths_relative_to_its_folder(
    tmp_path: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_artifact().save(tmp_path / "hp.safetensors")
    (tmp_path / "config.toml").write_text(GOOD, "utf-8")
    monkeypatch.chdir(tmp_path.parent)
    config = load_config(Path(tmp_path.name, "config.toml"))
    assert config.guards[0].artifact == tmp_path / "hp.safetensors"
    assert config.server.audit_log == tmp_path / "logs" / "audit.jsonl"
    assert config.models[0].source == str(tmp_path / "models" / "smollm2")
    assert config.server.request_timeout_s == 30
    assert config.policy_names == ("none", "strict")
    assert config.guards_of("strict") == config.guards
    assert config.guards_of("none") == ()
    assert config.policy("none") == PolicyConfig()
    with pytest.raises(UnknownPolicy, match="there is none, strict"):
        config.policy("lax")
    with pytest.raises(ValidationError):
        config.server.port = 1


def test_embeddings_are_allowed_by_keys_or_by_a_server_without_keys(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    make_artifact().save(tmp_path / "hp.safetensors")
    path = tmp_path / "config.toml"
    path.write_text(GOOD + "embeddings = true\n", "utf-8")
    config = load_config(path)
    assert config.keys[0].embeddings and not config.server.embeddings
    at_the_server = GOOD.replace("[server]", "[server]\nembeddings = true")
    (fault,) = problems(tmp_path, at_the_server)
    assert fault.startswith("line 3: server.embeddings: ") and "[[keys]]" in fault
    path.write_text(at_the_server.partition("[[keys]]")[0], "utf-8")
    assert load_config(path).server.embeddings
    path.write_text(GOOD, "utf-8")
    assert not load_config(path).keys[0].embeddings


def test_an_empty_file_is_an_open_server_without_guards(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    config = load_config(tmp_path / "config.toml")
    assert (config.server.host, config.server.port, config.keys) == ("127.0.0.1", 8000, ())


def test_all_faults_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"rubbish")
    faults = problems(tmp_path, BAD)
    expected = [
        (3, "server.port", "integer"),
        (6, "server.prot", 'did you mean "port"?'),
        (7, "server.default_policy", 'did you mean "strict"?'),
        (9, "models[0].name", "is missing"),
        (11, "models[0].dtype", "float32"),
        (15, "guards[0].artifact", "does not exist"),
        (16, "guards[0].threshold", "finite"),
        (19, "guards[1].name", "guards[0]"),
        (20, "guards[1].artifact", "truncated or not a safetensors file"),
        (21, "guards[1].strength", "less than or equal to 10"),
        (24, "policies.none", "reserved"),
        (29, "policies.strict.guards[1]", 'no guard "harry"'),
        (30, "policies.strict.guards[2]", "twice"),
        (32, "policies.strict.action", "'steer', 'overlay', 'refine', 'perturb', 'block'"),
        (35, "keys[0].hash", "sha256:"),
        (37, "keys[0].policies[1]", 'no policy "lax"'),
        (38, "keys[0].requests_per_minute", "greater than or equal to 1"),
        (39, "extra", "unknown key"),
    ]
    assert len(faults) == len(expected), "\n".join(faults)
    for problem, (line, place, words) in zip(faults, expected, strict=True):
        assert problem.startswith(f"line {line}: {place}: "), problem
        assert words in problem


IMAGES = """\
[[models]]
name = "words"
source = "words"
steps = 25

[[models]]
name = "emoji"
source = "emoji"
engine = "diffusers"
max_context = 5
default_policy = "words"
steps = 200

[[models]]
name = "ghost"
source = "emoji"
engine = "diffusers"
default_policy = "ghost"
max_steps = 0

[[guards]]
name = "words"
artifact = "words.safetensors"

[[guards]]
name = "knife"
artifact = "knife.safetensors"
recheck = false

[policies.words]
guards = ["words"]
fallback = "replace"

[policies.knife]
guards = ["knife", "words"]
action = "refine"
replacement = "a banana"
"""


MODELS = """
[[models]]
name = "encoder"
source = "minilm"
engine = "onnxruntime"
dtype = "auto"
pooling = "last"

[[models]]
name = "served"
source = "./model.gguf"
engine = "vllm"
quantization = "int8"

[[models]]
name = "placed"
source = "smollm2"
device = "cpu"
device_map = "auto"
quantization = "int3"
"""


def test_settings_of_models_that_do_not_go_together_are_reported(tmp_path: Path) -> None:
    faults = problems(tmp_path, MODELS)
    expected = [
        (6, "models[0].dtype", "is for language models and models of images"),
        (7, "models[0].pooling", "is for language models"),
        (11, "models[1].source", 'a GGUF file, which engine = "transformers" alone reads'),
        (13, "models[1].quantization", "not for vLLM"),
        (19, "models[2].device_map", "leave 'device' out"),
        (20, "models[2].quantization", "'int8' or 'nf4'"),
    ]
    assert len(faults) == len(expected), "\n".join(faults)
    for problem, (line, place, words) in zip(faults, expected, strict=True):
        assert problem.startswith(f"line {line}: {place}: ") and words in problem


def test_settings_for_another_kind_of_files_are_reported(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    make_artifact().save(tmp_path / "words.safetensors")
    make_artifact(seams=["embedding"], method="nearest").save(tmp_path / "knife.safetensors")
    faults = problems(tmp_path, IMAGES)
    expected = [
        (4, "models[0].steps", "for models of images"),
        (10, "models[1].max_context", "for language models"),
        (11, "models[1].default_policy", 'guards of "words" are for language models'),
        (12, "models[1].steps", "more than max_steps, 100"),
        (18, "models[2].default_policy", 'no policy "ghost"'),
        (19, "models[2].max_steps", "greater than or equal to 1"),
        (28, "guards[1].recheck", "language models"),
        (32, "policies.words.fallback", "add replacement"),
        (37, "policies.knife.replacement", "add that too"),
    ]
    assert len(faults) == len(expected), "\n".join(faults)
    for problem, (line, place, words) in zip(faults, expected, strict=True):
        assert problem.startswith(f"line {line}: {place}: "), problem
        assert words in problem


def test_a_configuration_for_images_is_read(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    make_artifact(seams=["embedding", "guidance"], method="nearest").save(
        tmp_path / "knife.safetensors"
    )
    path = tmp_path / "config.toml"
    path.write_text(
        '[server]\nmax_pictures = 4\n[[models]]\nname = "emoji"\nsource = "./emoji"\n'
        'engine = "diffusers"\ndefault_policy = "knife"\nsteps = 25\nguidance_scale = 3.0\n'
        '[[guards]]\nname = "knife"\nartifact = "knife.safetensors"\n[policies.knife]\n'
        'guards = ["knife"]\naction = "refine"\nfallback = "replace"\nreplacement = "a cat"\n'
    )
    config = load_config(path)
    (model,) = config.models
    assert (model.kind, model.default_policy, model.max_steps) == ("images", "knife", 100)
    assert (model.steps, model.guidance_scale, config.server.max_images) == (25, 3.0, 4)
    policy = config.policy("knife")
    assert (policy.action, policy.fallback, policy.replacement) == ("refine", "replace", "a cat")


def test_an_api_key_in_place_of_its_hash_is_not_repeated(tmp_path: Path) -> None:
    assert "sk-secret" not in "".join(problems(tmp_path, BAD))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb = = 2\n", 2),
        ("a = 1\na = 2\n", 2),
        ('a = "never closed', 1),
        ("a = 1\r\n[b\r\n", 2),
        (b"a = 1\nb = '\xff'\n", 2),
        ("a = " + "[" * 50_000, 1),
        ("a = " + "9" * 10_000, 1),
        ("[[server]]\n", 1),
        ("\nmodels = 3\n", 2),
        ("\nguards = [1]\n", 2),
        ("\n\n[policies]\nx = 1\n", 4),
        ("\n[policies.empty]\n", 2),
        ("\n[policies.empty]\naction = 'block'\nguards = []\n", 4),
        ("[[patterns]]\nname = 'p'\nsource = 'secrets'\n[policies.'a b']\nguards = ['p']\n", 4),
    ],
)
def test_a_single_fault_is_reported_with_its_line(
    tmp_path: Path, text: str | bytes, line: int
) -> None:
    faults = problems(tmp_path, text)
    assert len(faults) == 1
    assert faults[0].startswith(f"line {line}: ")


def test_two_keys_with_one_hash_are_refused(tmp_path: Path) -> None:
    entry = f'[[keys]]\nhash = "{HASH}"\ntenant = "t"\n'
    (fault,) = problems(tmp_path, entry * 2)
    assert fault.startswith("line 5: keys[1].hash: is the same as in keys[0]")


def test_a_file_that_cannot_be_read_is_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path, tmp_path / "missing.toml", Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path)
    monkeypatch.setattr(module, "MAX_CONFIG_BYTES", 10)
    assert "larger than 10 bytes" in problems(tmp_path, "# 9 bytes and more")[0]


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\nport = 1\n")
    assert load_config(path).server.port == 1


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_broken_file_is_never_anything_but_a_config_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    start = data.draw(st.integers(0, len(BAD)))
    end = data.draw(st.integers(start, min(len(BAD), start + 20)))
    inserted = data.draw(st.text("[]{}\"'=.#\n a1\x00é", max_size=5))
    path = tmp_path_factory.getbasetemp() / "broken.toml"
    path.write_bytes((BAD[:start] + inserted + BAD[end:]).encode())
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert all(problem.startswith("line ") for problem in error.value.problems)


def test_a_device_file_is_not_read_for_ever() -> None:
    if os.path.exists("/dev/zero"):
        with pytest.raises(ConfigError, match="larger than"):
            load_config("/dev/zero")


def test_erasures_need_an_administrator_and_let_policies_be_empty(tmp_path: Path) -> None:
    empty = "[policies.p]\nguards = []\n"
    assert any("names no guard" in each for each in problems(tmp_path, empty))
    erasures = f'[erasures]\nfolder = "kept"\n{empty}'
    (problem,) = problems(tmp_path, erasures)
    assert problem.startswith("line 2: erasures.folder: needs the administrator")
    path = tmp_path / "config.toml"
    path.write_text(f'[server]\nadmin_hash = "{HASH}"\n{erasures}')
    assert load_config(path).erasures.folder == tmp_path / "kept"
