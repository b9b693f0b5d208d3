"""A SentencePiece model as the files that transformers reads."""

import json

TOKENIZER_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
JSON_FILE = "tokenizer.json"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for " "


def write(proto, folder, chat_template=None):
    """Writes a tokenizer into a folder.

    transformers reads a BPE model, as Gemma's, from tokenizer.model alone. A
    unigram model it would take for BPE: it gets a tokenizer.json besides.

    Args:
        proto: bytes. A SentencePiece model with `<bos>`, `<eos>` and `<pad>`.
        folder: path. Exists.
        chat_template: str. How messages become text, in Jinja; `None`: they
            don't. Defaults to `None`.

    Raises:
        ValueError: for a model that is neither, or changes text before it is
            cut: transformers' GemmaTokenizer does not.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(proto)
    kind = model.trainer_spec.model_type
    rules = model.normalizer_spec
    unigram = kind == model.trainer_spec.UNIGRAM
    changes = rules.add_dummy_prefix or rules.remove_extra_whitespaces
    if (
        changes
        or rules.precompiled_charsmap
        or not (unigram or kind == model.trainer_spec.BPE)
    ):
        raise ValueError(
            "A tokenizer for transformers must be BPE or unigram and leave "
            "text as it is. Received: a SentencePiece model of type "
            f"{kind}, normalization {rules.name!r}, "
            f"add_dummy_prefix={rules.add_dummy_prefix}, "
            f"remove_extra_whitespaces={rules.remove_extra_whitespaces}. "
            "Export the backbone alone, `model.backbone.export_to_...`."
        )
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / TOKENIZER_FILE).write_bytes(proto)
    if unigram:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        _unigram(model).save(str(folder / JSON_FILE))
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _unigram(model):
    """Returns a `tokenizers.Tokenizer` of a unigram model."""
    import tokenizers
    from tokenizers import decoders

    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.Unigram(
            [(piece.piece, piece.score) for piece in model.pieces],
            unk_id=model.trainer_spec.unk_id,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
    )
    kinds = type(model.pieces[0])
    for piece in model.pieces:
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN):
            added = tokenizers.AddedToken(piece.piece, normalized=False)
            tokenizer.add_special_tokens([added])
        elif piece.type == kinds.USER_DEFINED:
            added = tokenizers.AddedToken(piece.piece, normalized=False)
            tokenizer.add_tokens([added])
    start = "<bos>"
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A",
        pair=f"{start} $A {start} $B",
        special_tokens=[(start, tokenizer.token_to_id(start))],
    )
    return tokenizer
