"""A diffusers pipeline by the name of its model, as `guard.load_pipeline` hands it out."""

from __future__ import annotations

from typing import Any

from guard.errors import ModelError
from guard.models.kind_checks import source_of


def load_pipeline(source: str, *, device: str = "auto", dtype: str = "float32") -> Any:
    """The pipeline of an added model, a directory or a hub name, in eval mode.

    Classes that a pipeline of this project names, such as the autoencoder of `emoji`, are imported,
    which diffusers does not do by itself. Raises ModelError.
    """
    resolved = source_of(source, "images")
    # late: diffusers takes seconds to import
    from steering.engines.diffusion import loading

    try:
        return loading.load_pipeline(resolved, device=device, dtype=dtype)
    except ValueError as error:
        raise ModelError(f"model {source!r}: {error}") from error
