// The arithmetic of reference.py for float and double, in one pass over the rows that a step uses.
//
// Letters used for shapes in this file:
//     V  rows of the table     D  values in a row
//     n  ids of a step         u  distinct ids among them (u <= n)
//
// reference.py defines the results: each arithmetic operation below is one element-wise operation there, in the same
// order, each rounded once. It is compiled without contraction into multiply-adds and without -ffast-math, so the bits
// are the same. It is faster because a row is read and written once, not once per operation, because rows are not
// copied, and because later rows are prefetched while this one is computed: in a large table every row is a TLB miss.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

// A compiler may treat a function that only prefetches as free of effects, and drop its calls.
#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace {

using Index = std::int64_t;
constexpr Index AHEAD_BYTES = 2048;  // of each table, prefetched before they are needed

// Prefetches the rows of some tables that a step is about to use.
class Prefetcher {
  public:
    Prefetcher(const Index* rows, Index u, Index row_bytes)
        : rows_(rows), u_(u), bytes_(row_bytes), distance_(std::clamp<Index>(AHEAD_BYTES / row_bytes, 1, 64)) {}

    template <class... Table>
    ALWAYS_INLINE void prefetch(Index k, const Table*... tables) const {
        if (rows_ == nullptr || k + distance_ >= u_) return;
        const Index row = rows_[k + distance_];
        (prefetch_row(tables, row), ...);
    }

  private:
    template <class T>
    ALWAYS_INLINE void prefetch_row(const T* table, Index row) const {
        if (table == nullptr) return;
        const char* start = reinterpret_cast<const char*>(table) + row * bytes_;
        for (Index at = 0; at < bytes_; at += 64) __builtin_prefetch(start + at, 1, 3);
        __builtin_prefetch(start + bytes_ - 1, 1, 3);
    }

    const Index* rows_;
    Index u_, bytes_, distance_;
};

// The gradient of each used row k. Without an index, it is values[k]. With one, it is the entry values[index[k]], or
// where index[k] < 0, the sum repeated[-1 - index[k]]: only the entries of rows named more than once are copied.
template <class T>
struct Gradient {
    const T *values, *repeated;
    const Index* index;
    Index u, D;

    // Added to each value, for the sign of zero: where reference.py sums entries, its index_add_ starts from 0, which
    // turns -0 into 0. Where it does not (no index), adding -0 changes nothing.
    T zero() const { return index ? T(0) : -T(0); }

    ALWAYS_INLINE const T* row(Index k) const {
        if (index == nullptr) return values + k * D;
        if (k + 8 < u) {
            const char* later = reinterpret_cast<const char*>(pointer(k + 8));
            for (Index byte = 0; byte < D * Index(sizeof(T)); byte += 64) __builtin_prefetch(later + byte, 0, 3);
        }
        return pointer(k);
    }

    const T* pointer(Index k) const { return index[k] >= 0 ? values + index[k] * D : repeated + (-1 - index[k]) * D; }
};

template <class T>
struct SGD {
    T lr, momentum, undamped, weight_decay, sign, zero;
    bool decays, nesterov;

    T directed(T grad, T value) const {
        const T g = (grad + zero) * sign;
        return decays ? value * weight_decay + g : g;
    }

    void row(Index D, const T* __restrict grad, T* __restrict p) const {
        for (Index i = 0; i < D; ++i) p[i] -= directed(grad[i], p[i]) * lr;
    }

    template <bool FIRST, bool NESTEROV>
    void row(Index D, const T* __restrict grad, T* __restrict p, T* __restrict buffer) const {
        for (Index i = 0; i < D; ++i) {
            const T g = directed(grad[i], p[i]);
            const T b = FIRST ? g : buffer[i] * momentum + g * undamped;
            buffer[i] = b;
            p[i] -= (NESTEROV ? g + b * momentum : b) * lr;
        }
    }

    void row(Index D, const T* grad, T* p, T* buffer, bool first) const {
        if (first)
            nesterov ? row<true, true>(D, grad, p, buffer) : row<true, false>(D, grad, p, buffer);
        else
            nesterov ? row<false, true>(D, grad, p, buffer) : row<false, false>(D, grad, p, buffer);
    }
};

template <class T>
void sgd(const Gradient<T>& grad, const Index* rows, T* param, T* momentum_buffer, std::uint8_t* used,
         const SGD<T>& step) {
    const Index u = grad.u, D = grad.D;
    const Prefetcher ahead(rows, u, D * sizeof(T));
    for (Index k = 0; k < u; ++k) {
        ahead.prefetch(k, param, momentum_buffer);
        const Index row = rows ? rows[k] : k;
        if (momentum_buffer == nullptr) {
            step.row(D, grad.row(k), param + row * D);
            continue;
        }
        step.row(D, grad.row(k), param + row * D, momentum_buffer + row * D, used && !used[row]);
        if (used) used[row] = 1;
    }
}

template <class T>
struct Adagrad {
    T eps, weight_decay, sign, zero;
    bool decays;

    void directed(Index D, const T* __restrict grad, const T* __restrict p, T* __restrict g,
                  T* __restrict square) const {
        for (Index i = 0; i < D; ++i) {
            const T directed = (grad[i] + zero) * sign;
            g[i] = decays ? p[i] * weight_decay + directed : directed;
            square[i] = g[i] * g[i];
        }
    }

    void row(Index D, T rate, const T* __restrict g, T* __restrict square, T* __restrict p, T* __restrict total) const {
        for (Index i = 0; i < D; ++i) {
            total[i] += square[i];
            p[i] -= g[i] * rate / (std::sqrt(total[i]) + eps);
        }
    }

    // A function of its own: __restrict on its arguments tells the compiler that the two halves do not overlap.
    static void fold(T* __restrict first, const T* __restrict second, Index count) {
        for (Index i = 0; i < count; ++i) first[i] += second[i];
    }

    // One sum of squares for the whole row, added up in the order of folded_sum of reference.py.
    void row_with_one_sum(Index D, T rate, const T* __restrict g, T* __restrict square, T* __restrict p,
                          T* total) const {
        Index width = D;
        for (; width > 16; width = (width + 1) / 2) fold(square, square + (width + 1) / 2, width / 2);
        if (width == 16) {  // the same in registers
            T a[8];
            for (Index i = 0; i < 8; ++i) a[i] = square[i] + square[8 + i];
            square[0] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
            width = 1;
        }
        for (; width > 1; width = (width + 1) / 2) fold(square, square + (width + 1) / 2, width / 2);
        *total += square[0] / T(D);
        const T root = std::sqrt(*total) + eps;
        for (Index i = 0; i < D; ++i) p[i] -= g[i] * rate / root;
    }
};

template <class T>
void adagrad(const Gradient<T>& grad, const Index* rows, T* param, T* state_sum, bool rowwise,
             const double* rates, Index rates_stride, const Adagrad<T>& step) {
    const Index u = grad.u, D = grad.D;
    const Prefetcher ahead(rows, u, D * sizeof(T)), ahead_sums(rows, u, sizeof(T));
    std::vector<T> g(D), square(D);
    for (Index k = 0; k < u; ++k) {
        ahead.prefetch(k, param, rowwise ? nullptr : state_sum);
        if (rowwise) ahead_sums.prefetch(k, state_sum);
        const Index row = rows ? rows[k] : k;
        const T rate = T(rates[k * rates_stride]);
        T* p = param + row * D;
        step.directed(D, grad.row(k), p, g.data(), square.data());
        if (rowwise)
            step.row_with_one_sum(D, rate, g.data(), square.data(), p, state_sum + row);
        else
            step.row(D, rate, g.data(), square.data(), p, state_sum + row * D);
    }
}

// The two bias corrections of a row by the count of its uses. 1 - beta^t is looked up in a table, which ends where the
// value is 1: a power computed here could be rounded differently than in reference.py.
struct BiasCorrections {
    const std::int32_t* t;
    Index stride;
    const double *table1, *table2;
    Index size1, size2;
    double lr;

    double step_size(Index k) const { return 1 / table1[std::min<Index>(t[k * stride], size1 - 1)] * lr; }
    double root(Index k) const { return std::sqrt(table2[std::min<Index>(t[k * stride], size2 - 1)]); }
};

template <class T>
struct AdamW {
    T beta1, new1, beta2, new2, eps, decay_factor, sign, zero;
    bool from_mean;

    template <bool AMSGRAD>
    void row(Index D, T step_size, T root, const T* __restrict grad, T* __restrict p, T* __restrict mean,
             T* __restrict square, T* __restrict most) const {
        for (Index i = 0; i < D; ++i) {
            const T g = (grad[i] + zero) * sign, old = mean[i];
            const T m = from_mean ? old + (g - old) * new1 : g - (g - old) * beta1;
            const T v = square[i] * beta2 + g * new2 * g;
            mean[i] = m;
            square[i] = v;
            T divisor = v;
            if constexpr (AMSGRAD) {
                divisor = most[i] > v || most[i] != most[i] ? most[i] : v;
                most[i] = divisor;
            }
            p[i] = p[i] * decay_factor - m * step_size / (std::sqrt(divisor) / root + eps);
        }
    }
};

template <class T>
void adamw(const Gradient<T>& grad, const Index* rows, T* param, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq,
           const BiasCorrections& corrections, const AdamW<T>& step) {
    const Index u = grad.u, D = grad.D;
    const Prefetcher ahead(rows, u, D * sizeof(T));
    for (Index k = 0; k < u; ++k) {
        ahead.prefetch(k, param, exp_avg, exp_avg_sq, max_exp_avg_sq);
        const Index at = (rows ? rows[k] : k) * D;
        const T size = T(corrections.step_size(k)), root = T(corrections.root(k));
        T *p = param + at, *mean = exp_avg + at, *square = exp_avg_sq + at;
        if (max_exp_avg_sq)
            step.template row<true>(D, size, root, grad.row(k), p, mean, square, max_exp_avg_sq + at);
        else
            step.template row<false>(D, size, root, grad.row(k), p, mean, square, nullptr);
    }
}

// Sort keys whose upper 32 bits are an id (only its lowest `bits` bits can be set), and whose lower 32 bits are the
// index of the entry. The entries of an id keep their order, since the order of a sum decides its last bit: the radix
// sort is stable, and std::sort compares whole keys.
void sort(std::unique_ptr<std::uint64_t[]>& keys, Index n, int bits) {
    constexpr int DIGIT = 11;
    if (n < 512) {
        std::sort(keys.get(), keys.get() + n);
        return;
    }
    std::unique_ptr<std::uint64_t[]> other(new std::uint64_t[n]);
    for (int shift = 32; shift < 32 + bits; shift += DIGIT) {
        Index start[1 << DIGIT] = {};
        for (Index i = 0; i < n; ++i) ++start[keys[i] >> shift & ((1 << DIGIT) - 1)];
        Index sum = 0;
        for (Index& digit_start : start) {
            const Index count = digit_start;
            digit_start = sum;
            sum += count;
        }
        for (Index i = 0; i < n; ++i) other[start[keys[i] >> shift & ((1 << DIGIT) - 1)]++] = keys[i];
        keys.swap(other);
    }
}

// Groups equal ids: rows (u,) are the distinct ids, sorted, and the entries of rows[k] are those at
// order[starts[k]] < ... < order[starts[k + 1] - 1].
struct Groups {
    std::unique_ptr<Index[]> starts, order;
    Index u = 0;

    Groups(const Index* ids, Index n, int bits, Index* rows) : starts(new Index[n + 1]), order(new Index[n]) {
        std::unique_ptr<std::uint64_t[]> keys(new std::uint64_t[n]);
        for (Index i = 0; i < n; ++i) keys[i] = std::uint64_t(ids[i]) << 32 | std::uint64_t(i);
        sort(keys, n, bits);
        for (Index i = 0; i < n; ++i) {
            const Index id = Index(keys[i] >> 32);
            if (i == 0 || id != rows[u - 1]) {
                rows[u] = id;
                starts[u++] = i;
            }
            order[i] = Index(keys[i] & 0xffffffff);
        }
        starts[u] = n;
    }
};

template <class T>
Index group_by_row(const Index* ids, Index n, Index V, Index D, const T* values, Index* rows, Index* index,
                   T* repeated) {
    Index least = V, most = 0;
    for (Index i = 0; i < n; ++i) {
        least = std::min(least, ids[i]);
        most = std::max(most, ids[i]);
    }
    if (n > 0 && (least < 0 || most >= V)) return -1;
    int bits = 0;
    while (most >> bits > 0) ++bits;
    const Groups groups(ids, n, bits, rows);
    Index used = 0, sums = 0;
    for (Index k = 0; k < groups.u; ++k) {
        const Index first = groups.starts[k], last = groups.starts[k + 1];
        if (k + 8 < groups.u) __builtin_prefetch(values + groups.order[groups.starts[k + 8]] * D, 0, 3);
        const T* value = values + groups.order[first] * D;
        if (last - first > 1) {
            T* __restrict sum = repeated + sums * D;
            for (Index i = 0; i < D; ++i) sum[i] = T(0) + value[i];
            for (Index j = first + 1; j < last; ++j) {
                const T* __restrict next = values + groups.order[j] * D;
                for (Index i = 0; i < D; ++i) sum[i] += next[i];
            }
            value = sum;
        }
        Index zeros = 0;
        while (zeros < D && value[zeros] == T(0)) ++zeros;
        if (zeros == D && D > 0) continue;  // used_rows drops such rows, too
        rows[used] = rows[k];
        index[used++] = last - first > 1 ? -1 - sums++ : groups.order[first];
    }
    return used;
}

}  // namespace

extern "C" {

// Count one more use of each row in step (V,), write the new counts to t (u,), and return the largest.
Index frostline_count_uses(Index u, const Index* rows, std::int32_t* step, std::int32_t* t) {
    std::int32_t most = 0;
    for (Index k = 0; k < u; ++k) {
        if (k + 32 < u) __builtin_prefetch(step + rows[k + 32], 1, 3);
        t[k] = ++step[rows[k]];
        most = std::max(most, t[k]);
    }
    return most;
}

#define FOR(T, name)                                                                                                   \
    /* Sum values (n, D) with the same id. Return u, how many rows have a sum that is not all zeros, or -1 if an id is \
       outside 0 ... V - 1. rows (u,) are sorted; index (u,) tells where their gradient is, as in Gradient; repeated   \
       has room for n / 2 sums. V and n are below 2^31. */                                                             \
    Index frostline_group_by_row_##name(const Index* ids, Index n, Index V, Index D, const T* values, Index* rows,     \
                                        Index* index, T* repeated) {                                                   \
        return group_by_row<T>(ids, n, V, D, values, rows, index, repeated);                                           \
    }                                                                                                                  \
    void frostline_sgd_##name(Index u, Index D, const T* values, const T* repeated, const Index* index,                \
                              const Index* rows, T* param, T* momentum_buffer, std::uint8_t* used, double lr,          \
                              double momentum, double undamped, int nesterov, double weight_decay, int maximize) {     \
        const Gradient<T> grad{values, repeated, index, u, D};                                                         \
        sgd<T>(grad, rows, param, momentum_buffer, used,                                                               \
               {T(lr), T(momentum), T(undamped), T(weight_decay), T(maximize ? -1 : 1), grad.zero(),                   \
                weight_decay != 0, nesterov != 0});                                                                    \
    }                                                                                                                  \
    void frostline_adagrad_##name(Index u, Index D, const T* values, const T* repeated, const Index* index,            \
                                  const Index* rows, T* param, T* state_sum, int rowwise, const double* rates,         \
                                  Index rates_stride, double eps, double weight_decay, int maximize) {                 \
        const Gradient<T> grad{values, repeated, index, u, D};                                                         \
        adagrad<T>(grad, rows, param, state_sum, rowwise, rates, rates_stride,                                         \
                   {T(eps), T(weight_decay), T(maximize ? -1 : 1), grad.zero(), weight_decay != 0});                   \
    }                                                                                                                  \
    void frostline_adamw_##name(Index u, Index D, const T* values, const T* repeated, const Index* index,              \
                                const Index* rows, T* param, T* exp_avg, T* exp_avg_sq, T* max_exp_avg_sq,             \
                                const std::int32_t* t, Index stride, const double* table1, Index size1,                \
                                const double* table2, Index size2, double lr, double beta1, double beta2, double eps,  \
                                double decay_factor, int maximize) {                                                   \
        const Gradient<T> grad{values, repeated, index, u, D};                                                         \
        adamw<T>(grad, rows, param, exp_avg, exp_avg_sq, max_exp_avg_sq,                                               \
                 {t, stride, table1, table2, size1, size2, lr},                                                        \
                 {T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(decay_factor), T(maximize ? -1 : 1),       \
                  grad.zero(), 1 - beta1 < 0.5});                                                                      \
    }

FOR(float, float32)
FOR(double, float64)
}
