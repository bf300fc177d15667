# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Several processes: which heads belong to this process under tensor parallelism, and what is not supported.

A tensor-parallel plan shards the projections to queries, keys and values by rows, that is, by heads: each process
computes attention for its own heads, and the output projection sums over the processes. Heads do not interact inside
the operation, so nothing else is exchanged. The parameters of the astrocyte code are small: every process holds all of
them and uses the rows of its own heads.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn


class HeadShard(NamedTuple):
    """The heads of this process.

    Attributes:
        mesh: the one-dimensional `DeviceMesh` over which the heads are divided.
    """

    mesh: Any

    def rows(self, parameter: torch.Tensor) -> torch.Tensor:
        """The rows that belong to this process's heads, of a parameter `(heads, ...)` that every process holds in full.

        Every process receives the full gradient, too.
        """
        from torch.distributed.tensor import DTensor, Replicate, Shard

        if isinstance(parameter, DTensor):
            raise ValueError(
                "the parameters of the astrocyte code must not be in the tensor-parallel plan: every process holds "
                f"all of them and uses the rows of its heads; got one placed as {parameter.placements}"
            )
        whole = DTensor.from_local(parameter, self.mesh, [Replicate()], run_check=False)
        return whole.redistribute(placements=[Shard(0)]).to_local()

    def gather(self, attention_map: torch.Tensor) -> torch.Tensor:
        """The maps of all heads, `(batch, heads, ...)`, from those of this process's heads."""
        from torch.distributed.tensor import DTensor, Shard

        return DTensor.from_local(attention_map, self.mesh, [Shard(1)], run_check=False).full_tensor()


def split_heads(
    projected: Mapping[str, torch.Tensor], sizes: Sequence[int], num_heads: int, weights: Mapping[str, torch.Tensor]
) -> tuple[list[torch.Tensor], HeadShard | None]:
    """Splits queries, keys and values by head, and finds out which heads are on this process.

    Args:
        projected (`dict` of `str` to `torch.Tensor`): `(batch, length, columns)`, by the name of the projection.
        sizes (sequence of `int`): columns per head, for each projection.
        num_heads (`int`): number of heads in the whole layer.
        weights (`dict` of `str` to `torch.Tensor`): the weights of the projections.

    Returns:
        A list of tensors `(batch, local heads, length, size)`, and the `HeadShard`, None where all heads are local.

    Raises:
        ValueError: the plan does not give each process the same number of whole heads.
    """
    shard = None
    if any(x.shape[-1] != num_heads * size for x, size in zip(projected.values(), sizes, strict=True)):
        shard = _head_shard(projected, sizes, num_heads, weights)
    by_head = [x.unflatten(-1, (-1, size)).transpose(1, 2) for x, size in zip(projected.values(), sizes, strict=True)]
    return by_head, shard


def _head_shard(
    projected: Mapping[str, torch.Tensor], sizes: Sequence[int], num_heads: int, weights: Mapping[str, torch.Tensor]
) -> HeadShard:
    found = ", ".join(f"{x.shape[-1]} columns of {name}" for name, x in projected.items())
    heads = {x.shape[-1] / size for x, size in zip(projected.values(), sizes, strict=True)}
    placements: dict[str, Any] = {name: getattr(weight, "placements", None) for name, weight in weights.items()}
    meshes = [getattr(weight, "device_mesh", None) for weight in weights.values()]
    mesh = meshes[0]
    if mesh is None or any(other != mesh for other in meshes) or mesh.ndim != 1:
        raise ValueError(
            f"a process has {found}, fewer than its {num_heads} heads, and their weights do not say which: q_proj, "
            f"k_proj and v_proj must all be 'colwise' in the tensor-parallel plan, got placements {placements}"
        )
    if num_heads % mesh.size():
        raise ValueError(
            f"tensor parallelism over {mesh.size()} processes needs num_attention_heads to be a multiple of "
            f"{mesh.size()}, so that no head is split; got num_attention_heads={num_heads}"
        )
    # compared by class name: a strided shard, a subclass, would assign the heads in another order
    by_rows = all(type(p[0]).__name__ == "Shard" and p[0].dim == 0 for p in placements.values())
    if heads != {num_heads / mesh.size()} or not by_rows:
        raise ValueError(
            f"q_proj, k_proj and v_proj must all be 'colwise' in the tensor-parallel plan, so that each of "
            f"{mesh.size()} processes has {num_heads // mesh.size()} of {num_heads} heads; got {found}, "
            f"with placements {placements}"
        )
    return HeadShard(mesh)


def refuse_pipeline(distributed_config: Any) -> None:
    """Raises a NotImplementedError if layers are to be divided over processes: transformers passes the hidden states of
    one process to the next as input embeddings, to which these models would add the positions again.

    Args:
        distributed_config (`DistributedConfig` or `dict`, *optional*): the argument of `from_pretrained`.
    """
    is_dict = isinstance(distributed_config, dict)
    size = distributed_config.get("pp_size") if is_dict else getattr(distributed_config, "pp_size", None)
    if size is not None and size > 1:
        raise NotImplementedError(
            f"pipeline parallelism, pp_size={size}, is not supported by Astroformer; divide the heads (tp_size) or the "
            "parameters (fsdp_size) instead"
        )


def refuse_sharded_sequence(**inputs: torch.Tensor | None) -> None:
    """Raises if the sequence is divided over several processes: attention would be confined to each part.

    Args:
        inputs (`torch.Tensor`, *optional*): the model's inputs by name.

    Raises:
        ValueError: an input is a `DTensor`.
        NotImplementedError: torch's context parallelism is on, or accelerate divides sequences.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    for name, x in inputs.items():
        if x is not None and hasattr(x, "placements"):
            raise ValueError(
                f"{name} must be a plain tensor with whole sequences, got a DTensor placed as {x.placements}; pass "
                f"{name}.full_tensor()"
            )
    engine = _sequence_engine()
    if engine is not None:
        raise NotImplementedError(
            f"{engine} divides each sequence over several processes, which Astroformer does not support: each process "
            "would attend only to its own part. Divide the batch (data parallelism, FSDP) or the heads (tensor "
            "parallelism) instead"
        )


@torch.compiler.assume_constant_result
def _sequence_engine() -> str | None:
    """What currently divides sequences over processes, in words, or None."""
    # while context parallelism is on, torch replaces its attention function with another
    patched = getattr(nn.functional.scaled_dot_product_attention, "__module__", None) or ""
    if patched.startswith("torch.distributed.tensor.experimental"):
        return "torch's context_parallel"
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.is_initialized():
        parallelism = getattr(accelerate.AcceleratorState(), "parallelism_config", None)
        for name in ("cp_size", "sp_size"):
            if getattr(parallelism, name, 1) > 1:
                return f"accelerate's ParallelismConfig({name}={getattr(parallelism, name)})"
    return None
