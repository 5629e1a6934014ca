"""The technique of eval-unlearn on a tiny pipeline, by a server, and in its own runner."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from guard.errors import DataError, ModelError, UnknownPolicy
from guard.evaluation import eval_unlearn
from guard.evaluation.eval_unlearn import GuardedTechnique
from tests.server.endpoints.image_server import KNIFE, SHOWN, ImageServer, serve_toy
from tests.server.tiny_pipeline import save_guards, save_pipeline
from tests.server.toy_image_service import HEIGHT, WIDTH, serve_images
from tests.steering.engines.diffusion.tiny import weights_hash

PROMPTS = ["a knife", "a cat", "a dog"]
CONFIG = """
[[guards]]
name = "knife"
artifact = "knife.safetensors"

[policies.refine]
guards = ["knife"]
action = "refine"

[policies.block]
guards = ["knife"]
action = "block"

[server]
default_policy = "refine"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harness")
    save_guards(path, save_pipeline(path / "model"))
    (path / "config.toml").write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    base = tmp_path_factory.mktemp("images")
    with serve_images(base) as running, serve_toy(running) as serving:
        yield serving


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    own = {"model": str(folder / "model"), "config": str(folder / "config.toml"), "device": "cpu"}
    return own | {"num_inference_steps": 3, "guidance_scale": 3.0} | more


def bare(folder: Path, seed: int) -> list[Any]:
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return [
        np.asarray(
            pipeline(
                prompt,
                num_inference_steps=3,
                guidance_scale=3.0,
                generator=torch.Generator().manual_seed(seed + i),
            ).images[0]
        )
        for i, prompt in enumerate(PROMPTS)
    ]


def test_guarded_prompts_change_and_others_are_those_of_the_pipeline(folder: Path) -> None:
    technique = GuardedTechnique(**settings(folder))
    images = technique.generate(prompts=PROMPTS, seed=5)
    expected = bare(folder, 5)
    assert not np.array_equal(images[0], expected[0])
    assert all(map(np.array_equal, images[1:], expected[1:]))
    assert technique.outcomes == {"refined": 1, "pass": 2}
    # the same seeds again, and fewer steps where they are asked for
    assert all(map(np.array_equal, technique.generate(PROMPTS, 5), images))
    fewer = technique.generate(PROMPTS[1:2], 6, num_inference_steps=2)
    assert not np.array_equal(fewer[0], images[1])
    pipeline = technique._source._pipeline  # type: ignore[attr-defined]
    before = weights_hash(pipeline)
    technique.close()
    assert weights_hash(pipeline) == before


def test_a_blocked_prompt_is_a_black_image_of_the_size_of_the_others(folder: Path) -> None:
    technique = GuardedTechnique(**settings(folder, policy="block", batch=3))
    images = technique.generate(PROMPTS, seed=5)
    technique.close()
    assert not np.asarray(images[0]).any() and np.asarray(images[1]).any()
    assert len({image.size for image in images}) == 1
    assert technique.outcomes == {"blocked": 1, "pass": 2}
    expected = bare(folder, 5)
    assert all(map(np.array_equal, images[1:], expected[1:]))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"config": None}, "give either config, a configuration file of guards, or url"),
        ({"url": "http://127.0.0.1:1"}, "give either config"),
        ({"config": None, "url": "127.0.0.1"}, "url '127.0.0.1' is none"),
        ({"polcy": "x"}, "polcy: Extra inputs are not permitted"),
        ({"num_inference_steps": 0}, "num_inference_steps: .*greater than or equal to 1"),
        ({"dtype": "int3"}, "dtype: "),
    ],
)
def test_wrong_settings_are_one_line(folder: Path, changed: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError, match=f"technique.config: .*{fault}") as raised:
        GuardedTechnique(**settings(folder) | changed)
    assert "\n" not in str(raised.value)


def test_a_policy_that_cannot_act_is_an_error(folder: Path) -> None:
    with pytest.raises(UnknownPolicy):
        GuardedTechnique(**settings(folder, policy="no"))
    technique = GuardedTechnique(**settings(folder))
    with pytest.raises(DataError, match="generate: has no option cfg"):
        technique.generate(["a cat"], cfg=3)
    technique.close()


def served(server: ImageServer, **more: Any) -> GuardedTechnique:
    own = {"model": "toy", "url": f"{server.url}/v1", "policy": "refine-knife"}
    return GuardedTechnique(**own | {"num_inference_steps": 3} | more)


def test_a_server_is_asked_by_its_url(server: ImageServer) -> None:
    technique = served(server)
    images = technique.generate(["a cat", KNIFE], seed=1)
    assert images[0].size == (WIDTH, HEIGHT) and technique.outcomes == {"pass": 1, "refined": 1}
    how: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 7.5}
    assert np.array_equal(images[0], server.pixels("a cat", "refine-knife", seed=1, **how))
    assert np.array_equal(images[1], server.pixels(KNIFE, "refine-knife", seed=2, **how))
    assert not np.array_equal(images[1], server.pixels(KNIFE, "none", seed=2, **how))
    technique.close()


def test_what_a_server_blocks_is_black_and_other_faults_end_the_run(server: ImageServer) -> None:
    technique = served(server, policy="block-output")
    images = technique.generate(["a cat", SHOWN], seed=1)
    assert not np.asarray(images[1]).any() and images[1].size == images[0].size
    assert technique.outcomes["blocked"] == 1
    for changed, fault in (
        ({"policy": "none"}, "answers without guards: give the policy"),
        ({"policy": "no"}, "answers 4"),
        ({"model": "no"}, "answers 404"),
    ):
        with pytest.raises(ModelError, match=fault):
            served(server, **changed).generate(["a cat"], seed=1)
    gone = GuardedTechnique(model="toy", url="http://127.0.0.1:9", policy="refine-knife")
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:9: cannot be asked"):
        gone.generate(["a cat"], seed=1)


def entry_point() -> EntryPoint:
    """As an installation has it: the metadata of an editable one may be older than the file."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["eval_unlearn.techniques"].items()
    return EntryPoint(name, value, "eval_unlearn.techniques")


def test_the_entry_point_names_the_class() -> None:
    assert entry_point().name == "inference_guard"
    assert entry_point().load() is GuardedTechnique


def test_the_benchmark_runs_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("eval_unlearn", reason="pip install eval-unlearn")
    from eval_unlearn.registry import entrypoints, register_metric
    from eval_unlearn.runners import SingleBenchmarkRunner
    from eval_unlearn.types import Dataset, MetricResult

    class Shown:
        """The share of images that are the bare ones."""

        def __init__(self) -> None:
            self.same: list[bool] = []

        def load_dataset(self) -> list[Any]:
            return [Dataset(PROMPTS, {"source": "three"})]

        def update(self, images: Any, prompts: Any, metadata: Any) -> None:
            self.same += map(np.array_equal, images, bare(folder, 5))

        def compute(self) -> Any:
            return MetricResult("shown", sum(self.same) / len(self.same), {"same": self.same})

    register_metric("shown")(Shown)
    ours = {"eval_unlearn.techniques": [entry_point()]}
    monkeypatch.setattr(entrypoints, "entry_points", lambda group: ours.get(group, []))
    monkeypatch.setenv(eval_unlearn.KEY, "a secret")
    runner = SingleBenchmarkRunner(
        "inference_guard",
        "shown",
        technique_config=settings(folder, erase_concept="knife"),
        output_dir=str(tmp_path),
        seed=5,
    )
    report = runner.run()
    assert report["metric_result"]["details"]["same"] == [False, True, True]
    assert report["erase_concept"] == "knife"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".png" for path in written) == 3
    texts = [path.read_text() for path in written if path.suffix == ".json"]
    assert texts and not any("a secret" in text for text in texts)
    assert any(json.loads(text).get("technique_config") for text in texts)
