# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""How near a swapped model is to the original, on data that neither was trained on."""

import contextlib
import math

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import nn


@torch.no_grad()
def embeddings(model, batches):
    """The mean of the last hidden states over real tokens, of length 1: `(examples, hidden_size)`."""
    found = []
    for batch in batches:
        hidden = model(**batch, output_hidden_states=True).hidden_states[-1].float()
        real = batch.get("attention_mask", torch.ones(hidden.shape[:2]))[..., None].to(hidden)
        found.append(nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1))
    return torch.cat(found)


def compare_embeddings(found, wanted):
    """How near embeddings are to those of the original: the cosine of each to its own, in the mean and at the fifth
    percentile, and Spearman's rank correlation of the similarities of all pairs."""
    cosine = (found * wanted).sum(-1)
    pairs = torch.triu_indices(len(wanted), len(wanted), offset=1).unbind()
    correlation = spearmanr((found @ found.T)[pairs].numpy(), (wanted @ wanted.T)[pairs].numpy()).statistic
    return {
        "cosine": cosine.mean().item(),
        "cosine_fifth_percentile": cosine.quantile(0.05).item(),
        "spearman": float(correlation),
    }


def probe_accuracies(model, processor, train, test, seeds, numbers, batch_size=16, max_length=128):
    """Accuracy of logistic regression from a model's embeddings to the labels of texts.

    Args:
        model (`PreTrainedModel`), processor: the model and its tokenizer.
        train, test (`datasets.Dataset`): with the columns `text` and `label`.
        seeds (list of `int`): each draws other examples of both.
        numbers (pair of `int`): how many to learn from, and to measure on; all, where there are no more.
        batch_size, max_length (`int`): of the texts that the model reads.

    Returns:
        The accuracies, one of each seed.
    """
    options = {"truncation": True, "max_length": max_length, "padding": True, "return_tensors": "pt"}

    def read(rows):
        texts = (rows[i : i + batch_size]["text"] for i in range(0, len(rows), batch_size))
        found = embeddings(model, (processor(some, **options).to(model.device) for some in texts))
        return found.cpu().numpy(), np.asarray(rows["label"])

    read_once, accuracies = [read(train), read(test)], []
    for seed in seeds:
        generator = np.random.default_rng(seed)
        chosen = [
            generator.permutation(len(labels))[:number] for (_, labels), number in zip(read_once, numbers, strict=True)
        ]
        (x, y), (test_x, test_y) = (
            (features[rows], labels[rows]) for (features, labels), rows in zip(read_once, chosen, strict=True)
        )
        accuracies.append(LogisticRegression(max_iter=1000).fit(x, y).score(test_x, test_y))
    return accuracies


@torch.no_grad()
def perplexity(model, batches):
    """Perplexity of a causal model over blocks of tokens, of which each but the first is predicted."""
    total, count = 0.0, 0
    for batch in batches:
        logits = model(**batch).logits[:, :-1].float()
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="sum")
        total += losses.item()
        count += batch["input_ids"][:, 1:].numel()
    return {"perplexity": math.exp(total / count), "tokens": count}


@contextlib.contextmanager
def silenced_synapses(model):
    """Within it, a swapped model reads what is read exactly and nothing else: what the synapses are worth shows in the
    difference."""
    loudness = [p for name, p in model.named_parameters() if name.endswith("synapses.log_loudness")]
    before = [p.detach().clone() for p in loudness]
    try:
        for parameter in loudness:
            parameter.data.fill_(-math.inf)
        yield
    finally:
        for parameter, values in zip(loudness, before, strict=True):
            parameter.data.copy_(values)
