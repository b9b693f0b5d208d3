"""Imported when `keras_griffin.evaluation.GriffinLM` is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras_hub.samplers import GreedySampler
from keras_hub.samplers import RandomSampler
from keras_hub.samplers import TopKSampler
from keras_hub.samplers import TopPSampler
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows
from lm_eval.utils import make_disjoint_window
from tqdm import tqdm

from keras_griffin.generation import decoding
from keras_griffin.generation.chat_template import CHAT_TEMPLATES
from keras_griffin.generation.chat_template import tokenize
from keras_griffin.generation.prompts import bucket
from keras_griffin.generation.prompts import make_prompts
from keras_griffin.models.griffin_causal_lm import GriffinCausalLM

# What a task may say about generation; all else would be ignored.
GENERATION_KEYS = {
    "until",
    "max_gen_toks",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
}


class GriffinLM(TemplateLM):
    """A model as EleutherAI's lm-eval (`lm_eval`) takes it.

    Contexts are sorted by length and read in batches, each distinct one once:
    the choices of a question go on from its state. Padded rows get what each
    would alone. Texts are tokenized as by lm-eval's adapter of Hugging Face
    models (`lm_eval.models.huggingface.HFLM`), whose log-likelihoods of the
    same weights these equal.

    Args:
        model: a `GriffinCausalLM` with a preprocessor, or what
            `GriffinCausalLM.from_preset` takes.
        batch_size: int. Rows that are computed together. Defaults to `8`.
        max_length: int. Tokens that are seen at once: a longer context loses
            its beginning, a longer text is cut into windows, as `HFLM` does
            it. Defaults to `None`: nothing is ever cut, and what is long is
            read in pieces. Memory then does not grow with a text, except
            where the model has global attention.
        add_bos_token: bool. Whether texts begin with the start token.
            Defaults to `None`: as the preprocessor's `add_start_token`.
        max_gen_toks: int. New tokens where a task says nothing. Defaults to
            `256`.
        seed: int. Of tasks that sample. Defaults to `0`.

    Raises:
        ValueError: for a model without preprocessor, sizes below 1, and, when
            a task runs, settings of generation that are not known and
            continuations longer than `max_length`.

    Numerics:
        A text's log-likelihood is that of its tokens after a start token. If
        `add_bos_token`, the start token is one of these too, as in `HFLM`, so
        that log p(start | start) is added to a text of `loglikelihood_rolling`.

    Example:
    ```python
    import lm_eval

    lm = keras_griffin.evaluation.GriffinLM("griffin_shakespeare_en")
    task = {
        "task": "verse",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "verse.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
    }
    with open("verse.jsonl", "w") as file:
        file.write(
            '{"question": "To be, or not to", "choices": ["be", "eat"], '
            '"answer": 0}'
        )
    results = lm_eval.simple_evaluate(lm, tasks=[task], bootstrap_iters=0)
    results["results"]["verse"]["acc,none"]  # 1.0
    ```

    Source:
        https://github.com/EleutherAI/lm-evaluation-harness
    """

    def __init__(
        self,
        model: Any,
        batch_size: int = 8,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(model, GriffinCausalLM):
            model = GriffinCausalLM.from_preset(model)
        if model.preprocessor is None:
            raise ValueError(
                "lm-eval hands over text, so a `preprocessor` must be there. "
                "Received: a model with preprocessor=None. Give it a "
                "GriffinCausalLMPreprocessor."
            )
        sizes = {"batch_size": batch_size, "max_gen_toks": max_gen_toks}
        if max_length is not None:
            sizes["max_length"] = max_length
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(
                    f"`{name}` must be an int of at least 1. Received: "
                    f"{name}={size!r}. There is no automatic size."
                )
        if add_bos_token is None:
            add_bos_token = model.preprocessor.add_start_token
        self.model = model
        self.batch_size = batch_size
        self.max_length = max_length
        self.add_bos_token = add_bos_token
        self.max_gen_toks = max_gen_toks
        self.seed = seed

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.model.preprocessor.tokenizer.end_token_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context."""
        return self.model.preprocessor.tokenizer.start_token_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the ids of a text.

        Args:
            string: str. May begin with the start token, written out.
            add_special_tokens: bool. Whether to put the start token in front.
                `None`: as `add_bos_token`, unless it is written out.
            **kwargs: none that is known.
        """
        start = self.prefix_token_id
        tokenizer = self.model.preprocessor.tokenizer
        written = string.startswith(tokenizer.id_to_token(start))
        if written:
            string = string.removeprefix(tokenizer.id_to_token(start))
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token and not written
        (ids,), _ = tokenize(tokenizer, [string])
        starts = int(written) + int(add_special_tokens)
        return [start] * starts + [int(id) for id in ids]

    # === Log-likelihoods ===

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        """Returns `(log-likelihood, is_greedy)` of `(key, context, ids)`."""
        continuations = {}
        for index, (_, context, ids) in enumerate(requests):
            context = tuple(self._cut(context, len(ids)))
            continuations.setdefault(context, []).append((index, ids))
        results = [None] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm)
        order = sorted(continuations, key=len, reverse=True)
        for contexts in _batches(order, self.batch_size):
            rows = [
                # The state does not tell what comes next: the context's last
                # token is read with the continuation.
                (row, index, [context[-1], *ids])
                for row, context in enumerate(contexts)
                for index, ids in continuations[context]
            ]
            rows.sort(key=lambda row: len(row[2]), reverse=True)
            state = self._read(
                [context[:-1] for context in contexts],
                size=min(self.batch_size, len(order)),
                room=len(rows[0][2]),
            )
            for part in _batches(rows, self.batch_size):
                size = min(self.batch_size, len(requests))
                places, indices, ids = zip(*part, strict=True)
                scores, is_greedy = self.model.score(
                    self._padded(ids, size),
                    state=_take_rows(state, _filled(places, size)),
                    return_greedy=True,
                )
                for row, index in enumerate(indices):
                    results[index] = (
                        float(scores[row].sum(dtype="float64")),
                        bool(is_greedy[row].all()),
                    )
                    key = requests[index][0]
                    if key is not None:
                        self.cache_hook.add_partial(
                            "loglikelihood", key, results[index]
                        )
                bar.update(len(part))
        bar.close()
        return results

    def _cut(self, context, num_new):
        """The end of a context that `max_length` leaves room for."""
        if self.max_length is None:
            return context
        if num_new > self.max_length:
            raise ValueError(
                "A continuation must not be longer than `max_length`. "
                f"Received: {num_new} tokens, max_length={self.max_length}. "
                "Leave `max_length` out: nothing has to be cut."
            )
        return context[-(self.max_length + 1 - num_new) :]

    def _read(self, rows, size, room):
        """The state of `size` rows after reading `rows`, lists of ids."""
        inputs = self._padded(rows, size)
        time = inputs["token_ids"].shape[1]
        state = self.model.init_state(size, max_length=bucket(time + room))
        if time:
            _, state = self.model.prefill(inputs, state)
        return state

    def _padded(self, rows, size):
        """Rows of ids as inputs of `size` rows, as wide as the longest."""
        shape = (size, max(len(row) for row in rows))
        token_ids = np.zeros(shape, "int32")
        mask = np.zeros(shape, bool)
        # With as many rows each time there is one program to compile.
        for i, row in enumerate(_filled(rows, size)):
            token_ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return {"token_ids": token_ids, "padding_mask": mask}

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-likelihoods of whole texts.

        Args:
            requests: list of lm-eval's `Instance`, arguments `(text,)`.
            disable_tqdm: bool. Defaults to `False`.

        Returns:
            list of floats.
        """
        windows, texts = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(
                token_list=ids,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length or max(len(ids), 1),
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                texts.append(index)
        results = [0.0] * len(requests)
        found = self._loglikelihood_tokens(windows, disable_tqdm)
        for index, (value, _) in zip(texts, found, strict=True):
            results[index] += value
        for request, value in zip(requests, results, strict=True):
            self.cache_hook.add_partial(
                "loglikelihood_rolling", request.args, value
            )
        return results

    # === Generation ===

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """Returns continuations up to the first of some strings.

        Args:
            requests: list of lm-eval's `Instance`, arguments
                `(context, settings)`.
            disable_tqdm: bool. Defaults to `False`.

        Returns:
            list of str, without the string that stopped it.
        """
        groups = {}
        for index, request in enumerate(requests):
            context, settings = request.args
            ids = self.tok_encode(context) or [self.prefix_token_id]
            key = json.dumps(settings, sort_keys=True)
            groups.setdefault(key, []).append((index, ids))
        results: list[Any] = [None] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm)
        for rows in groups.values():
            settings = requests[rows[0][0]].args[1]
            options = self._generation_options(settings)
            rows.sort(key=lambda row: len(row[1]), reverse=True)
            size = min(self.batch_size, len(rows))
            for part in _batches(rows, self.batch_size):
                indices, contexts = zip(*part, strict=True)
                texts = self._continue(contexts, size, **options)
                for index, text in zip(indices, texts, strict=False):
                    results[index] = text
                    self.cache_hook.add_partial(
                        "generate_until", requests[index].args, text
                    )
                bar.update(len(part))
        bar.close()
        return results

    def _generation_options(self, settings):
        settings = normalize_gen_kwargs(settings, self.max_gen_toks)
        unknown = sorted(set(settings) - GENERATION_KEYS)
        if unknown:
            raise ValueError(
                "Settings of generation must be among "
                f"{sorted(GENERATION_KEYS)}. Received: {unknown}. Take them "
                "out of the task's `generation_kwargs`."
            )
        max_new_tokens = settings["max_gen_toks"]
        if self.max_length is not None and max_new_tokens >= self.max_length:
            raise ValueError(
                "`max_gen_toks` must be less than `max_length`. Received: "
                f"max_gen_toks={max_new_tokens}, max_length={self.max_length}."
                " Leave `max_length` out: nothing has to be cut."
            )
        return {
            "until": [stop for stop in settings["until"] if stop],
            "max_new_tokens": max_new_tokens,
            "sampler": self._sampler(settings),
        }

    def _sampler(self, settings):
        temperature = settings.get("temperature")
        if not settings["do_sample"] or temperature == 0.0:
            return GreedySampler()
        options = {"seed": self.seed, "temperature": temperature or 1.0}
        top_k, top_p = settings.get("top_k"), settings.get("top_p")
        if top_p is not None:
            return TopPSampler(p=top_p, k=top_k, **options)
        if top_k is not None:
            return TopKSampler(k=top_k, **options)
        return RandomSampler(**options)

    def _continue(self, rows, size, until, max_new_tokens, sampler):
        """Texts of new tokens, read along so that stop strings end them."""
        if self.max_length is not None:
            rows = [row[-(self.max_length - max_new_tokens) :] for row in rows]
        model = self.model
        tokenizer = model.preprocessor.tokenizer
        stops = model.preprocessor.stop_token_ids
        prompts = make_prompts(
            model, self._padded(rows, size), None, max_new_tokens, None
        )
        new = np.zeros((size, 0), "int32")
        # What `generate` does between its texts.
        for tokens, _ in decoding.decode(
            model, prompts, stops, sampler, None, decoding.DECODE_CHUNK
        ):
            new = np.concatenate([new, tokens], axis=1)
            ids = [prompts.cut(row, stops, keep_stop=False) for row in new]
            ids = ids[: len(rows)]
            texts = [tokenizer.detokenize(row.tolist()) for row in ids]
            if all(
                len(row) < new.shape[1] or any(stop in text for stop in until)
                for row, text in zip(ids, texts, strict=True)
            ):
                break
        for stop in until:
            texts = [text.partition(stop)[0] for text in texts]
        return texts

    # === Turns ===

    def apply_chat_template(
        self,
        chat_history: Sequence[dict[str, str]],
        add_generation_prompt: bool = True,
    ) -> str:
        """Returns a conversation as the text that the model was tuned on.

        A system message, for which Gemma's format has no place, goes in front
        of the user's first one.

        Args:
            chat_history: list of `{"role": ..., "content": ...}`.
            add_generation_prompt: bool. `False`: the last message is the
                beginning of the model's answer. Defaults to `True`.

        Raises:
            ValueError: for a model without a `turn_format`, and messages that
                do not alternate.
        """
        messages = [dict(message) for message in chat_history]
        if messages and messages[0]["role"] == "system" and messages[1:]:
            system = messages.pop(0)["content"]
            first = messages[0]["content"]
            messages[0]["content"] = f"{system}\n\n{first}"
        begun = "" if add_generation_prompt else messages.pop()["content"]
        return self.model.preprocessor.render_prompts(messages) + begun

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Returns the template that lm-eval notes beside its results."""
        turn_format = self.model.preprocessor.turn_format
        return CHAT_TEMPLATES[turn_format] or ""

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells cached requests apart by."""
        turn_format = self.model.preprocessor.turn_format
        return f"keras_griffin-{self.model.backbone.name}-{turn_format}"


def _batches(rows, size):
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _filled(rows, size):
    """As many rows as `size`: the last one again."""
    return [*rows, *[rows[-1]] * (size - len(rows))]


def _take_rows(state, rows):
    return keras.tree.map_structure(
        lambda leaf: ops.take(leaf, np.array(rows, "int32"), axis=0), state
    )
