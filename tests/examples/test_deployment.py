"""The files of `examples/deployment`, each checked by the tool that reads it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from guard.config.proxy_schema import ProxyConfig
from guard.config.schema import load_config

ROOT = Path(__file__).parents[2]
DEPLOYMENT = ROOT / "examples" / "deployment"
CHART = DEPLOYMENT / "helm" / "inference-guard"
DOCKERFILES = sorted(DEPLOYMENT.glob("docker/*.Dockerfile"))
UNITS = sorted(DEPLOYMENT.glob("systemd/*.service"))


def tool(name: str) -> str:
    """A program of this environment, or of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(*settings: str, release: str = "guard") -> list[dict[str, Any]]:
    options = [part for setting in settings for part in ("--set", setting)]
    text = run(tool("helm"), "template", release, str(CHART), *options)
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(documents: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def checked(text: str, folder: Path) -> None:
    path = folder / "config.toml"
    path.write_text(text)
    assert load_config(path).policies


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles_have_no_fault_and_copy_what_is_there(path: Path) -> None:
    run(tool("hadolint"), str(path))
    copied = [
        name
        for line in path.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    ]
    assert "pyproject.toml" in copied and all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("path", DOCKERFILES[:2], ids=lambda path: path.stem)
def test_the_images_of_our_own_processes_do_not_run_as_root(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines.index("USER 10001") < next(
        i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT")
    )


def test_the_chart_has_no_fault() -> None:
    run(tool("helm"), "lint", "--strict", str(CHART))


VALUES = [
    (),
    ("mode=server", "port=8000", "modelsClaim=models", "auditClaim=audit"),
    ("mode=vllm", "port=8000", "args={some/model}", "autoscaling.enabled=true"),
    ("credentials=upstreams", "disruptionBudget=false"),
]


@pytest.mark.parametrize("settings", VALUES, ids=["proxy", "server", "vllm", "credentials"])
def test_rendered_manifests_are_kubernetes_own(settings: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(rendered(*settings)))
    run(tool("kubernetes-validate"), "--strict", str(path))


def test_a_pod_drains_for_longer_than_it_waits_for_traffic_to_stop() -> None:
    pod = of_kind(rendered("preStopSeconds=7", "drainSeconds=40"), "Deployment")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 47
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["args"] == ["--port", "8080"]


def test_vllm_gets_its_model_and_no_probe_that_it_has_not() -> None:
    deployment = of_kind(rendered("mode=vllm", "args={some/model,--enforce-eager}"), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"][-2:] == ["some/model", "--enforce-eager"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health"


def test_another_configuration_restarts_the_pods() -> None:
    def digest(*settings: str) -> str:
        template = of_kind(rendered(*settings), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["config-sha256"])

    assert digest() == digest("replicas=5") != digest("config=[server]")


def test_an_unknown_mode_is_refused() -> None:
    done = subprocess.run(
        [tool("helm"), "template", "x", str(CHART), "--set", "mode=gateway"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode and "mode must be proxy, server or vllm" in done.stderr


def test_the_charts_configuration_holds(tmp_path: Path) -> None:
    checked(of_kind(rendered(), "ConfigMap")["data"]["config.toml"], tmp_path)


def test_the_sidecars_manifest_and_configuration_hold(tmp_path: Path) -> None:
    path = DEPLOYMENT / "kubernetes" / "sidecar.yaml"
    run(tool("kubernetes-validate"), "--strict", str(path))
    documents = list(yaml.safe_load_all(path.read_text()))
    checked(of_kind(documents, "ConfigMap")["data"]["config.toml"], tmp_path)
    containers = of_kind(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert "127.0.0.1" in containers[0]["args"]  # nobody reaches the model beside the proxy


def test_the_sidecars_model_serves_until_the_proxys_answers_have_ended() -> None:
    """Kubernetes tells all containers of a pod to stop at once."""
    documents = list(yaml.safe_load_all((DEPLOYMENT / "kubernetes" / "sidecar.yaml").read_text()))
    pod = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
    model, proxy = (
        int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        for container in pod["containers"]
    )
    drain = ProxyConfig().drain_timeout_s
    assert proxy + drain < model < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_are_systemds_own(path: Path, tmp_path: Path) -> None:
    program = tmp_path / "guard"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / path.name
    unit.write_text(path.read_text().replace("/opt/inference-guard/bin/guard", str(program)))
    run(tool("systemd-analyze"), "verify", str(unit))


def test_compose_builds_the_images_that_are_there() -> None:
    path = DEPLOYMENT / "docker" / "compose.yaml"
    services = yaml.safe_load(path.read_text())["services"]
    for service in services.values():
        context = (path.parent / service["build"]["context"]).resolve()
        assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()


def test_the_user_of_an_image_may_write_its_volumes() -> None:
    """A named volume takes its owner from the folder of the image at its path."""
    compose = yaml.safe_load((DEPLOYMENT / "docker" / "compose.yaml").read_text())
    for service in compose["services"].values():
        lines = (ROOT / service["build"]["dockerfile"]).read_text().splitlines()
        (made,) = (line for line in lines if "install -d -o guard" in line)
        targets = {volume.split(":")[1] for volume in service["volumes"] if volume[0] != "."}
        assert targets == {"/models", "/log"} == {*made.split()} & targets
