# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""The C++ source of `neuron_astrocyte_cpu.py`, which explains it.

A string in a module, because only Python modules travel with a checkpoint.
"""

SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// ---- vectors -------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
enum { LANES = 16, COLUMNS = 4 };
#elif defined(__AVX__)
enum { LANES = 8, COLUMNS = 2 };
#elif defined(__aarch64__)
enum { LANES = 4, COLUMNS = 4 };
#else
enum { LANES = 4, COLUMNS = 2 };
#endif
enum { ROWS = 6, BLOCK = 48 };  // rows of a register tile; tokens per block

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static inline Vector load(const float* p) { return *(const Unaligned*)p; }
static inline void store(float* p, Vector x) { *(Unaligned*)p = x; }
static inline Vector broadcast(float x) { return Vector{} + x; }

template <int N>
struct Lanes {
    typedef float Type __attribute__((vector_size(4 * N)));
};

template <int N>
static inline float sum_of(typename Lanes<N>::Type x) {  // by halves
    if (N == 2) return x[0] + x[1];
    enum { HALF = N > 2 ? N / 2 : 2 };
    typename Lanes<HALF>::Type low, high;
    memcpy(&low, &x, sizeof low);
    memcpy(&high, (char*)&x + sizeof x - sizeof high, sizeof high);
    return sum_of<HALF>(low + high);
}

static inline float sum(Vector x) { return sum_of<LANES>(x); }

// e^x for x <= 88, within 2 units in the last place; below -87 it stays at e^-87
static inline Vector exponential(Vector x) {
    x = x < -87.0f ? broadcast(-87.0f) : x;                // in this order a NaN stays one
    const Vector shifted = x * 1.44269504f + 12582912.0f;  // the nearest integer to x / log 2 is in the low bits
    const Vector n = shifted - 12582912.0f;
    const Vector r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    Vector y = r * 8.31252057e-3f + 4.18901592e-2f;  // minimax, relative to e^r on |r| <= log(2) / 2
    y = y * r + 1.66671142e-1f;
    y = y * r + 4.99992311e-1f;
    y = y * (r * r) + r + 1.0f;
    return (Vector)((Integers)y + ((Integers)shifted << 23));
}

// natural logarithm of a positive normal number
static inline Vector logarithm(Vector x) {
    // x = 2^n y with y in [sqrt(1/2), sqrt(2))
    const Integers bits = (Integers)x - 0x3f3504f3;
    const Vector n = __builtin_convertvector(bits >> 23, Vector);
    const Vector r = (Vector)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    Vector y = r * 7.0376836292e-2f - 1.1514610310e-1f;
    y = y * r + 1.1676998740e-1f;
    y = y * r - 1.2420140846e-1f;
    y = y * r + 1.4249322787e-1f;
    y = y * r - 1.6668057665e-1f;
    y = y * r + 2.0000714765e-1f;
    y = y * r - 2.4999993993e-1f;
    y = y * r + 3.3333331174e-1f;
    y = (y * r - 0.5f) * (r * r) + r;
    return y + n * 0.693147181f;
}

// ---- small matrix products -----------------------------------------------------------------------------------------

enum Result { SET, ADD };              // c = a b, or c += a b
enum Operand { PLAIN, TRANSPOSED };    // whether a is stored as (m x k) or as (k x m)
enum Triangle { FULL, LOWER, UPPER };  // which entries of a, whose rows and columns are tokens, are not zero

template <int R, int C, Result RESULT, Operand A>
static inline void tile(int64_t k, const float* a, int64_t a_row, const float* b, int64_t b_row, float* c,
                        int64_t c_row) {
    Vector sums[R][C] = {};
    for (int64_t i = 0; i < k; i++, b += b_row) {
        Vector right[C];
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) right[j] = load(b + j * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const float left = A == TRANSPOSED ? a[i * a_row + r] : a[r * a_row + i];
#pragma GCC unroll 8
            for (int j = 0; j < C; j++) sums[r][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) {
            float* p = c + r * c_row + j * LANES;
            store(p, RESULT == ADD ? load(p) + sums[r][j] : sums[r][j]);
        }
}

template <int C, Result RESULT, Operand A>
static inline void tile_of_rows(int64_t rows, int64_t k, const float* a, int64_t a_row, const float* b, int64_t b_row,
                                float* c, int64_t c_row) {
    switch (rows) {
        case 1: return tile<1, C, RESULT, A>(k, a, a_row, b, b_row, c, c_row);
        case 2: return tile<2, C, RESULT, A>(k, a, a_row, b, b_row, c, c_row);
        case 3: return tile<3, C, RESULT, A>(k, a, a_row, b, b_row, c, c_row);
        case 4: return tile<4, C, RESULT, A>(k, a, a_row, b, b_row, c, c_row);
        case 5: return tile<5, C, RESULT, A>(k, a, a_row, b, b_row, c, c_row);
        default: return tile<ROWS, C, RESULT, A>(k, a, a_row, b, b_row, c, c_row);
    }
}

// c (m x n) from a (m x k) and b (k x n); n is a whole number of vectors, each row of a stored matrix a stride long
template <Result RESULT, Operand A = PLAIN, Triangle SHAPE = FULL>
static void product(int64_t m, int64_t k, int64_t n, const float* a, int64_t a_row, const float* b, int64_t b_row,
                    float* c, int64_t c_row) {
    for (int64_t i = 0; i < m; i += ROWS) {
        const int64_t rows = smaller(m - i, ROWS);
        const int64_t first = SHAPE == UPPER ? i : 0, terms = (SHAPE == LOWER ? smaller(i + rows, k) : k) - first;
        const float* left = a + (A == TRANSPOSED ? first * a_row + i : i * a_row + first);
        for (int64_t j = 0; j < n; j += COLUMNS * LANES) {
            const float* right = b + first * b_row + j;
            float* result = c + i * c_row + j;
            switch (smaller((n - j) / LANES, COLUMNS)) {
                case 1: tile_of_rows<1, RESULT, A>(rows, terms, left, a_row, right, b_row, result, c_row); break;
                case 2: tile_of_rows<2, RESULT, A>(rows, terms, left, a_row, right, b_row, result, c_row); break;
                case 3: tile_of_rows<3, RESULT, A>(rows, terms, left, a_row, right, b_row, result, c_row); break;
                default: tile_of_rows<COLUMNS, RESULT, A>(rows, terms, left, a_row, right, b_row, result, c_row);
            }
        }
    }
}

// ---- what the functions are given: see Arguments in Python ---------------------------------------------------------

struct View {  // a tensor (B, H, N, .), contiguous in its last dimension; no data if there is no tensor
    float* data;
    int64_t batch, head, row;  // strides in elements
    float* at(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * row; }
};

struct Mask {  // (B, N), not 0 where a token is real
    const uint8_t* data;
    int64_t batch, row;
    bool real(int64_t b, int64_t t) const { return !data || data[b * batch + t * row]; }
};

struct Documents {  // (B, N), the number of each token's document, contiguous along a row; no data if a row is one
    const int64_t* data;
    int64_t batch;
    bool starts(int64_t b, int64_t t) const {
        return t == 0 || (data && data[b * batch + t] != data[b * batch + t - 1]);
    }
    int64_t end(int64_t b, int64_t t, int64_t length) const {  // of the document that starts at t
        if (!data) return length;
        do t++;
        while (t < length && !starts(b, t));
        return t;
    }
};

struct Arguments {
    int64_t threads, batch, heads, length, features, head_dim, splits, feature_map, feedback, causal;
    double alpha, scale, decay;
    View query, key, value, code, output, d_query, d_key, d_value, d_code, d_output;
    Mask mask;
    Documents documents;
    float *hebbian, *calcium, *plasticity;        // (B, H, F, d), (B, H, F), (B, H, F), contiguous
    float *d_hebbian, *d_calcium, *d_plasticity;  // the same
    float *end_hebbian, *end_calcium;             // the same, after the last token
    // of the code "activity", if there is one: W (H, F, F) and b (H, F), the sums (B, H, F) and (B) of what came before
    float *weight, *bias, *total, *count, *d_weight, *d_bias, *d_total, *end_total, *end_count;
};

enum FeatureMap { ELU, RELU, EXP, IDENTITY };

static const float CALCIUM_FLOOR = 1e-20f, EXP_CEILING = 30.0f;

// ---- rows of a block, between tensors and the cache; there they are padded with zeros to whole vectors --------------

static inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

static inline Vector keep(Vector x, int64_t n) {  // the first n lanes, 0 in the others
    if (n >= LANES) return x;
    Vector kept = {};
    memcpy(&kept, &x, 4 * n);
    return kept;
}

static inline Vector load_some(const float* p, int64_t n) {
    if (n >= LANES) return load(p);
    Vector x = {};
    memcpy(&x, p, 4 * n);
    return x;
}

static inline void store_some(float* p, Vector x, int64_t n) {
    if (n >= LANES) store(p, x);
    else memcpy(p, &x, 4 * n);
}

// asks for a row that will be needed soon; where rows lie side by side the CPU guesses it by itself
static inline void ask_for(const float* row, int64_t n) {
    for (int64_t j = 0; j < n; j += 16) __builtin_prefetch(row + j, 0, 2);
}

template <FeatureMap MAP>
static inline Vector phi(Vector x) {  // each keeps a NaN
    const Vector zero = {};
    if (MAP == ELU) return exponential(x > zero ? zero : x) + (x > zero ? x : zero);
    if (MAP == RELU) return x < zero ? zero : x;
    if (MAP == EXP) return exponential(x > EXP_CEILING ? broadcast(EXP_CEILING) : x);
    return x;
}

// the same of the last n values of a row, with zeros after them
template <FeatureMap MAP>
static inline Vector rest_of(const float* p, int64_t n) {
    return keep(phi<MAP>(load_some(p, n)), n);
}

template <FeatureMap MAP>
static inline Vector slope(Vector x, Vector activity) {  // of phi
    const Vector zero = {}, one = broadcast(1.0f);
    if (MAP == ELU) return x > zero ? one : activity;
    if (MAP == RELU) return x > zero ? one : zero;
    if (MAP == EXP) return x > EXP_CEILING ? zero : activity;
    return one;
}

struct Place {  // a block of tokens of one head
    const Arguments& in;
    int64_t b, h, start, rows;
    int64_t F, d, Fp, dp;  // features and head size, and both padded

    Place(const Arguments& in, int64_t b, int64_t h, int64_t start, int64_t end)
        : in(in),
          b(b),
          h(h),
          start(start),
          rows(smaller(BLOCK, end - start)),
          F(in.features),
          d(in.head_dim),
          Fp(padded(F)),
          dp(padded(d)) {}

    bool real(int64_t t) const { return in.mask.real(b, start + t); }

    template <FeatureMap MAP, Result RESULT>
    void activity_of(const View& x, bool masked, float* y) const {
        for (int64_t t = 0; t < rows; t++, y += Fp) {
            if (masked && !real(t)) {
                if (RESULT == SET) memset(y, 0, 4 * Fp);
                continue;
            }
            const float* row = x.at(b, h, start + t);
            if (x.row > F) ask_for(row + BLOCK * x.row, F);
            for (int64_t j = 0; j < F; j += LANES) {
                Vector activity = j + LANES <= F ? phi<MAP>(load(row + j)) : rest_of<MAP>(row + j, F - j);
                store(y + j, RESULT == ADD ? load(y + j) + activity : activity);
            }
        }
    }

    // y = phi(x), or added to y; 0 at padded tokens if `masked`
    template <Result RESULT = SET>
    void activity(const View& x, bool masked, float* y) const {
        switch (in.feature_map) {
            case ELU: return activity_of<ELU, RESULT>(x, masked, y);
            case RELU: return activity_of<RELU, RESULT>(x, masked, y);
            case EXP: return activity_of<EXP, RESULT>(x, masked, y);
            default: return activity_of<IDENTITY, RESULT>(x, masked, y);
        }
    }

    template <FeatureMap MAP>
    void back_through(const View& x, bool masked, const float* y, const float* d_y, const View& d_x, bool add) const {
        for (int64_t t = 0; t < rows; t++, y += Fp, d_y += Fp) {
            float* d_row = d_x.at(b, h, start + t);
            if (masked && !real(t)) {
                if (!add) memset(d_row, 0, 4 * F);
                continue;
            }
            const float* row = x.at(b, h, start + t);
            for (int64_t j = 0; j < F; j += LANES) {
                Vector gradient = load(d_y + j) * slope<MAP>(load_some(row + j, F - j), load(y + j));
                if (add) gradient += load_some(d_row + j, F - j);
                store_some(d_row + j, gradient, F - j);
            }
        }
    }

    // d_x = (or +=) the gradient of x, given y = phi(x) and its gradient
    void gradient(const View& x, bool masked, const float* y, const float* d_y, const View& d_x,
                  bool add = false) const {
        switch (in.feature_map) {
            case ELU: return back_through<ELU>(x, masked, y, d_y, d_x, add);
            case RELU: return back_through<RELU>(x, masked, y, d_y, d_x, add);
            case EXP: return back_through<EXP>(x, masked, y, d_y, d_x, add);
            default: return back_through<IDENTITY>(x, masked, y, d_y, d_x, add);
        }
    }

    void load_rows(const View& x, bool masked, float* y) const {  // of the head size
        for (int64_t t = 0; t < rows; t++, y += dp) {
            if (masked && !real(t)) {
                memset(y, 0, 4 * dp);
                continue;
            }
            const float* row = x.at(b, h, start + t);
            if (x.row > d) ask_for(row + BLOCK * x.row, d);
            for (int64_t j = 0; j < d; j += LANES) store(y + j, load_some(row + j, d - j));
        }
    }

    // the same where they lie if nothing needs to be done to them; `stride` tells them apart
    const float* rows_of(const View& x, bool masked, float* copy, int64_t& stride) const {
        const bool as_is = d == dp && !(masked && in.mask.data);
        stride = as_is ? x.row : dp;
        if (!as_is) load_rows(x, masked, copy);
        for (int64_t t = 0; t < rows && as_is && x.row > d; t++) ask_for(x.at(b, h, start + t + BLOCK), d);
        return as_is ? x.at(b, h, start) : copy;
    }

    void store_rows(const float* y, const View& x) const {
        for (int64_t t = 0; t < rows; t++, y += dp)
            for (int64_t j = 0; j < d; j += LANES) store_some(x.at(b, h, start + t) + j, load(y + j), d - j);
    }

    // phi(K) + phi(R), and phi(K) alone
    void imprint(const View& code, float* imprint, float* presynaptic) const {
        activity(in.key, true, presynaptic);
        memcpy(imprint, presynaptic, 4 * rows * Fp);
        if (code.data) activity<ADD>(code, true, imprint);
    }
};

static inline void scale_row(float* row, int64_t n, float factor) {
    for (int64_t j = 0; j < n; j += LANES) store(row + j, load(row + j) * factor);
}

static inline void add_row(float* sum, const float* row, int64_t n, float factor = 1) {
    for (int64_t j = 0; j < n; j += LANES) store(sum + j, load(sum + j) + load(row + j) * factor);
}

static inline float dot(const float* a, const float* b, int64_t n) {
    Vector total = {};
    for (int64_t j = 0; j < n; j += LANES) total += load(a + j) * load(b + j);
    return sum(total);
}

static inline float feedback_of(float response) {
    return response > CALCIUM_FLOOR || response != response ? 1 / response : 0;
}

// matrices of a state, (F, d) or (F), to and from their padded form
static void load_matrix(const float* x, int64_t rows, int64_t columns, float* y, int64_t y_row, float factor = 1) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j += LANES)
            store(y + i * y_row + j, load_some(x + i * columns + j, columns - j) * factor);
}

static void store_matrix(const float* y, int64_t y_row, int64_t rows, int64_t columns, float* x) {
    for (int64_t i = 0; i < rows; i++) memcpy(x + i * columns, y + i * y_row, 4 * columns);
}

// y (n x m) = x (m x n); in squares of a cache line, so that neither side strides through memory
static void transpose(const float* x, int64_t m, int64_t n, int64_t x_row, float* y, int64_t y_row) {
    enum { SIDE = 16 };
    for (int64_t i = 0; i < m; i += SIDE)
        for (int64_t j = 0; j < n; j += SIDE)
            for (int64_t c = j; c < smaller(j + SIDE, n); c++)
                for (int64_t r = i; r < smaller(i + SIDE, m); r++) y[c * y_row + r] = x[r * x_row + c];
}

// memory of one thread, handed out in pieces that start out as zeros; no piece may be touched if it `is_missing`
struct Scratch {
    char* memory = nullptr;
    size_t used = 0, size;
    explicit Scratch(size_t floats) : size(4 * floats + 64 * 64) {
        memory = (char*)aligned_alloc(64, (size + 63) / 64 * 64);
    }
    ~Scratch() { free(memory); }
    bool is_missing() const { return !memory; }
    Scratch(const Scratch&) = delete;
    float* take(int64_t floats) {
        float* piece = (float*)(memory + used);
        used += (4 * floats + 63) / 64 * 64;
        if (memory) memset(piece, 0, 4 * floats);
        return piece;
    }
};

// one of `parts` about equal ranges of whole blocks
static inline void range_of(int64_t length, int64_t part, int64_t parts, int64_t& first, int64_t& last) {
    const int64_t blocks = (length + BLOCK - 1) / BLOCK;
    first = smaller(blocks * part / parts * BLOCK, length), last = smaller(blocks * (part + 1) / parts * BLOCK, length);
}

// ---- the astrocyte code "activity" ---------------------------------------------------------------------------------

// R = r' K W + b, made block by block as it is needed. r' K is the mean of the keys of the real tokens before and after
// (causally, before), at the weight decay^(number of real tokens between). At padded tokens R is b.
struct Activity {
    const Arguments& in;
    const int64_t F, Fp, N;
    const float decay;
    float *running, *weights, *weight, *transposed, *around, *means, *code, *d_code, *d_weight, *d_bias;
    int64_t b = 0, h = 0;

    static int64_t size(const Arguments& in) {
        const int64_t Fp = padded(in.features);
        return in.weight ? 2 * Fp + in.length * (Fp + 1) + 3 * Fp * Fp + 3 * BLOCK * Fp : 0;
    }

    Activity(const Arguments& in, Scratch& scratch)
        : in(in), F(in.features), Fp(padded(F)), N(in.length), decay(in.decay) {
        if (!in.weight) return;
        running = scratch.take(Fp), d_bias = scratch.take(Fp), weights = scratch.take(N), around = scratch.take(N * Fp);
        weight = scratch.take(Fp * Fp), transposed = scratch.take(Fp * Fp), d_weight = scratch.take(Fp * Fp);
        means = scratch.take(BLOCK * Fp), code = scratch.take(BLOCK * Fp), d_code = scratch.take(BLOCK * Fp);
    }

    View rows_of(float* block, int64_t start) const { return {block - start * Fp, 0, 0, Fp}; }

    // The recurrence that sums over neighbours: y_t (= or +=) the sum so far, which then becomes decay * sum + x_t.
    template <Result RESULT>
    void sweep(const View& x, const View& y, int64_t first, int64_t last, bool backwards) const {
        for (int64_t step = first; step < last; step++) {
            const int64_t t = backwards ? last - 1 - (step - first) : step;
            if (!in.mask.real(b, t)) continue;
            const float* from = x.at(b, h, t);
            float* to = y.at(b, h, t);
            if (x.row > Fp) ask_for(from + (backwards ? -16 : 16) * x.row, F);
            for (int64_t j = 0; j < F; j += LANES) {
                const Vector so_far = load(running + j), next = load_some(from + j, F - j);
                store_some(to + j, RESULT == ADD ? so_far + load_some(to + j, F - j) : so_far, F - j);
                store(running + j, so_far * decay + next);
            }
        }
    }

    void start_from(const float* sums) { sums ? memcpy(running, sums, 4 * F) : memset(running, 0, 4 * Fp); }

    void begin(int64_t batch, int64_t head) {
        b = batch, h = head;
        load_matrix(in.weight + h * F * F, F, F, weight, Fp);
        if (!in.documents.data) begin_document(0, N);
    }

    // from here on the tokens from first to last, which see no others but, causally, those before the row
    void begin_document(int64_t first, int64_t last) {
        // 1 / the sum of the weights of each real token's neighbours, 0 where it has none
        float count = in.causal && first == 0 ? in.count[b] : 0;
        for (int64_t t = first; t < last; t++) {
            weights[t] = count;
            if (in.mask.real(b, t)) count = decay * count + 1;
        }
        if (in.end_count) in.end_count[b] = count;
        count = 0;
        for (int64_t t = last - 1; t >= first; t--) {
            if (!in.causal) weights[t] += count;
            weights[t] = weights[t] > 0 ? 1 / weights[t] : 0;
            if (in.mask.real(b, t)) count = decay * count + 1;
        }
        start_from(nullptr);
        if (!in.causal) sweep<SET>(in.key, rows_of(around, 0), first, last, true);
        if (in.causal && first == 0) start_from(in.total + (b * in.heads + h) * F);
        else start_from(nullptr);
    }

    // R of the next block of rows
    View block(int64_t start, int64_t rows) {
        for (int64_t i = 0; i < rows; i++)
            if (in.causal || !in.mask.real(b, start + i)) memset(means + i * Fp, 0, 4 * Fp);
            else memcpy(means + i * Fp, around + (start + i) * Fp, 4 * Fp);
        sweep<ADD>(in.key, rows_of(means, start), start, start + rows, false);
        for (int64_t i = 0; i < rows; i++) {
            scale_row(means + i * Fp, Fp, weights[start + i]);
            memcpy(code + i * Fp, in.bias + h * F, 4 * F);
        }
        product<ADD>(rows, F, Fp, means, Fp, weight, Fp, code, Fp);
        return rows_of(code, start);
    }

    void begin_gradients() {
        transpose(weight, F, F, Fp, transposed, Fp);
        memset(d_weight, 0, 4 * Fp * Fp), memset(d_bias, 0, 4 * Fp);
    }

    // from d_code of the block that was made last: d_weight, d_bias, and in `around` the gradients of the sums of keys
    void gradients(int64_t start, int64_t rows) {
        for (int64_t i = 0; i < rows; i++) add_row(d_bias, d_code + i * Fp, Fp);
        product<ADD, TRANSPOSED>(F, rows, Fp, means, Fp, d_code, Fp, d_weight, Fp);
        product<SET>(rows, F, Fp, d_code, Fp, transposed, Fp, around + start * Fp, Fp);
        for (int64_t t = start; t < start + rows; t++) scale_row(around + t * Fp, Fp, weights[t]);
    }

    void store_gradients() const {
        store_matrix(d_weight, Fp, F, F, in.d_weight + (b * in.heads + h) * F * F);
        memcpy(in.d_bias + (b * in.heads + h) * F, d_bias, 4 * F);
    }
};

// ---- write mode ----------------------------------------------------------------------------------------------------

// One thread's write mode: the tokens from first to last of a head to `hebbian` (Fp x dp) and `calcium` (Fp), and the
// way back from the gradients of these.
struct Writer {
    const Arguments& in;
    const int64_t F, d, Fp, dp;
    float *hebbian, *calcium, *presynaptic, *value;
    float *d_hebbian, *d_transposed, *d_calcium, *process, *d_imprint, *d_presynaptic, *d_value;
    Activity code_of_keys;

    static int64_t size(const Arguments& in, bool backward) {
        const int64_t Fp = padded(in.features), dp = padded(in.head_dim);
        return Fp * dp + Fp + BLOCK * (Fp + dp) + Activity::size(in) +
               (backward ? 2 * Fp * dp + Fp + BLOCK * (3 * Fp + dp) : 0);
    }

    Writer(const Arguments& in, Scratch& scratch, bool backward)
        : in(in),
          F(in.features),
          d(in.head_dim),
          Fp(padded(F)),
          dp(padded(d)),
          hebbian(scratch.take(Fp * dp)),
          calcium(scratch.take(Fp)),
          presynaptic(scratch.take(BLOCK * Fp)),
          value(scratch.take(BLOCK * dp)),
          code_of_keys(in, scratch) {
        if (!backward) return;
        d_hebbian = scratch.take(Fp * dp), d_transposed = scratch.take(dp * Fp), d_calcium = scratch.take(Fp);
        process = scratch.take(BLOCK * Fp), d_imprint = scratch.take(BLOCK * Fp);
        d_presynaptic = scratch.take(BLOCK * Fp), d_value = scratch.take(BLOCK * dp);
    }

    void forward(int64_t b, int64_t h, int64_t first, int64_t last) {
        memset(hebbian, 0, 4 * Fp * dp), memset(calcium, 0, 4 * Fp);
        for (int64_t start = first; start < last; start += BLOCK) {
            const Place place(in, b, h, start, last);
            const View code = in.weight ? code_of_keys.block(start, place.rows) : in.code;
            float* imprint = presynaptic;
            place.activity(in.key, true, imprint);
            for (int64_t t = 0; t < place.rows; t++) add_row(calcium, imprint + t * Fp, Fp);
            if (code.data) place.activity<ADD>(code, true, imprint);
            int64_t stride;
            const float* rows = place.rows_of(in.value, true, value, stride);
            product<ADD, TRANSPOSED>(F, place.rows, dp, imprint, Fp, rows, stride, hebbian, dp);
        }
    }

    // from d_hebbian and d_calcium; the gradients of a code are added to those there are if `add`
    void backward(int64_t b, int64_t h, int64_t first, int64_t last, bool add) {
        transpose(d_hebbian, F, d, dp, d_transposed, Fp);
        for (int64_t start = first; start < last; start += BLOCK) {
            const Place place(in, b, h, start, last);
            place.load_rows(in.value, true, value);
            product<SET>(place.rows, d, Fp, value, dp, d_transposed, Fp, d_imprint, Fp);
            place.activity(in.key, true, presynaptic);
            for (int64_t i = 0; i < place.rows; i++)
                for (int64_t j = 0; j < Fp; j += LANES)
                    store(d_presynaptic + i * Fp + j, load(d_imprint + i * Fp + j) + load(d_calcium + j));
            place.gradient(in.key, true, presynaptic, d_presynaptic, in.d_key);
            if (in.code.data || in.weight) {
                const View code = in.weight ? code_of_keys.block(start, place.rows) : in.code;
                const View d_code = in.weight ? code_of_keys.rows_of(code_of_keys.d_code, start) : in.d_code;
                place.activity(code, true, process);
                place.gradient(code, true, process, d_imprint, d_code, add);
                if (in.weight) code_of_keys.gradients(start, place.rows);
                for (int64_t i = 0; i < place.rows; i++) add_row(presynaptic + i * Fp, process + i * Fp, Fp);
            }
            product<SET>(place.rows, F, dp, presynaptic, Fp, d_hebbian, dp, d_value, dp);
            place.store_rows(d_value, in.d_value);  // 0 at padded tokens, whose imprint is 0
        }
        if (in.weight)  // what a key adds to its neighbours' sums, their gradients add to its own
            for (int backwards = 0; backwards < 2; backwards++) {
                code_of_keys.start_from(nullptr);
                code_of_keys.sweep<ADD>(code_of_keys.rows_of(code_of_keys.around, 0), in.d_key, first, last, backwards);
            }
    }
};

// hebbian (splits, B, H, F, d) and calcium (splits, B, H, F): what each part of the sequence writes
extern "C" int write_forward(const Arguments* arguments) {
    const Arguments& in = *arguments;
    int failed = 0;
    const int64_t F = in.features, d = in.head_dim, heads = in.batch * in.heads;
#pragma omp parallel num_threads(in.threads) reduction(| : failed)
    {
        Scratch scratch(Writer::size(in, false));
        Writer writer(in, scratch, false);
        failed = scratch.is_missing();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < heads * in.splits; task++) {
            if (failed) continue;
            const int64_t head = task % heads, b = head / in.heads, h = head % in.heads;
            int64_t first, last;
            range_of(in.length, task / heads, in.splits, first, last);
            if (in.weight) writer.code_of_keys.begin(b, h);
            writer.forward(b, h, first, last);
            store_matrix(writer.hebbian, writer.dp, F, d, in.hebbian + task * F * d);
            memcpy(in.calcium + task * F, writer.calcium, 4 * F);
        }
    }
    return failed;
}

// d_key, d_value, d_code of d_hebbian and d_calcium; a code that the batch shares collects the gradients of all of it
extern "C" int write_backward(const Arguments* arguments) {
    const Arguments& in = *arguments;
    int failed = 0;
    const int64_t F = in.features, d = in.head_dim;
    const bool shared = in.d_code.data && in.d_code.batch == 0;
    const int64_t batches = shared ? in.batch : 1, heads = in.batch * in.heads / batches;
#pragma omp parallel num_threads(in.threads) reduction(| : failed)
    {
        Scratch scratch(Writer::size(in, true));
        Writer writer(in, scratch, true);
        failed = scratch.is_missing();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < heads * in.splits; task++) {
            if (failed) continue;
            int64_t first, last;
            range_of(in.length, task / heads, in.splits, first, last);
            for (int64_t batch = 0; batch < batches; batch++) {
                const int64_t b = shared ? batch : task % heads / in.heads, h = task % in.heads,
                              head = b * in.heads + h;
                load_matrix(in.d_hebbian + head * F * d, F, d, writer.d_hebbian, writer.dp);
                memcpy(writer.d_calcium, in.d_calcium + head * F, 4 * F);
                if (in.weight) writer.code_of_keys.begin(b, h), writer.code_of_keys.begin_gradients();
                writer.backward(b, h, first, last, batch > 0);
                if (in.weight) writer.code_of_keys.store_gradients();
            }
        }
    }
    return failed;
}

// ---- read mode -----------------------------------------------------------------------------------------------------

// One thread's read mode: the answers to the tokens from first to last of a head from `hebbian` (Fp x dp) and
// `plasticity` (Fp), times `factor`; and the way back, which adds to the gradients of these.
struct Reader {
    const Arguments& in;
    const int64_t F, d, Fp, dp;
    float *plasticity, *activity, *output;
    float *transposed, *d_hebbian, *d_plasticity, *d_activity, *d_output;

    static int64_t size(const Arguments& in, bool backward) {
        const int64_t Fp = padded(in.features), dp = padded(in.head_dim);
        return Fp + BLOCK * (Fp + dp) + (backward ? 2 * Fp * dp + Fp + BLOCK * (Fp + dp) : 0);
    }

    Reader(const Arguments& in, Scratch& scratch, bool backward)
        : in(in),
          F(in.features),
          d(in.head_dim),
          Fp(padded(F)),
          dp(padded(d)),
          plasticity(scratch.take(Fp)),
          activity(scratch.take(BLOCK * Fp)),
          output(scratch.take(BLOCK * dp)) {
        if (!backward) return;
        transposed = scratch.take(dp * Fp), d_hebbian = scratch.take(Fp * dp), d_plasticity = scratch.take(Fp);
        d_activity = scratch.take(BLOCK * Fp), d_output = scratch.take(BLOCK * dp);
    }

    void forward(int64_t b, int64_t h, int64_t first, int64_t last, const float* hebbian, float factor) {
        for (int64_t start = first; start < last; start += BLOCK) {
            const Place place(in, b, h, start, last);
            place.activity(in.query, false, activity);
            float* rows = d == dp ? in.output.at(b, h, start) : output;
            const int64_t stride = d == dp ? in.output.row : dp;
            product<SET>(place.rows, F, dp, activity, Fp, hebbian, dp, rows, stride);
            for (int64_t t = 0; t < place.rows && (in.feedback || factor != 1); t++)
                scale_row(rows + t * stride, dp,
                          in.feedback ? factor * feedback_of(dot(activity + t * Fp, plasticity, Fp)) : factor);
            if (d != dp) place.store_rows(output, in.output);
        }
    }

    void backward(int64_t b, int64_t h, int64_t first, int64_t last, const float* hebbian, float factor) {
        transpose(hebbian, F, d, dp, transposed, Fp);
        memset(d_hebbian, 0, 4 * Fp * dp), memset(d_plasticity, 0, 4 * Fp);
        for (int64_t start = first; start < last; start += BLOCK) {
            const Place place(in, b, h, start, last);
            place.load_rows(in.d_output, false, d_output);
            product<SET>(place.rows, d, Fp, d_output, dp, transposed, Fp, d_activity, Fp);
            place.activity(in.query, false, activity);
            for (int64_t t = 0; t < place.rows && (in.feedback || factor != 1); t++) {
                float* of_activity = d_activity + t * Fp;
                const float p = in.feedback ? feedback_of(dot(activity + t * Fp, plasticity, Fp)) : 1;
                // d_output . (phi(Q) H), which the forward pass had and did not keep, is phi(Q) . (d_output H^T)
                const float d_response = -factor * p * p * dot(activity + t * Fp, of_activity, Fp);
                scale_row(of_activity, Fp, factor * p), scale_row(d_output + t * dp, dp, factor * p);
                if (!in.feedback) continue;
                add_row(of_activity, plasticity, Fp, d_response);
                add_row(d_plasticity, activity + t * Fp, Fp, d_response);
            }
            place.gradient(in.query, false, activity, d_activity, in.d_query);
            product<ADD, TRANSPOSED>(F, place.rows, dp, activity, Fp, d_output, dp, d_hebbian, dp);
        }
    }
};

// output of query, hebbian and, with feedback, plasticity
extern "C" int read_forward(const Arguments* arguments) {
    const Arguments& in = *arguments;
    int failed = 0;
    const int64_t F = in.features, d = in.head_dim, Fp = padded(F), dp = padded(d), heads = in.batch * in.heads;
#pragma omp parallel num_threads(in.threads) reduction(| : failed)
    {
        Scratch scratch(Fp * dp + Reader::size(in, false));
        float* hebbian = scratch.take(Fp * dp);
        Reader reader(in, scratch, false);
        failed = scratch.is_missing();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < heads * in.splits; task++) {
            if (failed) continue;
            const int64_t head = task % heads, b = head / in.heads, h = head % in.heads;
            int64_t first, last;
            range_of(in.length, task / heads, in.splits, first, last);
            load_matrix(in.hebbian + head * F * d, F, d, hebbian, dp);
            if (in.feedback) memcpy(reader.plasticity, in.plasticity + head * F, 4 * F);
            reader.forward(b, h, first, last, hebbian, 1);
        }
    }
    return failed;
}

// d_query, and for each part of the sequence d_hebbian (splits, B, H, F, d) and d_plasticity (splits, B, H, F)
extern "C" int read_backward(const Arguments* arguments) {
    const Arguments& in = *arguments;
    int failed = 0;
    const int64_t F = in.features, d = in.head_dim, Fp = padded(F), dp = padded(d), heads = in.batch * in.heads;
#pragma omp parallel num_threads(in.threads) reduction(| : failed)
    {
        Scratch scratch(Fp * dp + Reader::size(in, true));
        float* hebbian = scratch.take(Fp * dp);
        Reader reader(in, scratch, true);
        failed = scratch.is_missing();
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < heads * in.splits; task++) {
            if (failed) continue;
            const int64_t head = task % heads, b = head / in.heads, h = head % in.heads;
            int64_t first, last;
            range_of(in.length, task / heads, in.splits, first, last);
            load_matrix(in.hebbian + head * F * d, F, d, hebbian, dp);
            if (in.feedback) memcpy(reader.plasticity, in.plasticity + head * F, 4 * F);
            reader.backward(b, h, first, last, hebbian, 1);
            store_matrix(reader.d_hebbian, dp, F, d, in.d_hebbian + task * F * d);
            if (in.feedback) memcpy(in.d_plasticity + task * F, reader.d_plasticity, 4 * F);
        }
    }
    return failed;
}

// g = z^alpha, and where `slope` is not null alpha z^(alpha - 1): presynaptic_plasticity in Python
static inline void plasticity_of(const float* calcium, float alpha, int64_t n, float* plasticity, float* slope) {
    for (int64_t j = 0; j < n; j += LANES) {
        const Vector z = load(calcium + j), zero = {}, floored = z < CALCIUM_FLOOR ? broadcast(CALCIUM_FLOOR) : z;
        const Vector g = alpha == 1 ? z : exponential(alpha * logarithm(floored));
        store(plasticity + j, z > CALCIUM_FLOOR ? g : z != z ? z : zero);
        if (slope) store(slope + j, z > CALCIUM_FLOOR ? alpha * g / floored : zero);
    }
}

// ---- several documents in a row: write mode and read mode of one after the other ------------------------------------

// output; each document is written and read while its synapses lie in the nearest cache
extern "C" int documents_forward(const Arguments* arguments) {
    const Arguments& in = *arguments;
    int failed = 0;
    const int64_t heads = in.batch * in.heads;
#pragma omp parallel num_threads(in.threads) reduction(| : failed)
    {
        Scratch scratch(Writer::size(in, false) + Reader::size(in, false));
        Writer writer(in, scratch, false);
        Reader reader(in, scratch, false);
        failed = scratch.is_missing();
#pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < heads; head++) {
            if (failed) continue;
            const int64_t b = head / in.heads, h = head % in.heads;
            if (in.weight) writer.code_of_keys.begin(b, h);
            for (int64_t first = 0, last; first < in.length; first = last) {
                last = in.documents.end(b, first, in.length);
                if (in.weight) writer.code_of_keys.begin_document(first, last);
                writer.forward(b, h, first, last);
                if (in.feedback) plasticity_of(writer.calcium, in.alpha, writer.Fp, reader.plasticity, nullptr);
                reader.forward(b, h, first, last, writer.hebbian, in.scale);
            }
        }
    }
    return failed;
}

// d_query, d_key, d_value, d_code of d_output; what was written is written again
extern "C" int documents_backward(const Arguments* arguments) {
    const Arguments& in = *arguments;
    int failed = 0;
    const int64_t Fp = padded(in.features), dp = padded(in.head_dim), heads = in.batch * in.heads;
#pragma omp parallel num_threads(in.threads) reduction(| : failed)
    {
        Scratch scratch(Writer::size(in, true) + Reader::size(in, true) + Fp);
        Writer writer(in, scratch, true);
        Reader reader(in, scratch, true);
        float* slope = scratch.take(Fp);
        failed = scratch.is_missing();
#pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < heads; head++) {
            if (failed) continue;
            const int64_t b = head / in.heads, h = head % in.heads;
            if (in.weight) writer.code_of_keys.begin(b, h), writer.code_of_keys.begin_gradients();
            for (int64_t first = 0, last; first < in.length; first = last) {
                last = in.documents.end(b, first, in.length);
                if (in.weight) writer.code_of_keys.begin_document(first, last);
                writer.forward(b, h, first, last);
                if (in.feedback) plasticity_of(writer.calcium, in.alpha, Fp, reader.plasticity, slope);
                reader.backward(b, h, first, last, writer.hebbian, in.scale);
                memcpy(writer.d_hebbian, reader.d_hebbian, 4 * Fp * dp);
                for (int64_t j = 0; j < Fp; j += LANES) {
                    const Vector none = {}, through_plasticity = load(reader.d_plasticity + j) * load(slope + j);
                    store(writer.d_calcium + j, in.feedback ? through_plasticity : none);
                }
                if (in.weight) writer.code_of_keys.start_from(nullptr);
                writer.backward(b, h, first, last, false);
            }
            if (in.weight) writer.code_of_keys.store_gradients();
        }
    }
    return failed;
}

// ---- causal: both at once ------------------------------------------------------------------------------------------

static void clear_outside(float* scores, int64_t rows, Triangle shape) {  // as far as a triangular product reads
    for (int64_t i = 0; i < rows; i++) {
        const int64_t tile = i / ROWS * ROWS;
        if (shape == LOWER)
            for (int64_t j = i + 1; j < smaller(tile + ROWS, rows); j++) scores[i * BLOCK + j] = 0;
        else
            for (int64_t j = tile; j < i; j++) scores[i * BLOCK + j] = 0;
    }
}

// output; end_hebbian and end_calcium continue hebbian and calcium
extern "C" int causal_forward(const Arguments* arguments) {
    const Arguments& in = *arguments;
    int failed = 0;
    const int64_t F = in.features, d = in.head_dim, Fp = padded(F), dp = padded(d), heads = in.batch * in.heads;
#pragma omp parallel num_threads(in.threads) reduction(| : failed)
    {
        Scratch scratch(Fp * dp + 2 * Fp + BLOCK * (4 * Fp + 2 * dp + BLOCK) + Activity::size(in));
        float *hebbian = scratch.take(Fp * dp), *calcium = scratch.take(Fp), *plasticity = scratch.take(Fp);
        float *activity = scratch.take(BLOCK * Fp), *presynaptic = scratch.take(BLOCK * Fp);
        float *imprint = scratch.take(BLOCK * Fp), *transposed = scratch.take(Fp * BLOCK);
        float *value = scratch.take(BLOCK * dp), *output = scratch.take(BLOCK * dp),
              *scores = scratch.take(BLOCK * BLOCK);
        Activity code_of_keys(in, scratch);
        failed = scratch.is_missing();
#pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < heads; head++) {
            if (failed) continue;
            const int64_t b = head / in.heads, h = head % in.heads;
            load_matrix(in.hebbian + head * F * d, F, d, hebbian, dp);
            memcpy(calcium, in.calcium + head * F, 4 * F);
            if (in.weight) code_of_keys.begin(b, h);
            int64_t end = 0;  // of the document
            for (int64_t start = 0, rows; start < in.length; start += rows) {
                if (start == end) {
                    end = in.documents.end(b, start, in.length);
                    if (start > 0) memset(hebbian, 0, 4 * Fp * dp), memset(calcium, 0, 4 * Fp);
                    if (in.weight && in.documents.data) code_of_keys.begin_document(start, end);
                }
                const Place place(in, b, h, start, end);
                rows = place.rows;
                place.activity(in.query, false, activity);
                place.imprint(in.weight ? code_of_keys.block(start, rows) : in.code, imprint, presynaptic);
                place.load_rows(in.value, true, value);
                product<SET>(rows, F, dp, activity, Fp, hebbian, dp, output, dp);
                transpose(imprint, rows, F, Fp, transposed, BLOCK);
                product<SET>(rows, F, padded(rows), activity, Fp, transposed, BLOCK, scores, BLOCK);
                clear_outside(scores, rows, LOWER);
                product<ADD, PLAIN, LOWER>(rows, rows, dp, scores, BLOCK, value, dp, output, dp);
                for (int64_t t = 0; t < rows; t++) {
                    float factor = in.scale;
                    if (in.feedback) {
                        add_row(calcium, presynaptic + t * Fp, Fp);
                        plasticity_of(calcium, in.alpha, Fp, plasticity, nullptr);
                        factor *= feedback_of(dot(activity + t * Fp, plasticity, Fp));
                    }
                    scale_row(output + t * dp, dp, factor);
                }
                place.store_rows(output, in.output);
                product<ADD, TRANSPOSED>(F, rows, dp, imprint, Fp, value, dp, hebbian, dp);
                if (!in.feedback)
                    for (int64_t t = 0; t < rows; t++) add_row(calcium, presynaptic + t * Fp, Fp);
            }
            store_matrix(hebbian, dp, F, d, in.end_hebbian + head * F * d);
            memcpy(in.end_calcium + head * F, calcium, 4 * F);
            if (in.weight) memcpy(in.end_total + head * F, code_of_keys.running, 4 * F);
        }
    }
    return failed;
}

// the most blocks that a row has; a block ends where its document does
static int64_t blocks_of_a_row(const Arguments& in) {
    int64_t most = 0;
    for (int64_t b = 0; b < (in.documents.data ? in.batch : 1); b++) {
        int64_t blocks = 0;
        for (int64_t first = 0, last; first < in.length; first = last) {
            last = in.documents.end(b, first, in.length);
            blocks += (last - first + BLOCK - 1) / BLOCK;
        }
        most = most < blocks ? blocks : most;
    }
    return most;
}

// d_query by going through the sequence with the state again; d_key, d_value, d_code by going back with the gradient of
// the state, which at last is that of the initial one. d_hebbian and d_calcium hold the gradient of the end on entry
// and that of the beginning on return.
extern "C" int causal_backward(const Arguments* arguments) {
    const Arguments& in = *arguments;
    int failed = 0;
    const int64_t F = in.features, d = in.head_dim, Fp = padded(F), dp = padded(d), heads = in.batch * in.heads;
    const int64_t most_blocks = blocks_of_a_row(in);
#pragma omp parallel num_threads(in.threads) reduction(| : failed)
    {
        Scratch scratch(Activity::size(in) + 2 * Fp * dp + 4 * Fp + most_blocks * (2 * Fp + 4) + 2 * in.length +
                        BLOCK * (8 * Fp + 4 * dp + 2 * BLOCK));
        float *hebbian = scratch.take(Fp * dp), *transposed = scratch.take(Fp * dp);
        float *calcium = scratch.take(Fp), *plasticity = scratch.take(Fp);
        float *d_calcium = scratch.take(Fp), *calcium_before = scratch.take(most_blocks * Fp);
        float *feedback = scratch.take(in.length), *d_response = scratch.take(in.length);
        int64_t *starts = (int64_t*)scratch.take(2 * most_blocks), *ends = (int64_t*)scratch.take(2 * most_blocks);
        float *activity = scratch.take(BLOCK * Fp), *d_activity = scratch.take(BLOCK * Fp);
        float *presynaptic = scratch.take(BLOCK * Fp), *process = scratch.take(BLOCK * Fp);
        float *imprint = scratch.take(BLOCK * Fp), *d_imprint = scratch.take(BLOCK * Fp);
        float *slopes = scratch.take(BLOCK * Fp), *features_by_row = scratch.take(Fp * BLOCK);
        float *value = scratch.take(BLOCK * dp), *d_value = scratch.take(BLOCK * dp),
              *d_output = scratch.take(BLOCK * dp);
        float *values_by_row = scratch.take(dp * BLOCK), *scores = scratch.take(BLOCK * BLOCK);
        float *sums_before = scratch.take(most_blocks * Fp), *d_sums = scratch.take(Fp);
        Activity code_of_keys(in, scratch);
        failed = scratch.is_missing();
#pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < heads; head++) {
            if (failed) continue;
            const int64_t b = head / in.heads, h = head % in.heads;

            load_matrix(in.hebbian + head * F * d, F, d, hebbian, dp);
            transpose(hebbian, F, d, dp, transposed, Fp);  // H^T is what goes through the sequence here
            memcpy(calcium, in.calcium + head * F, 4 * F);
            if (in.weight) code_of_keys.begin(b, h), code_of_keys.begin_gradients();
            int64_t blocks = 0;
            for (int64_t start = 0, end = 0; start < in.length; start = ends[blocks++]) {
                if (start == end) {
                    end = in.documents.end(b, start, in.length);
                    if (start > 0) memset(transposed, 0, 4 * Fp * dp), memset(calcium, 0, 4 * Fp);
                    if (in.weight && in.documents.data) code_of_keys.begin_document(start, end);
                }
                const int64_t block = blocks;
                starts[block] = start, ends[block] = smaller(start + BLOCK, end);
                const Place place(in, b, h, start, end);
                const int64_t rows = place.rows;
                memcpy(calcium_before + block * Fp, calcium, 4 * Fp);
                place.activity(in.query, false, activity);
                if (in.weight) memcpy(sums_before + block * Fp, code_of_keys.running, 4 * Fp);
                place.imprint(in.weight ? code_of_keys.block(place.start, rows) : in.code, imprint, presynaptic);
                place.load_rows(in.value, true, value);
                place.load_rows(in.d_output, false, d_output);
                product<SET>(rows, d, Fp, d_output, dp, transposed, Fp, d_activity, Fp);
                transpose(value, rows, d, dp, values_by_row, BLOCK);
                product<SET>(rows, d, padded(rows), d_output, dp, values_by_row, BLOCK, scores, BLOCK);
                clear_outside(scores, rows, LOWER);
                product<ADD, PLAIN, LOWER>(rows, rows, Fp, scores, BLOCK, imprint, Fp, d_activity, Fp);
                for (int64_t t = 0; t < rows; t++) {
                    float *of_activity = d_activity + t * Fp, factor = in.scale;
                    if (in.feedback) {
                        add_row(calcium, presynaptic + t * Fp, Fp);
                        plasticity_of(calcium, in.alpha, Fp, plasticity, nullptr);
                        const float p = feedback_of(dot(activity + t * Fp, plasticity, Fp));
                        d_response[place.start + t] = -in.scale * p * p * dot(activity + t * Fp, of_activity, Fp);
                        factor *= p;
                    }
                    scale_row(of_activity, Fp, factor);
                    if (in.feedback) add_row(of_activity, plasticity, Fp, d_response[place.start + t]);
                    feedback[place.start + t] = factor;
                }
                place.gradient(in.query, false, activity, d_activity, in.d_query);
                product<ADD, TRANSPOSED>(d, rows, Fp, value, dp, imprint, Fp, transposed, Fp);
            }

            load_matrix(in.d_hebbian + head * F * d, F, d, hebbian, dp);  // from here on, its gradient
            memcpy(d_calcium, in.d_calcium + head * F, 4 * F);
            if (in.weight) memcpy(d_sums, in.d_total + head * F, 4 * F);
            for (int64_t block = blocks - 1; block >= 0; block--) {
                const Place place(in, b, h, starts[block], ends[block]);
                const int64_t rows = place.rows;
                if (ends[block] < in.length && in.documents.starts(b, ends[block])) {  // nothing reads this state's end
                    memset(hebbian, 0, 4 * Fp * dp), memset(d_calcium, 0, 4 * Fp), memset(d_sums, 0, 4 * Fp);
                }
                place.activity(in.query, false, activity);
                if (in.weight) code_of_keys.start_from(sums_before + block * Fp);
                const View code = in.weight ? code_of_keys.block(place.start, rows) : in.code;
                place.imprint(code, imprint, presynaptic);
                place.load_rows(in.value, true, value);
                place.load_rows(in.d_output, false, d_output);
                for (int64_t t = 0; t < rows; t++) scale_row(d_output + t * dp, dp, feedback[place.start + t]);

                transpose(hebbian, F, d, dp, transposed, Fp);
                product<SET>(rows, d, Fp, value, dp, transposed, Fp, d_imprint, Fp);
                transpose(d_output, rows, d, dp, values_by_row, BLOCK);
                product<SET>(rows, d, padded(rows), value, dp, values_by_row, BLOCK, scores, BLOCK);
                clear_outside(scores, rows, UPPER);
                product<ADD, PLAIN, UPPER>(rows, rows, Fp, scores, BLOCK, activity, Fp, d_imprint, Fp);

                product<SET>(rows, F, dp, imprint, Fp, hebbian, dp, d_value, dp);
                transpose(activity, rows, F, Fp, features_by_row, BLOCK);
                product<SET>(rows, F, padded(rows), imprint, Fp, features_by_row, BLOCK, scores, BLOCK);
                clear_outside(scores, rows, UPPER);
                product<ADD, PLAIN, UPPER>(rows, rows, dp, scores, BLOCK, d_output, dp, d_value, dp);
                place.store_rows(d_value, in.d_value);

                if (code.data) {
                    place.activity(code, true, process);
                    place.gradient(code, true, process, d_imprint,
                                   in.weight ? code_of_keys.rows_of(code_of_keys.d_code, place.start) : in.d_code);
                    if (in.weight) code_of_keys.gradients(place.start, rows);
                }
                if (in.feedback) {
                    memcpy(calcium, calcium_before + block * Fp, 4 * Fp);
                    for (int64_t t = 0; t < rows; t++) {
                        add_row(calcium, presynaptic + t * Fp, Fp);
                        plasticity_of(calcium, in.alpha, Fp, plasticity, slopes + t * Fp);
                    }
                }
                for (int64_t t = rows - 1; t >= 0; t--) {
                    if (in.feedback)
                        for (int64_t j = 0; j < Fp; j += LANES)
                            store(d_calcium + j, load(d_calcium + j) + load(activity + t * Fp + j) *
                                                                           load(slopes + t * Fp + j) *
                                                                           d_response[place.start + t]);
                    add_row(d_imprint + t * Fp, d_calcium, Fp);
                }
                place.gradient(in.key, true, presynaptic, d_imprint, in.d_key);
                if (in.weight) {  // what a key adds to the sums of later tokens, their gradients add to its own
                    code_of_keys.start_from(d_sums);
                    code_of_keys.sweep<ADD>(code_of_keys.rows_of(code_of_keys.around, 0), in.d_key, place.start,
                                            place.start + rows, true);
                    memcpy(d_sums, code_of_keys.running, 4 * F);
                }
                product<ADD, TRANSPOSED>(F, rows, dp, activity, Fp, d_output, dp, hebbian, dp);
            }
            store_matrix(hebbian, dp, F, d, in.d_hebbian + head * F * d);
            memcpy(in.d_calcium + head * F, d_calcium, 4 * F);
            if (in.weight) code_of_keys.store_gradients(), memcpy(in.d_total + head * F, d_sums, 4 * F);
        }
    }
    return failed;
}
"""
