# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Loading a checkpoint that a stranger may have made: from safetensors only, and only what fits into the machine."""

import json
import os
import re
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging
from transformers.utils.hub import cached_file, extract_commit_hash

from .head_shards import refuse_pipeline
from .model_classes import IMAGE_MODELS, TEXT_MODELS


logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` with which a model goes elsewhere than into main memory, or takes fewer bits there.
PLACEMENTS = (
    "device_map",
    "distributed_config",
    "tp_plan",
    "tp_size",
    "device_mesh",
    "quantization_config",
    "gguf_file",
)
# Whether the checkpoint that is being loaded goes into the memory of this machine as a whole.
_loads_into_memory: ContextVar[bool] = ContextVar("loads_into_memory", default=False)

ModelType = TypeVar("ModelType", bound="SafelyLoadedModel")


class SafelyLoadedModel(PreTrainedModel):
    """A library model whose `from_pretrained` reads no pickle, no file beyond its folder, and no more than fits."""

    @classmethod
    def from_pretrained(
        cls: type[ModelType], pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> ModelType:
        """Loads a checkpoint as every library model does, from safetensors only: no pickle is ever read. Warns if it is
        one of a class that somebody derived, and `cls` is not.

        Raises:
            ValueError: `use_safetensors` or `weights_only` is not True; the index of a checkpoint in several files
                names one that is not a safetensors file beside it; the model has a short convolution; or it is larger
                than the machine's memory, and nothing, such as `device_map`, says that it goes elsewhere.
            NotImplementedError: `distributed_config` asks for pipeline parallelism.
            OSError: there are no weights in safetensors, or their file is damaged.
            RuntimeError: the weights have other shapes than the configuration says.
        """
        for name in ("use_safetensors", "weights_only"):
            if kwargs.get(name) not in (None, True):
                raise ValueError(f"{name} must be True, got {kwargs[name]!r}: a pickle can run code")
            kwargs[name] = True
        refuse_pipeline(kwargs.get("distributed_config"))
        check_shards(pretrained_model_name_or_path, kwargs)
        before = _loads_into_memory.set(all(kwargs.get(name) is None for name in PLACEMENTS))
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"The weights of {str(pretrained_model_name_or_path)!r} are damaged or not in the safetensors format "
                f"({error}). Fetch them again, with force_download=True if they come from the Hub."
            ) from error
        finally:
            _loads_into_memory.reset(before)
        config = (loaded[0] if isinstance(loaded, tuple) else loaded).config
        if getattr(config, "short_convolution", None) is not None:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} has short_convolution={config.short_convolution}: it is a "
                "control in the comparison, whose weights scripts/training/short_convolution.py loads"
            )
        own = {*TEXT_MODELS.values(), *IMAGE_MODELS.values()}
        derived = [name for name in config.architectures or () if name not in own]
        if derived and cls.__name__ in own:
            logger.warning(
                f"{str(pretrained_model_name_or_path)!r} was saved as {derived[0]}, and is loaded as "
                f"{cls.__name__}, which Auto classes choose where astroformer_hf is imported: what the other class "
                f"changes is lost. {derived[0]}.from_pretrained keeps it."
            )
        return loaded

    def post_init(self) -> None:
        super().post_init()
        if self.device.type == "meta" and _loads_into_memory.get():  # and what the checkpoint lacks is initialised
            needed = sum(parameter.nbytes for parameter in self.parameters())
            if needed > memory_of_machine() and needed > memory_of_machine(with_gpus=True):
                raise ValueError(
                    f"The configuration describes a model of {self.num_parameters():,} parameters, "
                    f"{needed / 2**30:,.0f} GiB, and this machine has {memory_of_machine() / 2**30:,.0f} GiB of memory"
                )


def memory_of_machine(with_gpus: bool = False) -> float:
    """Bytes of main memory, infinitely many where the system does not tell; with that of the GPUs, if asked."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return float("inf")
    if with_gpus:
        memory += sum(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return memory


def check_shards(name: str | os.PathLike | None, options: dict[str, Any]) -> None:
    """Refuses a checkpoint in several files if one is not a safetensors file beside its index, before any is read.

    Args:
        name (`str` or `os.PathLike`, *optional*): folder, or name on the Hub, of the checkpoint.
        options (`dict`): of `from_pretrained`. What was checked on the Hub is put into it as the revision to load.

    Raises:
        ValueError: an index names another kind of file, or one elsewhere.
        OSError: an index is damaged.
    """
    if name is None or options.get("gguf_file") is not None:
        return
    folder = Path(name, options.get("subfolder") or "")
    if Path(name).is_dir():
        indices = sorted(folder.glob("*.safetensors.index*.json"))
    else:
        variant = options.get("variant")
        own_name = SAFE_WEIGHTS_INDEX_NAME if variant is None else f"{SAFE_WEIGHTS_INDEX_NAME[:-5]}.{variant}.json"
        places = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
        try:
            found = cached_file(
                str(name),
                own_name,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                **{place: options[place] for place in places if options.get(place) is not None},
            )
        except OSError:
            return  # there is no such repository, which the library tells better
        indices = [] if found is None else [Path(found)]
        if found is not None:
            options["revision"] = extract_commit_hash(found, None) or options.get("revision")
    for index in indices:
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(f"{index} is damaged: it has no map of weights to files ({error!r})") from error
        for shard in shards:
            if not isinstance(shard, str) or not re.fullmatch(r"[^/\\]+\.safetensors", shard):
                raise ValueError(f"{index.name} must name safetensors files beside it, got {shard!r}")
