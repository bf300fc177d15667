# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The kernels of `hybrid_attention_triton.py`, whose docstring has the equations and the letters."""

from .attention_passes import WEIGHT_FLOOR


try:
    import triton
    import triton.language as tl

    from .triton_blocks import VARYING, at, dot, load
except ImportError:
    triton = None

# Of a query without exact tokens, where its greatest score is; a sink's slot s is -1 - s.
NO_TOKEN = -(1 << 30)


if triton is not None:
    BLOCK_S = tl.constexpr(16)  # sinks
    FLOOR = tl.constexpr(WEIGHT_FLOOR)
    NOWHERE = tl.constexpr(NO_TOKEN)

    @triton.jit
    def _tokens(x, sequence, start, num_heads, stride_b, stride_h, stride_n, length, D: tl.constexpr,
                BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
        """A block of tokens of a (B, H, N, D) of any strides, 0 past the end."""
        rows, columns = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
        mask = (start + rows < length)[:, None] & (columns < D)[None, :]
        return load(at(x, sequence, start, num_heads, stride_b, stride_h, stride_n), stride_n, rows, columns, mask)

    @triton.jit
    def _entries(x, sequence, start, rows, columns, length, SIZE: tl.constexpr):
        """The same of some columns of a contiguous (B, H, N, SIZE)."""
        mask = (start + rows < length)[:, None] & (columns < SIZE)[None, :]
        return load(x + (sequence * length + start) * SIZE, SIZE, rows, columns, mask)

    @triton.jit
    def _state(hebbian, slot, features, columns, F: tl.constexpr, D: tl.constexpr):
        """Some features of a state of (B, K, blocks + 1, F, D)."""
        mask = (features < F)[:, None] & (columns < D)[None, :]
        return load(hebbian + slot * F * D, D, features, columns, mask)

    @triton.jit
    def _products(x, y, PRECISION: tl.constexpr):
        """x y^T, (rows of x, rows of y)"""
        return dot(x, tl.trans(y), tl.zeros((x.shape[0], y.shape[0]), tl.float32), PRECISION)

    @triton.jit
    def _distances(block, key_block, rows, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr):
        """How far before the queries of a block the keys of another stand, (queries, keys)."""
        distance = (block - key_block) * BLOCK_N + rows[:, None] - rows[None, :]
        if CAUSAL:  # the first keys are those of the window before
            distance += WINDOW
        return distance

    @triton.jit
    def _is_near(distance, WINDOW: tl.constexpr, CAUSAL: tl.constexpr):
        """Which pairs are exact, if the key is there."""
        if CAUSAL:
            near = (distance >= 0) & (distance < WINDOW)
        else:
            near = tl.abs(distance) <= WINDOW
        return near

    @triton.jit
    def _is_far(distance, WINDOW: tl.constexpr, CAUSAL: tl.constexpr):
        """Which pairs go through the synapses."""
        if CAUSAL:
            far = distance >= WINDOW
        elif WINDOW == 0:
            far = distance == distance
        else:
            far = tl.abs(distance) > WINDOW
        return far

    @triton.jit
    def _has_far(block, key_block, WINDOW: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_N: tl.constexpr):
        """Whether any pair of two blocks does."""
        apart = (block - key_block) * BLOCK_N
        if CAUSAL:
            has_far = apart + BLOCK_N > 0
        else:
            has_far = (WINDOW == 0) | (tl.abs(apart) + BLOCK_N - 1 > WINDOW)
        return has_far

    @triton.jit
    def _read_weights(query_features, key_features, sequence, of_keys, start, key_start, length, F: tl.constexpr,
                      BLOCK_F: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
        """phi(q) w of two blocks, (queries, keys)."""
        rows = tl.arange(0, BLOCK_N)
        weights = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)
        for first in range(0, F, BLOCK_F):
            features = first + tl.arange(0, BLOCK_F)
            phi = _entries(query_features, sequence, start, rows, features, length, F)
            w = _entries(key_features, of_keys, key_start, rows, features, length, F)
            weights = dot(phi, tl.trans(w), weights, PRECISION)
        return weights

    @triton.jit
    def _with_exact(scores, is_read, values, numbers, sums, total, top, top_at, PRECISION: tl.constexpr):
        """The sums of values and of weights relative to the greatest score, it and the number of its key, with those of
        some keys more."""
        scores = tl.where(is_read, scores, float("-inf"))
        own_top = tl.max(scores, 1)
        own_top_at = tl.max(tl.where(scores == own_top[:, None], numbers[None, :], NOWHERE), 1)
        top_at = tl.where(own_top > top, own_top_at, top_at)
        new_top = tl.maximum(top, own_top)
        shift = tl.where(new_top > float("-inf"), new_top, 0.0)
        weights = tl.where(is_read, tl.exp(scores - shift[:, None]), 0.0)
        left = tl.exp(top - shift)
        total = total * left + tl.sum(weights, 1)
        return dot(weights, values, sums * left[:, None], PRECISION), total, new_top, top_at

    @triton.jit(do_not_specialize=VARYING)
    def forward_kernel(
        query,
        query_features,  # (B, H, N, F)
        key,  # this and the value (B, K, M, .), with the same strides
        value,
        key_features,  # (B, K, N, F), 0 where a key is not written
        is_ordinary,  # (B, M), whether a key may be read exactly in a window
        sinks,  # (B, K, sinks, 2 d)
        seen_from,  # (B, sinks), the first query that reads one
        hebbian,  # (B, K, blocks + 1, F, d), of the keys before each block
        calcium,
        later_hebbian,  # both ways, of those from each block on, or None
        later_calcium,
        loudness,
        output,
        totals,  # (B, H, N), the sum of the weights
        greatest,  # (B, H, N), the greatest score
        greatest_at,  # (B, H, N), the key that it is of
        query_b,
        query_h,
        query_n,
        key_b,
        key_h,
        key_n,
        num_heads,
        length,
        num_keys,
        num_blocks,
        scaling,
        NUM_SINKS: tl.constexpr,
        WINDOW: tl.constexpr,
        CAUSAL: tl.constexpr,
        REACH: tl.constexpr,
        GROUPS: tl.constexpr,
        PRECISION: tl.constexpr,
        F: tl.constexpr,
        D: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_D: tl.constexpr,
        BLOCK_N: tl.constexpr,
    ):
        block = tl.program_id(0) % num_blocks
        sequence = (tl.program_id(0) // num_blocks).to(tl.int64)
        of_keys = sequence // GROUPS
        batch = sequence // num_heads
        start = block.to(tl.int64) * BLOCK_N
        rows = tl.arange(0, BLOCK_N)
        columns = tl.arange(0, BLOCK_D)
        is_query = start + rows < length
        is_column = (columns < D)[None, :]
        first_key_block = block if CAUSAL else tl.maximum(block - REACH, 0)
        end_of_key_blocks = tl.minimum(block + REACH + 1, tl.cdiv(num_keys, BLOCK_N))

        answer = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        total = tl.zeros((BLOCK_N,), tl.float32)
        slot = of_keys * (num_blocks + 1) + first_key_block
        later_slot = of_keys * (num_blocks + 1) + tl.minimum(block + REACH + 1, num_blocks)
        for first in range(0, F, BLOCK_F):
            features = first + tl.arange(0, BLOCK_F)
            is_feature = features < F
            phi = _entries(query_features, sequence, start, rows, features, length, F)
            state = _state(hebbian, slot, features, columns, F, D)
            written = tl.load(calcium + slot * F + features, mask=is_feature, other=0.0)
            if not CAUSAL:
                state += _state(later_hebbian, later_slot, features, columns, F, D)
                written += tl.load(later_calcium + later_slot * F + features, mask=is_feature, other=0.0)
            answer = dot(phi, state, answer, PRECISION)
            total += tl.sum(phi * written[None, :], 1)
        own_loudness = tl.load(loudness + sequence % num_heads)
        answer *= own_loudness
        total *= own_loudness

        # the exact part, relative to the greatest score so far
        query = _tokens(query, sequence, start, num_heads, query_b, query_h, query_n, length, D, BLOCK_N, BLOCK_D)
        exact = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        exact_total = tl.zeros((BLOCK_N,), tl.float32)
        top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
        top_at = tl.full((BLOCK_N,), NOWHERE, tl.int64)
        for first in range(0, NUM_SINKS, BLOCK_S):
            slots = first + tl.arange(0, BLOCK_S)
            is_sink = slots < NUM_SINKS
            of_sinks = sinks + of_keys * NUM_SINKS * 2 * D
            sink_mask = is_sink[:, None] & is_column
            scores = _products(query, load(of_sinks, 2 * D, slots, columns, sink_mask), PRECISION) * scaling
            since = tl.load(seen_from + batch * NUM_SINKS + slots, mask=is_sink, other=0)
            is_read = is_sink[None, :] & (since[None, :] <= (start + rows)[:, None])
            of_slots = load(of_sinks + D, 2 * D, slots, columns, sink_mask)
            exact, exact_total, top, top_at = _with_exact(
                scores, is_read, of_slots, -1 - slots, exact, exact_total, top, top_at, PRECISION
            )

        for key_block in range(first_key_block, end_of_key_blocks):
            key_start = start + (key_block - block) * BLOCK_N
            is_key = key_start + rows < num_keys
            distance = _distances(block, key_block, rows, WINDOW, CAUSAL, BLOCK_N)
            values = _tokens(
                value, of_keys, key_start, num_heads // GROUPS, key_b, key_h, key_n, num_keys, D, BLOCK_N, BLOCK_D
            )
            if _has_far(block, key_block, WINDOW, CAUSAL, BLOCK_N):
                weights = _read_weights(
                    query_features,
                    key_features,
                    sequence,
                    of_keys,
                    start,
                    key_start,
                    length,
                    F,
                    BLOCK_F,
                    PRECISION,
                    BLOCK_N,
                )
                weights = tl.where(_is_far(distance, WINDOW, CAUSAL), weights * own_loudness, 0.0)
                total += tl.sum(weights, 1)
                answer = dot(weights, values, answer, PRECISION)
            if WINDOW > 0:
                keys = _tokens(
                    key, of_keys, key_start, num_heads // GROUPS, key_b, key_h, key_n, num_keys, D, BLOCK_N, BLOCK_D
                )
                scores = _products(query, keys, PRECISION) * scaling
                ordinary = tl.load(is_ordinary + batch * num_keys + key_start + rows, mask=is_key, other=0) != 0
                is_read = _is_near(distance, WINDOW, CAUSAL) & ordinary[None, :]
                exact, exact_total, top, top_at = _with_exact(
                    scores, is_read, values, key_start + rows, exact, exact_total, top, top_at, PRECISION
                )

        total += exact_total
        answer = (answer + exact) / tl.where(total < FLOOR, FLOOR, total)[:, None]
        tokens = (batch * length + start + rows) * num_heads + sequence % num_heads
        tl.store(output + tokens[:, None] * D + columns[None, :], answer, mask=is_query[:, None] & is_column)
        of_tokens = sequence * length + start + rows
        tl.store(totals + of_tokens, total, mask=is_query)
        tl.store(greatest + of_tokens, tl.where(top > float("-inf"), top, 0.0), mask=is_query)
        tl.store(greatest_at + of_tokens, top_at, mask=is_query)

    @triton.jit
    def _of_tokens(x, sequence, start, rows, length):
        return tl.load(x + sequence * length + start + rows, mask=start + rows < length, other=0)

    @triton.jit(do_not_specialize=VARYING)
    def query_backward_kernel(
        query,
        key,
        value,
        is_ordinary,
        y,  # (B, H, N, d), the gradient of the output by the sum of the weights
        delta,  # (B, H, N)
        greatest,
        greatest_at,
        d_greatest,  # (B, H, N), the sum of the gradients of all exact scores; at first of those of sinks
        d_query,
        query_b,
        query_h,
        query_n,
        key_b,
        key_h,
        key_n,
        num_heads,
        length,
        num_keys,
        num_blocks,
        scaling,
        WINDOW: tl.constexpr,
        CAUSAL: tl.constexpr,
        REACH: tl.constexpr,
        GROUPS: tl.constexpr,
        PRECISION: tl.constexpr,
        D: tl.constexpr,
        BLOCK_D: tl.constexpr,
        BLOCK_N: tl.constexpr,
    ):
        """The gradient of the query from its windows."""
        block = tl.program_id(0) % num_blocks
        sequence = (tl.program_id(0) // num_blocks).to(tl.int64)
        of_keys = sequence // GROUPS
        batch = sequence // num_heads
        start = block.to(tl.int64) * BLOCK_N
        rows = tl.arange(0, BLOCK_N)
        columns = tl.arange(0, BLOCK_D)
        is_query = start + rows < length
        is_column = (columns < D)[None, :]
        query = _tokens(query, sequence, start, num_heads, query_b, query_h, query_n, length, D, BLOCK_N, BLOCK_D)
        y = _entries(y, sequence, start, rows, columns, length, D)
        delta = _of_tokens(delta, sequence, start, rows, length)
        top = _of_tokens(greatest, sequence, start, rows, length)
        top_at = tl.load(greatest_at + sequence * length + start + rows, mask=is_query, other=NOWHERE)
        sum_of_scores = _of_tokens(d_greatest, sequence, start, rows, length)
        gradient = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        first_key_block = block if CAUSAL else tl.maximum(block - REACH, 0)
        for key_block in range(first_key_block, tl.minimum(block + REACH + 1, tl.cdiv(num_keys, BLOCK_N))):
            key_start = start + (key_block - block) * BLOCK_N
            is_key = key_start + rows < num_keys
            keys = _tokens(
                key, of_keys, key_start, num_heads // GROUPS, key_b, key_h, key_n, num_keys, D, BLOCK_N, BLOCK_D
            )
            values = _tokens(
                value, of_keys, key_start, num_heads // GROUPS, key_b, key_h, key_n, num_keys, D, BLOCK_N, BLOCK_D
            )
            ordinary = tl.load(is_ordinary + batch * num_keys + key_start + rows, mask=is_key, other=0) != 0
            near = (
                _is_near(_distances(block, key_block, rows, WINDOW, CAUSAL, BLOCK_N), WINDOW, CAUSAL)
                & ordinary[None, :]
            )
            scores = _products(query, keys, PRECISION) * scaling
            weights = tl.where(near, tl.exp(scores - top[:, None]), 0.0)
            d_weights = _products(y, values, PRECISION) - delta[:, None]
            d_scores = tl.where(near, weights * d_weights * scaling, 0.0)
            sum_of_scores += tl.sum(d_scores, 1)
            gradient = dot(d_scores, keys, gradient, PRECISION)
        place = at(key, of_keys, 0, num_heads // GROUPS, key_b, key_h, key_n)
        of_greatest = load(place, key_n, top_at, columns, (top_at >= 0)[:, None] & is_column)
        gradient -= sum_of_scores[:, None] * of_greatest
        tl.store(d_greatest + sequence * length + start + rows, sum_of_scores, mask=is_query)
        tokens = (batch * length + start + rows) * num_heads + sequence % num_heads
        tl.store(d_query + tokens[:, None] * D + columns[None, :], gradient, mask=is_query[:, None] & is_column)

    @triton.jit(do_not_specialize=VARYING)
    def query_features_backward_kernel(
        value,
        key_features,
        hebbian,
        calcium,
        later_hebbian,
        later_calcium,
        y,
        delta,
        d_features,  # (B, H, N, F), before the loudness
        key_b,
        key_h,
        key_n,
        num_heads,
        length,
        num_keys,
        num_blocks,
        WINDOW: tl.constexpr,
        CAUSAL: tl.constexpr,
        REACH: tl.constexpr,
        GROUPS: tl.constexpr,
        PRECISION: tl.constexpr,
        F: tl.constexpr,
        D: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_D: tl.constexpr,
        BLOCK_N: tl.constexpr,
    ):
        """The gradient of phi(q): of the keys in the state, and of those around."""
        block = tl.program_id(0) % num_blocks
        sequence = (tl.program_id(0) // num_blocks).to(tl.int64)
        of_keys = sequence // GROUPS
        start = block.to(tl.int64) * BLOCK_N
        rows = tl.arange(0, BLOCK_N)
        columns = tl.arange(0, BLOCK_D)
        features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
        is_query = start + rows < length
        is_feature = features < F
        y = _entries(y, sequence, start, rows, columns, length, D)
        delta = _of_tokens(delta, sequence, start, rows, length)
        first_key_block = block if CAUSAL else tl.maximum(block - REACH, 0)
        slot = of_keys * (num_blocks + 1) + first_key_block
        state = _state(hebbian, slot, features, columns, F, D)
        written = tl.load(calcium + slot * F + features, mask=is_feature, other=0.0)
        if not CAUSAL:
            slot = of_keys * (num_blocks + 1) + tl.minimum(block + REACH + 1, num_blocks)
            state += _state(later_hebbian, slot, features, columns, F, D)
            written += tl.load(later_calcium + slot * F + features, mask=is_feature, other=0.0)
        gradient = dot(y, tl.trans(state), -delta[:, None] * written[None, :], PRECISION)
        # beyond the written keys there is none that a query finds in the synapses
        for key_block in range(first_key_block, tl.minimum(block + REACH + 1, num_blocks)):
            if _has_far(block, key_block, WINDOW, CAUSAL, BLOCK_N):
                key_start = start + (key_block - block) * BLOCK_N
                values = _tokens(
                    value, of_keys, key_start, num_heads // GROUPS, key_b, key_h, key_n, num_keys, D, BLOCK_N, BLOCK_D
                )
                w = _entries(key_features, of_keys, key_start, rows, features, length, F)
                d_weights = _products(y, values, PRECISION)
                far = _is_far(_distances(block, key_block, rows, WINDOW, CAUSAL, BLOCK_N), WINDOW, CAUSAL)
                d_weights = tl.where(far, d_weights - delta[:, None], 0.0)
                gradient = dot(d_weights, w, gradient, PRECISION)
        place = d_features + (sequence * length + start + rows)[:, None] * F + features[None, :]
        tl.store(place, gradient, mask=is_query[:, None] & is_feature[None, :])

    @triton.jit(do_not_specialize=VARYING)
    def key_backward_kernel(
        query,
        query_features,
        key,
        value,
        key_features,
        is_ordinary,
        loudness,
        y,
        delta,
        greatest,
        greatest_at,
        d_greatest,
        d_hebbian,  # (B, K, blocks + 1, F, d), from the queries from each block on
        d_earlier,  # both ways, from those before each block, or None
        d_key,  # (B, K, M, d)
        d_value,
        query_b,
        query_h,
        query_n,
        key_b,
        key_h,
        key_n,
        num_heads,
        length,
        num_keys,
        num_blocks,
        scaling,
        WINDOW: tl.constexpr,
        CAUSAL: tl.constexpr,
        REACH: tl.constexpr,
        GROUPS: tl.constexpr,
        PRECISION: tl.constexpr,
        F: tl.constexpr,
        D: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_D: tl.constexpr,
        BLOCK_N: tl.constexpr,
    ):
        """The gradients of keys, as far as they are read exactly, and of values."""
        num_key_blocks = tl.cdiv(num_keys, BLOCK_N)
        key_block = tl.program_id(0) % num_key_blocks
        of_keys = (tl.program_id(0) // num_key_blocks).to(tl.int64)
        batch = of_keys // (num_heads // GROUPS)
        key_start = key_block.to(tl.int64) * BLOCK_N
        rows = tl.arange(0, BLOCK_N)
        columns = tl.arange(0, BLOCK_D)
        is_key = key_start + rows < num_keys
        is_column = (columns < D)[None, :]
        keys = _tokens(key, of_keys, key_start, num_heads // GROUPS, key_b, key_h, key_n, num_keys, D, BLOCK_N, BLOCK_D)
        values = _tokens(
            value, of_keys, key_start, num_heads // GROUPS, key_b, key_h, key_n, num_keys, D, BLOCK_N, BLOCK_D
        )
        ordinary = tl.load(is_ordinary + batch * num_keys + key_start + rows, mask=is_key, other=0) != 0
        of_key = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        of_value = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        first_after = tl.minimum(key_block + (1 if CAUSAL else REACH + 1), num_blocks)  # block whose state has them
        first_near = tl.maximum(key_block - REACH, 0)
        if key_start < length:
            for first in range(0, F, BLOCK_F):
                features = first + tl.arange(0, BLOCK_F)
                slot = of_keys * (num_blocks + 1) + first_after
                state = _state(d_hebbian, slot, features, columns, F, D)
                if not CAUSAL:
                    slot = of_keys * (num_blocks + 1) + tl.minimum(first_near, num_blocks)
                    state += _state(d_earlier, slot, features, columns, F, D)
                w = _entries(key_features, of_keys, key_start, rows, features, length, F)
                of_value = dot(w, state, of_value, PRECISION)
        for group in range(GROUPS):
            sequence = of_keys * GROUPS + group
            own_loudness = tl.load(loudness + sequence % num_heads)
            for block in range(first_near, first_after):
                start = key_start + (block - key_block) * BLOCK_N
                is_query = start + rows < length
                own_y = _entries(y, sequence, start, rows, columns, length, D)
                distance = _distances(block, key_block, rows, WINDOW, CAUSAL, BLOCK_N)
                if _has_far(block, key_block, WINDOW, CAUSAL, BLOCK_N):
                    weights = _read_weights(
                        query_features,
                        key_features,
                        sequence,
                        of_keys,
                        start,
                        key_start,
                        length,
                        F,
                        BLOCK_F,
                        PRECISION,
                        BLOCK_N,
                    )
                    weights = tl.where(_is_far(distance, WINDOW, CAUSAL), weights * own_loudness, 0.0)
                    of_value = dot(tl.trans(weights), own_y, of_value, PRECISION)
                if WINDOW > 0:
                    queries = _tokens(
                        query, sequence, start, num_heads, query_b, query_h, query_n, length, D, BLOCK_N, BLOCK_D
                    )
                    scores = _products(queries, keys, PRECISION)
                    near = _is_near(distance, WINDOW, CAUSAL) & ordinary[None, :]
                    top = _of_tokens(greatest, sequence, start, rows, length)
                    weights = tl.where(near, tl.exp(scores * scaling - top[:, None]), 0.0)
                    of_value = dot(tl.trans(weights), own_y, of_value, PRECISION)
                    own_delta = _of_tokens(delta, sequence, start, rows, length)
                    d_weights = _products(own_y, values, PRECISION)
                    d_scores = tl.where(near, weights * (d_weights - own_delta[:, None]) * scaling, 0.0)
                    top_at = tl.load(greatest_at + sequence * length + start + rows, mask=is_query, other=NOWHERE)
                    taken_back = _of_tokens(d_greatest, sequence, start, rows, length)
                    is_greatest = top_at[:, None] == (key_start + rows)[None, :]
                    d_scores -= tl.where(is_greatest, taken_back[:, None], 0.0)
                    of_key = dot(tl.trans(d_scores), queries, of_key, PRECISION)
        place = (of_keys * num_keys + key_start + rows)[:, None] * D + columns[None, :]
        tl.store(d_key + place, of_key, mask=is_key[:, None] & is_column)
        tl.store(d_value + place, of_value, mask=is_key[:, None] & is_column)

    @triton.jit(do_not_specialize=VARYING)
    def key_features_backward_kernel(
        query_features,
        value,
        loudness,
        y,
        delta,
        d_hebbian,
        d_calcium,
        d_earlier,
        d_earlier_calcium,
        d_features,  # (B, K, N, F)
        key_b,
        key_h,
        key_n,
        num_heads,
        length,
        num_blocks,
        WINDOW: tl.constexpr,
        CAUSAL: tl.constexpr,
        REACH: tl.constexpr,
        GROUPS: tl.constexpr,
        PRECISION: tl.constexpr,
        F: tl.constexpr,
        D: tl.constexpr,
        BLOCK_F: tl.constexpr,
        BLOCK_D: tl.constexpr,
        BLOCK_N: tl.constexpr,
    ):
        """The gradient of what is written of a key."""
        key_block = tl.program_id(0) % num_blocks
        of_keys = (tl.program_id(0) // num_blocks).to(tl.int64)
        key_start = key_block.to(tl.int64) * BLOCK_N
        rows = tl.arange(0, BLOCK_N)
        columns = tl.arange(0, BLOCK_D)
        features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
        is_key = key_start + rows < length
        is_feature = features < F
        values = _tokens(
            value, of_keys, key_start, num_heads // GROUPS, key_b, key_h, key_n, length, D, BLOCK_N, BLOCK_D
        )
        first_after = tl.minimum(key_block + (1 if CAUSAL else REACH + 1), num_blocks)
        first_near = tl.maximum(key_block - REACH, 0)
        slot = of_keys * (num_blocks + 1) + first_after
        state = _state(d_hebbian, slot, features, columns, F, D)
        written = tl.load(d_calcium + slot * F + features, mask=is_feature, other=0.0)
        if not CAUSAL:
            slot = of_keys * (num_blocks + 1) + first_near
            state += _state(d_earlier, slot, features, columns, F, D)
            written += tl.load(d_earlier_calcium + slot * F + features, mask=is_feature, other=0.0)
        gradient = dot(values, tl.trans(state), tl.zeros((BLOCK_N, BLOCK_F), tl.float32) + written[None, :], PRECISION)
        for group in range(GROUPS):
            sequence = of_keys * GROUPS + group
            own_loudness = tl.load(loudness + sequence % num_heads)
            for block in range(first_near, first_after):
                if _has_far(block, key_block, WINDOW, CAUSAL, BLOCK_N):
                    start = key_start + (block - key_block) * BLOCK_N
                    own_y = _entries(y, sequence, start, rows, columns, length, D)
                    own_delta = _of_tokens(delta, sequence, start, rows, length)
                    d_weights = _products(own_y, values, PRECISION)
                    far = _is_far(_distances(block, key_block, rows, WINDOW, CAUSAL, BLOCK_N), WINDOW, CAUSAL)
                    d_weights = tl.where(far, (d_weights - own_delta[:, None]) * own_loudness, 0.0)
                    phi = _entries(query_features, sequence, start, rows, features, length, F)
                    gradient = dot(tl.trans(d_weights), phi, gradient, PRECISION)
        place = d_features + (of_keys * length + key_start + rows)[:, None] * F + features[None, :]
        tl.store(place, gradient, mask=is_key[:, None] & is_feature[None, :])
