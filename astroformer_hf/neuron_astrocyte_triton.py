# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""Neuron-astrocyte attention on a GPU: the write mode, the read mode and their gradients as four Triton kernels.

The equations and their names are those of `attention_operation.py`. A kernel keeps on the chip what lies between
its inputs and its outputs: no activity phi(.) is stored, and the gradients compute it again. A program has one head and
a run of its tokens:

- `_write_kernel` sums (phi(k_t) + phi(r_t)) v_t^T and phi(k_t). Bidirectionally it splits a sequence in as many parts
  as keep the GPU busy, and their sums are added up afterwards; nothing is added atomically, so that the same input
  gives the same bits.
- `_read_kernel` answers a block of tokens: P phi(Q) H.
- `_read_backward_kernel` makes the gradient of the query out of W = dY H^T, (tokens, features), which stands in for the
  output that was not stored:

      dC = -P^2 rowsum(phi(Q) W)   dphi(Q) = P W + dC g   dH = phi(Q)^T (P dY)   dg = phi(Q)^T dC

  The last two have the form of the write mode, and `_write_kernel` computes them, with P and dC as tokens' weights.
- `_write_backward_kernel` makes the gradients of the key, the code and the value from those of H and of the calcium:

      dphi(R) = V dH^T   dphi(K) = V dH^T + dz   dV = (phi(K) + phi(R)) dH

The causal form goes in chunks, one per program. `_write_kernel` sums each chunk, and running sums are the states that
the chunks start from. The other kernels then do the above with the state of their chunk and add what happens inside of
it: Y = tril(phi(Q) (phi(K) + phi(R))^T) V, with its gradients, and the calcium token by token. What a token wrote is
read by all later ones; the gradient of the state is therefore a running sum from the last chunk to the first.

With `presynaptic_target` "synapse" tokens read with phi(Q) z^(alpha - 1) instead of phi(Q). Bidirectionally that is a
factor of H, and no business of these kernels. Causally the gradient of each token's calcium then needs its W: for the
backward pass only, `_read_backward_kernel` stores that gradient and what the token read with, (tokens, features) each.

Where synapses leak, `log_decay`, the running sums of the states become those of `_carry_kernel`. What a chunk writes
and reads is weighed by the shares that are left until its end and since its beginning, its attention and its calcium by
those between its tokens: exponentials of differences of the time that passed, never quotients. Read in both directions,
a chunk has a second state, of what comes after it, and its attention is not masked.

These functions know nothing of autograd and check nothing; their callers do. Letters in shape comments: B batch,
H heads, N tokens, F features (the size of a query or a key), d head size (the size of a value).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .attention_contract import Backend, CodeFirst, Kernel, PlainForm
from .attention_passes import CALCIUM_FLOOR as PLAIN_CALCIUM_FLOOR
from .decayed_sums import time_elapsed
from .feature_maps import EXP_CEILING as PLAIN_EXP_CEILING
from .hybrid_attention_triton import KERNELS as HYBRID_KERNELS
from .triton_blocks import (
    BLOCK_LENGTH,
    NUM_WARPS,
    block_of,
    by_token,
    contiguous,
    on_device,
    precision_of,
    rows_of,
    strides,
    unavailable,
)


try:
    import triton
    import triton.language as tl

    from .triton_blocks import VARYING, at, dot, load
except ImportError:
    triton = None

# Programs that the write mode aims at when it splits a sequence: some for each multiprocessor of a large GPU. A
# constant, so that sums do not depend on the GPU.
WRITE_PROGRAMS = 512


# --------------------------------------------------------------------------------------------------------------------
# Kernels
# --------------------------------------------------------------------------------------------------------------------

if triton is not None:
    # The constants of the plain form.
    CALCIUM_FLOOR = tl.constexpr(PLAIN_CALCIUM_FLOOR)
    EXP_CEILING = tl.constexpr(PLAIN_EXP_CEILING)
    BLOCK_N = tl.constexpr(BLOCK_LENGTH)

    @triton.jit
    def _phi(x, mask, FEATURE_MAP: tl.constexpr):
        """The feature map, and 0 outside of the mask. The comparisons are such that NaN stays NaN."""
        if FEATURE_MAP == "elu":
            x = tl.where(x > 0, x + 1, tl.exp(x))
        elif FEATURE_MAP == "relu":
            x = tl.where(x < 0, 0.0, x)
        elif FEATURE_MAP == "exp":
            x = tl.exp(tl.where(x > EXP_CEILING, EXP_CEILING, x))
        return tl.where(mask, x, 0.0)

    @triton.jit
    def _d_phi(d_activity, x, activity, mask, FEATURE_MAP: tl.constexpr):
        """The gradient of x from that of its activity phi(x)."""
        if FEATURE_MAP == "elu":
            d_activity *= tl.where(x > 0, 1.0, activity)
        elif FEATURE_MAP == "relu":
            d_activity = tl.where(x > 0, d_activity, 0.0)
        elif FEATURE_MAP == "exp":
            d_activity *= tl.where(x > EXP_CEILING, 0.0, activity)
        return tl.where(mask, d_activity, 0.0)

    @triton.jit
    def _plasticity(calcium, alpha, LINEAR: tl.constexpr):
        g = calcium
        if not LINEAR:
            g = tl.exp2(alpha * tl.log2(tl.maximum(calcium, CALCIUM_FLOOR)))
        return tl.where(calcium > CALCIUM_FLOOR, g, 0.0)

    @triton.jit
    def _d_plasticity(calcium, plasticity, alpha):
        """alpha calcium^(alpha - 1)"""
        return tl.where(calcium > CALCIUM_FLOOR, alpha * plasticity / tl.maximum(calcium, CALCIUM_FLOOR), 0.0)

    @triton.jit
    def _release(calcium, alpha):
        """calcium^(alpha - 1), which the activity meets at each synapse"""
        release = tl.exp2((alpha - 1) * tl.log2(tl.maximum(calcium, CALCIUM_FLOOR)))
        return tl.where(calcium > CALCIUM_FLOOR, release, 0.0)

    @triton.jit
    def _feedback(response):
        return tl.where(response > CALCIUM_FLOOR, 1 / tl.maximum(response, CALCIUM_FLOOR), 0.0)

    @triton.jit
    def _by_token_at(pointer, sequence, start, rows, columns, num_heads, length, SIZE: tl.constexpr):
        """Where tokens lie in a contiguous (B, N, H, SIZE), the order in which merging the heads is free."""
        tokens = sequence // num_heads * length + start + rows
        return pointer + ((tokens * num_heads + sequence % num_heads) * SIZE)[:, None] + columns[None, :]

    @triton.jit
    def _store(pointer, x, sequence, start, rows, columns, num_heads, length, SIZE: tl.constexpr):
        """Stores tokens in a contiguous (B, N, H, SIZE)."""
        pointers = _by_token_at(pointer, sequence, start, rows, columns, num_heads, length, SIZE)
        tl.store(pointers, x, mask=(start + rows < length)[:, None] & (columns < SIZE)[None, :])

    @triton.jit
    def _real(padding_mask, sequence, start, rows, num_heads, length):
        """Which of the rows are tokens, and no padding: padding is not even loaded, it may be NaN."""
        real = start + rows < length
        if padding_mask is not None:
            real &= tl.load(padding_mask + sequence // num_heads * length + start + rows, mask=real, other=0) != 0
        return real

    @triton.jit
    def _imprint(key, code, key_n, code_n, rows, columns, mask, FEATURE_MAP: tl.constexpr, ALL_SOURCES: tl.constexpr):
        """What the calcium counts, phi(K) or all that is written, and that, phi(K) + phi(R): (tokens, features)."""
        source = _phi(load(key, key_n, rows, columns, mask), mask, FEATURE_MAP)
        imprint = source
        if code is not None:
            imprint += _phi(load(code, code_n, rows, columns, mask), mask, FEATURE_MAP)
            if ALL_SOURCES:
                source = imprint
        return source, imprint

    @triton.jit
    def _passed(elapsed, sequence, start, rows, length):
        """The logarithms of what is left, at each token, of what there was before the chunk; 0 past the end."""
        return tl.load(elapsed + sequence * length + start + rows, mask=start + rows < length, other=0.0)

    @triton.jit
    def _until(elapsed, passed, sequence, start, length):
        """The share of what each token wrote that is left at the end of the chunk."""
        last = tl.minimum(start + BLOCK_N, length) - 1
        return tl.exp(tl.load(elapsed + sequence * length + last) - passed)

    @triton.jit
    def _between(passed):
        """The share that two tokens of a chunk find of each other's; never above 1, whichever comes first."""
        return tl.exp(-tl.abs(passed[:, None] - passed[None, :]))

    @triton.jit
    def _left(x, share):
        """What is left of rows; without leak, all."""
        if share is not None:
            x = x * share[:, None]
        return x

    @triton.jit
    def _load_row(pointer, features, F: tl.constexpr):
        return tl.load(pointer + features, mask=features < F, other=0.0)[None, :]

    @triton.jit
    def _running(first, x, visible, REVERSE: tl.constexpr, PRECISION: tl.constexpr):
        """The sum of `first`, (1, features), and of the tokens up to each (from each on), (tokens, features); of what
        leaks what is left of the one, (tokens, features), and of the others the shares that are `visible`."""
        if visible is None:
            sums = first + tl.cumsum(x, 0, reverse=REVERSE)
        else:
            sums = dot(visible, x, first, PRECISION)
        return sums

    @triton.jit(do_not_specialize=VARYING)
    def _carry_kernel(states, left, num_slots, SIZE: tl.constexpr, BLOCK: tl.constexpr):
        """Into each slot of (B * H, slots, SIZE) but the first, what is left of the one before, (B * H, slots - 1)."""
        sequence = tl.program_id(0).to(tl.int64)
        entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        pointers = states + sequence * num_slots * SIZE + entries
        state = tl.load(pointers, mask=entries < SIZE, other=0.0)
        for slot in range(1, num_slots):
            pointers += SIZE
            share = tl.load(left + sequence * (num_slots - 1) + slot - 1)
            state = share * state + tl.load(pointers, mask=entries < SIZE, other=0.0)
            tl.store(pointers, state, mask=entries < SIZE)

    @triton.jit(do_not_specialize=VARYING)
    def _write_kernel(
        key,
        value,
        code,
        padding_mask,
        feedback,  # weights of the values, (B, H, N), or None
        d_response,  # weights of what the calcium counts, (B, H, N), or None
        hebbian,  # (B, H, slots, F, d), written
        calcium,  # (B, H, slots, F), written, or None
        key_b,
        key_h,
        key_n,
        value_b,
        value_h,
        value_n,
        code_b,
        code_h,
        code_n,
        num_heads,
        length,
        num_blocks,
        block_length,
        num_slots,
        first_slot,
        SLOT_STEP: tl.constexpr,
        ALL_SOURCES: tl.constexpr,
        FEATURE_MAP: tl.constexpr,
        PRECISION: tl.constexpr,
        F: tl.constexpr,
        D: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        block = (tl.program_id(0) % num_blocks).to(tl.int64)
        sequence = (tl.program_id(0) // num_blocks).to(tl.int64)
        rows = tl.arange(0, BLOCK_N)
        features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
        columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)

        hebbian_sum = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
        calcium_sum = tl.zeros((BLOCK_F,), tl.float32)
        for start in range(block * block_length, tl.minimum((block + 1) * block_length, length), BLOCK_N):
            real = _real(padding_mask, sequence, start, rows, num_heads, length)
            source, imprint = _imprint(
                at(key, sequence, start, num_heads, key_b, key_h, key_n),
                None if code is None else at(code, sequence, start, num_heads, code_b, code_h, code_n),
                key_n,
                code_n,
                rows,
                features,
                real[:, None] & (features < F)[None, :],
                FEATURE_MAP,
                ALL_SOURCES,
            )
            written = load(
                at(value, sequence, start, num_heads, value_b, value_h, value_n),
                value_n,
                rows,
                columns,
                real[:, None] & (columns < D)[None, :],
            )
            if feedback is not None:
                written *= tl.load(feedback + sequence * length + start + rows, mask=real, other=0.0)[:, None]
            if d_response is not None:
                source *= tl.load(d_response + sequence * length + start + rows, mask=real, other=0.0)[:, None]
            hebbian_sum = dot(tl.trans(imprint), written, hebbian_sum, PRECISION)
            calcium_sum += tl.sum(source, 0)

        slot = sequence * num_slots + first_slot + block * SLOT_STEP
        pointers = hebbian + slot * (F * D) + features[:, None] * D + columns[None, :]
        tl.store(pointers, hebbian_sum, mask=(features < F)[:, None] & (columns < D)[None, :])
        if calcium is not None:
            if tl.program_id(2) == 0:
                tl.store(calcium + slot * F + features, calcium_sum, mask=features < F)

    @triton.jit(do_not_specialize=VARYING)
    def _read_kernel(
        query,
        key,  # this and the next three causally only
        value,
        code,
        padding_mask,
        elapsed,  # (B, H, N), see _Leak, or None
        hebbian,  # (B, H, slots, F, d), causally the state before each chunk
        calcium,  # (B, H, slots, F), bidirectionally already the plasticity g
        later_hebbian,  # where a line is read both ways, the state after each chunk, last chunk first, or None
        later_calcium,
        output,
        query_b,
        query_h,
        query_n,
        key_b,
        key_h,
        key_n,
        value_b,
        value_h,
        value_n,
        code_b,
        code_h,
        code_n,
        num_heads,
        length,
        num_blocks,
        num_slots,
        alpha,
        scale,
        CAUSAL: tl.constexpr,
        FEEDBACK: tl.constexpr,
        AT_SYNAPSE: tl.constexpr,  # causally only
        ALL_SOURCES: tl.constexpr,
        LINEAR: tl.constexpr,
        FEATURE_MAP: tl.constexpr,
        PRECISION: tl.constexpr,
        F: tl.constexpr,
        D: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        block = (tl.program_id(0) % num_blocks).to(tl.int64)
        sequence = (tl.program_id(0) // num_blocks).to(tl.int64)
        start = block * BLOCK_N
        rows = tl.arange(0, BLOCK_N)
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        query = at(query, sequence, start, num_heads, query_b, query_h, query_n)
        slot = sequence * num_slots
        if CAUSAL:
            slot += block
            real = _real(padding_mask, sequence, start, rows, num_heads, length)
            key = at(key, sequence, start, num_heads, key_b, key_h, key_n)
            value = at(value, sequence, start, num_heads, value_b, value_h, value_n)
            if code is not None:
                code = at(code, sequence, start, num_heads, code_b, code_h, code_n)
        since = None
        visible = None
        if elapsed is not None:
            passed = _passed(elapsed, sequence, start, rows, length)
            since = tl.exp(passed)
            visible = _between(passed)
            if later_hebbian is None:
                visible = tl.where(rows[:, None] >= rows[None, :], visible, 0.0)
            else:
                until = _until(elapsed, passed, sequence, start, length)
                later_slot = sequence * num_slots + num_slots - 2 - block

        answer = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        response = tl.zeros((BLOCK_N,), tl.float32)
        attention = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)  # phi(q_t) (phi(k_s) + phi(r_s)), inside the chunk
        for first in range(0, F, BLOCK_F):
            features = first + tl.arange(0, BLOCK_F)
            mask = (start + rows < length)[:, None] & (features < F)[None, :]
            activity = _phi(load(query, query_n, rows, features, mask), mask, FEATURE_MAP)
            state_mask = (features < F)[:, None] & (columns < D)[None, :]
            state = load(hebbian + slot * (F * D), D, features, columns, state_mask)
            # The order is one that fits the registers; only at the synapse the calcium must come first.
            if not AT_SYNAPSE:
                answer = dot(_left(activity, since), state, answer, PRECISION)
            if FEEDBACK or AT_SYNAPSE:
                z = _left(_load_row(calcium + slot * F, features, F), since)
                if later_hebbian is not None:
                    z += _left(_load_row(later_calcium + later_slot * F, features, F), until)
                g = z
            if CAUSAL:
                mask = real[:, None] & (features < F)[None, :]
                source, imprint = _imprint(key, code, key_n, code_n, rows, features, mask, FEATURE_MAP, ALL_SOURCES)
                if AT_SYNAPSE:
                    z = _running(z, source, visible, False, PRECISION)
                    reading = activity * _release(z, alpha)
                    answer = dot(_left(reading, since), state, answer, PRECISION)
                    attention = dot(reading, tl.trans(imprint), attention, PRECISION)
                else:
                    attention = dot(activity, tl.trans(imprint), attention, PRECISION)
                    if FEEDBACK:
                        z = _running(z, source, visible, False, PRECISION)
                if later_hebbian is not None:
                    if not AT_SYNAPSE:
                        reading = activity
                    state = load(later_hebbian + later_slot * (F * D), D, features, columns, state_mask)
                    answer = dot(_left(reading, until), state, answer, PRECISION)
                if FEEDBACK:
                    g = _plasticity(z, alpha, LINEAR)
            if FEEDBACK:
                response += tl.sum(activity * g, 1)

        if CAUSAL:
            written = load(value, value_n, rows, columns, real[:, None] & (columns < D)[None, :])
            if visible is None:
                attention = tl.where(rows[:, None] >= rows[None, :], attention, 0.0)
            else:
                attention *= visible
            answer = dot(attention, written, answer, PRECISION)
        if FEEDBACK:
            answer *= _feedback(response)[:, None]
        _store(output, answer * scale, sequence, start, rows, columns, num_heads, length, D)

    @triton.jit(do_not_specialize=VARYING)
    def _read_backward_kernel(
        query,
        key,  # this and the next three causally only
        value,
        code,
        padding_mask,
        elapsed,
        hebbian,  # as in _read_kernel
        calcium,
        later_hebbian,
        later_calcium,
        d_output,
        d_query,
        feedback,  # scale * P, (B, H, N), written
        d_response,  # dC, (B, H, N), written with feedback
        d_calcium,  # causally: gradient of the calcium that each chunk read, (B, H, slots, F), last chunk first
        d_later_calcium,  # likewise, first chunk first
        reading,  # phi(Q) calcium^(alpha - 1), (B, N, H, F), written at the synapse
        d_calciums,  # gradient of each token's calcium, (B, N, H, F), likewise
        gains,  # scale * P phi(Q) W, (B, H, N), written where synapses leak; both ways what each token read of what was
        # written before it, less what it read of what was written after it, times the gradients
        query_b,
        query_h,
        query_n,
        key_b,
        key_h,
        key_n,
        value_b,
        value_h,
        value_n,
        code_b,
        code_h,
        code_n,
        d_output_b,
        d_output_h,
        d_output_n,
        num_heads,
        length,
        num_blocks,
        num_slots,
        alpha,
        scale,
        CAUSAL: tl.constexpr,
        FEEDBACK: tl.constexpr,
        AT_SYNAPSE: tl.constexpr,  # causally only
        ALL_SOURCES: tl.constexpr,
        LINEAR: tl.constexpr,
        FEATURE_MAP: tl.constexpr,
        PRECISION: tl.constexpr,
        F: tl.constexpr,
        D: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        block = (tl.program_id(0) % num_blocks).to(tl.int64)
        sequence = (tl.program_id(0) // num_blocks).to(tl.int64)
        start = block * BLOCK_N
        rows = tl.arange(0, BLOCK_N)
        inside = start + rows < length
        query = at(query, sequence, start, num_heads, query_b, query_h, query_n)
        d_output = at(d_output, sequence, start, num_heads, d_output_b, d_output_h, d_output_n)
        slot = sequence * num_slots
        since = None
        visible = None
        if CAUSAL:
            slot += block
            real = _real(padding_mask, sequence, start, rows, num_heads, length)
            key = at(key, sequence, start, num_heads, key_b, key_h, key_n)
            value = at(value, sequence, start, num_heads, value_b, value_h, value_n)
            if code is not None:
                code = at(code, sequence, start, num_heads, code_b, code_h, code_n)
            if elapsed is not None:
                passed = _passed(elapsed, sequence, start, rows, length)
                since = tl.exp(passed)
                visible = tl.where(rows[:, None] >= rows[None, :], _between(passed), 0.0)
                if later_hebbian is not None:
                    until = _until(elapsed, passed, sequence, start, length)
                    later_slot = sequence * num_slots + num_slots - 2 - block
                    visible_later = tl.where(rows[:, None] < rows[None, :], _between(passed), 0.0)
            d_attention = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)  # dy_t v_s, inside the chunk
            for first in range(0, D, BLOCK_D):
                columns = first + tl.arange(0, BLOCK_D)
                d_answer = load(d_output, d_output_n, rows, columns, inside[:, None] & (columns < D)[None, :])
                written = load(value, value_n, rows, columns, real[:, None] & (columns < D)[None, :])
                d_attention = dot(d_answer, tl.trans(written), d_attention, PRECISION)
            if visible is None:
                d_attention = tl.where(rows[:, None] >= rows[None, :], d_attention, 0.0)
            else:
                if later_hebbian is not None:
                    d_attention_later = d_attention * visible_later
                d_attention *= visible

        # Twice over the features: first for C and dC, which all of them make, then for the gradients. Where one block
        # has them all, the compiler finds both rounds to be the same.
        response = tl.zeros((BLOCK_N,), tl.float32)
        gain = tl.zeros((BLOCK_N,), tl.float32)  # phi(Q) W
        p = tl.zeros((BLOCK_N,), tl.float32) + scale
        d_c = tl.zeros((BLOCK_N,), tl.float32)
        if later_hebbian is not None:
            sides = tl.zeros((BLOCK_N,), tl.float32)
        for stage in tl.static_range(2):
            for first in range(0, F, BLOCK_F):
                features = first + tl.arange(0, BLOCK_F)
                mask = inside[:, None] & (features < F)[None, :]
                x = load(query, query_n, rows, features, mask)
                activity = _phi(x, mask, FEATURE_MAP)

                w = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)  # dY H^T
                if later_hebbian is not None:
                    w_later = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
                for first_column in range(0, D, BLOCK_D):
                    columns = first_column + tl.arange(0, BLOCK_D)
                    d_answer = load(d_output, d_output_n, rows, columns, inside[:, None] & (columns < D)[None, :])
                    state_mask = (features < F)[:, None] & (columns < D)[None, :]
                    state = load(hebbian + slot * (F * D), D, features, columns, state_mask)
                    w = dot(_left(d_answer, since), tl.trans(state), w, PRECISION)
                    if later_hebbian is not None:
                        state = load(later_hebbian + later_slot * (F * D), D, features, columns, state_mask)
                        w_later = dot(_left(d_answer, until), tl.trans(state), w_later, PRECISION)
                if FEEDBACK or AT_SYNAPSE:
                    z = _left(_load_row(calcium + slot * F, features, F), since)
                    g = z
                if CAUSAL:
                    key_mask = real[:, None] & (features < F)[None, :]
                    source, imprint = _imprint(
                        key, code, key_n, code_n, rows, features, key_mask, FEATURE_MAP, ALL_SOURCES
                    )
                    w = dot(d_attention, imprint, w, PRECISION)
                    if later_hebbian is not None:
                        w_later = dot(d_attention_later, imprint, w_later, PRECISION)
                        side_w = w - w_later
                        w += w_later
                    if FEEDBACK or AT_SYNAPSE:
                        z = _running(z, source, visible, False, PRECISION)
                        if later_hebbian is not None:
                            z_later = _left(_load_row(later_calcium + later_slot * F, features, F), until)
                            z_later = _running(z_later, source, visible_later, False, PRECISION)
                            side_z = z - z_later
                            z += z_later
                        g = _plasticity(z, alpha, LINEAR)
                    if AT_SYNAPSE:
                        release = _release(z, alpha)
                        w *= release
                        if later_hebbian is not None:
                            side_w *= release

                if stage == 0:
                    if FEEDBACK:
                        response += tl.sum(activity * g, 1)
                    if FEEDBACK or elapsed is not None:
                        gain += tl.sum(activity * w, 1)
                else:
                    d_activity = p[:, None] * w
                    d_z = tl.zeros((BLOCK_F,), tl.float32)
                    if AT_SYNAPSE:
                        # in this order: no product is larger than what it becomes, divided by the calcium
                        d_read = d_activity * activity * ((alpha - 1) / tl.maximum(z, CALCIUM_FLOOR))
                        if FEEDBACK:
                            d_read += d_c[:, None] * activity * _d_plasticity(z, g, alpha)
                        _store(reading, activity * release, sequence, start, rows, features, num_heads, length, F)
                        _store(d_calciums, d_read, sequence, start, rows, features, num_heads, length, F)
                        d_z = tl.sum(_left(d_read, since), 0)
                    if FEEDBACK:
                        d_activity += d_c[:, None] * g
                        if CAUSAL and not AT_SYNAPSE:
                            d_read = d_c[:, None] * activity * _d_plasticity(z, g, alpha)
                            d_z = tl.sum(_left(d_read, since), 0)
                    if later_hebbian is not None:
                        sides += tl.sum(p[:, None] * side_w * activity, 1)
                        d_later_z = tl.zeros((BLOCK_F,), tl.float32)
                        if FEEDBACK or AT_SYNAPSE:
                            sides += tl.sum(d_read * side_z, 1)
                            d_later_z = tl.sum(_left(d_read, until), 0)
                        d_slot = sequence * num_slots + block + 1
                        tl.store(d_later_calcium + d_slot * F + features, d_later_z, mask=features < F)
                    d_x = _d_phi(d_activity, x, activity, mask, FEATURE_MAP)
                    _store(d_query, d_x, sequence, start, rows, features, num_heads, length, F)
                    if CAUSAL:
                        d_slot = sequence * num_slots + num_slots - 1 - block
                        tl.store(d_calcium + d_slot * F + features, d_z, mask=features < F)
            if stage == 0:
                if FEEDBACK:
                    p = _feedback(response)
                    d_c = -scale * p * gain * p  # in this order: P^2 may overflow
                    p *= scale

        tl.store(feedback + sequence * length + start + rows, p, mask=inside)
        if later_hebbian is not None:
            tl.store(gains + sequence * length + start + rows, sides, mask=inside)
        elif elapsed is not None:
            tl.store(gains + sequence * length + start + rows, p * gain, mask=inside)
        if FEEDBACK:
            tl.store(d_response + sequence * length + start + rows, d_c, mask=inside)

    @triton.jit(do_not_specialize=VARYING)
    def _write_backward_kernel(
        query,  # this and the next six causally only; at the synapse as it was read, (B, H, N, F)
        d_output,
        feedback,
        d_response,
        d_calciums,  # of _read_backward_kernel
        elapsed,
        calcium,  # (B, H, slots, F), the state before each chunk
        later_calcium,  # where a line is read both ways, the state after each chunk, last chunk first, or None
        key,
        value,
        code,
        padding_mask,
        d_hebbian,  # (B, H, slots, F, d), causally of the state after each chunk, last chunk first
        d_calcium,  # (B, H, slots, F), likewise
        d_later_hebbian,  # of the state before each chunk of what is later, or None
        d_later_calcium,
        d_key,
        d_value,
        d_code,
        writers,  # what was written, times its gradient: (B, H, N), written where synapses leak
        query_b,
        query_h,
        query_n,
        d_output_b,
        d_output_h,
        d_output_n,
        key_b,
        key_h,
        key_n,
        value_b,
        value_h,
        value_n,
        code_b,
        code_h,
        code_n,
        num_heads,
        length,
        num_blocks,
        num_slots,
        alpha,
        CAUSAL: tl.constexpr,
        FEEDBACK: tl.constexpr,
        ALL_SOURCES: tl.constexpr,
        LINEAR: tl.constexpr,
        FEATURE_MAP: tl.constexpr,
        QUERY_MAP: tl.constexpr,  # what makes the query an activity
        PRECISION: tl.constexpr,
        F: tl.constexpr,
        D: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        block = (tl.program_id(0) % num_blocks).to(tl.int64)
        sequence = (tl.program_id(0) // num_blocks).to(tl.int64)
        start = block * BLOCK_N
        rows = tl.arange(0, BLOCK_N)
        inside = start + rows < length
        real = _real(padding_mask, sequence, start, rows, num_heads, length)
        key = at(key, sequence, start, num_heads, key_b, key_h, key_n)
        value = at(value, sequence, start, num_heads, value_b, value_h, value_n)
        if code is not None:
            code = at(code, sequence, start, num_heads, code_b, code_h, code_n)
        d_slot = sequence * num_slots
        since = None
        until = None
        visible = None
        reads = None
        if CAUSAL:
            d_slot += num_slots - 2 - block
            slot = sequence * num_slots + block
            query = at(query, sequence, start, num_heads, query_b, query_h, query_n)
            d_output = at(d_output, sequence, start, num_heads, d_output_b, d_output_h, d_output_n)
            later = rows[:, None] <= rows[None, :]  # token t, a column, reads token s, a row
            if elapsed is not None:
                passed = _passed(elapsed, sequence, start, rows, length)
                since = tl.exp(passed)
                until = _until(elapsed, passed, sequence, start, length)
                reads = tl.where(later, _between(passed), 0.0)
                if d_later_hebbian is None:
                    visible = tl.where(rows[:, None] >= rows[None, :], _between(passed), 0.0)
                else:
                    visible = _between(passed)
                    reads_later = tl.where(later, 0.0, _between(passed))  # of what comes after them
                writer = tl.zeros((BLOCK_N,), tl.float32)
            p = tl.load(feedback + sequence * length + start + rows, mask=inside, other=0.0)

        # The value first, then the key and the code: one map of the chunk at a time fits the registers.
        if CAUSAL:
            attention = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)  # P_t phi(q_t) (phi(k_s) + phi(r_s))
            for first in range(0, F, BLOCK_F):
                features = first + tl.arange(0, BLOCK_F)
                mask = inside[:, None] & (features < F)[None, :]
                activity = _phi(load(query, query_n, rows, features, mask), mask, QUERY_MAP)
                mask = real[:, None] & (features < F)[None, :]
                _, imprint = _imprint(key, code, key_n, code_n, rows, features, mask, FEATURE_MAP, False)
                attention = dot(imprint, tl.trans(activity), attention, PRECISION)
            if reads is None:
                attention = tl.where(later, attention * p[None, :], 0.0)
            elif d_later_hebbian is None:
                attention *= reads * p[None, :]
            else:
                attention *= visible * p[None, :]
        for first_column in range(0, D, BLOCK_D):
            columns = first_column + tl.arange(0, BLOCK_D)
            d_written = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            for first in range(0, F, BLOCK_F):
                features = first + tl.arange(0, BLOCK_F)
                mask = real[:, None] & (features < F)[None, :]
                _, imprint = _imprint(key, code, key_n, code_n, rows, features, mask, FEATURE_MAP, False)
                state_mask = (features < F)[:, None] & (columns < D)[None, :]
                d_state = load(d_hebbian + d_slot * (F * D), D, features, columns, state_mask)
                d_written = dot(_left(imprint, until), d_state, d_written, PRECISION)
                if d_later_hebbian is not None:
                    d_state = load(d_later_hebbian + slot * (F * D), D, features, columns, state_mask)
                    d_written = dot(_left(imprint, since), d_state, d_written, PRECISION)
            if CAUSAL:
                d_answer = load(d_output, d_output_n, rows, columns, inside[:, None] & (columns < D)[None, :])
                d_written = dot(attention, d_answer, d_written, PRECISION)
            _store(d_value, d_written, sequence, start, rows, columns, num_heads, length, D)

        if CAUSAL:
            d_attention = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)  # P_t dy_t v_s
            for first_column in range(0, D, BLOCK_D):
                columns = first_column + tl.arange(0, BLOCK_D)
                d_answer = load(d_output, d_output_n, rows, columns, inside[:, None] & (columns < D)[None, :])
                written = load(value, value_n, rows, columns, real[:, None] & (columns < D)[None, :])
                d_attention = dot(written, tl.trans(d_answer), d_attention, PRECISION)
            if reads is None:
                d_attention = tl.where(later, d_attention * p[None, :], 0.0)
            else:
                if d_later_hebbian is not None:
                    d_attention_later = d_attention * reads_later * p[None, :]
                d_attention *= reads * p[None, :]
        for first in range(0, F, BLOCK_F):
            features = first + tl.arange(0, BLOCK_F)
            mask = real[:, None] & (features < F)[None, :]
            d_imprint = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
            if d_later_hebbian is not None:
                d_imprint_later = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
            for first_column in range(0, D, BLOCK_D):
                columns = first_column + tl.arange(0, BLOCK_D)
                written = load(value, value_n, rows, columns, real[:, None] & (columns < D)[None, :])
                state_mask = (features < F)[:, None] & (columns < D)[None, :]
                d_state = load(d_hebbian + d_slot * (F * D), D, features, columns, state_mask)
                d_imprint = dot(_left(written, until), tl.trans(d_state), d_imprint, PRECISION)
                if d_later_hebbian is not None:
                    d_state = load(d_later_hebbian + slot * (F * D), D, features, columns, state_mask)
                    d_imprint_later = dot(_left(written, since), tl.trans(d_state), d_imprint_later, PRECISION)

            k = load(key, key_n, rows, features, mask)
            presynaptic = _phi(k, mask, FEATURE_MAP)
            source = presynaptic
            if ALL_SOURCES:
                source += _phi(load(code, code_n, rows, features, mask), mask, FEATURE_MAP)
            d_z = _left(_load_row(d_calcium + d_slot * F, features, F), until)
            if CAUSAL:
                query_mask = inside[:, None] & (features < F)[None, :]
                activity = _phi(load(query, query_n, rows, features, query_mask), query_mask, QUERY_MAP)
                d_imprint = dot(d_attention, activity, d_imprint, PRECISION)
                if d_later_hebbian is not None:
                    d_imprint_later = dot(d_attention_later, activity, d_imprint_later, PRECISION)
                    d_z_later = _left(_load_row(d_later_calcium + slot * F, features, F), since)
                if d_calciums is not None:
                    d_read = tl.load(
                        _by_token_at(d_calciums, sequence, start, rows, features, num_heads, length, F),
                        mask=query_mask,
                        other=0.0,
                    )
                    d_z = _running(d_z, d_read, reads, True, PRECISION)
                elif FEEDBACK:
                    z = _left(_load_row(calcium + slot * F, features, F), since)
                    if later_calcium is not None:
                        later_slot = sequence * num_slots + num_slots - 2 - block
                        z += _left(_load_row(later_calcium + later_slot * F, features, F), until)
                    z = _running(z, source, visible, False, PRECISION)
                    d_c = tl.load(d_response + sequence * length + start + rows, mask=inside, other=0.0)
                    d_read = d_c[:, None] * activity * _d_plasticity(z, _plasticity(z, alpha, LINEAR), alpha)
                    d_z = _running(d_z, d_read, reads, True, PRECISION)
                if elapsed is not None:
                    _, imprint = _imprint(key, code, key_n, code_n, rows, features, mask, FEATURE_MAP, False)
                    writer += tl.sum(imprint * d_imprint + source * d_z, 1)
                if d_later_hebbian is not None:
                    if FEEDBACK or d_calciums is not None:
                        d_z_later = _running(d_z_later, d_read, reads_later, True, PRECISION)
                    writer -= tl.sum(imprint * d_imprint_later + source * d_z_later, 1)
                    d_imprint += d_imprint_later
                    d_z += d_z_later
            if code is not None:
                r = load(code, code_n, rows, features, mask)
                d_process = d_imprint
                if ALL_SOURCES:
                    d_process += d_z
                d_r = _d_phi(d_process, r, _phi(r, mask, FEATURE_MAP), mask, FEATURE_MAP)
                _store(d_code, d_r, sequence, start, rows, features, num_heads, length, F)
            d_k = _d_phi(d_imprint + d_z, k, presynaptic, mask, FEATURE_MAP)
            _store(d_key, d_k, sequence, start, rows, features, num_heads, length, F)
        if elapsed is not None:
            tl.store(writers + sequence * length + start + rows, writer, mask=inside)


# --------------------------------------------------------------------------------------------------------------------
# Bidirectionally: write all, then read all
# --------------------------------------------------------------------------------------------------------------------


def write_forward(
    *,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    feature_map: str,
    calcium_sources: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The write mode: sum_t (phi(k_t) + phi(r_t)) v_t^T, `(B, H, F, d)`, and sum_t phi(k_t), or with all sources
    sum_t phi(k_t) + phi(r_t), `(B, H, F)`, in float32.

    Args:
        key (`torch.Tensor`): `(B, H, N, F)`. Like the other inputs in float32, bfloat16 or float16, of any strides.
        value (`torch.Tensor`): `(B, H, N, d)`.
        astrocyte_code (`torch.Tensor` or `None`): `(H, N, F)` or `(B, H, N, F)`.
        padding_mask (`torch.Tensor` or `None`): bool, `(B, N)`, True where a token is real.
        feature_map (`str`): "elu", "relu", "exp", or "identity" for a key and a code that are activities already.
        calcium_sources (`str`): "neurons" or "all", whether the calcium counts phi(r_t) as well.
    """
    written = _written(key, value, astrocyte_code, padding_mask, feature_map, calcium_sources)
    return _write_in_splits(**written)


def write_backward(
    *,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    feature_map: str,
    calcium_sources: str,
    d_hebbian: torch.Tensor,
    d_calcium: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Gradients of `write_forward`: those of the key, the value and the code, in their dtypes."""
    d_states: dict[str, Any] = {"d_hebbian": d_hebbian[:, :, None], "d_calcium": d_calcium[:, :, None]}
    written = _written(key, value, astrocyte_code, padding_mask, feature_map, calcium_sources)
    return _write_backward(**written, **d_states)[0]


def _written(
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    feature_map: str,
    calcium_sources: str,
) -> dict[str, Any]:
    """What the launches below take of what is written."""
    return {
        "key": key,
        "value": value,
        "code": astrocyte_code,
        "padding_mask": padding_mask,
        "feature_map": feature_map,
        "all_sources": calcium_sources == "all" and astrocyte_code is not None,
    }


def read_forward(
    *,
    query: torch.Tensor,
    hebbian: torch.Tensor,
    plasticity: torch.Tensor | None,
    feature_map: str,
    output_dtype: torch.dtype,
) -> tuple[torch.Tensor]:
    """The read mode, `(output,)` with `(B, H, N, d)`: phi(Q) H, divided by the response C = phi(Q) g.

    Args:
        query (`torch.Tensor`): `(B, H, N, F)`.
        hebbian (`torch.Tensor`): H, `(B, H, F, d)` in float32.
        plasticity (`torch.Tensor` or `None`): g, `(B, H, F)` in float32; without it nothing is divided.
        feature_map (`str`): as in `write_forward`.
        output_dtype (`torch.dtype`): that of the result.
    """
    state: dict[str, Any] = {"hebbian": hebbian[:, :, None], "calcium": plasticity}
    return (
        _read(
            query=query, **state, feature_map=feature_map, feedback=plasticity is not None, output_dtype=output_dtype
        ),
    )


def read_backward(
    *,
    query: torch.Tensor,
    hebbian: torch.Tensor,
    plasticity: torch.Tensor | None,
    feature_map: str,
    d_output: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Gradients of `read_forward`: those of the query, the Hebbian weights and the plasticity."""
    feedback = plasticity is not None
    state: dict[str, Any] = {"hebbian": hebbian[:, :, None], "calcium": plasticity}
    d_query, p, d_response, _ = _read_backward(
        query=query, **state, feature_map=feature_map, feedback=feedback, d_output=d_output
    )
    d_hebbian, d_plasticity = _write_in_splits(
        key=query, value=d_output, feature_map=feature_map, feedback=p, d_response=d_response
    )
    found = {"query": d_query, "hebbian": d_hebbian}
    return {**found, "plasticity": d_plasticity} if feedback else found


# --------------------------------------------------------------------------------------------------------------------
# Causally: chunk by chunk
# --------------------------------------------------------------------------------------------------------------------


def causal_forward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    hebbian: torch.Tensor,
    calcium: torch.Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    """Write and read mode token by token: y_t = scale P_t phi(q_t) S_t, each token reading what was written up to it.

    The arguments are those of `write_forward` and `read_forward`, but `hebbian` and `calcium`, `(B, H, F)`, are the
    state before the first token; P_t = 1 / (phi(q_t) z_t^alpha) with `feedback`, and 1 without. With
    `presynaptic_target` "synapse" phi(q_t) z_t^(alpha - 1) reads in the place of phi(q_t); with `log_decay`, log f_t of
    shape `(B, H, N)`, f_t of the state is left at token t.

    Returns:
        The output, `(B, H, N, d)`, and the two parts of the state after the last token, in float32.
    """
    return _forward_along(
        query=query,
        written=_written(key, value, astrocyte_code, padding_mask, feature_map, calcium_sources),
        leak=_leak(log_decay),
        states=(hebbian, calcium),
        later=None,
        alpha=alpha,
        at_synapse=_at_synapse(presynaptic_target, alpha),
        feedback=feedback,
        scale=scale,
        output_dtype=output_dtype,
    )


def causal_backward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    log_decay: torch.Tensor | None,
    hebbian: torch.Tensor,
    calcium: torch.Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    d_output: torch.Tensor,
    d_hebbian: torch.Tensor,
    d_calcium: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Gradients of `causal_forward`, given those of the output and of the state after the last token: of the query, the
    key, the value, the code, the log decay and the two parts of the state before the first token."""
    return _backward_along(
        query=query,
        written=_written(key, value, astrocyte_code, padding_mask, feature_map, calcium_sources),
        leak=_leak(log_decay),
        states=(hebbian, calcium),
        later=None,
        alpha=alpha,
        at_synapse=_at_synapse(presynaptic_target, alpha),
        feedback=feedback,
        scale=scale,
        d_output=d_output,
        d_states=(d_hebbian, d_calcium),
        d_later=None,
    )


def both_ways_forward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    log_decay: torch.Tensor,
    hebbian: torch.Tensor,
    calcium: torch.Tensor,
    later_hebbian: torch.Tensor,
    later_calcium: torch.Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    """`causal_forward` where a token reads in both directions: of what another wrote, the share that is left after the
    time between them. `later_hebbian` and `later_calcium` are the state of the tokens after these.

    Returns:
        The output, the two parts of the state after the last token, and those of what is later before the first.
    """
    return _forward_along(
        query=query,
        written=_written(key, value, astrocyte_code, padding_mask, feature_map, calcium_sources),
        leak=_leak(log_decay),
        states=(hebbian, calcium),
        later=(later_hebbian, later_calcium),
        alpha=alpha,
        at_synapse=_at_synapse(presynaptic_target, alpha),
        feedback=feedback,
        scale=scale,
        output_dtype=output_dtype,
    )


def both_ways_backward(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    astrocyte_code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    log_decay: torch.Tensor,
    hebbian: torch.Tensor,
    calcium: torch.Tensor,
    later_hebbian: torch.Tensor,
    later_calcium: torch.Tensor,
    alpha: float,
    presynaptic_target: str,
    calcium_sources: str,
    feature_map: str,
    feedback: bool,
    scale: float,
    d_output: torch.Tensor,
    d_hebbian: torch.Tensor,
    d_calcium: torch.Tensor,
    d_later_hebbian: torch.Tensor,
    d_later_calcium: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Gradients of `both_ways_forward`, given those of its results."""
    return _backward_along(
        query=query,
        written=_written(key, value, astrocyte_code, padding_mask, feature_map, calcium_sources),
        leak=_leak(log_decay),
        states=(hebbian, calcium),
        later=(later_hebbian, later_calcium),
        alpha=alpha,
        at_synapse=_at_synapse(presynaptic_target, alpha),
        feedback=feedback,
        scale=scale,
        d_output=d_output,
        d_states=(d_hebbian, d_calcium),
        d_later=(d_later_hebbian, d_later_calcium),
    )


class _Leak(NamedTuple):
    """What is left from token to token where synapses leak, in chunks and in float32.

    Attributes:
        elapsed: `(B, H, N)`, the logarithm of `since`.
        since: `(B, H, N)`, the share of what there was before its chunk that is left at a token.
        until: `(B, H, N)`, the share of what a token wrote that is left at the end of its chunk.
        left: `(B, H, chunks)`, the share of what there was before a chunk that is left at its end.
    """

    elapsed: torch.Tensor
    since: torch.Tensor
    until: torch.Tensor
    left: torch.Tensor


def _leak(log_decay: torch.Tensor | None) -> _Leak | None:
    if log_decay is None:
        return None
    elapsed = time_elapsed(_in_chunks(log_decay))
    end = elapsed[..., -1:]
    since, until = elapsed.exp(), (end - elapsed).exp()
    elapsed, since, until = (x.flatten(2)[:, :, : log_decay.shape[2]].float() for x in (elapsed, since, until))
    return _Leak(elapsed.contiguous(), since.contiguous(), until.contiguous(), end[..., 0].exp().float())


def _in_chunks(x: torch.Tensor) -> torch.Tensor:
    """`(B, H, N)` as `(B, H, chunks, tokens)`, in float64, with 0 past the end."""
    num_chunks = triton.cdiv(x.shape[2], BLOCK_LENGTH)
    x = torch.nn.functional.pad(x.double(), (0, num_chunks * BLOCK_LENGTH - x.shape[2]))
    return x.view(*x.shape[:2], num_chunks, BLOCK_LENGTH)


def _d_log_decay(moved: torch.Tensor, handed_on: torch.Tensor) -> torch.Tensor:
    """The gradient of the log decay, `(B, H, N)`.

    A share between two tokens is the exponential of a difference of sums of log f. So that of token u is the sum, over
    the pairs of one that wrote before u and one that reads at u or later, of what the second reads of the first times
    its gradient. Of the tokens u to the end of the chunk, what each read less what was read of each; and what the chunk
    hands on to the next.

    Args:
        moved (`torch.Tensor`): `(B, H, N)`, what each token read less what was read of it, times the gradients.
        handed_on (`torch.Tensor`): `(B, H, chunks)`, the states after each chunk times their gradients.
    """
    sums = _in_chunks(moved).flip(-1).cumsum(-1).flip(-1) + handed_on[..., None]
    return sums.flatten(2)[:, :, : moved.shape[2]].float()


_State = tuple[torch.Tensor, torch.Tensor]  # the Hebbian weights and the calcium


def _forward_along(
    *,
    query: torch.Tensor,
    written: dict[str, Any],
    leak: _Leak | None,
    states: _State,
    later: _State | None,
    alpha: float,
    at_synapse: bool,
    feedback: bool,
    scale: float,
    output_dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    chunks = _states_of_chunks(written, leak, states)
    later_chunks = None if later is None else _states_of_chunks(written, leak, later, from_end=True)
    output = _read(
        query=query,
        **written,
        hebbian=chunks[0],
        calcium=chunks[1],
        later=later_chunks,
        alpha=alpha,
        at_synapse=at_synapse,
        feedback=feedback,
        scale=scale,
        leak=leak,
        output_dtype=output_dtype,
    )
    return output, *(x[:, :, -1].clone() for x in (*chunks, *(later_chunks or ())))  # clones let go of other chunks


def _backward_along(
    *,
    query: torch.Tensor,
    written: dict[str, Any],
    leak: _Leak | None,
    states: _State,
    later: _State | None,
    alpha: float,
    at_synapse: bool,
    feedback: bool,
    scale: float,
    d_output: torch.Tensor,
    d_states: _State,
    d_later: _State | None,
) -> dict[str, torch.Tensor]:
    hebbians, calciums = _states_of_chunks(written, leak, states)
    later_chunks = None if later is None else _states_of_chunks(written, leak, later, from_end=True)
    # Slot 0 has the gradient of the last state. Each chunk puts in a further one what its tokens read, the last chunk
    # first, so that running sums are the gradients of the states after the last chunk, the one before, and so on. What
    # is later is read in the opposite order.
    last = calciums.shape[2] - 1
    d_hebbians, d_calciums = (_slots(x, last) for x in d_states)
    d_laters = None if d_later is None else (_slots(d_later[0], last), _slots(d_later[1], last))
    # At the synapse what a token reads with, and the gradient of the calcium that it finds, hang on everything before
    # it: they are stored, where else they are made again.
    of_tokens = [by_token(query, query.shape[-1], torch.float32) for _ in range(2 if at_synapse else 0)]
    d_query, p, d_response, gains = _read_backward(
        query=query,
        **written,
        hebbian=hebbians,
        calcium=calciums,
        later=later_chunks,
        alpha=alpha,
        feedback=feedback,
        scale=scale,
        leak=leak,
        d_output=d_output,
        d_calcium=d_calciums,
        d_later_calcium=None if d_laters is None else d_laters[1],
        of_tokens=of_tokens,
    )
    if leak is None:
        del hebbians
    read: dict[str, Any] = {
        "query": of_tokens[0].transpose(1, 2) if at_synapse else query,
        "query_map": "identity" if at_synapse else written["feature_map"],
    }
    reading: dict[str, Any] = {"key": read["query"], "value": d_output, "feature_map": read["query_map"]}
    reading |= {"num_blocks": last, "calcium": None}
    weights = p if leak is None else p * leak.since
    _write(**reading, hebbian=d_hebbians, first_slot=last, slot_step=-1, feedback=weights)
    left = None if leak is None else leak.left.flip(2)
    d_hebbians, d_calciums = _carried(d_hebbians, left), _carried(d_calciums, left)
    if leak is not None and d_laters is not None:
        _write(**reading, hebbian=d_laters[0], first_slot=1, feedback=p * leak.until)
        d_laters = _carried(d_laters[0], leak.left), _carried(d_laters[1], leak.left)
    read |= {"d_output": d_output, "p": p, "d_response": d_response, "calcium": calciums, "alpha": alpha}
    read["later_calcium"] = None if later_chunks is None else later_chunks[1]
    read["d_calciums"] = of_tokens[1] if at_synapse else None
    gradients, writers = _write_backward(
        **written, d_hebbian=d_hebbians, d_calcium=d_calciums, d_later=d_laters, **read, leak=leak
    )
    if gains is not None and writers is not None:
        if later is None:
            # phi(Q) W P scale = u G; with dC C = -u G, the calcium's part, dz z summed, is a multiple of it
            gains = gains * ((alpha if at_synapse else 1) - (alpha if feedback else 0))
        handed_on = _products(hebbians, d_hebbians) + _products(calciums, d_calciums)
        if later_chunks is not None and d_laters is not None:
            handed_on += sum(_products(d_x, x) for x, d_x in zip(later_chunks, d_laters, strict=True))
        gradients["log_decay"] = _d_log_decay(gains - writers, handed_on)
    found = {"query": d_query, **gradients, "hebbian": d_hebbians[:, :, -1].clone()}
    found["calcium"] = d_calciums[:, :, -1].clone()
    if d_laters is not None:
        found["later_hebbian"], found["later_calcium"] = (x[:, :, -1].clone() for x in d_laters)
    return found


def _products(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the states after each chunk, `x` from the first chunk on and `y` from the last, `(B, H, chunks)`."""
    return (x[:, :, 1:] * y[:, :, :-1].flip(2)).flatten(3).sum(-1)


def _at_synapse(presynaptic_target: str, alpha: float) -> bool:
    return presynaptic_target == "synapse" and alpha != 1


def _states_of_chunks(written: dict[str, Any], leak: _Leak | None, states: _State, from_end: bool = False) -> _State:
    """The states before each chunk and, last, after all: `(B, H, chunks + 1, F, d)` and `(B, H, chunks + 1, F)`. Or,
    `from_end`, those after each chunk of what is later, last chunk first, and what is later than the row's beginning.
    """
    num_chunks = triton.cdiv(written["key"].shape[2], BLOCK_LENGTH)
    slots: dict[str, Any] = {"first_slot": num_chunks, "slot_step": -1} if from_end else {"first_slot": 1}
    weights, left = None, None
    if leak is not None:
        weights, left = (leak.since, leak.left.flip(2)) if from_end else (leak.until, leak.left)
    hebbians, calciums = (_slots(x, num_chunks) for x in states)
    slots |= {"hebbian": hebbians, "calcium": calciums, "num_blocks": num_chunks}
    _write(**written, **slots, feedback=weights, d_response=weights)
    return _carried(hebbians, left), _carried(calciums, left)


def _slots(state: torch.Tensor, num_chunks: int) -> torch.Tensor:
    """Room for `state`, in the first slot, and one state more per chunk."""
    slots = state.new_empty(*state.shape[:2], num_chunks + 1, *state.shape[2:], dtype=torch.float32)
    slots[:, :, 0] = state
    return slots


def _carried(states: torch.Tensor, left: torch.Tensor | None) -> torch.Tensor:
    """Adds to each slot of `(B, H, slots, ...)`, in place, what is left of the one before: all, or the shares `left`,
    `(B, H, slots - 1)`."""
    if left is None:
        return states.cumsum_(2)
    batch_size, num_heads, num_slots = states.shape[:3]
    size = states[0, 0, 0].numel()
    block = min(1024, triton.next_power_of_2(size))
    with on_device(states):
        _carry_kernel[batch_size * num_heads, triton.cdiv(size, block)](
            states, left.contiguous(), num_slots, SIZE=size, BLOCK=block, num_stages=1
        )
    return states


# --------------------------------------------------------------------------------------------------------------------
# Launches
# --------------------------------------------------------------------------------------------------------------------


def _write_in_splits(
    *,
    key: torch.Tensor,
    value: torch.Tensor,
    feature_map: str,
    code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    all_sources: bool = False,
    feedback: torch.Tensor | None = None,
    d_response: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The write mode in as many programs as keep a GPU busy."""
    batch_size, num_heads, length, num_features = key.shape
    head_dim = value.shape[-1]
    num_splits = max(1, WRITE_PROGRAMS // max(1, batch_size * num_heads))
    split_length = BLOCK_LENGTH * max(1, triton.cdiv(length, BLOCK_LENGTH * num_splits))
    num_splits = max(1, triton.cdiv(length, split_length))
    hebbian = key.new_empty(batch_size, num_heads, num_splits, num_features, head_dim, dtype=torch.float32)
    calcium = key.new_empty(batch_size, num_heads, num_splits, num_features, dtype=torch.float32)
    written: dict[str, Any] = {
        "key": key,
        "value": value,
        "code": code,
        "padding_mask": padding_mask,
        "feature_map": feature_map,
        "all_sources": all_sources,
    }
    slots: dict[str, Any] = {
        "hebbian": hebbian,
        "calcium": calcium,
        "num_blocks": num_splits,
        "block_length": split_length,
    }
    _write(**written, **slots, feedback=feedback, d_response=d_response)
    return hebbian.sum(2), calcium.sum(2)


def _write(
    *,
    key: torch.Tensor,
    value: torch.Tensor,
    feature_map: str,
    hebbian: torch.Tensor,
    calcium: torch.Tensor | None,
    num_blocks: int,
    code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    all_sources: bool = False,
    first_slot: int = 0,
    slot_step: int = 1,
    block_length: int = BLOCK_LENGTH,
    feedback: torch.Tensor | None = None,
    d_response: torch.Tensor | None = None,
) -> None:
    """The write mode of each block of tokens into its own slot of `hebbian` and `calcium`."""
    batch_size, num_heads, length, num_features = key.shape
    head_dim = value.shape[-1]
    key, value, code = rows_of(key), rows_of(value), rows_of(code)
    precision = precision_of(key.dtype, value.dtype)
    block_f, block_d = block_of(num_features, precision), block_of(head_dim, precision, 128)
    grid = batch_size * num_heads * num_blocks, triton.cdiv(num_features, block_f), triton.cdiv(head_dim, block_d)
    with on_device(key):
        _write_kernel[grid](
            key,
            value,
            code,
            contiguous(padding_mask),
            feedback,
            d_response,
            hebbian,
            calcium,
            *strides(key),
            *strides(value),
            *strides(code),
            num_heads,
            length,
            num_blocks,
            block_length,
            hebbian.shape[2],
            first_slot,
            SLOT_STEP=slot_step,
            ALL_SOURCES=all_sources,
            FEATURE_MAP=feature_map,
            PRECISION=precision,
            F=num_features,
            D=head_dim,
            BLOCK_F=block_f,
            BLOCK_D=block_d,
            num_warps=NUM_WARPS,
            num_stages=2 if precision == "tf32" else 1,
        )


def _read(
    *,
    query: torch.Tensor,
    hebbian: torch.Tensor,
    calcium: torch.Tensor | None,
    feature_map: str,
    feedback: bool,
    output_dtype: torch.dtype,
    alpha: float = 1.0,
    scale: float = 1.0,
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    all_sources: bool = False,
    at_synapse: bool = False,
    leak: _Leak | None = None,
    later: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Key, value, code, mask and leak are those of the causal form; bidirectionally there are none."""
    batch_size, num_heads, length, num_features = query.shape
    head_dim = hebbian.shape[-1]
    query = rows_of(query)
    key, value, code, padding_mask = rows_of(key), rows_of(value), rows_of(code), contiguous(padding_mask)
    output = by_token(query, head_dim, output_dtype)
    num_blocks = triton.cdiv(length, BLOCK_LENGTH)
    precision = precision_of(query.dtype, output_dtype)
    block_d = block_of(head_dim, precision, 128)
    with on_device(query):
        _read_kernel[batch_size * num_heads * num_blocks, triton.cdiv(head_dim, block_d)](
            query,
            key,
            value,
            code,
            padding_mask,
            None if leak is None else leak.elapsed,
            contiguous(hebbian),
            contiguous(calcium),
            *(later or (None, None)),
            output,
            *strides(query),
            *strides(key),
            *strides(value),
            *strides(code),
            num_heads,
            length,
            num_blocks,
            hebbian.shape[2],
            float(alpha),
            float(scale),
            CAUSAL=key is not None,
            FEEDBACK=feedback,
            AT_SYNAPSE=at_synapse,
            ALL_SOURCES=all_sources,
            LINEAR=alpha == 1,
            FEATURE_MAP=feature_map,
            PRECISION=precision,
            F=num_features,
            D=head_dim,
            BLOCK_F=block_of(num_features, precision, 64 if key is None else 32),
            BLOCK_D=block_d,
            num_warps=NUM_WARPS,
            num_stages=1,
        )
    return output.transpose(1, 2)


def _read_backward(
    *,
    query: torch.Tensor,
    hebbian: torch.Tensor,
    calcium: torch.Tensor | None,
    feature_map: str,
    feedback: bool,
    d_output: torch.Tensor,
    alpha: float = 1.0,
    scale: float = 1.0,
    d_calcium: torch.Tensor | None = None,
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    code: torch.Tensor | None = None,
    padding_mask: torch.Tensor | None = None,
    all_sources: bool = False,
    leak: _Leak | None = None,
    later: tuple[torch.Tensor, torch.Tensor] | None = None,
    d_later_calcium: torch.Tensor | None = None,
    of_tokens: Sequence[torch.Tensor] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The gradient of the query, and what `_write` makes those of H and g of: scale * P and dC, `(B, H, N)`; with a
    leak, what each token read times its gradient. `of_tokens`, two `(B, N, H, F)`, are given where alpha acts at the
    synapse: what each token read with and the gradient of the calcium that it found are put there."""
    at_synapse = len(of_tokens) > 0
    reading, d_calciums = of_tokens if at_synapse else (None, None)
    batch_size, num_heads, length, num_features = query.shape
    head_dim = hebbian.shape[-1]
    query, d_output = rows_of(query), rows_of(d_output)
    key, value, code, padding_mask = rows_of(key), rows_of(value), rows_of(code), contiguous(padding_mask)
    d_query = by_token(query, num_features, query.dtype)
    p = query.new_empty(batch_size, num_heads, length, dtype=torch.float32)
    d_response = torch.empty_like(p) if feedback else None
    gains = None if leak is None else torch.empty_like(p)
    precision = precision_of(query.dtype, d_output.dtype)
    num_blocks = triton.cdiv(length, BLOCK_LENGTH)
    with on_device(query):
        _read_backward_kernel[(batch_size * num_heads * num_blocks,)](
            query,
            key,
            value,
            code,
            padding_mask,
            None if leak is None else leak.elapsed,
            contiguous(hebbian),
            contiguous(calcium),
            *(later or (None, None)),
            d_output,
            d_query,
            p,
            d_response,
            d_calcium,
            d_later_calcium,
            reading,
            d_calciums,
            gains,
            *strides(query),
            *strides(key),
            *strides(value),
            *strides(code),
            *strides(d_output),
            num_heads,
            length,
            num_blocks,
            hebbian.shape[2],
            float(alpha),
            float(scale),
            CAUSAL=key is not None,
            FEEDBACK=feedback,
            AT_SYNAPSE=at_synapse,
            ALL_SOURCES=all_sources,
            LINEAR=alpha == 1,
            FEATURE_MAP=feature_map,
            PRECISION=precision,
            F=num_features,
            D=head_dim,
            BLOCK_F=block_of(num_features, precision),
            BLOCK_D=block_of(head_dim, precision),
            num_warps=NUM_WARPS,
            num_stages=1,
        )
    return d_query.transpose(1, 2), p, d_response, gains


def _write_backward(
    *,
    key: torch.Tensor,
    value: torch.Tensor,
    code: torch.Tensor | None,
    padding_mask: torch.Tensor | None,
    feature_map: str,
    all_sources: bool,
    d_hebbian: torch.Tensor,
    d_calcium: torch.Tensor,
    query: torch.Tensor | None = None,
    query_map: str = "identity",
    d_output: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    d_response: torch.Tensor | None = None,
    d_calciums: torch.Tensor | None = None,
    calcium: torch.Tensor | None = None,
    alpha: float = 1.0,
    leak: _Leak | None = None,
    later_calcium: torch.Tensor | None = None,
    d_later: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The gradients of what was written and, with a leak, what was read of each token times its gradient. Query to leak
    are what was read causally, and by which feedback; bidirectionally there is none."""
    batch_size, num_heads, length, num_features = key.shape
    head_dim = value.shape[-1]
    key, value, code = rows_of(key), rows_of(value), rows_of(code)
    query, d_output = rows_of(query), rows_of(d_output)
    d_key = by_token(key, num_features, key.dtype)
    d_value = by_token(value, head_dim, value.dtype)
    d_code = None
    writers = None if leak is None else key.new_empty(*key.shape[:3], dtype=torch.float32)
    shared = code is not None and code.dim() == 3
    if code is not None:
        d_code = by_token(key, num_features, torch.float32 if shared else code.dtype)
    precision = precision_of(key.dtype, value.dtype)
    num_blocks = triton.cdiv(length, BLOCK_LENGTH)
    with on_device(key):
        _write_backward_kernel[(batch_size * num_heads * num_blocks,)](
            query,
            d_output,
            p,
            d_response,
            d_calciums,
            None if leak is None else leak.elapsed,
            calcium,
            later_calcium,
            key,
            value,
            code,
            contiguous(padding_mask),
            contiguous(d_hebbian),
            contiguous(d_calcium),
            *(d_later or (None, None)),
            d_key,
            d_value,
            d_code,
            writers,
            *strides(query),
            *strides(d_output),
            *strides(key),
            *strides(value),
            *strides(code),
            num_heads,
            length,
            num_blocks,
            d_hebbian.shape[2],
            float(alpha),
            CAUSAL=query is not None,
            FEEDBACK=d_response is not None,
            ALL_SOURCES=all_sources,
            LINEAR=alpha == 1,
            FEATURE_MAP=feature_map,
            QUERY_MAP=query_map,
            PRECISION=precision,
            F=num_features,
            D=head_dim,
            BLOCK_F=block_of(num_features, precision),
            BLOCK_D=block_of(head_dim, precision),
            num_warps=NUM_WARPS,
            num_stages=1,
        )
    if code is not None and d_code is not None:
        if shared:
            d_code = d_code.sum(0, keepdim=True).to(code.dtype)
        d_code = d_code.transpose(1, 2)
        d_code = d_code[0] if shared else d_code
    found = {"key": d_key.transpose(1, 2), "value": d_value.transpose(1, 2)}
    return (found if d_code is None else {**found, "astrocyte_code": d_code}), writers


BACKEND = Backend(
    name="triton",
    device_type="cuda",
    unavailable=unavailable,
    kernels={
        "write_mode": Kernel(write_forward, write_backward),
        "write_mode_with_activity": CodeFirst("write_mode"),
        "read_mode": Kernel(read_forward, read_backward),
        "write_and_read_at_distances": PlainForm(),
        **HYBRID_KERNELS,
        "write_and_read_both_ways": Kernel(both_ways_forward, both_ways_backward, takes_no=("document_ids",)),
        "write_and_read_both_ways_with_activity": CodeFirst("write_and_read_both_ways"),
        "write_and_read_causally": Kernel(causal_forward, causal_backward, takes_no=("document_ids",)),
        "write_and_read_causally_with_activity": CodeFirst("write_and_read_causally"),
    },
)
