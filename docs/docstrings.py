"""What Keras' docstrings have and Google's style lacks, for mkdocstrings."""

import re

import griffe

CHANGES = (
    # A list of arguments like any other, under its own title.
    (r"^Call arguments:\n", "Other args: Call arguments:\n"),
    # A remark in one sentence, whose first line is not its title.
    (r"^(Call arguments|Args): (?=\S)", r"\1:\n    "),
    # A code block that stands beside its title and not inside.
    (r"^(Examples?):\n(?=```)", r"**\1:**\n\n"),
)


class KerasDocstrings(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        """Edits a docstring before it is parsed."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        for pattern, replacement in CHANGES:
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        obj.docstring.value = text
