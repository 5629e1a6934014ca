"""The sections of the configuration that say what a policy does."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from guard.config.section import Name, Section

MAX_PROMPT_CHARS = 4000
"""Limit of an image's prompt."""
MAX_MESSAGE_CHARS = 2000
"""Limit of the text that is read in place of a blocked answer."""

TextAction = Literal["block", "redact", "flag", "observe", "route", "policy"]
"""The action of a screen of text: "route" sends the request to another upstream or model, "policy"
has the upstream's plugin apply a policy."""
IMAGE_ACTIONS: frozenset[TextAction] = frozenset({"block", "flag", "observe"})
"""The actions of a screen of images."""
Action = Literal[
    "steer",
    "overlay",
    "refine",
    "perturb",
    "block",
    "say",
    "flag",
    "observe",
    "redact",
    "route",
    "policy",
]
OF_METHODS: frozenset[Action] = frozenset({"steer", "overlay", "refine", "perturb"})
"""The actions that stand for the one of the guard's method."""
LanguageAction = Literal["steer", "say", "block", "flag", "observe"]
"""Of a guard of a language model: "say" gives the policy's message in place of the answer."""
Scope = Literal["conversation", "turn"]
"""The tokens that guards decide on: all of a chat, or those from the user's last turn on."""
Place = Literal["system", "user", "assistant", "tool", "arguments", "images", "response"]
"""Places of text: messages by role, tools and calls of them, prompts of images, the response."""
PLACES: tuple[Place, ...] = get_args(Place)
OF_ACTING = ("fallback", "replacement", "debug", "keep_text")
"""Settings of a policy for which a shadow has no use."""
Fallback = Literal["block", "replace"]
OnError = Literal["closed", "open"]

# Types are strict, but TOML has arrays in place of tuples.
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Places = Annotated[tuple[Place, ...], Field(strict=False, min_length=1)]


class ScreenConfig(Section):
    """`[policies.NAME.screen]`: what the policy's screens of texts and images read, and how they
    act.

    `look` are the places that are read, `looks` overrides it for single guards; without either a
    screen reads the places that it was fitted for, or all where it does not say. `actions`
    overrides the policy's action for single guards. `turns` of the conversation are read together.
    `hold_back_chars` of a streamed answer are held back until they are read, for `hold_back_ms` at
    most (None: without limit). `race`: the request is sent to the model while it is being read.
    `restore`: redacted values are restored in the answer. `unscreened` content passes unread: paths
    ("/v1/files*"), or "images", "audio", "files", "tokens", "templates". `upstream` and `model` are
    for the action "route", `upstream_policy` for "policy". `ocr`: the policy's screens of text read
    the text in images too. `first_stage` False: the encoder reads every text, also those that a
    screen's first stage would clear.
    """

    look: Places | None = None
    turns: int = Field(default=1, ge=1, le=32)
    hold_back_chars: int = Field(default=200, ge=16, le=16_384)
    hold_back_ms: float | None = Field(default=None, gt=0)
    race: bool = False
    restore: bool = False
    unscreened: Annotated[tuple[str, ...], Field(strict=False)] = ()
    actions: dict[Name, TextAction] = {}
    looks: dict[Name, Places] = {}
    upstream: Name | None = None
    model: str | None = Field(default=None, min_length=1)
    upstream_policy: Name | None = None
    ocr: bool = False
    first_stage: bool = True

    @field_validator("unscreened")
    @classmethod
    def _named_as_in_verdicts(cls, passing: tuple[str, ...]) -> tuple[str, ...]:
        # verdicts use "pictures", the first name of this kind of content
        return tuple("pictures" if name == "images" else name for name in passing)


class PolicyConfig(Section):
    """One `[policies.NAME]`.

    The actions "steer", "overlay", "refine" and "perturb" all mean the action of the guard's
    method. `fallback` is for images from which the concept could not be removed: they are blocked,
    or replaced by an image of the prompt `replacement`. `debug` lets requests ask for masks of what
    guards have written on their images, and for the scores of each token. `message` is read in
    place of what is blocked, and where the action is "say". For guards of language models:
    `actions` overrides the action for single ones, and `rewind` says whether an answer in which one
    fires goes back to its last sentence's end: never, always, or, where it is left out, unless a
    client would wait for a bare answer.
    `thresholds` are in place of those of single guards. `keep_text`: texts that its screens read
    are kept in memory for a while, so that `guard policy replay` can read them again. `shadow` is
    another policy, which decides on the same requests beside this one, and does nothing.
    """

    guards: Names = ()
    action: Action = "steer"
    actions: dict[Name, LanguageAction] = {}
    on_error: OnError = "closed"
    fallback: Fallback = "block"
    replacement: str | None = Field(default=None, min_length=1, max_length=MAX_PROMPT_CHARS)
    debug: bool = False
    message: str | None = Field(default=None, min_length=1, max_length=MAX_MESSAGE_CHARS)
    scope: Scope = "conversation"
    rewind: bool | None = None
    thresholds: dict[Name, float] = {}
    keep_text: bool = False
    screen: ScreenConfig = ScreenConfig()
    shadow: PolicyConfig | None = None

    @property
    def only_observed(self) -> tuple[str, ...]:
        """The guards that run for the shadow alone."""
        shadow = self.shadow.guards if self.shadow is not None else ()
        return tuple(guard for guard in shadow if guard not in self.guards)


class LivePoliciesConfig(Section):
    """`[live_policies]`: policies that change while the server runs; times in seconds.

    Their versions are in `database`: the path of a SQLite file, or `postgresql://USER@HOST/DATABASE`;
    a URL with a password stands in the environment variable `database_env` instead. It may be the
    one of `[tenants]`. Changes by other servers and by the command are in force after `refresh_s`
    at the latest, those of this file, unless `watch_file` is false, after twice that. `kept_texts`
    requests at most have their texts kept, under policies with `keep_text`.
    """

    database: str | None = Field(default=None, min_length=1)
    database_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    refresh_s: float = Field(default=0.25, ge=0.05, le=0.5)
    watch_file: bool = True
    kept_texts: int = Field(default=1000, ge=0, le=100_000)

    @property
    def is_configured(self) -> bool:
        """Whether there is a database."""
        return self.database is not None or self.database_env is not None
