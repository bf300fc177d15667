# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What a model that is converted learns from: texts or images without labels, as its inputs."""

from pathlib import Path

import torch
from looking.pictures import as_rgb
from training.data import load_splits, pick_split
from training.tokenization import in_blocks
from transformers import AutoImageProcessor, AutoTokenizer, DataCollatorWithPadding, default_data_collator


IMAGE_COLUMNS = ("image", "img")


class Inputs:
    """The data of a conversion, cut into the parts that its steps take.

    Args:
        source (`str`): folder of files named by split, or a name on the Hub.
        model (`PreTrainedModel`): the original.
        processor: its tokenizer or image processor.
        max_length (`int`): tokens that are read of a text, or that a block of a causal model has.
        seed (`int`): draws the examples.
        text_column (`str`): of texts.
    """

    def __init__(self, source, model, processor, max_length, seed, text_column="text"):
        kind = {"dataset_dir": source} if Path(source).is_dir() else {"dataset_name": source}
        self.splits, self.seed = load_splits(**kind), seed
        self.model, self.processor, self.max_length = model, processor, max_length
        self.column = text_column
        columns = next(iter(self.splits.values())).column_names
        if model.main_input_name == "pixel_values":
            self.column = next((name for name in IMAGE_COLUMNS if name in columns), IMAGE_COLUMNS[0])
        if self.column not in columns:
            raise ValueError(f"the data {source!r} has no column {self.column!r}; it has {columns}")
        self.is_causal, self.blocks = model.can_generate(), {}
        is_text = model.main_input_name != "pixel_values" and not self.is_causal
        self.collator = DataCollatorWithPadding(processor) if is_text else default_data_collator

    def of(self, split, start, number):
        """Examples `start` to `start + number` of a split, in an order drawn with the seed; fewer where it ends."""
        _, data = pick_split(self.splits, split, fallbacks=fallbacks_of(split))
        if self.is_causal:
            if split not in self.blocks:
                blocks = in_blocks(data, self.processor, self.column, self.max_length)
                order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(self.seed))
                self.blocks[split] = blocks[order]
            self._check(split, len(self.blocks[split]), start)
            return Blocks(self.blocks[split][start : start + number])
        self._check(split, len(data), start)
        data = data.shuffle(seed=self.seed)
        data = data.select(range(min(start, len(data)), min(start + number, len(data))))
        if self.model.main_input_name == "pixel_values":
            return data.select_columns([self.column]).with_transform(self._images)
        return data.map(self._tokens, batched=True, remove_columns=data.column_names, desc="Tokenizing")

    @staticmethod
    def _check(split, number, start):
        if start >= number:
            raise ValueError(f"split {split!r} has {number} examples: none is left after the first {start}")

    def batches(self, examples, batch_size):
        """The examples in batches, as the model takes them."""
        loader = torch.utils.data.DataLoader(examples, batch_size=batch_size, collate_fn=self.collator)
        for batch in loader:
            yield {name: x.to(self.model.device) for name, x in batch.items()}

    def _tokens(self, rows):
        return self.processor(rows[self.column], truncation=True, max_length=self.max_length)

    def _images(self, rows):
        return self.processor([as_rgb(image) for image in rows[self.column]], return_tensors="pt")


class Blocks(torch.utils.data.Dataset):
    """Blocks of tokens, `(number, length)`, as examples."""

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index]}


def load_processor(model, source):
    """The tokenizer or image processor of a model."""
    return (AutoImageProcessor if model.main_input_name == "pixel_values" else AutoTokenizer).from_pretrained(source)


def fallbacks_of(split):
    """The splits that stand for another where the data lack it, as of `pick_split`."""
    return ("test",) if split == "validation" else ()
