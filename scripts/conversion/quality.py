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


def probe_accuracies(model, processor, texts, labels, seeds, num_train, batch_size=16, max_length=128):
    """Accuracy of logistic regression from a model's embeddings to the labels of texts.

    Args:
        model (`PreTrainedModel`), processor: the model and its tokenizer.
        texts (list of `str`), labels (list): of the examples.
        seeds (list of `int`): each draws other examples to learn from; the rest is measured.
        num_train (`int`): how many are drawn.
        batch_size, max_length (`int`): of the texts that the model reads.

    Returns:
        The accuracies, one of each seed.
    """
    batches = (
        processor(
            texts[i : i + batch_size], truncation=True, max_length=max_length, padding=True, return_tensors="pt"
        ).to(model.device)
        for i in range(0, len(texts), batch_size)
    )
    features, labels = embeddings(model, batches).cpu().numpy(), np.asarray(labels)
    accuracies = []
    for seed in seeds:
        train, test = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tensor_split(
            [num_train]
        )
        probe = LogisticRegression(max_iter=1000).fit(features[train], labels[train])
        accuracies.append(probe.score(features[test], labels[test]))
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
