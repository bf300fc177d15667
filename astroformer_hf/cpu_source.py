# Copyright 2026 The Astroformer authors. Licensed under the Apache License, Version 2.0.
"""What the C++ sources of the CPU kernels have in common: vectors, products of small matrices, threads; and how the
fields of their arguments become those of a C++ struct.

It is text in a Python module because only Python modules travel with a checkpoint. `common_source` is written for one
type of numbers, `Real`; a source that computes in several has it once in a namespace of each.
"""

import ctypes

import torch


C_TYPES = {ctypes.c_int64: "int64_t", ctypes.c_double: "double"}
# Multiplications below which a second thread costs more than it brings.
WORK_OF_ONE_THREAD = 2**19
INCLUDES = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
"""


class View(ctypes.Structure):
    """`View` of the sources: data and strides of a tensor `(B, H, N, .)`."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("row", ctypes.c_int64)]

    @classmethod
    def of(cls, x: torch.Tensor) -> "View":
        """That of `(B, H, N, .)`, or of `(H, N, .)`, which all sequences share."""
        strides = x.stride()[:-1]
        return cls(x.data_ptr(), *(strides if len(strides) == 3 else (0, *strides)))


def rows_of(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`x` in a dtype and contiguous in its last dimension, as a `View` takes it."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def common_source(real: str) -> str:
    """The C++ text for numbers of the type `real`, "float" or "double"."""
    integer = {"float": "int32_t", "double": "int64_t"}[real]
    return (
        f"typedef {real} Real;\ntypedef {integer} Integer;  // of the same size\n{VECTORS}{EXPONENTIAL[real]}{MATRICES}"
    )


def struct_fields(arguments: type[ctypes.Structure], real: str) -> str:
    """The fields of `arguments` in C++. Pointers are to `real`; the type of a field that is itself a structure `_Name`
    is `Name`, which the source defines."""
    return "\n".join(f"    {_c_type(field[1], real)} {field[0]};" for field in arguments._fields_)


def _c_type(field_type: type, real: str) -> str:
    if issubclass(field_type, ctypes.Structure):
        return field_type.__name__.lstrip("_")
    return f"{real}*" if field_type is ctypes.c_void_p else C_TYPES[field_type]


VECTORS = r"""
// ---- vectors -------------------------------------------------------------------------------------------------------

// LANES numbers are one vector register. A register tile of a matrix product has TILE_ROWS rows of TILE_VECTORS
// vectors, as many as leave registers for its operands.
#if defined(__AVX512F__)
enum { REGISTER = 64, TILE_VECTORS = 4 };
#elif defined(__AVX__)
enum { REGISTER = 32, TILE_VECTORS = 2 };
#elif defined(__aarch64__)
enum { REGISTER = 16, TILE_VECTORS = 4 };
#else
enum { REGISTER = 16, TILE_VECTORS = 2 };
#endif
enum { LANES = REGISTER / sizeof(Real) };
enum { TILE_ROWS = 6 };
enum { CACHE_LINE = 64 };

typedef Real Vector __attribute__((vector_size(REGISTER)));
typedef Real UnalignedVector __attribute__((vector_size(REGISTER), aligned(sizeof(Real))));
typedef Integer IntegerVector __attribute__((vector_size(REGISTER)));

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// n rounded up to whole vectors
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

inline void set_zero(Real* x, int64_t n) { memset(x, 0, sizeof(Real) * n); }
inline void copy(Real* to, const Real* from, int64_t n) { memcpy(to, from, sizeof(Real) * n); }

inline Vector load(const Real* p) { return *(const UnalignedVector*)p; }
inline void store(Real* p, Vector x) { *(UnalignedVector*)p = x; }
inline Vector broadcast(Real x) { return Vector{} + x; }

// The first n lanes of x, and 0 in the others.
inline Vector mask_tail(Vector x, int64_t n) {
    if (n >= LANES) return x;
    Vector masked = {};
    memcpy(&masked, &x, sizeof(Real) * n);
    return masked;
}

// The next values of a row of which n are left, and 0 in the other lanes: nothing is read beyond the row.
inline Vector load_partial(const Real* p, int64_t n) {
    if (n >= LANES) return load(p);
    Vector x = {};
    memcpy(&x, p, sizeof(Real) * n);
    return x;
}

inline void store_partial(Real* p, Vector x, int64_t n) {
    if (n >= LANES) store(p, x);
    else memcpy(p, &x, sizeof(Real) * n);
}

// Fetches a row that will be needed soon. Rows that lie side by side need no help: the CPU's own prefetcher sees them.
inline void prefetch_row(const Real* row, int64_t n) {
    for (int64_t j = 0; j < n; j += CACHE_LINE / sizeof(Real)) __builtin_prefetch(row + j, 0, 2);
}

template <int N>
struct Lanes {
    typedef Real Type __attribute__((vector_size(sizeof(Real) * N)));
};

// Halves are added until two lanes are left.
template <int N>
inline Real sum_of_lanes(typename Lanes<N>::Type x) {
    if constexpr (N == 2) {
        return x[0] + x[1];
    } else {
        typename Lanes<N / 2>::Type low, high;
        memcpy(&low, &x, sizeof low);
        memcpy(&high, (const char*)&x + sizeof low, sizeof high);
        return sum_of_lanes<N / 2>(low + high);
    }
}

inline Real sum(Vector x) { return sum_of_lanes<LANES>(x); }

"""

EXPONENTIAL = {
    "float": r"""// e^x for x <= 88, within 2 units in the last place; e^-87 below -87. NaN stays NaN.
inline Vector exponential(Vector x) {
    x = x < -87.0f ? broadcast(-87.0f) : x;                // false for NaN
    const Vector shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 leaves round(x / log 2) in the low bits
    const Vector n = shifted - 12582912.0f;
    const Vector r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // x - n log 2, with log 2 in two parts
    Vector y = r * 8.31252057e-3f + 4.18901592e-2f;                // minimax for e^r, relative, on |r| <= log(2) / 2
    y = y * r + 1.66671142e-1f;
    y = y * r + 4.99992311e-1f;
    y = y * (r * r) + r + 1.0f;
    return (Vector)((IntegerVector)y + ((IntegerVector)shifted << 23));  // times 2^n
}

""",
    "double": r"""// e^x for x <= 709, to the last place; e^-708 below -708. NaN stays NaN.
inline Vector exponential(Vector x) {
    x = x < -708.0 ? broadcast(-708.0) : x;                             // false for NaN
    const Vector shifted = x * 1.4426950408889634 + 6755399441055744.0;  // adding 1.5 * 2^52 leaves round(x / log 2)
    const Vector n = shifted - 6755399441055744.0;
    const Vector r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
    Vector y = broadcast(1.0 / 479001600);  // the series of e^r, |r| <= log(2) / 2: the next term is below 2^-52
    double inverse_factorial = 1.0 / 479001600;
    for (int k = 12; k > 0; k--) y = y * r + (inverse_factorial *= k);
    return (Vector)((IntegerVector)y + ((IntegerVector)shifted << 52));  // times 2^n
}

""",
}

MATRICES = r"""
struct View {  // a tensor (B, H, N, .), contiguous in its last dimension; no data if there is no tensor
    Real* data;
    int64_t batch, head, row;  // strides in elements
    Real* at(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * row; }
};

// ---- rows of whole vectors -----------------------------------------------------------------------------------------

inline void scale_row(Real* row, int64_t n, Real factor) {
    for (int64_t j = 0; j < n; j += LANES) store(row + j, load(row + j) * factor);
}

inline void add_row(Real* sum, const Real* row, int64_t n, Real factor = 1) {
    for (int64_t j = 0; j < n; j += LANES) store(sum + j, load(sum + j) + load(row + j) * factor);
}

inline Real dot(const Real* a, const Real* b, int64_t n) {
    Vector total = {};
    for (int64_t j = 0; j < n; j += LANES) total += load(a + j) * load(b + j);
    return sum(total);
}

// Whether there is nothing but zeros. NaN is none.
inline bool is_zero(const Real* x, int64_t n) {
    if (x[0] != 0) return false;  // which it is in a moment, mostly
    IntegerVector magnitudes = {};
    for (int64_t j = 0; j < n; j += LANES) magnitudes |= (IntegerVector)load(x + j) << 1;  // without signs
    Integer any = 0;
    for (int64_t j = 0; j < LANES; j++) any |= magnitudes[j];
    return !any;
}

// ---- small matrices ------------------------------------------------------------------------------------------------

struct Matrix {  // by rows, each `stride` floats after the one before
    const Real* data;
    int64_t stride;
};

struct MutableMatrix {
    Real* data;
    int64_t stride;
};

enum Store { OVERWRITE, ACCUMULATE };  // c = x, or c += x
enum Operand { PLAIN, TRANSPOSED };    // whether a is stored as (m x k) or as (k x m)
enum Triangle { FULL, LOWER, UPPER };  // where a, whose rows and columns are tokens, is not 0

// One register tile of c: R rows of C vectors.
template <int R, int C, Store STORE, Operand A>
__attribute__((always_inline)) inline void tile_matmul(int64_t k, Matrix a, Matrix b, MutableMatrix c) {
    Vector sums[R][C] = {};
    for (int64_t i = 0; i < k; i++, b.data += b.stride) {
        Vector right[C];
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) right[j] = load(b.data + j * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Real left = A == TRANSPOSED ? a.data[i * a.stride + r] : a.data[r * a.stride + i];
#pragma GCC unroll 8
            for (int j = 0; j < C; j++) sums[r][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) {
            Real* p = c.data + r * c.stride + j * LANES;
            store(p, STORE == ACCUMULATE ? load(p) + sums[r][j] : sums[r][j]);
        }
}

// The last tiles of a matrix may have fewer rows. Each number of rows has a kernel of its own, because only sums whose
// number the compiler knows stay in registers.
template <int C, Store STORE, Operand A>
inline void tile_matmul_of(int64_t rows, int64_t k, Matrix a, Matrix b, MutableMatrix c) {
    switch (rows) {
        case 1: return tile_matmul<1, C, STORE, A>(k, a, b, c);
        case 2: return tile_matmul<2, C, STORE, A>(k, a, b, c);
        case 3: return tile_matmul<3, C, STORE, A>(k, a, b, c);
        case 4: return tile_matmul<4, C, STORE, A>(k, a, b, c);
        case 5: return tile_matmul<5, C, STORE, A>(k, a, b, c);
        default: return tile_matmul<TILE_ROWS, C, STORE, A>(k, a, b, c);
    }
}

// c (m x n) from a (m x k) and b (k x n); n is a whole number of vectors. Of a triangular matrix, only tiles that meet
// the triangle are read, each of them whole.
template <Store STORE, Operand A = PLAIN, Triangle SHAPE = FULL>
void matmul(int64_t m, int64_t k, int64_t n, Matrix a, Matrix b, MutableMatrix c) {
    for (int64_t i = 0; i < m; i += TILE_ROWS) {
        const int64_t rows = min(m - i, TILE_ROWS);
        const int64_t first = SHAPE == UPPER ? i : 0, terms = (SHAPE == LOWER ? min(i + rows, k) : k) - first;
        const Matrix left = {a.data + (A == TRANSPOSED ? first * a.stride + i : i * a.stride + first), a.stride};
        for (int64_t j = 0; j < n; j += TILE_VECTORS * LANES) {
            const Matrix right = {b.data + first * b.stride + j, b.stride};
            const MutableMatrix tile = {c.data + i * c.stride + j, c.stride};
            switch (min((n - j) / LANES, TILE_VECTORS)) {
                case 1: tile_matmul_of<1, STORE, A>(rows, terms, left, right, tile); break;
                case 2: tile_matmul_of<2, STORE, A>(rows, terms, left, right, tile); break;
                case 3: tile_matmul_of<3, STORE, A>(rows, terms, left, right, tile); break;
                default: tile_matmul_of<TILE_VECTORS, STORE, A>(rows, terms, left, right, tile);
            }
        }
    }
}

// Clears what a triangular matmul reads of a square matrix beside the triangle.
inline void clear_outside(Triangle shape, int64_t rows, MutableMatrix a) {
    for (int64_t i = 0; i < rows; i++) {
        const int64_t tile = i / TILE_ROWS * TILE_ROWS;
        if (shape == LOWER)
            for (int64_t j = i + 1; j < min(tile + TILE_ROWS, rows); j++) a.data[i * a.stride + j] = 0;
        else
            for (int64_t j = tile; j < i; j++) a.data[i * a.stride + j] = 0;
    }
}

#if !defined(__clang__)
// Exchanges the halves of two rows of a square of LANES x LANES that lie across its diagonal, in blocks of H.
template <int H>
inline void exchange_halves(Vector& upper, Vector& lower) {
    IntegerVector first, second;
    for (int i = 0; i < LANES; i++) {
        first[i] = i & H ? LANES + i - H : i;
        second[i] = i & H ? LANES + i : i + H;
    }
    const Vector a = upper, b = lower;
    upper = __builtin_shuffle(a, b, first), lower = __builtin_shuffle(a, b, second);
}

template <int H = LANES / 2>
inline void transpose_square(Vector (&x)[LANES]) {
    if constexpr (H > 0) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & H)) exchange_halves<H>(x[i], x[i + H]);
        transpose_square<H / 2>(x);
    }
}
#endif

// y (n x m) = x (m x n)^T, in squares of a vector, so that neither side strides through memory.
inline void transpose(int64_t m, int64_t n, Matrix x, MutableMatrix y) {
    for (int64_t i = 0; i < m; i += LANES)
        for (int64_t j = 0; j < n; j += LANES) {
#if !defined(__clang__)
            if (i + LANES <= m && j + LANES <= n) {
                Vector square[LANES];
#pragma GCC unroll 16
                for (int r = 0; r < LANES; r++) square[r] = load(x.data + (i + r) * x.stride + j);
                transpose_square(square);
#pragma GCC unroll 16
                for (int r = 0; r < LANES; r++) store(y.data + (j + r) * y.stride + i, square[r]);
                continue;
            }
#endif
            for (int64_t c = j; c < min(j + LANES, n); c++)
                for (int64_t r = i; r < min(i + LANES, m); r++) y.data[c * y.stride + r] = x.data[r * x.stride + c];
        }
}

// A contiguous (rows x columns) of a tensor to its padded form, and back.
inline void load_matrix(const Real* x, int64_t rows, int64_t columns, MutableMatrix y) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j += LANES)
            store(y.data + i * y.stride + j, load_partial(x + i * columns + j, columns - j));
}

inline void store_matrix(Matrix y, int64_t rows, int64_t columns, Real* x) {
    for (int64_t i = 0; i < rows; i++) copy(x + i * columns, y.data + i * y.stride, columns);
}

// ---- threads and their memory --------------------------------------------------------------------------------------

// Memory of one thread, handed out as buffers of zeros. Without memory it hands out null and only counts bytes.
struct Scratch {
    char* memory;
    size_t bytes = 0;  // handed out so far

    Scratch() : memory(nullptr) {}
    explicit Scratch(size_t size) : memory((char*)aligned_alloc(CACHE_LINE, size)) {}
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { free(memory); }

    template <typename T = Real>
    T* take(int64_t count) {
        char* buffer = memory ? memory + bytes : nullptr;
        bytes += (sizeof(T) * count + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
        if (buffer) memset(buffer, 0, sizeof(T) * count);
        return (T*)buffer;
    }
};

// Calls run(worker, task) for every task from 0 to `tasks`, each thread with a worker of its own: a struct that is made
// from the arguments, scratch memory to take buffers from, and whatever `more` holds.
// Returns 0, or 1 if there was too little memory for the buffers of some thread; results are then incomplete.
template <typename Worker, typename Arguments, typename Run, typename... More>
int run_tasks(const Arguments& args, int64_t tasks, Run run, More... more) {
    Scratch counter;  // without memory: it learns how much the buffers of a worker need
    Worker(args, counter, more...);
    int failed = 0;
#pragma omp parallel num_threads(args.threads) reduction(| : failed)
    {
        Scratch scratch(counter.bytes + CACHE_LINE);  // never 0 bytes, for which null is no error
        Worker worker(args, scratch, more...);
        failed = !scratch.memory;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++)
            if (!failed) run(worker, task);
    }
    return failed;
}
"""
