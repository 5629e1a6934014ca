"""`{"name": ..., "parameters": {...}}`, alone or behind `<|python_tag|>`: Llama 3.1 to 3.3.

Several calls stand behind each other, with a semicolon or a line break between.
"""

from __future__ import annotations

from server.services.tools.family import BARE, FENCES, Opening, ToolFamily

LLAMA3 = ToolFamily(
    "llama3",
    (Opening("<|python_tag|>"), *FENCES, BARE),
    arguments_key="parameters",
    marks=("<|python_tag|>", "Environment: ipython"),
)
