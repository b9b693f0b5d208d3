"""`keras-griffin serve`: OpenAI's HTTP API on this machine."""

import argparse
import contextlib
import ctypes
import os
import platform
import socket
import sys
from pathlib import Path

from keras_griffin.cli import common
from keras_griffin.cli import loading
from keras_griffin.cli import sampling

SUMMARY = "answer requests over OpenAI's HTTP API"
KEY_VARIABLE = "KERAS_GRIFFIN_API_KEY"
M_ARENA_MAX = -8  # of malloc.h
DESCRIPTION = f"""\
Loads a model and answers many clients at once over OpenAI's HTTP API:
/v1/completions, /v1/chat/completions, /v1/models, /health, /metrics, and a
page to chat at /. Needs pip install 'keras-griffin[serve]'.

  keras-griffin serve
  keras-griffin serve recurrent_gemma_instruct_2b_en --dtype bfloat16
  {KEY_VARIABLE}=secret keras-griffin serve --host 0.0.0.0

Clients that know OpenAI's API need the address alone:

  OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="secret")

An API key comes from {KEY_VARIABLE} or --api-key-file: others on
this machine can read the arguments of a process. SIGTERM and Ctrl-C let what
runs finish."""


def add_arguments(parser):
    loading.add_arguments(parser)
    sampling.add_length_argument(parser, default=2048)
    _add_address(parser)
    _add_engine(parser)
    _add_limits(parser)


def _add_address(parser):
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen at; 0.0.0.0 lets other machines ask "
        "(default: %(default)s, this machine alone)",
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=port,
        default=8000,
        help="0 takes a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--allowed-host",
        metavar="NAME",
        action="append",
        help="a name that clients may call this server by; can be repeated "
        "(default: this machine's own on 127.0.0.1, else any)",
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help="a file with the key that clients must send (default: "
        f"{KEY_VARIABLE}, else none)",
    )
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        help="what the API calls the model (default: the preset's name)",
    )
    parser.add_argument(
        "--log-requests",
        action="store_true",
        help="print who asks and what status it gets, never the text",
    )


def _add_engine(parser):
    for name, default, text in (
        ("--max-rows", 8, "texts that are made at the same time"),
        ("--prefill-chunk", 256, "tokens of a prompt read between others'"),
        ("--max-length", 32768, "most tokens of a prompt and its text"),
        ("--max-queue", 64, "requests that may wait; more get status 429"),
    ):
        parser.add_argument(
            name,
            metavar="N",
            type=common.positive_int,
            default=default,
            help=f"{text} (default: %(default)s)",
        )
    parser.add_argument(
        "--prefix-cache-mib",
        metavar="N",
        type=common.whole_number,
        default=256,
        help="memory for states of prompts' beginnings, 0 for none "
        "(default: %(default)s MiB)",
    )
    parser.add_argument(
        "--prefix-folder",
        metavar="FOLDER",
        type=Path,
        help="also keep them there, for a server that is started later. They "
        "tell what prompts said: nobody else should be able to read it",
    )


def _add_limits(parser):
    parser.add_argument(
        "--max-body-bytes",
        metavar="N",
        type=common.positive_int,
        default=2**20,
        help="size of a request (default: %(default)s)",
    )
    parser.add_argument(
        "--max-connections",
        metavar="N",
        type=common.positive_int,
        default=500,
        help="clients that are connected at a time (default: %(default)s)",
    )
    for name, default, text in (
        ("--max-seconds", 600.0, "most time from a request to its end"),
        ("--drain-seconds", 30.0, "time to finish in after SIGTERM"),
    ):
        parser.add_argument(
            name,
            metavar="S",
            type=common.positive_float,
            default=default,
            help=f"{text} (default: %(default)g)",
        )


def port(text):
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(
            f"must be in [0, 65535]. Received: {text}"
        )
    return number


def run(arguments):
    for package in ("starlette", "uvicorn", "pydantic", "prometheus_client"):
        if not common.is_installed(package):
            raise common.CommandError(
                f"`serve` needs {package}: pip install 'keras-griffin[serve]'"
            )
    api_key = _api_key(arguments.api_key_file)
    _share_an_arena()
    # Before the model is loaded: an address in use is told at once.
    with _listening_socket(arguments) as listener:
        _serve(arguments, api_key, listener)


def _share_an_arena():
    """Lets all threads take memory from one place.

    glibc gives each its own, and what one of them frees is of no use to the
    others: the server would grow by megabytes a minute for a long time.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _serve(arguments, api_key, listener):
    model = loading.load_model(arguments)
    from keras_griffin.serving.engine import Engine
    from keras_griffin.serving.openai_api import app
    from keras_griffin.serving.openai_api import guards
    from keras_griffin.serving.openai_api import run

    if model.preprocessor is None:
        raise common.CommandError(
            f"{arguments.preset} has no tokenizer, and clients send text."
        )
    is_loopback = arguments.host in guards.LOOPBACK
    hosts = arguments.allowed_host or (guards.LOOPBACK if is_loopback else None)
    limits = guards.Limits(
        body_bytes=arguments.max_body_bytes,
        new_tokens=arguments.max_new_tokens,
        seconds=arguments.max_seconds,
        connections=arguments.max_connections,
    )
    print("Compiling ...", flush=True)
    engine = Engine(
        model,
        max_rows=arguments.max_rows,
        prefill_chunk=arguments.prefill_chunk,
        prefix_cache_bytes=arguments.prefix_cache_mib * 2**20,
        max_queue=arguments.max_queue,
        max_length=arguments.max_length,
        prefix_folder=arguments.prefix_folder,
    )
    name = arguments.model_name or _name(arguments.preset)
    api = app.make_app(engine, name, limits, api_key, hosts)
    if not is_loopback and api_key is None:
        print(
            f"keras-griffin: warning: whoever reaches {arguments.host} can "
            f"use the model. Set {KEY_VARIABLE} to ask for a key.",
            file=sys.stderr,
        )
    server = run.Server(
        engine,
        api,
        limits,
        arguments.drain_seconds,
        greeting=f"Serving {name} at {_address(listener)}",
        log_requests=arguments.log_requests,
    )
    run.run(server, listener)


def _listening_socket(arguments):
    try:
        addresses = socket.getaddrinfo(
            arguments.host,
            arguments.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
        family, kind, protocol, _, address = addresses[0]
        listener = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as stack:
            stack.push(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            stack.pop_all()
    except OSError as error:
        raise common.CommandError(
            f"{arguments.host}:{arguments.port}: {error.strerror}"
        ) from error
    return listener


def _address(listener):
    host, number = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{number}"


def _name(preset):
    """The last part of a path or an address."""
    return preset.rstrip("/" + os.sep).replace(os.sep, "/").split("/")[-1]


def _api_key(file):
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise common.CommandError(f"{file}: {error}") from error
    if not key:
        raise common.CommandError(f"{file} is empty; it must hold the key.")
    return key
