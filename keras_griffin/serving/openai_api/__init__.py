"""OpenAI's HTTP API over an `Engine`; `keras-griffin serve` runs it."""
