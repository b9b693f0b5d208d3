"""What Keras' docstrings have and Google's style lacks, for mkdocstrings."""

import re
import textwrap

import griffe

CHANGES = (
    # A list of arguments like any other, under its own title.
    (r"^Call arguments:\n", "Other args: Call arguments:\n"),
    # A remark in one sentence, whose first line is not its title.
    (r"^(Call arguments|Args): (?=\S)", r"\1:\n    "),
    # A code block that stands beside its title and not inside.
    (r"^(Examples?):\n(?=```)", r"**\1:**\n\n"),
    # A session of the interpreter is code too.
    (r"^(Examples?):\n\n((?:(?:>>> )?\S.*(?:\n|\Z))+)",
     r"**\1:**\n\n```pycon\n\2\n```\n"),
)  # fmt: skip
# A paragraph, where mkdocstrings would make a list with one item.
RETURNS = re.compile(
    r"^(Returns|Yields):\n((?: {4}.*(?:\n|\Z)|\n(?= {4}))+)", re.MULTILINE
)
TITLE = '<p><span class="doc-section-title">{}:</span></p>\n\n{}\n'


def _as_text(match):
    text = textwrap.dedent(match[2])
    if re.match(r"[a-z_]+: ", text):  # several, each with its name
        text = re.sub(r"^([a-z_]+): ", r"\n`\1`: ", text, flags=re.MULTILINE)
    return TITLE.format(match[1], text)


class KerasDocstrings(griffe.Extension):
    def on_instance(self, *, obj, **kwargs):
        """Edits a docstring before it is parsed."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        for pattern, replacement in CHANGES:
            text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
        obj.docstring.value = RETURNS.sub(_as_text, text)
