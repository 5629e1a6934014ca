"""The fields of the bodies of OpenAI's and Anthropic's APIs, by what stands in them."""

from __future__ import annotations

import re
from functools import lru_cache

from guard.config.policy_schema import Place

PROTOCOL = frozenset(
    {
        *("model", "role", "type", "object", "id", "tool_call_id", "call_id", "item_id", "status"),
        *("detail", "encoding_format", "response_format", "service_tier", "tool_choice", "format"),
        *("finish_reason", "stop_reason", "native_finish_reason", "system_fingerprint", "effort"),
        *("size", "quality", "style", "background", "output_format", "voice", "truncation"),
        *("reasoning_effort", "verbosity", "moderation", "media_type", "file_id", "summary"),
        *("previous_response_id", "prompt_cache_key", "prompt_cache_retention", "include", "user"),
        *("jsonrpc", "method", "progressToken", "protocolVersion", "mimeType"),
        *("safety_identifier", "created", "first_id", "last_id", "owned_by", "phase", "logprob"),
    }
)
"""Keys whose values are words of the protocol, or names: a model's, an id, a user's."""
LONGEST_WORD = 80
WORD = re.compile(r"[\w.:/@+-]*", re.ASCII)
"""A word or a name under such a key: read by itself in a request, not at all in a response."""
NAME = re.compile(r"[a-z]{1,24}(?:[_-][a-z0-9]{1,24}){0,5}[0-9]{0,3}")
"""A name in an object as the protocol has them; others are read."""
KNOWN_WORDS = frozenset(
    {
        *("system", "developer", "user", "assistant", "tool", "function", "text", "input_text"),
        *(
            "output_text",
            "refusal",
            "image_url",
            "input_image",
            "input_audio",
            "input_file",
            "file",
        ),
        *("message", "reasoning", "function_call", "function_call_output", "tool_use"),
        *("tool_result", "thinking", "redacted_thinking", "image", "document", "base64", "url"),
        *("json_object", "json_schema", "ephemeral", "enabled", "disabled", "auto", "none", "any"),
        *("required", "low", "medium", "high", "minimal", "default", "completed", "in_progress"),
        *("float", "custom", "object", "string", "standard", "hd", "vivid", "natural"),
        *("2.0", "initialize", "ping", "tools/list", "tools/call", "prompts/list", "prompts/get"),
        *("resources/list", "resources/read", "resources/templates/list", "server/discover"),
        *("completion/complete", "notifications/initialized", "notifications/cancelled"),
        *("notifications/progress", "text/plain", "application/json"),
        *("image/png", "image/jpeg", "image/webp"),
    }
)
"""Words of the protocol that most requests have."""

OPAQUE = {
    "image_url": "pictures",
    "video_url": "pictures",
    "audio_url": "audio",
    "image_embeds": "pictures",
    "prompt_embeds": "tokens",
    "b64_json": "pictures",
    "partial_image_b64": "pictures",
    "input_audio": "audio",
    "file_data": "files",
    "blob": "files",
    "embedding": "numbers",
    "encrypted_content": "numbers",
    "signature": "numbers",
    "thought_signature": "numbers",
}
"""Keys of encoded content that is not text, and its kind."""
CODED = re.compile(
    r"[^\s\x00-\x1f]*+"
    r"|(?:data:[^\s,]{1,200},)?+(?:[A-Za-z0-9+/_-]{60,1000}+\r?\n)++[A-Za-z0-9+/_-]*+={0,2}+\s*+"
)
"""A code or an address, or base64 in lines as mail has it (RFC 2045, section 6.8): any other value
with spaces in it is read, whatever its key."""
SECRET_CODE = re.compile(r"(?=.*[A-Z])(?=.*[a-z])(?=.*[0-9])[A-Za-z0-9+/_-]{32,}={0,2}")
"""What a model's maker has encrypted or signed: nobody can read it, nor write it by hand."""
LEAST_NUMBER = 10_000
"""From which on a number of the protocol may be one that says something of a person."""
TOKENS = frozenset({"logprobs", "top_logprobs"})
OPAQUE_PARTS = {
    "image": "pictures",
    "image_url": "pictures",
    "input_image": "pictures",
    "image_generation_call": "pictures",
    "image_embeds": "pictures",
    "video_url": "pictures",
    "input_video": "pictures",
    "audio_url": "audio",
    "input_audio": "audio",
    "audio": "audio",
    "file": "files",
    "input_file": "files",
    "document": "files",
    "container_upload": "files",
    "redacted_thinking": "numbers",
    "reasoning.encrypted": "numbers",
}
"""Values of `type` whose part holds content that is not text, under `CARRIERS`."""
TEXT_SOURCES = frozenset({"text", "content"})
"""Values of `type` of a document's source that is text nevertheless."""
CARRIERS = frozenset({"image_url", "url", "data", "file_data", "file_url", "source", "result"})
FILES = {"image": "pictures", "image[]": "pictures", "mask": "pictures"}
"""The kinds of a form's files, by the names of their fields."""
FREE = frozenset(
    {
        *("input", "arguments", "parameters", "schema", "json_schema", "guided_json"),
        *("metadata", "chat_template_kwargs", "tools", "functions", "text"),
        *("structuredContent", "inputSchema", "outputSchema", "requestedSchema", "_meta"),
    }
)
"""Objects whose names the client or the model chooses: the protocol has no words in them."""
SCHEMAS = frozenset(
    {
        *("tools", "functions", "schema", "json_schema", "guided_json", "input_schema"),
        *("inputSchema", "outputSchema", "requestedSchema"),
    }
)
"""Those that describe values and hold none: their numbers and names say nothing of a person."""
SCHEMA_WORDS = frozenset(
    {
        *("string", "object", "number", "integer", "boolean", "array", "null", "function", "type"),
        *("properties", "required", "description", "parameters", "name", "items", "enum", "format"),
        *("schema", "strict", "json_schema", "text", "arguments", "id", "additionalProperties"),
    }
)
ROLES: dict[str, Place] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
PLACES: dict[str, Place] = {
    "system": "system",
    "instructions": "system",
    "tool_calls": "arguments",
    "function_call": "arguments",
    "arguments": "arguments",
    "tools": "arguments",
    "functions": "arguments",
    "json_schema": "arguments",
}
PARTS: tuple[tuple[str, Place], ...] = (
    ("_output", "tool"),
    ("tool_result", "tool"),
    ("search_result", "tool"),
    ("tool_use", "arguments"),
    ("_call", "arguments"),
)
"""Places by the end of the `type` of the part they are in: tools of many kinds come and go."""
RESULTS = frozenset({"output", "outputs", "result", "results", "error", "logs"})
"""Members of the call of a hosted tool that have what it has returned."""
CONVERSATION = frozenset({"messages", "input"})
PROMPTS = frozenset({"prompt", "input", "prompt_token_ids", "input_ids", "token_ids"})
"""Where a list of numbers is a text as token ids."""
TEMPLATES = frozenset({"chat_template"})
"""Programs that spell the prompt."""
LISTS = frozenset({"messages", "input", "tools", "functions", "prompt"})
"""Lists of which each item is a unit."""
SHORTEST_NUMBER = 5
"""Digits from which on a number may say something of a person."""


@lru_cache(4096)
def _known_word(text: str) -> bool:
    return WORD.fullmatch(text) is not None


@lru_cache(4096)
def _known_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None


def is_name(name: str) -> bool:
    """Whether a name in an object may be one of the protocol's."""
    return len(name) <= LONGEST_WORD and _known_name(name)


def is_word(value: object) -> bool:
    """Whether a value is a word of the protocol, or a name as it takes them."""
    return isinstance(value, str) and len(value) <= LONGEST_WORD and _known_word(value)


def says_nothing(value: object, is_response: bool) -> bool:
    """Whether the value of one of the protocol's words or names is nothing to be read."""
    if is_response:
        return is_word(value) and "@" not in str(value)
    return isinstance(value, str) and (not value or value in KNOWN_WORDS)
