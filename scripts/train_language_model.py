#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Trains an Astroformer language model, causal or masked, on text of the Hub, of a local folder, or of Python itself.

    python scripts/train_language_model.py --output_dir outputs/docstrings
    python scripts/train_language_model.py --objective masked --tokenizer bpe --output_dir outputs/masked
    python scripts/train_language_model.py --dataset_name Salesforce/wikitext --dataset_config_name wikitext-2-raw-v1 \\
        --tokenizer bpe --output_dir outputs/wikitext
    python scripts/train_language_model.py --dataset_dir my_texts --output_dir outputs/mine --attention_type softmax

The column is `text`; a folder may hold `train.txt` and `validation.txt`. Without --dataset_name and --dataset_dir the
docstrings of Python's standard library are taken. Texts are joined and cut into blocks of --block_size tokens. The
tokenizer is one character a token, or a byte-pair encoding trained on the training split, or that of a checkpoint. A
run that was killed continues when the same command is given again. In --output_dir it leaves the best checkpoint with
its tokenizer and code, `results.json`, `learning_curve.png` and a model card.
"""

import math
from dataclasses import dataclass, field

import torch
import transformers
from training import docstrings, options, runs
from training.data import dataset_title, load_examples, test_of
from training.provenance import command
from training.resuming import once, options_of_run, resume_from
from training.run_records import plot_learning_curve, title, write_model_card
from training.short_convolution import add_short_convolution
from training.tokenization import in_blocks, tell_longest_input, train_bpe_tokenizer, train_character_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    default_data_collator,
)

from astroformer_hf import AstroformerConfig


OBJECTIVES = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}


@dataclass
class ModelArguments(options.ModelArguments):
    """The model: a checkpoint, or the shape of a new one."""

    num_hidden_layers: int = options.with_default("num_hidden_layers", 4)
    tokenizer: str = field(
        default="character",
        metadata={"help": "character, bpe (trained), or the name or folder of one. A checkpoint brings its own."},
    )
    vocab_size: int = field(default=8000, metadata={"help": "Size of a new byte-pair vocabulary."})


@dataclass
class DataArguments(options.DataArguments):
    """The data, and what is to be predicted of it."""

    objective: str = field(
        default="causal", metadata={"help": "causal: predict the next token. masked: predict tokens behind a mask."}
    )
    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    block_size: int = field(default=256, metadata={"help": "Tokens per training example."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of tokens to predict, with masked."})
    num_sample_tokens: int = field(default=200, metadata={"help": "Tokens of the text that a causal model ends with."})

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ValueError(f"--objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.num_sample_tokens < 0:
            raise ValueError(f"--num_sample_tokens must be 0 or more, got {self.num_sample_tokens}")


def make_tokenizer(model_args, texts):
    """The tokenizer that was asked for, trained on `texts` if it must be."""
    if model_args.source:
        return AutoTokenizer.from_pretrained(**model_args.source)
    if model_args.tokenizer == "character":
        return train_character_tokenizer(texts)
    if model_args.tokenizer == "bpe":
        return train_bpe_tokenizer(texts, model_args.vocab_size)
    return AutoTokenizer.from_pretrained(model_args.tokenizer)


class Blocks(torch.utils.data.Dataset):
    """Blocks of tokens that stay tensors: a list of them is one step from a batch.

    Args:
        columns (`torch.Tensor`): by name, each `(number, block_size)`.
    """

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}


def with_labels(blocks, pad_token_id):
    """Blocks for a causal model: every token is to be predicted, where it is not padding."""
    return Blocks(input_ids=blocks, labels=blocks.masked_fill(blocks == pad_token_id, -100))


def hide_once(blocks, collator):
    """Blocks with the tokens hidden in them that are to be predicted, so that every evaluation, by however many
    processes, is behind the same mask."""
    collated = [collator([{"input_ids": ids} for ids in batch]) for batch in blocks.split(1000)]
    return Blocks(**{name: torch.cat([batch[name] for batch in collated]) for name in ("input_ids", "labels")})


class LanguageModelTrainer(runs.ExactTrainer):
    """A `Trainer` whose evaluation takes examples that have their labels, and tells the perplexity."""

    is_causal = True

    def get_eval_dataloader(self, eval_dataset=None):
        training_collator = self.data_collator
        self.data_collator = default_data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def log(self, logs, *args, **kwargs):
        for name in [name for name in logs if name in ("eval_loss", "test_loss")]:
            logs[name.replace("loss", "perplexity")] = math.exp(min(logs[name], 100))
        super().log(logs, *args, **kwargs)


def parse_arguments(arguments=None):
    """Command-line (or given) arguments as (ModelArguments, DataArguments, TrainingArguments)."""
    return options.parse_arguments(
        ModelArguments,
        DataArguments,
        __doc__,
        arguments,
        output_dir="outputs/language_model",
        num_train_epochs=4,
        adam_beta2=0.99,
        weight_decay=0.1,
        metric_for_best_model="loss",
        prediction_loss_only=True,
    )


def main(arguments=None):
    model_args, data_args, training_args = parse_arguments(arguments)
    transformers.set_seed(training_args.seed)
    examples = load_examples(data_args, training_args.seed, (data_args.text_column,), offline=docstrings.texts)
    train_name, validation_name, *_ = examples
    texts = examples[train_name][data_args.text_column]
    tokenizer = once(training_args, lambda: make_tokenizer(model_args, texts))
    is_masked = data_args.objective == "masked"
    if is_masked and tokenizer.mask_token_id is None:
        raise ValueError("--objective masked needs a tokenizer with a mask token; this one has none")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    auto_class = OBJECTIVES[data_args.objective]
    if model_args.source:
        config = AutoConfig.from_pretrained(**model_args.source)
        model = auto_class.from_pretrained(**model_args.source, **model_args.attention, config=config)
    else:
        config = AstroformerConfig(
            **model_args.architecture,
            vocab_size=len(tokenizer),
            max_position_embeddings=data_args.block_size,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            is_decoder=not is_masked,
        )
        model = auto_class.from_config(config)
    tell_longest_input(tokenizer, config)

    add_short_convolution(model, model_args.short_convolution)
    blocks = {
        name: in_blocks(split, tokenizer, data_args.text_column, data_args.block_size)
        for name, split in examples.items()
    }
    if is_masked:
        masking, masking_once = (
            DataCollatorForLanguageModeling(tokenizer, mlm_probability=data_args.mlm_probability, seed=seed)
            for seed in (training_args.seed, 0)
        )
        blocks = {
            name: Blocks(input_ids=ids) if name == train_name else hide_once(ids, masking_once)
            for name, ids in blocks.items()
        }
    else:
        masking = default_data_collator
        blocks = {name: with_labels(ids, tokenizer.pad_token_id) for name, ids in blocks.items()}
    trainer = LanguageModelTrainer(
        model=model,
        args=training_args,
        train_dataset=blocks[train_name],
        eval_dataset=blocks[validation_name],
        processing_class=tokenizer,
        data_collator=masking,
    )
    trainer.is_causal = not is_masked

    def record(results, output_dir):
        plot_learning_curve(results["learning_curve"], "perplexity", output_dir / "learning_curve.png", title(results))
        if not is_masked and not model_args.short_convolution:
            # by the model that was saved: that in training may be divided over processes, and this is one of them
            saved = auto_class.from_pretrained(
                output_dir, trust_remote_code=model_args.trust_remote_code, **model_args.attention
            )
            written = sample(saved.to(training_args.device), tokenizer, data_args.num_sample_tokens)
            if written is not None:
                results["sample"] = written
                print(written)
        write_model_card(
            output_dir / "README.md",
            "language_model.md.jinja",
            results,
            metrics=results["metrics"],
            is_masked=is_masked,
            mask_token=tokenizer.mask_token,
            block_size=data_args.block_size,
            training_args=training_args,
        )

    contents = {name: (split[data_args.text_column],) for name, split in examples.items()}
    known = {
        "task": "fill-mask" if is_masked else "text-generation",
        "dataset": dataset_title(data_args, "Python docstrings"),
        "split": validation_name,
        "block_size": data_args.block_size,
    }
    return runs.train(
        trainer,
        resume_from(training_args, options_of_run(model_args, data_args, training_args, contents)),
        known,
        record,
        command=command(__file__, arguments),
        test=test_of(data_args, blocks),
        max_curve_samples=data_args.max_curve_samples,
    )


def sample(model, tokenizer, num_tokens):
    """A text that the model writes, as far as its positions reach; None for no tokens, or without one to begin with."""
    start = tokenizer("\n", return_tensors="pt").input_ids
    if start.numel() == 0 and tokenizer.eos_token_id is not None:
        start = torch.tensor([[tokenizer.eos_token_id]])
    if start.numel() == 0 or num_tokens == 0:
        return None
    longest = getattr(model.config, "longest_input", getattr(model.config, "max_position_embeddings", None))
    if longest is not None:
        num_tokens = min(num_tokens, longest - start.shape[1])
    reads_in_segments = getattr(model.config, "segment_length", None) is not None
    has_no_cache = reads_in_segments and model.config.attention_type == "softmax"
    output = model.eval().generate(
        start.to(model.device),
        max_new_tokens=num_tokens,
        do_sample=True,
        top_k=50,
        pad_token_id=tokenizer.pad_token_id,
        **({"use_cache": False} if has_no_cache else {}),
    )
    return tokenizer.decode(output[0], skip_special_tokens=True)


if __name__ == "__main__":
    main()
