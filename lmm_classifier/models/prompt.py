"""The question put to a vision-language model. No torch here: steps and training scripts share it."""

from __future__ import annotations

import re
from collections.abc import Sequence

DEFAULT_PROMPT = (
    "Choose the label that fits {image_description} best: {candidates}. Answer with the label only."
)
DEFAULT_DESCRIPTION = "the image"
PLACEHOLDERS = ("image_description", "candidates")
_PLACEHOLDER = re.compile("{(" + "|".join(PLACEHOLDERS) + ")}")


def render_prompt(template: str, candidates: Sequence[str], description: str = DEFAULT_DESCRIPTION) -> str:
    """Fill the two documented placeholders in one pass.

    Labels are inserted literally: braces, newlines or a placeholder inside a label, and stray
    braces in the template, stay as they are (`str.format` would raise or substitute twice).
    """
    values = {"image_description": description, "candidates": ", ".join(candidates)}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)
