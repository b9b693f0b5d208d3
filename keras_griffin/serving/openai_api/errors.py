"""Errors as OpenAI's API writes them; a client sees no traceback."""

import http

from starlette.responses import JSONResponse

# What a client that was turned away should wait [s].
RETRY_SECONDS = 2
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that gets an error for an answer.

    Args:
        status: int. HTTP's status.
        message: str. The rule, what was received, what to do.
        param: str. The field of the request. Defaults to `None`.
        code: str. OpenAI's name of the error. Defaults to `None`.
    """

    def __init__(self, status, message, param=None, code=None):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self):
        """What is sent: a dict."""
        default = "server_error" if self.status >= 500 else None
        kind = TYPES.get(self.status, default) or "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self):
        headers = {}
        if self.status in (429, 503):
            headers["retry-after"] = str(RETRY_SECONDS)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def answer_api_error(request, error):
    return error.response()


def answer_http_error(request, error):
    """For Starlette's own: no such path, no such method."""
    phrase = http.HTTPStatus(error.status_code).phrase
    advice = "GET / shows a page to try the model on."
    if error.status_code == 404:
        advice = (
            "There are /v1/completions, /v1/chat/completions, /v1/models, "
            "/health, /metrics and a chat page at /."
        )
    if error.status_code == 405:
        advice = f"It takes {error.headers['Allow']}."
    response = ApiError(
        error.status_code,
        f"{phrase}. Received: {request.method} {request.url.path:.80}. "
        f"{advice}",
    ).response()
    response.headers.update(error.headers or {})
    return response


def answer_failure(request, error):
    """For a defect of ours; the server's log has the traceback."""
    return ApiError(
        500, "The server failed to answer this request; its log says why."
    ).response()
