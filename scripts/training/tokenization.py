# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers that the training scripts train, all as `PreTrainedTokenizerFast`; and texts cut into blocks."""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER


WORDPIECE_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _wordpiece_tokenizer():
    """A tokenizer without a vocabulary that cuts texts into words as BERT does."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    line_break = normalizers.Replace(Regex(r"<br\s*/?>"), " ")
    tokenizer.normalizer = normalizers.Sequence([line_break, normalizers.BertNormalizer(lowercase=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _wordpiece_vocabulary(texts, vocab_size):
    """The vocabulary of the texts, the same whenever it is trained: a `dict` from token to id.

    The library numbers the characters inside words in the order of a hash map, which is another one each time, and
    breaks ties between merges by these numbers. So a first pass finds those characters, and a second is given them in
    order, as if they were special tokens.
    """

    def train(size, first_tokens):
        tokenizer = _wordpiece_tokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first_tokens, min_frequency=2)
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer.get_vocab()

    texts = list(texts)
    characters = train(1, WORDPIECE_TOKENS)
    return train(vocab_size, WORDPIECE_TOKENS + sorted(token for token in characters if token.startswith("##")))


def longest_input(config, tokenizer):
    """How many tokens a model takes, ours or one of the library; None for any number."""
    if hasattr(config, "longest_input"):
        return config.longest_input
    known = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or VERY_LARGE_INTEGER)
    return min(known) if min(known) < VERY_LARGE_INTEGER else None


def check_max_length(max_length, tokenizer):
    """Raises a ValueError if texts cannot be cut to so many tokens, which the special ones are among."""
    special = tokenizer.num_special_tokens_to_add()
    if max_length is not None and max_length <= special:
        raise ValueError(
            f"--max_length must be at least {special + 1}, {special} of which are special tokens, got {max_length}"
        )


def train_wordpiece_tokenizer(texts, vocab_size, max_length=None):
    """Trains a lower-casing WordPiece tokenizer with BERT's special tokens.

    Args:
        texts (iterable of `str`): training texts.
        vocab_size (`int`): upper bound of the vocabulary.
        max_length (`int`, *optional*): the longest input of its model, at which the tokenizer truncates when asked to;
            without one it never does.

    Returns:
        `PreTrainedTokenizerFast`, which `AutoTokenizer` loads again from where it is saved.
    """
    tokenizer = _wordpiece_tokenizer()
    tokenizer.model = models.WordPiece(_wordpiece_vocabulary(texts, vocab_size), unk_token="[UNK]")
    tokenizer.add_special_tokens(WORDPIECE_TOKENS)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


# Special tokens of a language model: padding, unknown, mask, and the end of a text, which also begins one.
LANGUAGE_MODEL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "eos_token": "[EOS]"}


def train_character_tokenizer(texts, max_length=None):
    """A tokenizer with a token for every character of the texts.

    Args:
        texts (iterable of `str`): training texts.
        max_length (`int`, *optional*): the longest input of its model, at which the tokenizer truncates when asked to;
            without one it never does.

    Returns:
        `PreTrainedTokenizerFast`.
    """
    characters = sorted(set().union(*map(set, texts)))
    vocabulary = {token: i for i, token in enumerate([*LANGUAGE_MODEL_TOKENS.values(), *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _language_model_tokenizer(tokenizer, max_length)


def train_bpe_tokenizer(texts, vocab_size, max_length=None):
    """Trains a byte-level byte-pair encoding, which knows every text and gives it back as it was.

    Args:
        texts (iterable of `str`): training texts.
        vocab_size (`int`): upper bound of the vocabulary.
        max_length (`int`, *optional*): the longest input of its model, at which the tokenizer truncates when asked to;
            without one it never does.

    Returns:
        `PreTrainedTokenizerFast`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(LANGUAGE_MODEL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _language_model_tokenizer(tokenizer, max_length)


def _language_model_tokenizer(tokenizer, max_length):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        bos_token="[EOS]",
        **LANGUAGE_MODEL_TOKENS,
    )


def make_byte_tokenizer(max_length=None):
    """A tokenizer that takes every byte of a text in UTF-8 as a token, whatever the text; nothing is learned.

    Byte b has the id b + 1, and [PAD] has 0. There are no tokens around a text. A "[PAD]" within a text is five bytes.

    Args:
        max_length (`int`, *optional*): the longest input of its model, at which the tokenizer truncates when asked to;
            without one it never does.

    Returns:
        `PreTrainedTokenizerFast`, which `AutoTokenizer` loads again from where it is saved.
    """
    vocabulary = {"[PAD]": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    # a vocabulary without characters and without merges, so that all falls back to bytes
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,
        pad_token="[PAD]",
    )


def train_word_tokenizer(texts, max_length=None):
    """A tokenizer with a token for every word of the texts, a word being what stands between white space.

    The commonest word comes first. There are no tokens around a text; words that were never seen are [UNK].

    Args:
        texts (iterable of `str`): training texts.
        max_length (`int`, *optional*): the longest input of its model, at which the tokenizer truncates when asked to;
            without one it never does.

    Returns:
        `PreTrainedTokenizerFast`, which `AutoTokenizer` loads again from where it is saved.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    every_word = {"vocab_size": 2**31, "min_frequency": 1}
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(**every_word, show_progress=False))
    words = tokenizer.get_vocab()
    ordered = dict.fromkeys(["[PAD]", "[UNK]", *sorted(words, key=words.get)])  # each once, should it be a word too
    tokenizer.model = models.WordLevel({word: i for i, word in enumerate(ordered)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


def tell_longest_input(tokenizer, config):
    """Writes into a tokenizer how long an input its model takes, by which tools cut; library models keep theirs."""
    if hasattr(config, "longest_input"):
        tokenizer.model_max_length = config.longest_input or VERY_LARGE_INTEGER


def in_blocks(dataset, tokenizer, text_column, block_size):
    """Joins all texts, each closed by the end-of-text token, and cuts them into blocks, `(number, block_size)`; a rest
    that does not fill a block is left out."""
    end = [] if tokenizer.eos_token_id is None or len(dataset) == 1 else [tokenizer.eos_token_id]
    pieces = []
    for batch in dataset.select_columns([text_column]).iter(1000):
        texts = [text for text in batch[text_column] if text]
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []:
            pieces.append(torch.tensor(ids + end, dtype=torch.long))
    ids = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.long)
    blocks = ids[: len(ids) // block_size * block_size].view(-1, block_size)
    if len(blocks) == 0:
        raise ValueError(f"{len(ids)} tokens do not fill a block; choose a --block_size below {block_size}")
    return blocks
