"""Guards as a technique of the benchmark eval-unlearn (arXiv 2609.35269).

It finds the class by an entry point; its runner makes a `GuardedTechnique(**config)` and asks it
for images.

The guards run in this process, on a pipeline that is loaded here (`guard.attached`), or in a server
that runs somewhere. Nothing of the benchmark is imported: what it asks of a technique is a class
with these two methods.
"""

from __future__ import annotations

import base64
import logging
import os
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from guard.attach import attached
from guard.config.checks import NO_POLICY
from guard.errors import ContentBlocked, DataError, ModelError

if TYPE_CHECKING:
    import httpx
    from PIL.Image import Image

logger = logging.getLogger(__name__)

KEY = "GUARD_API_KEY"
"""The environment variable of a server's key: configurations stand in the benchmark's reports."""
BLOCKED = "content_policy_violation"
_SIDE = 512
_CONNECT_S, _READ_S = 10.0, 1800.0
_MAX_ANSWER = 2**26


class Settings(BaseModel):
    """The `config` of the technique. Either `config`, a configuration file of guards, or `url` of a
    server is given; `model` is a pipeline to load, or the name of one that the server has.

    `policy` None is the default one. `erase_concept` is for the benchmark's own checks. `batch`
    images are generated at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1)
    config: Path | None = None
    url: str | None = None
    policy: str | None = None
    erase_concept: str = ""
    device: str = "auto"
    dtype: Literal["float32", "float16", "bfloat16", "auto"] = "float32"
    num_inference_steps: int = Field(50, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=0, le=100)
    batch: int = Field(1, ge=1, le=64)

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if (self.config is None) == (self.url is None):
            raise ValueError(
                "give either config, a configuration file of guards, or url, that of a server"
            )
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in {"http", "https"} or not parts.netloc:
                raise ValueError(f"url {self.url!r} is none: give one like http://127.0.0.1:8000")
        return self

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Raises DataError, in one line."""
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            faults = [
                " ".join([".".join(map(str, fault["loc"])) + ":" if fault["loc"] else "", text])
                for fault in error.errors(include_url=False)
                for text in (str(fault["msg"]).removeprefix("Value error, "),)
            ]
            raise DataError(f"technique.config: {'; '.join(f.strip() for f in faults)}") from error


class _Source(Protocol):
    def images(
        self, prompts: Sequence[str], seeds: Sequence[int] | None, steps: int, guidance: float
    ) -> list[Image | None]:
        """An image for each prompt, None where the policy blocks it."""

    def close(self) -> None: ...


class GuardedTechnique:
    """Images under a policy. Takes the fields of `Settings`.

    `outcomes` counts the images by what happened to them. Raises DataError for settings that are
    wrong, and as `guard.attached` for a policy that cannot act on the model.
    """

    def __init__(self, **config: Any) -> None:
        self.config = Settings.of(config)
        self.outcomes: Counter[str] = Counter()
        self._source: _Source = (
            _Served(self.config, self.outcomes)
            if self.config.url is not None
            else _InProcess(self.config, self.outcomes)
        )

    def generate(
        self, prompts: Sequence[str], seed: int | None = None, **options: Any
    ) -> list[Image]:
        """An image for each prompt; prompt i has the seed `seed + i`. `options` may be
        `num_inference_steps` and `guidance_scale`. What a policy blocks is a black image.

        Raises DataError for other options, and what the guards raise where they fail.
        """
        if other := {*options} - {"num_inference_steps", "guidance_scale"}:
            raise DataError(f"generate: has no option {', '.join(sorted(other))}")
        chosen = Settings.of({**self.config.model_dump(), **options})
        found: list[Image | None] = []
        for start in range(0, len(prompts), chosen.batch):
            part = list(prompts[start : start + chosen.batch])
            seeds = None if seed is None else [seed + start + i for i in range(len(part))]
            found += self._source.images(
                part, seeds, chosen.num_inference_steps, chosen.guidance_scale
            )
        logger.info("images by outcome: %s", dict(self.outcomes))
        return _with_black(found)

    def close(self) -> None:
        """Let go of the pipeline, or of the connections to the server."""
        self._source.close()


class _InProcess:
    """A pipeline with guards, attached until `close`."""

    def __init__(self, settings: Settings, outcomes: Counter[str]) -> None:
        from guard.models.pipelines import load_pipeline

        assert settings.config is not None
        self._pipeline = load_pipeline(settings.model, device=settings.device, dtype=settings.dtype)
        # as all techniques of the benchmark do: it measures the guards, not what is behind them
        if getattr(self._pipeline, "safety_checker", None) is not None:
            self._pipeline.safety_checker = None
        self._outcomes, stack = outcomes, ExitStack()
        self._handle = stack.enter_context(
            attached(self._pipeline, settings.policy, config=settings.config)
        )
        # the benchmark's runner drops a technique, and closes none
        self._detach = weakref.finalize(self, stack.close)

    def images(
        self, prompts: Sequence[str], seeds: Sequence[int] | None, steps: int, guidance: float
    ) -> list[Image | None]:
        import torch

        # on the CPU, so that a seed gives the same noise on any machine
        generators = None if seeds is None else [torch.Generator().manual_seed(s) for s in seeds]
        try:
            images: list[Image | None] = self._pipeline(
                prompt=list(prompts),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
            ).images
        except ContentBlocked:
            if len(prompts) == 1:
                self._outcomes["blocked"] += 1
                return [None]
            # a policy ends the call of a whole batch: the others are generated alone
            alone = [
                self.images([prompt], None if seeds is None else [seeds[i]], steps, guidance)
                for i, prompt in enumerate(prompts)
            ]
            return [image for images in alone for image in images]
        self._outcomes.update(verdict.outcome for verdict in self._handle.verdicts())
        return images

    def close(self) -> None:
        self._detach()


class _Served:
    """A running server of ours, asked for one image at a time."""

    def __init__(self, settings: Settings, outcomes: Counter[str]) -> None:
        try:
            import httpx
        except ImportError as error:
            raise DataError("technique.config: url needs httpx: pip install httpx") from error
        assert settings.url is not None
        self._url = settings.url.rstrip("/").removesuffix("/v1")
        key = os.environ.get(KEY)
        self._client = httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
        )
        self._model, self._policy, self._outcomes = settings.model, settings.policy, outcomes

    def images(
        self, prompts: Sequence[str], seeds: Sequence[int] | None, steps: int, guidance: float
    ) -> list[Image | None]:
        body: dict[str, Any] = {
            "model": self._model,
            "num_inference_steps": steps,
            "guidance_scale": guidance,
        }
        if self._policy is not None:
            body["guard"] = {"policy": self._policy}
        return [
            self._image(body | {"prompt": prompt} | ({} if seeds is None else {"seed": seeds[i]}))
            for i, prompt in enumerate(prompts)
        ]

    def _image(self, body: Mapping[str, Any]) -> Image | None:
        import httpx

        try:
            response = self._client.post("/v1/images/generations", json=dict(body))
        except httpx.HTTPError as error:
            raise ModelError(f"{self._url}: cannot be asked: {error}") from error
        answer = self._read(response)
        if response.status_code >= 400:
            fault = answer.get("error") or {}
            if fault.get("code") == BLOCKED:
                self._outcomes["blocked"] += 1
                return None
            raise ModelError(
                f"{self._url}: answers {response.status_code}: {str(fault.get('message'))[:300]}"
            )
        outcome = response.headers.get("X-Guard-Verdict")
        if outcome is None or response.headers.get("X-Guard-Policy") == NO_POLICY:
            raise ModelError(
                f"{self._url}: answers without guards: give the policy; of a server that tells its "
                'clients nothing (verdict = "none") this cannot be known'
            )
        self._outcomes[outcome] += 1
        return _decoded(answer, self._url)

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        if len(response.content) > _MAX_ANSWER:
            raise ModelError(f"{self._url}: answers more than {_MAX_ANSWER // 2**20} MiB")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ModelError(
                f"{self._url}: answers {response.status_code} without JSON: is it a server of "
                "this project?"
            )
        return answer

    def close(self) -> None:
        self._client.close()


def _decoded(answer: Mapping[str, Any], url: str) -> Image:
    from PIL import Image as images

    try:
        return images.open(BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).convert("RGB")
    except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
        raise ModelError(f"{url}: answers without an image") from error


def _with_black(found: Sequence[Image | None]) -> list[Image]:
    """Black images in the place of blocked ones, of the size of the others."""
    from PIL import Image as images

    size = next((image.size for image in found if image is not None), (_SIDE, _SIDE))
    return [images.new("RGB", size) if image is None else image for image in found]
