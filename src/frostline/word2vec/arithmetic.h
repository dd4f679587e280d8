// Random numbers, rows, exp and logarithms, with the same bits on every CPU. Compiled in front of kernel.cpp.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace {

using Index = std::int64_t;
constexpr int LANES = 16;

ALWAYS_INLINE std::uint64_t random(std::uint64_t key, std::uint64_t counter) {  // splitmix64
    std::uint64_t z = key + (counter + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// Rows as vectors of the CPU's own width, of which PARTS make a line of 16 values.
template <class T>
struct Row {
#if defined(__AVX512F__)
    static constexpr int BYTES = 64;
#elif defined(__AVX__)
    static constexpr int BYTES = 32;
#else
    static constexpr int BYTES = 16;
#endif
    static constexpr int PARTS = LANES * int(sizeof(T)) / BYTES;
    typedef T Vector __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
    typedef T Half __attribute__((vector_size(LANES / 2 * sizeof(T))));
    typedef T Quarter __attribute__((vector_size(LANES / 4 * sizeof(T))));

    static ALWAYS_INLINE T dot(Index S, const Vector* a, const Vector* b) {
        Vector total[PARTS];
        for (int p = 0; p < PARTS; ++p) total[p] = a[p] * b[p];
        for (Index s = PARTS; s < S; s += PARTS)
            for (int p = 0; p < PARTS; ++p) total[p] += a[s + p] * b[s + p];
        Half h[2];
        std::memcpy(h, total, sizeof total);
        h[0] += h[1];
        Quarter q[2];
        std::memcpy(q, h, sizeof q);
        q[0] += q[1];
        return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
    }

    static ALWAYS_INLINE void prefetch(const Vector* row, Index S) {
        for (Index s = 0; s < S; s += 64 / BYTES) __builtin_prefetch(row + s, 1, 3);
    }
};

// exp(-x) for x >= 0, from a Taylor series on |r| <= log(2) / 2.
ALWAYS_INLINE float exp_of_minus(float x) {
    x = std::min(x, 80.0f);
    const std::int32_t n = std::int32_t(x * 1.44269504f + 0.5f);
    const float r = (float(n) * 0.693359375f - x) + float(n) * -2.12194440e-4f;
    float sum = 1;
    for (int k = 7; k > 0; --k) sum = 1 + sum * r * (1.0f / float(k));
    const std::int32_t bits = (127 - n) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}

ALWAYS_INLINE double exp_of_minus(double x) {
    x = std::min(x, 700.0);
    const std::int64_t n = std::int64_t(x * 1.4426950408889634 + 0.5);
    const double r = (double(n) * 0.693147180369123816490 - x) + double(n) * 1.90821492927058770002e-10;
    double sum = 1;
    for (int k = 13; k > 0; --k) sum = 1 + sum * r * (1.0 / double(k));
    const std::int64_t bits = (1023 - n) << 52;
    double power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}

// The log-likelihood of a paragraph. log(1 + e) of many samples is one logarithm, of their product.
class Loss {
  public:
    void add(double cost, double e) {  // cost = max(0, -score of what is wanted), e = exp(-|score|)
        linear_ += cost;
        product_ *= 1 + e;
        if (product_ > 1e200) flush();
    }
    double total() {
        flush();
        return linear_;
    }

  private:
    void flush() {
        linear_ += std::log(product_);
        product_ = 1;
    }
    double linear_ = 0, product_ = 1;
};

}  // namespace
