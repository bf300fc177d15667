# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The Triton kernels, compiled for GPUs that need not be here: what the interpreter takes, the compiler may not."""

import pytest
import torch
from variants import some_each_time


triton = pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("the other tests compile them for the GPU that is here", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from astroformer_hf import hybrid_attention_triton, neuron_astrocyte_triton  # noqa: E402


MOST_SHARED_MEMORY = 99 * 1024  # bytes, of GPUs with compute capability 8.6 and 8.9
LENGTH = 200


class AbsentGPU:
    """As much of a driver as compiling needs.

    Args:
        capability (`int`): 80 for 8.0.
    """

    def __init__(self, capability):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self):
        return self.target.arch  # what is compiled is kept by it

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


@pytest.fixture
def compiled(monkeypatch):
    """Of each kernel that was to be launched, its name and what was made of it."""
    run, found = JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.__name__, kernel))
        return kernel

    monkeypatch.setattr(JITFunction, "run", compile_only)
    return found


def randn(size, dtype, heads=4):
    return torch.randn(2, LENGTH, heads, size, dtype=dtype).transpose(1, 2)


def tokens(size, dtype):
    names = ("query", "key", "value", "astrocyte_code")
    return {**{name: randn(size, dtype) for name in names}, "padding_mask": torch.ones(2, LENGTH, dtype=torch.bool)}


def states(size, before=""):
    return {f"{before}hebbian": torch.zeros(2, 4, size, size), f"{before}calcium": torch.zeros(2, 4, size)}


BEST = {
    "alpha": 0.5,
    "presynaptic_target": "synapse",
    "calcium_sources": "all",
    "feature_map": "exp",
    "feedback": True,
    "scale": 8.0,
}


def causal(size, dtype):
    module, inputs = neuron_astrocyte_triton, {**tokens(size, dtype), **states(size), **BEST}
    inputs["log_decay"] = -torch.rand(2, 4, LENGTH)
    module.causal_forward(**inputs, output_dtype=dtype)
    module.causal_backward(**inputs, d_output=randn(size, dtype), **states(size, "d_"))
    return {"_write_kernel", "_carry_kernel", "_read_kernel", "_read_backward_kernel", "_write_backward_kernel"}


def both_ways(size, dtype):
    module = neuron_astrocyte_triton
    inputs = {**tokens(size, dtype), **states(size), **states(size, "later_"), **BEST}
    inputs["log_decay"] = -torch.rand(2, 4, LENGTH)
    module.both_ways_forward(**inputs, output_dtype=dtype)
    module.both_ways_backward(**inputs, d_output=randn(size, dtype), **states(size, "d_"), **states(size, "d_later_"))
    return {"_write_kernel", "_carry_kernel", "_read_kernel", "_read_backward_kernel", "_write_backward_kernel"}


def write_and_read(size, dtype):
    module, written = neuron_astrocyte_triton, tokens(size, dtype)
    query = {"query": written.pop("query"), "feature_map": "elu"}
    state = states(size)
    read = {**query, "hebbian": state["hebbian"], "plasticity": state["calcium"]}
    written |= {"feature_map": "elu", "calcium_sources": "neurons"}
    module.write_forward(**written)
    module.write_backward(**written, **states(size, "d_"))
    module.read_forward(**read, output_dtype=dtype)
    module.read_backward(**read, d_output=randn(size, dtype))
    return {"_write_kernel", "_read_kernel", "_read_backward_kernel", "_write_backward_kernel"}


def hybrid(size, is_causal):
    module, heads, key_heads, window_size, num_sinks = hybrid_attention_triton, 4, 2, 16, 4
    inputs = {
        "query": randn(size, torch.float32),
        "grouped_key": randn(size, torch.float32, key_heads),
        "grouped_value": randn(size, torch.float32, key_heads),
        "tokens": torch.full((2, 1), LENGTH),
        "query_map": torch.randn(heads, size, size),
        "key_map": torch.randn(key_heads, size, size),
        "key_loudness": torch.randn(key_heads, size, 1),
        "loudness": torch.ones(heads, 1, 1),
        "scaling": 0.1,
    }
    d_output = randn(size, torch.float32)

    def state(before=""):
        shapes = {
            "grouped_hebbian": (2 * size, size),
            "grouped_calcium": (2 * size,),
            "window": (window_size, 2 * size),
            "sinks": (num_sinks, 2 * size),
        }
        return {before + name: torch.zeros(2, key_heads, *shape) for name, shape in shapes.items()}

    if is_causal:
        inputs |= {**state(), "counted": torch.zeros(2, 1, dtype=torch.long)}
        module.causal_forward(**inputs, output_dtype=torch.float32)
        module.causal_backward(**inputs, **state("d_"), d_output=d_output)
    else:
        inputs |= {"window_size": window_size, "sink_tokens": num_sinks}
        module.both_ways_forward(**inputs, output_dtype=torch.float32)
        module.both_ways_backward(**inputs, d_output=d_output)
    of_gradients = ("query_backward", "query_features_backward", "key_backward", "key_features_backward")
    return {f"{name}_kernel" for name in ("forward", *of_gradients)}


CASES = {
    "causal, float32": lambda: causal(64, torch.float32),
    "causal, bfloat16, large heads": lambda: causal(128, torch.bfloat16),
    "both ways, float32": lambda: both_ways(64, torch.float32),
    "both ways, bfloat16, large heads": lambda: both_ways(128, torch.bfloat16),
    "without leak, bfloat16": lambda: write_and_read(64, torch.bfloat16),
    "hybrid, causal": lambda: hybrid(64, True),
    "hybrid, both ways": lambda: hybrid(32, False),
    "hybrid, large heads": lambda: hybrid(128, True),
}
EACH_TIME = ("causal, float32", "without leak, bfloat16", "hybrid, causal")


@pytest.mark.parametrize(
    ("case", "capability"),
    some_each_time([(case, number) for case in CASES for number in (80, 90)], [(case, 80) for case in EACH_TIME]),
)
def test_kernels_compile_and_fit_the_shared_memory(case, capability, compiled, monkeypatch):
    monkeypatch.setattr(driver, "_active", AbsentGPU(capability))
    expected = CASES[case]()
    assert {name for name, _ in compiled} == expected
    assert all(kernel.asm["cubin"] for _, kernel in compiled)  # through the assembler of the GPU, too
    shared = {name: kernel.metadata.shared for name, kernel in compiled}
    assert max(shared.values()) <= MOST_SHARED_MEMORY, shared
