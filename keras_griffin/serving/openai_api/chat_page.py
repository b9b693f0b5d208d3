"""The page at `/`: a chat with the model, in one file."""

import base64
import functools
import hashlib
import importlib.resources
import re

from starlette.responses import HTMLResponse

FILE = "chat_page.html"


async def chat_page(request):
    page, headers = _page()
    return HTMLResponse(page, headers=headers)


@functools.cache
def _page():
    """The page, and headers that let it do what it must alone."""
    file = importlib.resources.files("keras_griffin.serving.openai_api") / FILE
    page = file.read_text(encoding="utf-8")
    rules = {
        "default-src": "'none'",
        "script-src": _hash(page, "script"),
        "style-src": _hash(page, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return page, {
        "content-security-policy": "; ".join(map(" ".join, rules.items())),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }


def _hash(page, element):
    """A source of the policy: the page's one such element, as it is."""
    (content,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
