# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What `test_parallel.py` has two processes do: `PYTHONPATH=. torchrun --nproc-per-node 2
tests/models/parallel_checks.py FOLDER`.

Each check runs in both processes and raises where something is not as in a single process; what it raised goes to
`FOLDER/RANK.json`, by the name of the check. Models are in float64, so that what is equal is equal to many digits.
"""

import copy
import json
import os
import sys
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.experimental import context_parallel
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments
from transformers.distributed import DistributedConfig


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from variants import HEADS, LABELS, make_model, tiny_config
from variants import VARIANTS as ALL_VARIANTS

import astroformer_hf


TRAINED = (
    "AstroformerForSequenceClassification",
    "AstroformerForMaskedLM",
    "AstroformerForCausalLM",
    "AstroformerForImageClassification",
)
# One of each kind of code, of features made outside of the kernels, and of attention; the others run with --all.
EACH_TIME = ("learned", "activity", "favor", "linear", "softmax", "segments")
VARIANTS = {
    name: fields
    for name, fields in ALL_VARIANTS.items()
    if name in EACH_TIME or os.environ.get("ASTROFORMER_TESTS") == "all"
}


def trained_with(variant):
    """Of `TRAINED`, what is tried with a variant each time: the decoder, and one of the others in turn."""
    if os.environ.get("ASTROFORMER_TESTS") == "all":
        return TRAINED
    others = [name for name in TRAINED if name != "AstroformerForCausalLM"]
    return "AstroformerForCausalLM", others[list(VARIANTS).index(variant) % len(others)]


COMPILED = ("AstroformerForImageClassification",)
if os.environ.get("ASTROFORMER_TESTS") == "all":
    COMPILED = ("AstroformerForCausalLM", *COMPILED)

CHECKS = {}


def check(*cases):
    """Registers a check, once for each of the cases, which are keys of `VARIANTS` or none."""

    def register(function):
        for case in cases or ("",):
            CHECKS[f"{function.__name__} {case}".strip()] = (function, (case,) if case else ())
        return function

    return register


def rank():
    return dist.get_rank()


def whole(x):
    """All of a tensor that may be divided over the processes."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def make(name, variant=None, padding=True, **changes):
    """A model in float64, the same in every process, with its inputs."""
    torch.manual_seed(0)
    model = make_model(name, **(ALL_VARIANTS[variant] if variant else {}), **changes)
    inputs = HEADS[name][2]()
    if not padding and "attention_mask" in inputs:
        inputs["attention_mask"][:] = 1
    return model.double(), {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}


def saved(model, name):
    """A folder that all processes see, with the model in it."""
    path = FOLDER / name
    if rank() == 0:
        model.save_pretrained(path)
    dist.barrier()
    return path


def make_divisible(name, variant=None, **changes):
    """The same where parts of the batch have the loss of the whole: what stands at padding, which some labels here ask
    after, depends on the rest of the batch."""
    pooled = "Classification" in name and "Token" not in name or name == "AstroformerForMultipleChoice"
    return make(name, variant, padding=pooled, **changes)


def own_half(inputs):
    """This process's part of a batch."""
    return {key: x.chunk(dist.get_world_size())[rank()] for key, x in inputs.items()}


def assert_same(found, expected, name=""):
    # losses are in float32 whatever the model
    assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}: {text}")


def assert_same_gradients(model, reference):
    """Gradients as of the reference, of which every parameter has one."""
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        name = name.replace("_fsdp_wrapped_module.", "").replace("module.", "")
        assert parameter.grad is not None, f"{name} has no gradient"
        assert_same(whole(parameter.grad), expected[name].grad, name)


def assert_raises(kind, words, function):
    try:
        function()
    except kind as error:
        assert all(word in str(error) for word in words), f"not in words: {error}"
        return
    raise AssertionError(f"no {kind.__name__}")


def by_heads(model, folder, tp_plan=None, **fields):
    """The model loaded anew, its heads divided over the processes."""
    config = DistributedConfig(tp_size=dist.get_world_size(), tp_plan=tp_plan)
    return type(model).from_pretrained(folder, distributed_config=config, dtype=torch.float64, **fields).eval()


# --------------------------------------------------------------------------------------------------------------------
# Tensor parallelism
# --------------------------------------------------------------------------------------------------------------------


@check(*VARIANTS)
def tensor_parallel(variant):
    for name in trained_with(variant):
        model, inputs = make(name, variant)
        sharded = by_heads(model, saved(model, f"{name} {variant}"))
        attention = sharded.base_model.layers[0].attention
        assert whole(attention.q_proj.weight).shape[0] == 2 * attention.q_proj.weight.to_local().shape[0]
        for _ in range(2):  # the second adds to the gradients of the first
            has_maps = model.config.segment_length is None
            expected, found = (m(**inputs, output_attentions=has_maps) for m in (model, sharded))
            assert_close(found.loss, expected.loss)
            assert_close(found.logits, expected.logits)
            for own, other in zip(found.attentions or (), expected.attentions or (), strict=True):
                assert_same(own, other)
            expected.loss.backward()
            found.loss.backward()
        assert_same_gradients(sharded, model)
        with torch.no_grad():
            assert_close(sharded(**inputs).logits, model(**inputs).logits)
        if name == "AstroformerForCausalLM":
            prompt = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"].clone()}
            prompt["attention_mask"][2] = 1
            for beams in (1, 2):
                texts = [
                    m.generate(**prompt, max_new_tokens=6, do_sample=False, num_beams=beams) for m in (sharded, model)
                ]
                assert_close(*texts)


@check()
def tensor_parallel_in_training():
    """Dropout is drawn alike in every process, and layers may be computed again in the backward pass."""
    for variant in VARIANTS:
        model, inputs = make("AstroformerForSequenceClassification", variant)
        path = saved(model, f"AstroformerForSequenceClassification {variant}")
        sharded = by_heads(model, path)
        sharded.gradient_checkpointing_enable({"use_reentrant": False})
        for m in (model.train(), sharded.train()):
            m(**inputs).loss.backward()
        assert_same_gradients(sharded, model)
        dropped = by_heads(model, path, attention_probs_dropout_prob=0.2, hidden_dropout_prob=0.2).train()
        torch.manual_seed(0)
        logits = dropped(**inputs).logits.detach()
        everyones = [torch.empty_like(logits) for _ in range(2)]
        dist.all_gather(everyones, logits.contiguous())
        assert_close(*everyones)
        assert not torch.allclose(logits, model(**inputs).logits)


@check()
def tensor_parallel_in_float32():
    """With the kernels that a single process has, too."""
    for variant in VARIANTS:
        torch.manual_seed(0)
        model, inputs = (
            make_model("AstroformerForCausalLM", **ALL_VARIANTS[variant]),
            HEADS["AstroformerForCausalLM"][2](),
        )
        path = saved(model, f"float32 {variant}")
        sharded = type(model).from_pretrained(path, distributed_config=DistributedConfig(tp_size=2)).eval()
        expected, found = model(**inputs), sharded(**inputs)
        assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-4)


@check()
def tensor_parallel_by_torch():
    """The plan of a user who has `torch.distributed` divide a model that is loaded."""
    for variant in VARIANTS:
        model, inputs = make("AstroformerForSequenceClassification", variant)
        sharded = copy.deepcopy(model)
        for layer in sharded.astroformer.layers:
            plan = {f"attention.{name}_proj": ColwiseParallel() for name in "qkv"}
            plan |= {"attention.o_proj": RowwiseParallel()}
            plan |= {"mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}
            parallelize_module(layer, init_device_mesh("cpu", (2,)), plan)
        expected, found = model(**inputs), sharded(**inputs)
        assert_close(found.logits, expected.logits)
        expected.loss.backward()
        found.loss.backward()
        assert_same_gradients(sharded, model)


@check()
def tensor_parallel_and_saved():
    model, inputs = make("AstroformerForMaskedLM", "learned")
    sharded = by_heads(model, saved(model, "to be saved again"))
    sharded.save_pretrained(FOLDER / "saved again")
    again = type(model).from_pretrained(FOLDER / "saved again", dtype=torch.float64)
    assert_close(again(**inputs).logits, model(**inputs).logits)


@check()
def tensor_parallel_refused():
    prefix = "astroformer.layers.*.attention."

    def run(plan=None, **changes):
        torch.manual_seed(0)
        model = astroformer_hf.AstroformerForSequenceClassification(tiny_config(**changes)).double()
        inputs = HEADS["AstroformerForSequenceClassification"][2]()
        path = saved(model, f"refused {sorted(changes.items())}")
        return lambda: by_heads(model, path, tp_plan=plan)(**inputs)

    assert_raises(ValueError, ("num_attention_heads=3", "2 processes"), run(num_attention_heads=3, hidden_size=36))
    assert_raises(ValueError, ("num_attention_heads=1", "2 processes"), run(num_attention_heads=1))
    # fewer columns of one than of another: the same heads are not here
    assert_raises(ValueError, ("'colwise'", "v_proj"), run({f"{prefix}v_proj": "colwise_gather_output"}))
    assert_raises(
        ValueError, ("'colwise'", "_StridedShard"), run({f"{prefix}{x}_proj": "packed_colwise" for x in "qkv"})
    )
    code = {f"{prefix}astrocyte_code.weight": "grouped_gemm"}
    assert_raises(ValueError, ("astrocyte code",), run(code, astrocyte_code="sinusoidal"))
    model, inputs = make("AstroformerForSequenceClassification")
    sharded = by_heads(model, saved(model, "looked into"))
    del inputs["labels"]
    assert_raises(ValueError, ("whole on this process",), lambda: astroformer_hf.look_inside(sharded, **inputs))
    path = saved(model, "in stages")
    for stages in (DistributedConfig(pp_size=2), {"pp_size": 2}):
        load = partial(type(model).from_pretrained, path, distributed_config=stages)
        assert_raises(NotImplementedError, ("pp_size=2",), load)
    for variant in VARIANTS.values():  # whole projections on every process are slow, not wrong
        gathered = {f"{prefix}{x}_proj": "colwise_gather_output" for x in "qkv"}
        torch.manual_seed(0)
        output = run(gathered | {f"{prefix}o_proj": "rowwise_split_input"}, **variant)()
        torch.manual_seed(0)
        model = astroformer_hf.AstroformerForSequenceClassification(tiny_config(**variant)).double().eval()
        assert_close(output.logits, model(**HEADS["AstroformerForSequenceClassification"][2]()).logits)


# --------------------------------------------------------------------------------------------------------------------
# Sequences that are divided
# --------------------------------------------------------------------------------------------------------------------


@check()
def divided_sequences_refused():
    mesh = init_device_mesh("cpu", (2,))
    for variant in VARIANTS:
        for name in ("AstroformerForCausalLM", "AstroformerForSequenceClassification"):
            model, _ = make(name, variant)
            tokens = torch.randint(1, 50, (1, 16))
            before = model(tokens).logits
            buffers = [tokens.clone()]
            with context_parallel(mesh, buffers=buffers, buffer_seq_dims=[1]):
                assert_raises(NotImplementedError, ("context_parallel",), lambda m=model, b=buffers: m(b[0]))
            assert_close(model(tokens).logits, before)
            divided = distribute_tensor(tokens, mesh, [Shard(1)])
            assert_raises(ValueError, ("input_ids", "DTensor"), lambda m=model, x=divided: m(x))
    model, inputs = make("AstroformerForImageClassification")
    with context_parallel(mesh, buffers=[torch.zeros(1, 16)], buffer_seq_dims=[1]):
        assert_raises(NotImplementedError, ("context_parallel",), lambda: model(**inputs))


@check()
def whole_sequences_are_compiled():
    for name in COMPILED:
        model, inputs = make(name, num_hidden_layers=1)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(**inputs).logits, model(**inputs).logits)


@check()
def divided_sequences_of_accelerate_refused():
    from accelerate import Accelerator, ParallelismConfig
    from accelerate.state import AcceleratorState, GradientState, PartialState

    model, inputs = make("AstroformerForCausalLM")
    for size in ("cp_size", "sp_size"):
        config = ParallelismConfig(**{size: 2})
        try:
            Accelerator(cpu=True, parallelism_config=config)
        except (ValueError, NotImplementedError):  # by accelerate itself, on a machine without accelerators
            AcceleratorState(cpu=True).parallelism_config = config
        try:
            assert_raises(NotImplementedError, (size,), lambda: model(**inputs))
        finally:
            for state in (AcceleratorState, PartialState, GradientState):
                state._reset_state()
    model(**inputs)


# --------------------------------------------------------------------------------------------------------------------
# Data parallelism, parameters whole or divided
# --------------------------------------------------------------------------------------------------------------------


@check(*VARIANTS)
def data_parallel(variant):
    """A parameter without a gradient would be an error here."""
    for name in trained_with(variant):
        model, inputs = make_divisible(name, variant)
        model(**inputs).loss.backward()
        replica, _ = make_divisible(name, variant)
        replica = DistributedDataParallel(replica)
        for _ in range(2):  # an iteration asks after the one before
            replica.zero_grad()
            replica(**own_half(inputs)).loss.backward()
        assert_same_gradients(replica, model)


@check()
def data_parallel_of_every_head():
    for name in HEADS:
        model, inputs = make_divisible(name, num_hidden_layers=1)
        if not any(label in inputs for label in LABELS):
            continue
        model(**inputs).loss.backward()
        for options in ({}, {"static_graph": True}, {"find_unused_parameters": True}):
            replica, _ = make_divisible(name, num_hidden_layers=1)
            replica.gradient_checkpointing_enable({"use_reentrant": False})
            replica = DistributedDataParallel(replica.train(), **options)
            for _ in range(2):
                replica.zero_grad()
                replica(**own_half(inputs)).loss.backward()
            # no dropout in these configurations: training mode only turns checkpointing on
            assert_same_gradients(replica, model)


def in_units(model, **options):
    """FSDP2 with the units that the model names."""
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, **options)
    return fully_shard(model, **options)


@check(*VARIANTS)
def fully_sharded(variant):
    for name in trained_with(variant):
        model, inputs = make_divisible(name, variant)
        model(**inputs).loss.backward()
        sharded = in_units(make_divisible(name, variant)[0])
        for _ in range(2):
            sharded.zero_grad()
            output = sharded(**own_half(inputs))
            output.loss.backward()
        assert_same_gradients(sharded, model)
        assert_close(output.logits, model(**own_half(inputs)).logits)
        if name == "AstroformerForCausalLM":
            texts = [
                m.generate(inputs["input_ids"], max_new_tokens=4, do_sample=False, pad_token_id=0)
                for m in (sharded, model)
            ]
            assert_close(*texts)


@check()
def fully_sharded_in_mixed_precision():
    """What the layers share reaches each in the dtype that its own forward needs."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for variant in VARIANTS:
        for name in ("AstroformerForCausalLM", "AstroformerForImageClassification"):
            torch.manual_seed(0)
            model, inputs = make_model(name, **ALL_VARIANTS[variant]), HEADS[name][2]()
            sharded = in_units(copy.deepcopy(model), mp_policy=policy)
            loss = sharded(**inputs).loss
            loss.backward()
            expected = model.to(torch.bfloat16)(**inputs).loss
            assert_close(loss.float(), expected.float(), rtol=0.05, atol=0.05)


@check()
def fully_sharded_by_the_library():
    for name in TRAINED:
        model, inputs = make_divisible(name, "learned")
        model(**inputs).loss.backward()
        path = saved(model, f"units {name}")
        config = DistributedConfig(fsdp_size=2)
        sharded = type(model).from_pretrained(path, distributed_config=config, dtype=torch.float64).eval()
        sharded(**own_half(inputs)).loss.backward()
        assert_same_gradients(sharded, model)


@check()
def fully_sharded_by_accelerate():
    """In the units that accelerate makes of `_no_split_modules`, for FSDP2 and for FSDP1."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    for name in TRAINED:
        model, inputs = make_divisible(name, "sinusoidal")
        model(**inputs).loss.backward()
        sharded, _ = make_divisible(name, "sinusoidal")
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        is_unit = fsdp2_prepare_auto_wrap_policy(plugin, sharded)
        units = [module for module in sharded.modules() if is_unit(module)]
        assert len(units) >= model.config.num_hidden_layers
        for module in units:
            fully_shard(module)
        fully_shard(sharded)(**own_half(inputs)).loss.backward()
        assert_same_gradients(sharded, model)

        sharded, _ = make_divisible(name, "sinusoidal")
        plugin = FullyShardedDataParallelPlugin(fsdp_version=1, auto_wrap_policy="transformer_based_wrap")
        plugin.set_auto_wrap_policy(sharded)
        sharded = FullyShardedDataParallel(
            sharded, auto_wrap_policy=plugin.auto_wrap_policy, device_id=torch.device("cpu"), use_orig_params=True
        )
        sharded(**own_half(inputs)).loss.backward()
        with FullyShardedDataParallel.summon_full_params(sharded, with_grads=True):
            assert_same_gradients(sharded, model)


@check()
def trainer_accumulates_as_one():
    """`Trainer`: batches of parts, several processes, and labels of which not all count, against the whole batch."""
    for name in ("AstroformerForSequenceClassification", "AstroformerForCausalLM", "AstroformerForMaskedLM"):
        reference, _ = make(name)
        ids = torch.randint(1, 50, (16, 7))
        if name == "AstroformerForSequenceClassification":
            labels = torch.arange(16) % 2
        else:
            labels = ids.masked_fill(torch.rand(16, 7) < torch.linspace(0, 0.8, 16)[:, None], -100)
        optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
        for step in range(2):
            part = slice(8 * step, 8 * step + 8)
            reference(input_ids=ids[part], labels=labels[part]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model, _ = make(name)
        arguments = TrainingArguments(
            str(FOLDER / "trainer"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=2,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
        Trainer(model, arguments, train_dataset=rows).train()
        for (key, found), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert_same(found.data, expected.data, f"{name} {key}")


def main(chosen):
    results = {}
    for name, (function, arguments) in CHECKS.items():
        if chosen and not any(name.startswith(prefix) for prefix in chosen):
            continue
        try:
            function(*arguments)
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    (FOLDER / f"{rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    main(sys.argv[2:])
    dist.barrier()
    dist.destroy_process_group()
