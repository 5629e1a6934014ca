"""A model that cannot be loaded is refused before the server listens, in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from guard.config.schema import Config, ModelConfig
from guard.errors import ModelError
from server.services.build import build_services
from tests.server.tiny_text_service import save_model


def _config(*models: dict[str, Any]) -> Config:
    return Config(models=tuple(ModelConfig(device="cpu", **model) for model in models))


def _engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("engine ")]


def _refused(config: Config) -> str:
    before = _engine_threads()
    with pytest.raises(ModelError) as raised:
        build_services(config, lambda request, verdict: None)
    # services that were built before the error are closed again
    assert _engine_threads() == before
    assert "\n" not in raised.value.message
    return raised.value.message


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    assert "no added model" in _refused(_config({"name": "m", "source": "nowhere"}))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    assert str(tmp_path) in _refused(_config({"name": "m", "source": str(tmp_path)}))


def test_an_unsupported_architecture_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bloom"}))
    assert "model m" in _refused(_config({"name": "m", "source": str(tmp_path)}))


def test_an_image_model_without_diffusers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "server.services.build_images", None)
    message = _refused(_config({"name": "m", "source": str(tmp_path), "engine": "diffusers"}))
    assert "pip install 'inference-guard[serve,diffusers]'" in message


def test_language_models_need_no_diffusers() -> None:
    program = """
import sys
import server.app, server.services.build, server.lifecycle.run
assert not {"diffusers", "server.services.images"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300, cwd=Path.cwd())


def test_the_second_model_failing_closes_the_first(tmp_path: Path) -> None:
    save_model(tmp_path)
    good = {"name": "good", "source": str(tmp_path)}
    _refused(_config(good, {"name": "bad", "source": "nowhere"}))


def test_the_context_is_the_smaller_of_the_models_and_the_configured(tmp_path: Path) -> None:
    save_model(tmp_path)
    source = str(tmp_path)
    config = _config(
        {"name": "full", "source": source}, {"name": "less", "source": source, "max_context": 64}
    )
    services = build_services(config, lambda request, verdict: None)
    try:
        assert {name: service.info.max_context for name, service in services.items()} == {
            "full": 256,
            "less": 64,
        }
    finally:
        for service in services.values():
            service.close()
