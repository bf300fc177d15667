# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The data of multi-query associative recall, in the style of Arora et al., "Zoology" (ICLR 2024), made from a seed."""

from functools import lru_cache

import torch


FILLER = 0
SPLITS = ("train", "validation", "test")  # each is drawn from a seed of its own


def recall_examples(number, *, vocab_size, num_pairs, length, seed):
    """Examples of the task; `scripts/train_associative_recall.py` states its rules.

    Args:
        number (`int`): of examples.
        vocab_size (`int`): 0 is the filler, keys are 1 to vocab_size / 2 - 1, values vocab_size / 2 to vocab_size - 1.
        num_pairs (`int`): pairs of a key and a value, and queries.
        length (`int`): tokens of an example.
        seed (`int`): draws everything.

    Returns:
        (input_ids, labels), both `(number, length)`. A label is for the token before it, as causal models take them: a
        query at place p has its value as label p + 1. All other labels are -100.

    Raises:
        ValueError: there are not enough keys, or places.
    """
    num_keys = vocab_size // 2 - 1
    if not 1 <= num_pairs <= num_keys:
        raise ValueError(f"--num_pairs must be in [1, {num_keys}] for --vocab_size {vocab_size}, got {num_pairs}")
    if length < 3 * num_pairs + 1:
        raise ValueError(f"--length must be at least {3 * num_pairs + 1} for --num_pairs {num_pairs}, got {length}")
    generator = torch.Generator().manual_seed(seed)

    def draw_without_return(choices):
        """`num_pairs` different ones of `range(choices)`, in random order, for each example."""
        return torch.rand(number, choices, generator=generator).argsort(-1)[:, :num_pairs]

    keys = 1 + draw_without_return(num_keys)
    values = torch.randint(vocab_size // 2, vocab_size, (number, num_pairs), generator=generator)
    # the last token has no successor that would hold its label
    places = 2 * num_pairs + draw_without_return(length - 1 - 2 * num_pairs)
    input_ids = torch.full((number, length), FILLER)
    input_ids[:, 0 : 2 * num_pairs : 2] = keys
    input_ids[:, 1 : 2 * num_pairs : 2] = values
    input_ids.scatter_(1, places, keys)
    labels = torch.full((number, length), -100).scatter_(1, places + 1, values)
    return input_ids, labels


class RecallExamples(torch.utils.data.Dataset):
    """The examples of one of `SPLITS`, made with `examples_seed`."""

    def __init__(self, split, number, examples_seed, **rules):
        # three seeds in a row, one for each split, so that no two of different `examples_seed` are the same
        seed = len(SPLITS) * examples_seed + SPLITS.index(split)
        self.input_ids, self.labels = recall_examples(number, seed=seed, **rules)

    def __len__(self):
        return len(self.input_ids)

    def __getitem__(self, index):
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


def recall_accuracy(predictions, labels):
    """The share of queries that are answered by their value.

    Args:
        predictions: `(examples, length)`, the likeliest next token after each.
        labels: `(examples, length)`, as of `recall_examples`.
    """
    predictions, labels = predictions[:, :-1], labels[:, 1:]
    asked = labels != -100
    return float((predictions == labels)[asked].mean())


def chance_of_a_value(num_pairs, vocab_size):
    """The accuracy of any value of the example, which may be right as another pair's, too."""
    return 1 / num_pairs + (1 - 1 / num_pairs) / (vocab_size // 2)


@lru_cache
def chance_of_the_commonest(num_pairs, vocab_size, number=100_000):
    """The accuracy of the commonest value of the example, the best without a look at the key; of `number` examples."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(vocab_size // 2, (number, num_pairs), generator=generator).sort(-1).values
    run, longest = torch.ones(number), torch.ones(number)
    for i in range(1, num_pairs):
        run = torch.where(values[:, i] == values[:, i - 1], run + 1, torch.ones(()))
        longest = torch.maximum(longest, run)
    return float(longest.mean()) / num_pairs


def share_of_the_commonest(train, measured):
    """The accuracy on `measured` of answering every query by the commonest value of `train`."""
    commonest = train.labels[train.labels != -100].mode().values
    answers = measured.labels[measured.labels != -100]
    return float((answers == commonest).float().mean())
