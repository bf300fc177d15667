#!/usr/bin/env python
# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Measures speed and memory of neuron-astrocyte attention against softmax attention and against peers, in one run.

    python scripts/benchmark.py                      # everything, lengths 128 to 65,536: about an hour on two cores
    python scripts/benchmark.py --quick              # the same table in minutes, up to 2,048 tokens
    python scripts/benchmark.py --sections operation decoding

Sections: "operation": the attention alone, 8 heads of 64, against PyTorch's `scaled_dot_product_attention` ("sdpa"),
against the same with "all switches" on, in its plain form ("plain"), and against the two bare matrix products that no
linear attention can do without ("products"). "training": a step of a whole model, forward, backward and AdamW.
"inference": its forward pass. "memory": the peak of operation and training step. "decoding": time per token, and bytes
of the cache, after a long context. "packing": rows of several documents against the same tokens in one document. Models
are 6 layers, 512 wide; the arms share everything but the attention. On request only, "compiled": whole models by
`torch.compile`; "converted": a Llama of the shape of SmolLM2-135M, with softmax and with swapped attention, reading a
prompt and decoding after it; and "segments": long documents in segments, learned from by replay and with all segments
kept, up to a training step over a million tokens. Peers that are installed take part: BERT and Mamba-2 of transformers,
astrohebbian, and flash-linear-attention on a GPU.

Contestants take turns, and the median of several rounds counts: what disturbs the machine disturbs all of them. What
would take longer than --limit seconds is left out, with null for its time. Results go to OUTPUT_DIR/cpu.json (or
cuda.json), case by case; a run that was killed goes on with the cases that are missing, unless --fresh is given.
"""

import argparse
import contextlib
import copy
import itertools
import json
import os
import statistics
import time
from pathlib import Path


os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says on every start that it starts

import torch
from torch.nn.functional import scaled_dot_product_attention
from training.files import write_json
from training.memory_use import cache_bytes, peak_memory
from training.provenance import command, hardware, versions
from transformers import LlamaConfig, LlamaForCausalLM

from astroformer_hf import (
    AstroformerConfig,
    AstroformerForCausalLM,
    AstroformerForSequenceClassification,
    AstroformerForTokenClassification,
    attention_backend,
    neuron_astrocyte_attention,
    swap_attention,
)
from astroformer_hf.configuration_astroformer import BEFORE_IT_EXISTED
from astroformer_hf.library_compatibility import CACHE_NAME
from astroformer_hf.swapped_attention import HybridCache


SECTIONS = ("operation", "training", "inference", "memory", "decoding", "packing")
ON_REQUEST = ("compiled", "converted", "segments")
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
CONTEXTS = (1024, 16384, 65536)
PROMPTS, CONVERTED_CONTEXTS = (1024, 4096, 16384), (1024, 2048, 4096, 16384, 65536)  # of the section "converted"
SEGMENT, SEGMENTS = 256, (1, 4, 16)  # tokens of a segment, and how many, of the section "segments"
LONG_SEGMENT, LONG_TEXTS, DOCUMENTS_TO_READ = 1024, (2**17, 10**6), (10_000, 100_000)
CONVERTED = {"window_size": 16, "sink_tokens": 4}
CONVERTED_SHAPE = {
    **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152},
    **{"num_attention_heads": 9, "num_key_value_heads": 3},
}
ROW = 4096  # tokens of a packed row
DOCUMENTS = (20, 100, 400)  # tokens of its documents, in the mean
HEADS, HEAD_DIM = 8, 64
LAYERS, WIDTH, VOCABULARY = 6, 512, 1000
ALPHA = 0.5  # the default of the models
TOKENS_PER_TURN = 16  # decoded one after the other, so that a turn does not measure what the other's left in the caches
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# --------------------------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------------------------


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(function, device):
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def take_turns(contestants, device, rounds, budget, fewest=5):
    """Median seconds of each contestant over rounds in which each has its turn.

    Args:
        contestants (dict): names to functions without arguments.
        rounds (int): at most so many.
        budget (float): seconds to spend in all, about.
        fewest (int): rounds at least.
    """
    for function in contestants.values():  # compilers, caches, memory
        function()
    first = {name: seconds_of(function, device) for name, function in contestants.items()}
    rounds = int(max(fewest, min(rounds, budget / max(sum(first.values()), 1e-9))))
    times = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, function in contestants.items():
            times[name].append(seconds_of(function, device))
    return {name: statistics.median(values) for name, values in times.items()}, rounds


class Limit:
    """Leaves out what would take too long, from how long it took at half the length."""

    def __init__(self, seconds):
        self.seconds, self.last = seconds, {}

    def allows(self, name, length):
        last_length, last = self.last.get(name, (length, 0.0))
        return last * (length / last_length) ** 2 <= self.seconds

    def took(self, name, length, seconds):
        self.last[name] = (length, seconds)


# --------------------------------------------------------------------------------------------------------------------
# The contestants
# --------------------------------------------------------------------------------------------------------------------


def batch_of(length, tokens):
    return max(1, tokens // length)


def operations(causal, device):
    """The attention operation by name, each a function of query, key, value, code and log_decay."""

    def ours(query, key, value, code, log_decay):
        return neuron_astrocyte_attention(query, key, value, code, alpha=ALPHA, causal=causal)

    def all_switches(query, key, value, code, log_decay):
        return neuron_astrocyte_attention(
            query,
            key,
            value,
            code,
            alpha=ALPHA,
            causal=causal,
            log_decay=log_decay,
            presynaptic_target="synapse",
            calcium_sources="all",
        )

    def plain(*tensors):
        with attention_backend("plain"):
            return ours(*tensors)

    def no_astrocyte(query, key, value, code, log_decay):
        return neuron_astrocyte_attention(query, key, value, alpha=ALPHA, causal=causal)

    def sdpa(query, key, value, code, log_decay):
        return scaled_dot_product_attention(query, key, value, is_causal=causal)

    def products(query, key, value, code, log_decay):
        return query @ (key.transpose(-1, -2) @ value)

    found = {
        "neuron_astrocyte": ours,
        "all switches": all_switches,
        "no astrocyte": no_astrocyte,
        "plain": plain,
        "sdpa": sdpa,
        "products": products,
    }
    if device == "cuda":
        with contextlib.suppress(ImportError):
            from fla.ops.linear_attn import chunk_linear_attn

            def flash_linear(query, key, value, code, log_decay):
                if not causal:
                    raise NotImplementedError("flash-linear-attention is causal")
                query, key, value = (x.transpose(1, 2) for x in (query.sigmoid(), key.sigmoid(), value))
                return chunk_linear_attn(query, key, value)[0]

            if causal:
                found["flash-linear-attention"] = flash_linear
    return found


def operands(shape, requires_grad, **options):
    """Query, key, value, code and log_decay of an operation. Its heads remember between 1 and 1,024 tokens."""
    spans = torch.logspace(0, 10, HEADS, base=2, **options)
    gates = 0.5 + torch.rand(shape[:-1], **options)
    tensors = [torch.randn(shape, **options) for _ in range(3)]
    tensors += [torch.randn(shape[1:], **options), -gates / spans[:, None]]
    return [x.requires_grad_(requires_grad) for x in tensors]


def arm(attention_type, causal, max_length, encoder=AstroformerForSequenceClassification, **fields):
    """A model of one arm, in everything else but `fields` of the configuration the same."""
    shape = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
    }
    config = AstroformerConfig(
        attention_type=attention_type,
        **{**shape, **fields},
        vocab_size=VOCABULARY,
        max_position_embeddings=max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        presynaptic_alpha=ALPHA,
        is_decoder=causal,
    )
    return AstroformerForCausalLM(config) if causal else encoder(config)


def bert(max_length):
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=max_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def mamba2():
    from transformers import Mamba2Config, Mamba2ForCausalLM

    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2 * LAYERS,  # of half the parameters of a block with a feed-forward half
            num_heads=2 * WIDTH // HEAD_DIM,
            head_dim=HEAD_DIM,
            state_size=64,
            n_groups=1,
            use_cache=False,
        )
    )


class AstrohebbianClassifier(torch.nn.Module):
    """Blocks of the package astrohebbian behind an embedding, called as the library's models are."""

    def __init__(self):
        super().__init__()
        from astrohebbian import AstrocyteHebbianBlock

        self.embeddings = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = torch.nn.Sequential(*(AstrocyteHebbianBlock(WIDTH, HEADS) for _ in range(LAYERS)))
        self.classifier = torch.nn.Linear(WIDTH, 2)

    def forward(self, input_ids, labels=None):
        logits = self.classifier(self.blocks(self.embeddings(input_ids)).mean(1))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return type("Output", (), {"loss": loss, "logits": logits})


def models(causal, max_length, peers):
    """Whole models by name, each made when it is called for."""
    found = {
        "neuron_astrocyte": lambda: arm("neuron_astrocyte", causal, max_length),
        "no switches": lambda: arm("neuron_astrocyte", causal, max_length, **BEFORE_IT_EXISTED),
        "linear": lambda: arm("linear", causal, max_length),
        "softmax": lambda: arm("softmax", causal, max_length),
    }
    if peers and causal:
        found["Mamba-2"] = mamba2
    elif peers:
        found["BERT"] = lambda: bert(max_length)
        with contextlib.suppress(ImportError):
            import astrohebbian  # noqa: F401

            found["astrohebbian"] = AstrohebbianClassifier
    return found


# --------------------------------------------------------------------------------------------------------------------
# The sections
# --------------------------------------------------------------------------------------------------------------------


def measure_operation(record, arguments):
    for causal in (False, True):
        functions = operations(causal, arguments.device)
        for backward in (False, True):
            limit = Limit(arguments.limit)
            for length in arguments.lengths:
                batch = batch_of(length, arguments.tokens)
                shape = (batch, HEADS, length, HEAD_DIM)
                options = {"device": arguments.device, "dtype": DTYPES[arguments.dtype], "requires_grad": backward}
                tensors = operands(shape, **options)
                d_output = torch.randn(shape, device=arguments.device, dtype=DTYPES[arguments.dtype])

                def call(function, tensors=tensors, d_output=d_output, backward=backward):
                    output = function(*tensors)
                    if backward:
                        torch.autograd.grad(output, tensors, d_output, allow_unused=True)

                contestants = {name: lambda f=f, call=call: call(f) for name, f in functions.items()}
                case = {
                    "section": "operation",
                    "causal": causal,
                    "backward": backward,
                    "length": length,
                    "batch": batch,
                }
                time_all(contestants, case, record, limit, arguments)


def measure_models(section, record, arguments):
    is_training = section == "training"
    for causal in (False, True):
        limit = Limit(arguments.limit)
        made = models(causal, max(arguments.model_lengths), arguments.peers)
        made = {name: make().to(arguments.device).train(is_training) for name, make in made.items()}
        steps = {name: step_of(model, is_training, causal, arguments) for name, model in made.items()}
        for length in arguments.model_lengths:
            batch = batch_of(length, arguments.tokens)
            input_ids = torch.randint(VOCABULARY, (batch, length), device=arguments.device)
            contestants = {name: lambda step=step, x=input_ids: step(x) for name, step in steps.items()}
            case = {"section": section, "causal": causal, "backward": is_training, "length": length, "batch": batch}
            time_all(contestants, case, record, limit, arguments)


def measure_compiled(record, arguments):
    """Whole models by `torch.compile` and without, in training and inference."""
    for causal in (False, True):
        for is_training in (False, True):
            model = arm("neuron_astrocyte", causal, max(arguments.model_lengths))
            model = model.to(arguments.device).train(is_training)
            torch.compiler.reset()
            ways = {"eager": model, "compiled": torch.compile(model)}
            steps = {name: step_of(way, is_training, causal, arguments) for name, way in ways.items()}
            for length in arguments.model_lengths:
                batch = batch_of(length, arguments.tokens)
                input_ids = torch.randint(VOCABULARY, (batch, length), device=arguments.device)
                contestants = {name: lambda step=step, x=input_ids: step(x) for name, step in steps.items()}
                case = {
                    "section": "compiled",
                    "causal": causal,
                    "backward": is_training,
                    "length": length,
                    "batch": batch,
                }
                # compiling takes longer than what a call may
                time_all(contestants, case, record, Limit(float("inf")), arguments, float("inf"))


def step_of(model, is_training, causal, arguments):
    """A training step of a model, or its forward pass: a function of `input_ids`."""
    autocast = contextlib.nullcontext()
    if arguments.dtype != "float32":
        autocast = torch.autocast(arguments.device, dtype=DTYPES[arguments.dtype])
    if not is_training:

        def forward(input_ids):
            with torch.no_grad(), autocast:
                model(input_ids)

        return forward
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(input_ids):
        labels = input_ids if causal else input_ids[:, 0] % 2
        with autocast:
            loss = model(input_ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def time_all(contestants, case, record, limit, arguments, longest=None):
    """Times the contestants that the limit allows, and records them; `longest` instead of `arguments.limit`."""
    if record.has(case):
        return
    allowed = {name: function for name, function in contestants.items() if limit.allows(name, case["length"])}
    for name, function in list(allowed.items()):
        first = attempt(function, arguments.device)
        limit.took(name, case["length"], first if first is not None else float("inf"))
        if first is None or first > (arguments.limit if longest is None else longest):
            del allowed[name]
    times, rounds = take_turns(allowed, arguments.device, arguments.rounds, arguments.budget)
    for name in contestants:
        record.add(case, contestant=name, seconds=times.get(name), rounds=rounds)
    record.save()
    reference = "sdpa" if case["section"] == "operation" else "softmax"
    ratio = ""
    if times.get(reference) and times.get("neuron_astrocyte"):
        ratio = f"  {reference} / neuron_astrocyte = {times[reference] / times['neuron_astrocyte']:.2f}"
    parts = [f"{name} {seconds * 1e3:.2f} ms" for name, seconds in times.items()]
    print(f"{title(case)}: {', '.join(parts)}{ratio}", flush=True)


def attempt(function, device):
    """Seconds of a call, None if there is not memory enough."""
    try:
        return seconds_of(function, device)
    except torch.OutOfMemoryError:
        return None


def title(case):
    direction = "causal" if case["causal"] else "bidirectional"
    way = {("operation", True): ", forward and backward", ("operation", False): ", forward"}
    return f"{case['section']}, {direction}{way.get((case['section'], case['backward']), '')}, {case['length']} tokens"


def measure_memory(record, arguments):
    """Peak memory of the operation, forward and backward, and of a training step of the arms; one batch of one."""
    limit = Limit(arguments.limit)
    for causal in (False, True):
        functions = {k: f for k, f in operations(causal, arguments.device).items() if k in ("neuron_astrocyte", "sdpa")}
        makers = models(causal, max(arguments.model_lengths), False)
        makers = {k: f for k, f in makers.items() if k in ("neuron_astrocyte", "softmax")}
        for length in arguments.lengths:
            shape = (1, HEADS, length, HEAD_DIM)
            case = {"section": "memory", "causal": causal, "backward": True, "length": length, "batch": 1}
            options = {"device": arguments.device, "dtype": DTYPES[arguments.dtype], "requires_grad": True}
            measured = {}
            if not record.has(case):
                for name, function in functions.items():
                    if not limit.allows((name, causal), length):
                        continue
                    tensors = operands(shape, **options)

                    def call(function=function, tensors=tensors):
                        output = function(*tensors)
                        torch.autograd.grad(output, tensors, torch.ones_like(output), allow_unused=True)

                    limit.took((name, causal), length, seconds_of(call, arguments.device))
                    measured[name] = peak_memory(call, arguments.device)
                    record.add(case, contestant=name, **measured[name])
                record.save()
                show_bytes("operation", case, measured)
            case = {**case, "section": "memory of a training step"}
            if length not in arguments.model_lengths or record.has(case):
                continue
            measured = {}
            for name, make in makers.items():
                if not limit.allows((name, causal, "step"), length):
                    continue
                step = step_of(make().to(arguments.device).train(), True, causal, arguments)
                input_ids = torch.randint(VOCABULARY, (1, length), device=arguments.device)
                limit.took(
                    (name, causal, "step"), length, seconds_of(lambda s=step, x=input_ids: s(x), arguments.device)
                )
                measured[name] = peak_memory(lambda s=step, x=input_ids: s(x), arguments.device)
                record.add(case, contestant=name, **measured[name])
                del step
            record.save()
            show_bytes("training step", case, measured)


def show_bytes(what, case, measured):
    parts = [f"{name} {found['peak_bytes'] / 2**20:.1f} MiB" for name, found in measured.items()]
    direction = "causal" if case["causal"] else "bidirectional"
    print(f"memory, {direction} {what}, {case['length']} tokens: {', '.join(parts)}", flush=True)


@torch.no_grad()
def measure_decoding(record, arguments):
    """Seconds per token and bytes of the cache after a context; the softmax arm's cache is filled with random keys."""
    device, dtype = arguments.device, DTYPES[arguments.dtype]
    made = {
        name: arm(name, True, max(CONTEXTS) + 512).to(device, dtype).eval() for name in ("neuron_astrocyte", "softmax")
    }
    for context in arguments.contexts:
        case = {"section": "decoding", "causal": True, "backward": False, "length": context, "batch": 1}
        if record.has(case):
            continue
        caches = {}
        for name, model in made.items():
            cache = model(torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=True)[CACHE_NAME]
            if name == "softmax":
                for layer in range(LAYERS):
                    shape = (1, HEADS, context - 1, HEAD_DIM)
                    keys, values = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
                    cache.update(keys, values, layer)
            else:
                for start in range(1, context, 4096):
                    size = min(4096, context - start)
                    model(torch.randint(VOCABULARY, (1, size), device=device), cache=cache, logits_to_keep=1)
            caches[name] = cache
        token = torch.ones(1, 1, dtype=torch.long, device=device)

        def decode(name, token=token, caches=caches):
            for _ in range(TOKENS_PER_TURN):
                made[name](token, cache=caches[name])

        contestants = {name: lambda name=name, decode=decode: decode(name) for name in made}
        sizes = {name: cache_bytes(cache) for name, cache in caches.items()}
        times, rounds = take_turns(contestants, device, 10, float("inf"))
        times = {name: seconds / TOKENS_PER_TURN for name, seconds in times.items()}
        for name in made:
            record.add(case, contestant=name, seconds=times[name], rounds=rounds, cache_bytes=sizes[name])
        record.save()
        parts = [f"{name} {times[name] * 1e3:.2f} ms, {sizes[name] / 2**20:.2f} MiB" for name in made]
        print(f"decoding after {context} tokens: {'; '.join(parts)}", flush=True)


@torch.no_grad()
def measure_converted(record, arguments):
    """Seconds to read a prompt, then per token after a context, of a model with softmax and with swapped attention."""
    device, dtype = arguments.device, DTYPES[arguments.dtype]
    config = LlamaConfig(**CONVERTED_SHAPE, max_position_embeddings=2**17)
    softmax = LlamaForCausalLM(config).to(device, dtype).eval()
    made = {"softmax": softmax, "swapped": swap_attention(copy.deepcopy(softmax), **CONVERTED).eval()}

    def read(name, length, cache=None):
        input_ids = torch.randint(config.vocab_size, (1, length), device=device)
        return made[name](input_ids, use_cache=True, logits_to_keep=1, **{CACHE_NAME: cache})[CACHE_NAME]

    common = {"causal": True, "backward": False, "batch": 1, **CONVERTED}
    for length in PROMPTS:
        case = {"section": "prefill, converted", "length": length, **common}
        if record.has(case):
            continue
        contestants = {name: lambda name=name, length=length: read(name, length) for name in made}
        times, rounds = take_turns(contestants, device, arguments.rounds, arguments.budget, fewest=3)
        for name, seconds in times.items():
            record.add(case, contestant=name, seconds=seconds, rounds=rounds)
        record.save()
        print(f"reading {length} tokens: {', '.join(f'{name} {x:.2f} s' for name, x in times.items())}", flush=True)
    for context in CONVERTED_CONTEXTS:
        case = {"section": "decoding, converted", "length": context, **common}
        if record.has(case):
            continue
        caches = {"softmax": read("softmax", 1), "swapped": HybridCache(made["swapped"].config)}
        for layer in range(config.num_hidden_layers):  # what the keys are, its time does not depend on
            shape = (2, 1, config.num_key_value_heads, context - 1, config.head_dim)
            keys_and_values = torch.randn(shape, device=device, dtype=dtype)
            caches["softmax"].update(*keys_and_values, layer)
        for start in range(0, context, 4096):
            read("swapped", min(4096, context - start), caches["swapped"])
        contestants = {
            name: lambda name=name, caches=caches: [read(name, 1, caches[name]) for _ in range(TOKENS_PER_TURN)]
            for name in made
        }
        sizes = {name: cache_bytes(cache) for name, cache in caches.items()}
        times, rounds = take_turns(contestants, device, 10, float("inf"))
        for name, seconds in times.items():
            measured = {"seconds": seconds / TOKENS_PER_TURN, "cache_bytes": sizes[name]}
            record.add(case, contestant=name, **measured, rounds=rounds)
        record.save()
        parts = [f"{name} {times[name] / TOKENS_PER_TURN * 1e3:.1f} ms, {sizes[name] / 2**20:.1f} MiB" for name in made]
        print(f"decoding after {context} tokens: {'; '.join(parts)}", flush=True)


def measure_segments(record, arguments):
    """Time and memory of training steps over more and more segments; of a step over a very long text; and of reading a
    document at once and in pieces."""
    device = arguments.device

    def model(causal, **fields):
        fields = {"segment_length": SEGMENT, **fields}
        return arm("neuron_astrocyte", causal, SEGMENT, **fields).to(device)

    for causal, number in itertools.product((False, True), SEGMENTS):
        length = number * SEGMENT
        case = {"section": "segments", "causal": causal, "backward": True, "length": length, "batch": 1}
        if record.has(case):
            continue
        input_ids = torch.randint(VOCABULARY, (1, length), device=device)
        steps = {
            name: step_of(model(causal, memory_backprop=name).train(), True, causal, arguments)
            for name in ("full", "replay")
        }
        steps["at once"] = step_of(model(causal, segment_length=None).train(), True, causal, arguments)
        calls = {name: lambda step=step, x=input_ids: step(x) for name, step in steps.items()}
        times, rounds = take_turns(calls, device, arguments.rounds, arguments.budget, fewest=3)
        for name, seconds in times.items():
            measured = peak_memory(calls[name], device)
            record.add({**case, "segments": number}, contestant=name, seconds=seconds, rounds=rounds, **measured)
        record.save()
        print(f"{number} segments: {', '.join(f'{name} {x:.2f} s' for name, x in times.items())}", flush=True)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    for length in LONG_TEXTS:
        case = {"section": "a long text", "causal": False, "backward": True, "length": length, "batch": 1}
        if record.has(case):
            continue
        step = step_of(model(False, segment_length=LONG_SEGMENT, **small).train(), True, False, arguments)
        input_ids = torch.randint(VOCABULARY, (1, length), device=device)
        measured = peak_memory(lambda step=step, x=input_ids: step(x), device, traced=False)
        seconds = seconds_of(lambda step=step, x=input_ids: step(x), device)
        record.add(case, contestant="replay", seconds=seconds, rounds=1, **measured)
        record.save()
        print(f"a step over {length} tokens: {seconds:.0f} s", flush=True)
    reader = model(False, segment_length=LONG_SEGMENT, pooling="last", **small).eval()

    @torch.no_grad()
    def read(input_ids, size):
        outputs = memory = None
        for piece in input_ids.split(size, dim=1):
            outputs = reader(piece, memory=memory)
            memory = outputs.memory
        return outputs.logits

    for length in DOCUMENTS_TO_READ:
        case = {"section": "reading a document", "causal": False, "backward": False, "length": length, "batch": 1}
        if record.has(case):
            continue
        input_ids = torch.randint(VOCABULARY, (1, length), device=device)
        ways = {"at once": length, "in pieces": 4 * LONG_SEGMENT}
        calls = {name: lambda size=size, x=input_ids: read(x, size) for name, size in ways.items()}
        at_once, in_pieces = (call() for call in calls.values())
        times, rounds = take_turns(calls, device, arguments.rounds, arguments.budget, fewest=3)
        for name, seconds in times.items():
            difference = (in_pieces - at_once).abs().max().item()
            measured = {**peak_memory(calls[name], device), "difference": difference}
            record.add(case, contestant=name, seconds=seconds, rounds=rounds, **measured)
        record.save()
        print(f"reading {length} tokens: {', '.join(f'{name} {x:.2f} s' for name, x in times.items())}", flush=True)


def measure_packing(record, arguments):
    """A row of several documents, and the same tokens as one document."""
    row = min(ROW, max(arguments.model_lengths))
    generator = torch.Generator().manual_seed(0)
    positions = {"": torch.arange(row)}
    for mean in DOCUMENTS:
        begins = torch.rand(row, generator=generator) < 1 / mean  # lengths are geometrically distributed
        begins[0] = True
        index = torch.arange(row)
        positions[f", documents of {mean}"] = index - torch.where(begins, index, 0).cummax(0).values
    for causal in (False, True):
        for is_training in (False, True):
            contestants = {}
            for attention_type in ("neuron_astrocyte", "linear", "softmax"):
                model = arm(attention_type, causal, row, AstroformerForTokenClassification)
                model = model.to(arguments.device).train(is_training)
                for name, position_ids in positions.items():
                    step = packed_step(model, is_training, position_ids[None].to(arguments.device), arguments)
                    contestants[attention_type + name] = step
            case = {"section": "packing", "causal": causal, "backward": is_training, "length": row, "batch": 1}
            time_all(contestants, case, record, Limit(arguments.limit), arguments)


def packed_step(model, is_training, position_ids, arguments):
    """The forward pass over a row of those positions, and the backward pass if `is_training`."""
    input_ids = torch.randint(VOCABULARY, position_ids.shape, device=arguments.device)
    autocast = contextlib.nullcontext()
    if arguments.dtype != "float32":
        autocast = torch.autocast(arguments.device, dtype=DTYPES[arguments.dtype])

    def step():
        with torch.set_grad_enabled(is_training), autocast:
            logits = model(input_ids, position_ids=position_ids, use_cache=False).logits
        if is_training:
            logits.float().square().mean().backward()
            model.zero_grad()

    return step


# --------------------------------------------------------------------------------------------------------------------
# The record
# --------------------------------------------------------------------------------------------------------------------


class Record:
    """Rows of results in a file that is written whole or not at all, and taken up again."""

    def __init__(self, path, arguments, command):
        self.path, self.rows = path, []
        packages = ("triton", "flash-linear-attention", "astrohebbian")
        self.origin = {
            "command": command,
            "versions": {**versions(), **versions(packages)},
            "hardware": hardware(),
            "dtype": arguments.dtype,
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "layers": LAYERS,
            "width": WIDTH,
        }
        if path.exists() and not arguments.fresh:
            earlier = json.loads(path.read_text())
            if {k: v for k, v in earlier.items() if k != "rows"} == self.origin:
                self.rows = earlier["rows"]
                print(f"going on with {len(self.rows)} rows of {path}")

    def has(self, case):
        return any(all(row[key] == value for key, value in case.items()) for row in self.rows)

    def add(self, case, **measured):
        self.rows.append({**case, **measured})

    def save(self):
        write_json(self.path, {**self.origin, "rows": self.rows})


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("results/benchmark"), help="folder of the record")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=(*SECTIONS, *ON_REQUEST),
        default=SECTIONS,
        help=f"default: all but {', '.join(ON_REQUEST)}",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="tokens per sequence, of the operation")
    parser.add_argument("--model_lengths", nargs="+", type=int, help="of whole models; default: those up to 8,192")
    parser.add_argument("--contexts", nargs="+", type=int, default=CONTEXTS, help="tokens before those decoded")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens per batch where sequences are shorter")
    parser.add_argument("--rounds", type=int, default=30, help="rounds at most, of which the median counts")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for the rounds of a case, about")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds above which a single call is left out")
    parser.add_argument("--no_peers", dest="peers", action="store_false", help="only the arms of this project")
    parser.add_argument("--quick", action="store_true", help="lengths up to 2,048 and few rounds")
    parser.add_argument("--fresh", action="store_true", help="do not go on with an earlier run")
    arguments = parser.parse_args(arguments)
    for name in ("lengths", "model_lengths", "contexts"):
        values = getattr(arguments, name)
        if values is not None and min(values) < 2:
            parser.error(f"--{name} must be at least 2, got {min(values)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was asked for, but there is no GPU")
    if arguments.quick:
        arguments.lengths = [length for length in arguments.lengths if length <= 2048]
        arguments.contexts = [1024]
        arguments.rounds, arguments.budget = 5, 1.0
    arguments.lengths = sorted(arguments.lengths)
    arguments.model_lengths = sorted(arguments.model_lengths or [n for n in arguments.lengths if n <= 8192])
    arguments.dtype = arguments.dtype or ("float32" if arguments.device == "cpu" else "bfloat16")
    return arguments


def main(arguments=None):
    repeat = command(__file__, arguments)
    arguments = parse_arguments(arguments)
    torch.manual_seed(0)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    record = Record(arguments.output_dir / f"{arguments.device}.json", arguments, repeat)
    for section in arguments.sections:
        if section == "operation":
            measure_operation(record, arguments)
        elif section in ("training", "inference"):
            measure_models(section, record, arguments)
        elif section == "memory":
            measure_memory(record, arguments)
        elif section == "decoding":
            measure_decoding(record, arguments)
        elif section == "compiled":
            measure_compiled(record, arguments)
        elif section == "converted":
            measure_converted(record, arguments)
        elif section == "segments":
            measure_segments(record, arguments)
        else:
            measure_packing(record, arguments)
    print(f"wrote {record.path}; python scripts/report.py makes tables and figures of it")
    return record


if __name__ == "__main__":
    main()
