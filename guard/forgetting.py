"""Plain Python use: guards of a concept from its name, for a model that the caller holds or
names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.config.policy_schema import PolicyConfig
from guard.config.schema import Config, Dtype, GuardConfig
from guard.errors import DataError
from guard.fitting.erasure.documents import checked_name, read_documents
from guard.fitting.erasure.forget import forget as forget_by_name
from guard.fitting.erasure.forget import save
from guard.fitting.erasure.report import PYTHON
from guard.fitting.steering.artifacts import file_name
from guard.fitting.steering.gate_search import GateRates
from guard.models.chat import TransformersChat
from guard.reporting.progress import stages


@dataclass(frozen=True)
class ForgottenConcept:
    """The guards of a concept, in files.

    `judgement` says in one line whether they can be used as they are; `figures` are shares with
    their 95 % intervals; `report` is the page with every prompt that was tried. `policy_file` lists
    the artifacts for `guard add`. In Python: `guard.attached(model, made.policy,
    config=made.config)`.
    """

    name: str
    artifacts: tuple[Path, ...]
    policy_file: Path
    report: Path
    judgement: str
    figures: Mapping[str, str]

    @property
    def policy(self) -> str:
        """The only policy of `config`, which has all of the guards."""
        return file_name(self.name)

    @property
    def config(self) -> Config:
        """What `guard.attached` needs."""
        guards = [GuardConfig(name=path.stem, artifact=path) for path in self.artifacts]
        policy = PolicyConfig(guards=tuple(guard.name for guard in guards))
        return Config(guards=tuple(guards), policies={self.policy: policy})


def forget(
    model: Any,
    name: str,
    *,
    tokenizer: Any = None,
    aliases: Sequence[str] = (),
    documents: Sequence[Path | str] = (),
    out: Path | str = "guards",
    fpr: float = 0.01,
    near_fpr: float = 0.1,
    dtype: Dtype = "float32",
    device: str = "auto",
) -> ForgottenConcept:
    """Make guards of the concept `name`, as `guard new` does, and write them into the folder `out`.

    `model` is a transformers causal language model with its `tokenizer`, or a source that is loaded
    in `dtype` on `device`: an added model, a directory, a hub name. `documents` are paths of texts
    about the concept. `fpr` and `near_fpr` are the false-positive rates on other topics and on the
    nearest ones. The model's weights are not touched.

    Raises DataError (a name or a document that cannot be used, a concept that the model does not
    know), ModelError and ArtifactError.
    """
    concept = checked_name(name)
    others = [checked_name(alias) for alias in aliases]
    texts = read_documents([Path(document) for document in documents])
    if not (0 < fpr <= 0.5 and 0 < near_fpr <= 0.5):
        raise DataError("fpr and near_fpr are shares of innocent prompts: give 0.001 to 0.5")
    if isinstance(model, str) == (tokenizer is not None):
        raise DataError(
            "give a loaded model together with its tokenizer, or the source of one alone"
        )
    with _chat(model, tokenizer, dtype, device) as chat, stages() as progress:
        rates = GateRates(fpr, near_fpr)
        forgotten = forget_by_name(chat, concept, others, texts, progress, rates=rates)
        files = save(chat, forgotten, Path(out) / f"{file_name(concept)}.safetensors", PYTHON)
    return ForgottenConcept(
        name=concept,
        artifacts=tuple(path.absolute() for path in files.artifacts),
        policy_file=files.policy,
        report=files.page,
        judgement=files.report["judgement"],
        figures=files.report["figures"],
    )


@contextmanager
def _chat(model: Any, tokenizer: Any, dtype: Dtype, device: str) -> Iterator[TransformersChat]:
    if isinstance(model, str):
        yield TransformersChat.load(model, dtype=dtype, device=device)
        return
    was_training = bool(model.training)
    called = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    try:
        yield TransformersChat(model, tokenizer, name=called)
    finally:
        model.train(was_training)
