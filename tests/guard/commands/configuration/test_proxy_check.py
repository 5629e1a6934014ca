"""What `guard check` says of a proxy's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.guard.commands.running import run
from tests.guard.conftest import MakeArtifact

pytestmark = pytest.mark.usefixtures("plain_terminal")

CONFIG = """
[[guards]]
name = "hp"
artifact = "hp.safetensors"
[[patterns]]
name = "secrets"
source = "secrets"
[policies.text]
guards = ["secrets"]
action = "block"
[policies.both]
guards = ["secrets", "hp"]
action = "block"
[policies.model]
guards = ["hp"]
[[upstreams]]
name = "main"
url = "https://api.example.com/api/paas/v4"
key_env = "CHECKED_KEY"
[[upstreams]]
name = "bare"
url = "http://127.0.0.1:8000"
[[upstreams]]
name = "azure"
url = "https://x.example.com/openai/deployments/d/"
[[upstreams]]
name = "files"
url = "http://127.0.0.1:9000/mcp"
mcp = "/mcp/files"
"""


@pytest.fixture
def proxy_config(tmp_path: Path, make_artifact: MakeArtifact) -> Path:
    make_artifact().save(tmp_path / "hp.safetensors")
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def meaning(path: Path) -> Any:
    return json.loads(run("check", path, "--json").stdout)


def test_check_says_which_url_each_upstream_is_asked(proxy_config: Path) -> None:
    asked = {upstream["name"]: upstream["asks"] for upstream in meaning(proxy_config)["upstreams"]}
    assert asked == {
        "main": "https://api.example.com/api/paas/v4/chat/completions",
        "bare": "http://127.0.0.1:8000/v1/chat/completions",
        "azure": "https://x.example.com/openai/deployments/d/chat/completions",
        "files": "http://127.0.0.1:9000/mcp",
    }
    assert "Upstreams" in run("check", proxy_config).stdout


def test_check_says_which_guards_act_in_the_proxy(proxy_config: Path) -> None:
    policies = meaning(proxy_config)["policies"]
    acting = {
        name: (p["in_proxy"]["act"], p["in_proxy"]["cannot_act"]) for name, p in policies.items()
    }
    assert acting == {
        "none": ([], []),
        "text": (["secrets"], []),
        "both": (["secrets"], ["hp"]),
        "model": ([], ["hp"]),
    }
    told = run("check", proxy_config).stderr
    assert "policies.both: hp act inside a model, which a proxy does not run" in told
    assert "policies.model: hp act inside a model, which a proxy does not run" in told
    assert "policies.text" not in told


def test_check_says_whether_credentials_are_there(
    proxy_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHECKED_KEY", raising=False)
    assert "CHECKED_KEY is not set here" in run("check", proxy_config).stderr
    assert meaning(proxy_config)["upstreams"][0]["credential_is_set"] is False
    monkeypatch.setenv("CHECKED_KEY", "sk-secret-value")
    result = run("check", proxy_config)
    assert result.exit_code == 0
    assert "CHECKED_KEY is not" not in result.stderr
    assert "sk-secret-value" not in result.output
    told = meaning(proxy_config)
    assert [u["credential_is_set"] for u in told["upstreams"]] == [True, None, None, None]
    assert told["ok"] is True


def test_check_warns_of_a_base_without_a_version(proxy_config: Path) -> None:
    warnings = meaning(proxy_config)["warnings"]
    (about_base,) = [warning for warning in warnings if "no version" in warning]
    assert about_base.startswith("upstream azure:")


def test_a_configuration_without_upstreams_says_nothing_of_a_proxy(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    make_artifact().save(tmp_path / "hp.safetensors")
    path = tmp_path / "config.toml"
    path.write_text(CONFIG[: CONFIG.index("[[upstreams]]")])
    result = run("check", path)
    assert result.exit_code == 0 and "proxy" not in result.output
    assert meaning(path)["warnings"] == []


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('mcp = "/tools"', 'mcp: should be a path such as "/mcp/files"'),
        ('mcp = "/mcp/a/"', 'mcp: should be a path such as "/mcp/files"'),
        ('mcp = "/mcp/.."', 'mcp: should be a path such as "/mcp/files"'),
        ('mcp = "/mcp/a"\nplugin = true', "plugin: is not for a server of MCP"),
        ('mcp = "/mcp/a"\nmodels = ["m"]', "models: is not for a server of MCP"),
        (
            'mcp = "/mcp/a"\n[[upstreams]]\nname = "v"\nurl = "http://y"\nmcp = "/mcp/a"',
            "mcp: is the same as in upstreams[0]",
        ),
    ],
)
def test_faults_of_servers_of_mcp_are_told(tmp_path: Path, lines: str, problem: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[[upstreams]]\nname = "u"\nurl = "http://x"\n{lines}\n')
    result = run("check", path)
    assert result.exit_code == 1
    assert problem in result.stderr


def test_no_screen_routes_to_a_server_of_mcp(proxy_config: Path) -> None:
    screen = '[policies.text.screen]\nactions = { secrets = "route" }\nupstream = "files"\n'
    proxy_config.write_text(CONFIG + screen)
    result = run("check", proxy_config)
    assert result.exit_code == 1 and "no upstream" in result.stderr


@pytest.mark.parametrize("origin", ["https://a.example.com/", "a.example.com", "https://*.b.com"])
def test_an_origin_is_a_scheme_and_a_host(tmp_path: Path, origin: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[server]\ncors_origins = ["{origin}"]\n')
    assert "cors_origins[0]: should be" in run("check", path).stderr
