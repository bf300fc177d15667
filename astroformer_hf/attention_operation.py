# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Neuron-astrocyte attention: self-attention computed by the plasticity of a tripartite synapse.

A *tripartite synapse* joins two neurons and a process of an astrocyte, a glial cell. The "Astromorphic Transformer"
(Mia, Bal and Sengupta, arXiv 2312.10925, "AT" below) lets such synapses compute attention at a cost that is linear in
the length. A sequence passes through them twice, per head:

    write mode   H_neuron = (1/m) phi(K)^T V        Hebbian plasticity of the neurons
                 H_astro  = (1/m) phi(R)^T V        Hebbian plasticity modulated by the astrocyte's processes
                 g        = (sum_t phi(k_t))^alpha  presynaptic plasticity: calcium, sub-linear in the activity

    read mode    C = phi(Q) g                       calcium response of the process, one number per token
                 P = 1 / C                          feedback of the astrocyte on the synapse
                 Y = P * (phi(Q) (H_neuron + H_astro))

The astrocyte code R, where the astrocyte's processes lie in space, comes from ``astrocyte_code.py``. Without it and
with alpha = 1, this is linear attention (Katharopoulos et al., ICML 2020) up to the constant 1/m.

In the causal form a token reads what was written up to itself, and all of that is in a state whose size does not
depend on the length.

Two forms stand here side by side:

- `neuron_astrocyte_network`: the biological network, token by token. Slow, to be read, and the oracle of the tests;
- `neuron_astrocyte_attention`: the same in matrix products. This is the one to call. Bidirectionally it writes all and
  then reads all (`write_mode`, `read_mode`); causally it goes in chunks (`write_and_read_causally`). These three passes
  stand here in their plain form; on most machines `attention_backends.py` has them computed by faster ones.

Letters in shape comments: B batch, H heads, N tokens, m hidden neurons (the size of a query), F features that phi
makes of them (m, but the number of random features for "favor"), d head size (the size of a value).
"""

from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal, NamedTuple, overload

import torch

from .attention_backends import kernels_of, run_pass
from .token_layout import (
    ActivityCode,
    activity_code,
    documents_in_chunks,
    in_chunks,
    number_documents,
    starts_of_documents,
)


# Smallest calcium that counts as any. It is representable in float32, the narrowest type that the sums run in, and
# small enough to leave every real signal alone. Below it a synapse is silent: it neither adds to the response nor is
# answered by the feedback, which would be infinite.
CALCIUM_FLOOR = 1e-20

# exp saturates here, so that products of two activities, summed over any length, stay inside float32.
EXP_CEILING = 30.0

# Tokens per block of the causal form: quadratic attention inside, the state of the synapses between.
CHUNK_SIZE = 64

# Number and seed of the random features that "favor" uses when it is given none.
DEFAULT_RANDOM_FEATURES = 256
DEFAULT_RANDOM_SEED = 0


class NeuronAstrocyteState(NamedTuple):
    """What the tripartite synapses remember of everything written so far; its size does not depend on the length.

    Attributes:
        hebbian: `(batch, heads, features, head_dim)`, the sum over tokens of (phi(k) + phi(r)) v^T; the 1/m is applied
            when it is read.
        calcium: `(batch, heads, features)`, the sum over tokens of phi(k); alpha is applied when it is read.
    """

    hebbian: torch.Tensor
    calcium: torch.Tensor


# --------------------------------------------------------------------------------------------------------------------
# Feature maps phi: from the input of the hidden neurons to their activity, which is never negative
# --------------------------------------------------------------------------------------------------------------------


def _elu(x, random_projection):
    # elu(x) + 1, in a form that keeps exp(x) below the rounding of 1
    return x.clamp(max=0).exp() + x.relu()


def _relu(x, random_projection):
    return x.relu()


def _exp(x, random_projection):
    return x.clamp(max=EXP_CEILING).exp()


def _favor(x, random_projection):
    num_features, num_hidden_neurons = random_projection.shape
    x = x * num_hidden_neurons**-0.25  # phi(q) phi(k) then estimates exp(q k / sqrt(m))
    exponent = x @ random_projection.to(x).T - x.square().sum(-1, keepdim=True) / 2
    return exponent.clamp(max=EXP_CEILING).exp() * num_features**-0.5


FEATURE_MAPS = {"elu": _elu, "relu": _relu, "exp": _exp, "favor": _favor}


def draw_random_projection(
    num_features: int, num_hidden_neurons: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draws the matrix W of the "favor" feature map: Gaussian rows that are orthogonal in blocks of m.

    Orthogonal rows estimate the softmax kernel with less variance than independent ones, without bias
    (Choromanski et al., "Rethinking Attention with Performers", ICLR 2021, section 2.4).

    Args:
        num_features (`int`): number of random features, the rows of W.
        num_hidden_neurons (`int`): size of a query, the columns of W.
        generator (`torch.Generator`, *optional*): source of randomness on the CPU; the global one by default.

    Returns:
        `torch.Tensor` of shape `(num_features, num_hidden_neurons)`, float32, on the CPU.
    """
    # in this dtype also where a model is built in half precision, which has no such decomposition
    options: dict[str, Any] = {"generator": generator, "device": "cpu", "dtype": torch.float32}
    blocks = []
    for _ in range(-(-num_features // num_hidden_neurons)):
        gaussian = torch.randn(num_hidden_neurons, num_hidden_neurons, **options)
        q, r = torch.linalg.qr(gaussian)
        blocks.append((q * r.diagonal().sign()).T)  # with these signs, and only so, every direction is as likely
    directions = torch.cat(blocks)[:num_features]
    norms = torch.randn(num_features, num_hidden_neurons, **options).norm(dim=-1, keepdim=True)
    return directions * norms


@lru_cache(maxsize=16)
def _default_random_projection(num_hidden_neurons):
    generator = torch.Generator().manual_seed(DEFAULT_RANDOM_SEED)
    return draw_random_projection(DEFAULT_RANDOM_FEATURES, num_hidden_neurons, generator)


# --------------------------------------------------------------------------------------------------------------------
# The biological network, token by token
# --------------------------------------------------------------------------------------------------------------------


def neuron_astrocyte_network(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: bool = False,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, NeuronAstrocyteState]:
    """The network of the paper as it would run in tissue: one token after the other, write mode, then read mode.

    Same arguments, results and errors as `neuron_astrocyte_attention`, which explains them. Source: AT, section III.
    """
    _validate(query, key, value, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    documents = _documents(document_ids, query, key, padding_mask, causal, initial_state, output_final_state)
    working = _working_dtype(query, key, value)
    random_projection = _random_projection(feature_map, random_projection, query)
    num_hidden_neurons = query.shape[-1]

    def phi(x):
        return FEATURE_MAPS[feature_map](x.to(working), random_projection)

    if initial_state is None:
        hebbian, calcium = _empty_state(phi(key[:, :, :0]), value)
    else:
        hebbian, calcium = _checked_state(initial_state, phi(key[:, :, :0]), value)

    hebbian_neuron = hebbian / num_hidden_neurons  # (B, H, F, d); what came before, by whichever plasticity
    hebbian_astro = torch.zeros_like(hebbian_neuron)

    def forget(where):
        """The synapses start anew in those sequences of the batch, `(batch,)` bool: another document begins."""
        nonlocal hebbian_neuron, hebbian_astro, calcium
        hebbian_neuron, hebbian_astro = (x.masked_fill(_to(x, where), 0) for x in (hebbian_neuron, hebbian_astro))
        calcium = calcium.masked_fill(_to(calcium, where), 0)

    def write(t, padding_mask=padding_mask):
        """Key and value of token t imprint the synapses."""
        nonlocal hebbian_neuron, hebbian_astro, calcium
        presynaptic = phi(key[:, :, t])  # (B, H, F)
        process = 0 * presynaptic if astrocyte_code is None else phi(astrocyte_code[..., t, :])
        postsynaptic = value[:, :, t].to(working)  # (B, H, d)
        if padding_mask is not None:
            padded = ~padding_mask[:, None, t, None]  # (B, 1, 1)
            presynaptic = presynaptic.masked_fill(padded, 0)
            process = process.masked_fill(padded, 0)
            postsynaptic = postsynaptic.masked_fill(padded, 0)
        hebbian_neuron = hebbian_neuron + _outer(presynaptic, postsynaptic) / num_hidden_neurons
        hebbian_astro = hebbian_astro + _outer(process, postsynaptic) / num_hidden_neurons
        calcium = calcium + presynaptic

    def read(t):
        """The query of token t is answered: `(batch, heads, head_dim)`."""
        activity = phi(query[:, :, t])  # (B, H, F)
        y = (activity[..., None] * (hebbian_neuron + hebbian_astro)).sum(-2)  # (B, H, d)
        if feedback:
            g = presynaptic_plasticity(calcium, alpha)  # (B, H, F)
            response = (activity * g).sum(-1, keepdim=True)  # C, (B, H, 1)
            y = y * astrocyte_feedback(response)
        return y

    answers = []
    with full_precision(query):
        if causal:
            for t in range(max(query.shape[2], key.shape[2])):
                if documents is not None and t > 0:
                    forget(documents[:, t] != documents[:, t - 1])
                if t < key.shape[2]:
                    write(t)
                if t < query.shape[2]:
                    answers.append(read(t))
        elif documents is not None:
            answers = [torch.zeros_like(hebbian[:, :, 0])] * query.shape[2]
            for document in range(int(documents.max()) + 1):
                own = documents == document  # (B, N)
                forget(own.any(-1))
                for t in range(key.shape[2]):
                    write(t, own if padding_mask is None else own & padding_mask)
                for t in range(query.shape[2]):
                    answers[t] = torch.where(_to(answers[t], own[:, t]), read(t), answers[t])
        else:
            for t in range(key.shape[2]):
                write(t)
            for t in range(query.shape[2]):
                answers.append(read(t))
    output = torch.stack(answers, dim=2) if answers else value[:, :, :0]

    output = output.to(value.dtype)  # (B, H, N, d)
    state = NeuronAstrocyteState((hebbian_neuron + hebbian_astro) * num_hidden_neurons, calcium)
    return (output, state) if output_final_state else output


def _to(x, where):
    """`(batch,)` in as many dimensions as `x`."""
    return where.view(-1, *[1] * (x.dim() - 1))


def _outer(a, b):
    """Products of all pairs: `(..., features)` and `(..., head_dim)` to `(..., features, head_dim)`."""
    return a[..., :, None] * b[..., None, :]


# --------------------------------------------------------------------------------------------------------------------
# The same in matrix products
# --------------------------------------------------------------------------------------------------------------------


@overload
def neuron_astrocyte_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: Literal[False] = False,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor: ...


@overload
def neuron_astrocyte_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: Literal[True],
    document_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, NeuronAstrocyteState]: ...


def neuron_astrocyte_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    output_final_state: bool = False,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, NeuronAstrocyteState]:
    """Neuron-astrocyte attention (AT, section III): attention as write mode and read mode of tripartite synapses.

    Time and memory are linear in the length. Sums, powers and the division run in float32 whatever the inputs' dtype
    (float64 stays float64), also under autocast; the output has the dtype of `value`. A query that finds nothing
    written is answered with 0.

    Args:
        query (`torch.Tensor`): `(batch, heads, length, hidden_neurons)`, before the feature map.
        key (`torch.Tensor`): `(batch, heads, length, hidden_neurons)`, before the feature map.
        value (`torch.Tensor`): `(batch, heads, length, head_dim)`.
        astrocyte_code (`torch.Tensor`, *optional*): R, `(heads, length, hidden_neurons)` or with a leading batch,
            before the feature map. Without it H_astro is 0.
        padding_mask (`torch.Tensor`, *optional*): bool, `(batch, length)`, True where a token is real. A padded token
            writes nothing, neither to H_neuron and H_astro nor to the calcium. Without it all tokens are real.
        alpha (`float`, defaults to 1.0): exponent of the calcium in (0, 1], presynaptic plasticity; 1 is linear.
        feature_map (`str`, defaults to `"elu"`): phi, one of "elu" (elu(x) + 1), "relu", "exp" (saturating at
            exp(30)) and "favor" (positive random features of the softmax kernel; Kozachkov, Kastanenka and Krotov,
            PNAS 2023, and Choromanski et al., ICLR 2021).
        feedback (`bool`, defaults to `True`): whether the astrocyte divides the answer by the calcium response C.
        random_projection (`torch.Tensor`, *optional*): `(random_features, hidden_neurons)`, for "favor" only. Without
            it 256 features are drawn from a fixed seed.
        causal (`bool`, defaults to `False`): whether a token reads only what was written up to and including itself.
        initial_state (`NeuronAstrocyteState`, *optional*): what was written before this call.
        output_final_state (`bool`, defaults to `False`): whether to return the state as well.
        document_ids (`torch.Tensor`, *optional*): `(batch, length)` whole numbers, for rows in which several documents
            stand one after the other: a token reads its own document only, and the synapses start anew with each. The
            document of a token that is padding does not matter. Causally the first document of a row goes on from
            `initial_state`, and the final state is that of its last; bidirectionally neither is to be had.

    Returns:
        The output, `(batch, heads, length, head_dim)`; with `output_final_state`, a tuple of the output and the
        `NeuronAstrocyteState` that holds `initial_state` and all that this call wrote. A long input can so be written
        in pieces and read once: the queries of a piece may have length 0 (write only), as may its keys (read only). A
        causal input can be split anywhere; each piece brings the astrocyte code of its own positions.

    Raises:
        ValueError: for shapes or values that do not fit; the message gives them.
    """
    _validate(query, key, value, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    documents = _documents(document_ids, query, key, padding_mask, causal, initial_state, output_final_state)
    output, state, _ = attend(
        *(query, key, value, astrocyte_code, padding_mask),
        alpha=alpha,
        feature_map=feature_map,
        feedback=feedback,
        random_projection=random_projection,
        causal=causal,
        initial_state=initial_state,
        document_ids=documents,
    )
    return (output, state) if output_final_state else output


def attend(
    query,
    key,
    value,
    astrocyte_code,
    padding_mask,
    *,
    alpha,
    feature_map,
    feedback,
    random_projection,
    causal,
    initial_state,
    document_ids=None,
    output_scale=1.0,
):
    """`neuron_astrocyte_attention` without its checks, as a layer calls it.

    Args:
        document_ids (`torch.Tensor`, *optional*): as of `number_documents`.
        astrocyte_code (`torch.Tensor` or `ActivityCode`, *optional*): R, or what it is made of.
        output_scale (`float` or `torch.Tensor`): factor of the output, `(batch, 1, length or 1, 1)`. If it is the same
            for all tokens of a sequence, it costs nothing: the Hebbian weights are scaled instead.

    Returns:
        The output; the final `NeuronAstrocyteState` (None for several documents that are not causal); and of a causal
        `ActivityCode` the sums (total, count) after the last token, else (None, None).
    """
    num_hidden_neurons, output_dtype = query.shape[-1], value.dtype
    if _working_dtype(query, key, value, *(initial_state or ())) == torch.float64:
        query, key, value = query.double(), key.double(), value.double()
        astrocyte_code = astrocyte_code.double() if torch.is_tensor(astrocyte_code) else astrocyte_code
    sums = (None, None)
    by_documents = document_ids is not None and not causal
    writes_and_reads = by_documents or causal and query.shape[2] > 0 and key.shape[2] > 0
    activity, coupling = (), {}
    with full_precision(query):
        if isinstance(astrocyte_code, ActivityCode):
            recipe, astrocyte_code = astrocyte_code, None
            fused = write_and_read_causally_with_activity if causal else write_mode_with_activity
            if by_documents:
                fused = write_and_read_documents_with_activity
            packed = document_ids is not None
            if feature_map != "favor" and kernels_of(fused, query, key, value, *recipe[:-1], packed=packed):
                activity = recipe[:-1] if causal else recipe[:4]
                coupling = {"coupling_scale": recipe.coupling_scale}
            else:
                astrocyte_code, *sums = recipe.make(key.to(_working_dtype(key)), padding_mask, causal, document_ids)
        if feature_map == "favor":
            query, key, astrocyte_code = _random_features(query, key, astrocyte_code, random_projection)
            feature_map = "identity"
        state = None if initial_state is None else _checked_state(initial_state, key, value)
        code = () if activity else (astrocyte_code,)
        if writes_and_reads:
            per_token = torch.is_tensor(output_scale)
            options = {
                "alpha": alpha,
                "feature_map": feature_map,
                "feedback": feedback,
                "scale": (1.0 if per_token else output_scale) / num_hidden_neurons,
                "output_dtype": output_dtype,
                **coupling,
            }
            inputs = (query, key, value, *code, padding_mask, document_ids)
            if by_documents:
                fused = write_and_read_documents_with_activity if activity else write_and_read_documents
                output, state = run_pass(fused, *inputs, *activity, **options), None
            else:
                fused = write_and_read_causally_with_activity if activity else write_and_read_causally
                output, hebbian, calcium, *rest = run_pass(
                    fused, *inputs, *(state or _empty_state(key, value)), *activity, **options
                )
                state, sums = NeuronAstrocyteState(hebbian, calcium), rest or sums
            if per_token:
                output = (output * output_scale).to(output_dtype)
            return output, state, sums
        written = run_pass(
            write_mode_with_activity if activity else write_mode,
            *(key, value, *code, padding_mask, *activity),
            feature_map=feature_map,
            **coupling,
        )
        state = NeuronAstrocyteState(*written if state is None else map(torch.add, state, written))
        plasticity = presynaptic_plasticity(state.calcium, alpha) if feedback else None
        output = run_pass(
            read_mode,
            *(query, state.hebbian * (output_scale / num_hidden_neurons), plasticity),
            feature_map=feature_map,
            output_dtype=output_dtype,
        )
    return output, state, sums


def write_mode(key, value, astrocyte_code, padding_mask, *, feature_map):
    """Keys and values imprint the synapses: what these tokens write, as `(hebbian, calcium)`.

    Arguments of this and the next two as for `neuron_astrocyte_attention`, but that for "favor" query, key and code are
    random features already, and `feature_map` is "identity".
    """
    presynaptic, process = _activity(key, astrocyte_code, padding_mask, feature_map)
    hebbian = (presynaptic + process).transpose(-1, -2) @ _silenced(value, padding_mask).to(presynaptic.dtype)
    return hebbian, presynaptic.sum(dim=-2)


def write_mode_with_activity(key, value, padding_mask, order, rank, weight, bias, *, feature_map, coupling_scale):
    """`write_mode` with the astrocyte code "activity"; its arguments as of `token_layout.activity_code`."""
    code, *_ = activity_code(
        *(key.to(_working_dtype(key)), padding_mask, None, order, rank, weight, bias, None, None),
        coupling_scale=coupling_scale,
        causal=False,
    )
    return write_mode(key, value, code, padding_mask, feature_map=feature_map)


def read_mode(query, hebbian, plasticity, *, feature_map, output_dtype):
    """Queries are answered from the synapses, `(batch, heads, length, head_dim)` in `output_dtype`.

    Args:
        hebbian (`torch.Tensor`): `(batch, heads, features, head_dim)`, H_neuron + H_astro.
        plasticity (`torch.Tensor`, *optional*): g, `(batch, heads, features)`; without it there is no feedback.
    """
    activity = phi(query.to(hebbian.dtype), feature_map)  # (B, H, N, F)
    output = activity @ hebbian  # (B, H, N, d)
    if plasticity is not None:
        output = output * astrocyte_feedback(activity @ plasticity[..., None])
    return output.to(output_dtype)


def write_and_read_causally(
    query,
    key,
    value,
    astrocyte_code,
    padding_mask,
    document_ids,
    hebbian,
    calcium,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    output_dtype,
):
    """The causal form in chunks: `(output, hebbian, calcium)`, each token reading what was written up to itself.

    Inside a chunk a token reads its predecessors through a masked `CHUNK_SIZE` x `CHUNK_SIZE` attention map; what the
    chunks before have written it reads from their Hebbian weights. Time and memory are linear in the length.

    Args:
        document_ids (`torch.Tensor`, *optional*): as of `number_documents`; a token then reads its own document only.
        hebbian, calcium (`torch.Tensor`): the state before these tokens.
        scale (`float`): factor of the output, 1/m.
    """
    length = query.shape[2]
    if length == 1:  # a single token reads all that was written, its own key included
        written = write_mode(key, value, astrocyte_code, padding_mask, feature_map=feature_map)
        hebbian, calcium = hebbian + written[0], calcium + written[1]
        plasticity = presynaptic_plasticity(calcium, alpha) if feedback else None
        output = read_mode(query, hebbian * scale, plasticity, feature_map=feature_map, output_dtype=output_dtype)
        return output, hebbian, calcium
    presynaptic, process = _activity(key, astrocyte_code, padding_mask, feature_map)
    activity = phi(query.to(hebbian.dtype), feature_map)  # (B, H, N, F)
    read, imprint, written = (  # (B, H, chunks, C, .)
        in_chunks(x, CHUNK_SIZE)
        for x in (activity, presynaptic + process, _silenced(value, padding_mask).to(activity.dtype))
    )
    scores = read @ imprint.transpose(-1, -2)
    if document_ids is None:
        calcium = calcium[:, :, None] + presynaptic.cumsum(-2)  # z_t, (B, H, N, F)
        last_calcium = calcium[:, :, -1]
        hebbian = hebbian[:, :, None]  # before the first chunk, and after each: (B, H, 1 + chunks, F, d)
        hebbian = torch.cat((hebbian, (imprint.transpose(-1, -2) @ written).cumsum(2) + hebbian), dim=2)
        output = scores.tril() @ written + read @ hebbian[:, :, :-1]
    else:
        chunks = _DocumentChunks(document_ids)
        calcium, hebbian = calcium[:, :, None], hebbian[:, :, None]
        own = in_chunks(presynaptic, CHUNK_SIZE)
        visible = chunks.same.to(own.dtype).tril()  # (B, 1, chunks, C, C)
        calciums = chunks.carried_forward(calcium, (own * chunks.in_last).sum(-2))  # (B, H, 1 + chunks, F)
        hebbian = chunks.carried_forward(hebbian, (imprint * chunks.in_last).transpose(-1, -2) @ written)
        calcium = (visible @ own + chunks.goes_on * calciums[:, :, :-1, None]).flatten(2, 3)[:, :, :length]
        last_calcium = calciums[:, :, -1]
        output = (scores * visible) @ written + (read * chunks.goes_on) @ hebbian[:, :, :-1]
    output = output.flatten(2, 3)[:, :, :length] * scale  # (B, H, N, d)
    if feedback:
        output = output * astrocyte_feedback(calcium_response(activity, calcium, alpha))
    return output.to(output_dtype), hebbian[:, :, -1], last_calcium


class _DocumentChunks:
    """Which tokens of a row that is cut into chunks are in the same document. C tokens per chunk.

    Attributes:
        same: `(B, 1, chunks, C, C)`, whether two tokens of a chunk are.
        in_last, in_first: `(B, 1, chunks, C, 1)`, whether a token is in the document of its chunk's last (first) token.
        goes_on, went_on: `(B, 1, chunks, C, 1)`, whether a token is in the document that the chunk before ended with
            (for the first chunk: the row's first), or that the chunk after begins with.
    """

    def __init__(self, document_ids):
        documents = documents_in_chunks(document_ids, CHUNK_SIZE)[:, None]  # (B, 1, chunks, C)
        last, first = documents[..., -1], documents[..., 0]
        self._before = torch.cat((documents[..., :1, 0], last), dim=-1)  # (B, 1, 1 + chunks)
        self._after = torch.cat((first, documents[..., -1:, -1]), dim=-1)
        self.same = documents[..., :, None] == documents[..., None, :]
        self.in_last, self.in_first = ((documents == x[..., None])[..., None] for x in (last, first))
        self.goes_on = (documents == self._before[..., :-1, None])[..., None]
        self.went_on = (documents == self._after[..., 1:, None])[..., None]

    def carried_forward(self, initial, written):
        """What has been written, up to the end of each chunk, for the document that is open there.

        Args:
            initial (`torch.Tensor`): `(B, H, 1, ...)`, before the first chunk.
            written (`torch.Tensor`): `(B, H, chunks, ...)`, by the tokens that are `in_last`.

        Returns:
            `torch.Tensor` of shape `(B, H, 1 + chunks, ...)`, beginning with `initial`.
        """
        return self._carried(torch.cat((initial, written), dim=2), self._before, torch.tril)

    def carried_back(self, written):
        """The same from the end of the row, of the tokens that are `in_first`: `(B, H, chunks + 1, ...)`."""
        nothing = torch.zeros_like(written[:, :, :1])
        return self._carried(torch.cat((written, nothing), dim=2), self._after, torch.triu)

    @staticmethod
    def _carried(written, documents, side):
        same = side((documents[..., :, None] == documents[..., None, :]).to(written.dtype))
        return (same @ written.flatten(3)).view(written.shape)


def write_and_read_causally_with_activity(
    query,
    key,
    value,
    padding_mask,
    document_ids,
    hebbian,
    calcium,
    order,
    rank,
    weight,
    bias,
    total,
    count,
    *,
    coupling_scale,
    **options,
):
    """`write_and_read_causally` with the astrocyte code "activity"; its arguments as of `token_layout.activity_code`,
    its sums after the last token at the end of the results."""
    code, total, count = activity_code(
        *(key.to(_working_dtype(key)), padding_mask, document_ids, order, rank, weight, bias, total, count),
        coupling_scale=coupling_scale,
        causal=True,
    )
    results = write_and_read_causally(query, key, value, code, padding_mask, document_ids, hebbian, calcium, **options)
    return *results, total, count


def write_and_read_documents(
    query,
    key,
    value,
    astrocyte_code,
    padding_mask,
    document_ids,
    *,
    alpha,
    feature_map,
    feedback,
    scale,
    output_dtype,
):
    """Write mode and read mode of each document in a row: `(batch, heads, length, head_dim)`.

    In the chunks of `write_and_read_causally`, with what was written before a chunk and what is written after it.
    """
    length = query.shape[2]
    presynaptic, process = _activity(key, astrocyte_code, padding_mask, feature_map)
    activity = phi(query.to(presynaptic.dtype), feature_map)  # (B, H, N, F)
    read, own, imprint, written = (  # (B, H, chunks, C, .)
        in_chunks(x, CHUNK_SIZE)
        for x in (activity, presynaptic, presynaptic + process, _silenced(value, padding_mask).to(activity.dtype))
    )
    chunks = _DocumentChunks(document_ids)
    visible = chunks.same.to(own.dtype)

    def from_other_chunks(left, right):
        """Pairs of whether a token reads what a neighbouring chunk hands on, and that."""
        nothing = torch.zeros_like(left[:, :, :1])
        yield chunks.goes_on, chunks.carried_forward(nothing, left)[:, :, :-1]
        yield chunks.went_on, chunks.carried_back(right)[:, :, 1:]

    before, after = (
        (imprint * inside).transpose(-1, -2) @ written for inside in (chunks.in_last, chunks.in_first)
    )  # (B, H, chunks, F, d)
    output = ((read @ imprint.transpose(-1, -2)) * visible) @ written
    for reads, hebbian in from_other_chunks(before, after):
        output = output + (read * reads) @ hebbian
    output = output.flatten(2, 3)[:, :, :length] * scale
    if feedback:
        before, after = ((own * inside).sum(-2) for inside in (chunks.in_last, chunks.in_first))
        calcium = visible @ own  # of the whole document, at each of its tokens
        for reads, of_others in from_other_chunks(before, after):
            calcium = calcium + reads * of_others[:, :, :, None]
        calcium = calcium.flatten(2, 3)[:, :, :length]
        output = output * astrocyte_feedback(calcium_response(activity, calcium, alpha))
    return output.to(output_dtype)


def write_and_read_documents_with_activity(
    query,
    key,
    value,
    padding_mask,
    document_ids,
    order,
    rank,
    weight,
    bias,
    *,
    coupling_scale,
    **options,
):
    """`write_and_read_documents` with the astrocyte code "activity"; arguments as of `token_layout.activity_code`."""
    code, *_ = activity_code(
        *(key.to(_working_dtype(key)), padding_mask, document_ids, order, rank, weight, bias, None, None),
        coupling_scale=coupling_scale,
        causal=False,
    )
    return write_and_read_documents(query, key, value, code, padding_mask, document_ids, **options)


def calcium_response(activity, calcium, alpha):
    """C = phi(Q) g with g = calcium^alpha: `(batch, heads, length, 1)`, from the activity phi(Q) of shape
    `(batch, heads, length, features)` and the calcium, `(batch, heads, features)`, or causally one for each token."""
    g = presynaptic_plasticity(calcium, alpha)
    return activity @ g[..., None] if g.dim() < activity.dim() else (activity * g).sum(-1, keepdim=True)


def presynaptic_plasticity(calcium, alpha):
    """g = calcium^alpha: the calcium of a process grows sub-linearly with the activity that it saw."""
    return torch.where(calcium > CALCIUM_FLOOR, calcium.clamp(min=CALCIUM_FLOOR) ** alpha, 0)


def astrocyte_feedback(response):
    """P = 1 / C, and 0 where the process found no calcium at all."""
    return torch.where(response > CALCIUM_FLOOR, 1 / response.clamp(min=CALCIUM_FLOOR), 0)


def neuron_astrocyte_attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    astrocyte_code: torch.Tensor | ActivityCode | None = None,
    padding_mask: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    feature_map: str = "elu",
    feedback: bool = True,
    random_projection: torch.Tensor | None = None,
    causal: bool = False,
    initial_state: NeuronAstrocyteState | None = None,
    document_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """The attention map that `neuron_astrocyte_attention` applies without ever building it, for looking at.

    Entry (t, s) is P_t phi(q_t) (phi(k_s) + phi(r_s)) / m, so that the map times the values is the output. Rows sum to
    1/m where alpha is 1 and there is no astrocyte code, and only there. Arguments as for `neuron_astrocyte_attention`.
    What `initial_state` holds is counted in the calcium but has no columns: its tokens are no longer known one by one.

    Returns:
        `torch.Tensor` of shape `(batch, heads, length, length)` in the dtype of `query`. Memory is quadratic.
    """
    documents = _documents(document_ids, query, key, padding_mask, causal, initial_state, False)
    if isinstance(astrocyte_code, ActivityCode):  # from a layer
        astrocyte_code, *_ = astrocyte_code.make(key.to(_working_dtype(key)), padding_mask, causal, documents)
    _validate(query, key, key, astrocyte_code, padding_mask, alpha, feature_map, random_projection)
    num_hidden_neurons = query.shape[-1]
    with full_precision(query):
        if feature_map == "favor":
            query, key, astrocyte_code = _random_features(query, key, astrocyte_code, random_projection)
            feature_map = "identity"
        presynaptic, process = _activity(key, astrocyte_code, padding_mask, feature_map)
        activity = phi(query.to(presynaptic.dtype), feature_map)
        weights = activity @ (presynaptic + process).transpose(-1, -2) / num_hidden_neurons  # (B, H, N, N)
        visible = None
        if documents is not None:  # (B, 1, N, N)
            visible = (documents[:, None, :, None] == documents[:, None, None, :]).to(weights.dtype)
            weights = weights * visible
        if causal:
            weights = weights.tril()
        if feedback:
            if visible is not None:
                calcium = (visible.tril() if causal else visible) @ presynaptic
            else:
                calcium = presynaptic.cumsum(-2) if causal else presynaptic.sum(-2)
            if initial_state is not None:
                before = initial_state.calcium[:, :, None] if causal else initial_state.calcium
                if documents is not None:  # the first goes on from it
                    before = before * (documents == documents[:, :1])[:, None, :, None]
                calcium = calcium + before
            weights = weights * astrocyte_feedback(calcium_response(activity, calcium, alpha))
    return weights.to(query.dtype)


def _silenced(value, padding_mask):
    """The values with 0 at padded tokens: zero activity times a padded NaN would be NaN."""
    return value if padding_mask is None else value.masked_fill(~padding_mask[:, None, :, None], 0)


def phi(x, feature_map):
    """The activity phi(x), of "identity" x itself."""
    return x if feature_map == "identity" else FEATURE_MAPS[feature_map](x, None)


def _activity(key, astrocyte_code, padding_mask, feature_map):
    """phi(K) and phi(R) in the working dtype, 0 at padded tokens; a scalar 0 stands for phi(R) without a code."""
    working = _working_dtype(key)
    presynaptic = phi(key.to(working), feature_map)  # (B, H, N, F)
    process = presynaptic.new_zeros(())
    if astrocyte_code is not None:
        process = phi(astrocyte_code.to(working), feature_map)  # (H, N, F) or (B, H, N, F)
    if padding_mask is not None:
        padded = ~padding_mask[:, None, :, None]  # (B, 1, N, 1)
        presynaptic = presynaptic.masked_fill(padded, 0)
        process = process.masked_fill(padded, 0)
    return presynaptic, process


# --------------------------------------------------------------------------------------------------------------------
# Precision, defaults and validation
# --------------------------------------------------------------------------------------------------------------------


def _working_dtype(*tensors):
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def full_precision(tensor):
    """A context in which autocast leaves matrix products alone."""
    device_type = tensor.device.type
    return torch.autocast(device_type, enabled=False) if _has_autocast(device_type) else nullcontext()


@torch.compiler.assume_constant_result  # torch 2.8 does not trace what it calls
def _has_autocast(device_type):
    return torch.amp.is_autocast_available(device_type)


def _random_projection(feature_map, random_projection, query):
    if feature_map == "favor" and random_projection is None:
        return _default_random_projection(query.shape[-1]).to(query.device)
    return random_projection


def _random_features(query, key, astrocyte_code, random_projection):
    """Query, key and astrocyte code, before the feature map, as features of "favor" in the working dtype."""
    projection, working = _random_projection("favor", random_projection, query), _working_dtype(query, key)
    inputs = (query, key, astrocyte_code)
    return (None if x is None else FEATURE_MAPS["favor"](x.to(working), projection) for x in inputs)


def _empty_state(key, value):
    """The state of synapses to which nothing was written; the last dimension of `key` is the features'."""
    shape, working = (*key.shape[:2], key.shape[3], value.shape[3]), _working_dtype(key, value)
    return NeuronAstrocyteState(value.new_zeros(shape, dtype=working), value.new_zeros(shape[:3], dtype=working))


def _checked_state(state, key, value):
    """`state` in the working dtype, after a check of its shapes; the last dimension of `key` is the features'."""
    hebbian, calcium = state
    hebbian_shape = (*key.shape[:2], key.shape[3], value.shape[3])
    if hebbian.shape != hebbian_shape or calcium.shape != hebbian_shape[:3]:
        raise ValueError(
            f"initial_state must hold hebbian of shape {hebbian_shape} and calcium of shape {hebbian_shape[:3]}, "
            f"got {tuple(hebbian.shape)} and {tuple(calcium.shape)}"
        )
    working = _working_dtype(key, value, hebbian)
    return NeuronAstrocyteState(hebbian.to(working), calcium.to(working))


def _documents(document_ids, query, key, padding_mask, causal, initial_state, output_final_state):
    """`document_ids`, checked, as `number_documents` numbers them; None without."""
    if document_ids is None:
        return None
    batch_size, _, length, _ = key.shape
    if document_ids.shape != (batch_size, length) or document_ids.is_floating_point():
        raise ValueError(
            f"document_ids must be whole numbers of shape {(batch_size, length)}, got {document_ids.dtype} of shape "
            f"{tuple(document_ids.shape)}"
        )
    if query.shape[2] != length:
        raise ValueError(f"document_ids need queries and keys of the same length, got {query.shape[2]} and {length}")
    if not causal and (initial_state is not None or output_final_state):
        raise ValueError(
            "document_ids have no initial_state or final state unless causal=True: each document of a row has a state "
            "of its own"
        )
    if length == 0:
        return None
    documents = number_documents(starts_of_documents(document_ids, padding_mask), padding_mask)
    if document_ids.device.type == "cpu" and not torch.compiler.is_compiling():  # where the look costs nothing
        for row, ids in enumerate(document_ids):
            ids = ids if padding_mask is None else ids[padding_mask[row]]
            if len(ids.unique()) < len(ids.unique_consecutive()):
                raise ValueError(
                    "document_ids must not return to a document that has ended: the tokens of each stand together, got "
                    f"{ids.unique_consecutive().tolist()} in row {row}"
                )
    return documents


def _validate(query, key, value, astrocyte_code, padding_mask, alpha, feature_map, random_projection):
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map must be one of {sorted(FEATURE_MAPS)}, got {feature_map!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
        raise ValueError(f"alpha must be a number in (0, 1], got {alpha!r}")

    shapes = f"got query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)}"
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions, (batch, heads, length, size); {shapes}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have the same number of hidden neurons (last dimension); {shapes}")
    if not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        raise ValueError(f"query, key and value must agree in batch and heads; {shapes}")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"key and value must have the same length; {shapes}")
    if query.shape[2] != key.shape[2] and 0 not in (query.shape[2], key.shape[2]):
        raise ValueError(f"query and key must have the same length, unless one of them is empty; {shapes}")

    batch_size, num_heads, length, num_hidden_neurons = key.shape
    if astrocyte_code is not None:
        expected = (num_heads, length, num_hidden_neurons)
        if astrocyte_code.shape not in (expected, (batch_size, *expected)):
            raise ValueError(
                f"astrocyte_code must have shape {expected}, or that with a leading batch of {batch_size}, "
                f"got {tuple(astrocyte_code.shape)}"
            )
    if padding_mask is not None:
        if padding_mask.dtype != torch.bool:
            raise ValueError(f"padding_mask must be bool, True where a token is real, got {padding_mask.dtype}")
        if padding_mask.shape != (batch_size, length):
            raise ValueError(f"padding_mask must have shape {(batch_size, length)}, got {tuple(padding_mask.shape)}")
    if random_projection is not None:
        if feature_map != "favor":
            raise ValueError(f"random_projection belongs to feature_map 'favor', got feature_map {feature_map!r}")
        if random_projection.dim() != 2 or random_projection.shape[1] != num_hidden_neurons:
            raise ValueError(
                f"random_projection must have shape (random_features, {num_hidden_neurons}), "
                f"got {tuple(random_projection.shape)}"
            )
