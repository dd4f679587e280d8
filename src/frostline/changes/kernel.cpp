// Which entries of two tensors differ, and the sums of hashes of which digests are made. Each reads memory once.
//
// Entries are compared and hashed as unsigned integers of their size, so by their bits. Pointers need no alignment: a
// tensor in a mapped file may lie anywhere. one_pass.py and entry_hash.py say the same in plain torch.

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace {

using Index = std::int64_t;
using Word = std::uint64_t;
constexpr Index BLOCK_BYTES = 64, AHEAD_BYTES = 512;

template <class T>
inline T load(const T* at) {
    T value;
    std::memcpy(&value, at, sizeof(T));
    return value;
}

// One bit for each entry of a block of 64 bytes: whether it differs.
template <class T>
inline Word differing(const T* now, const T* base) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    const __m512i a = _mm512_loadu_si512(now), b = _mm512_loadu_si512(base);
    if constexpr (sizeof(T) == 1) return _mm512_cmpneq_epi8_mask(a, b);
    if constexpr (sizeof(T) == 2) return _mm512_cmpneq_epi16_mask(a, b);
    if constexpr (sizeof(T) == 4) return _mm512_cmpneq_epi32_mask(a, b);
    return _mm512_cmpneq_epi64_mask(a, b);
#else
    Word a[8], b[8], any = 0, mask = 0;
    std::memcpy(a, now, BLOCK_BYTES);
    std::memcpy(b, base, BLOCK_BYTES);
    for (int i = 0; i < 8; ++i) any |= a[i] ^ b[i];
    if (any == 0) return 0;
    for (Index i = 0; i < BLOCK_BYTES / Index(sizeof(T)); ++i) mask |= Word(load(now + i) != load(base + i)) << i;
    return mask;
#endif
}

template <class T>
Index collect(const T* now, const T* base, Index n, Index start, Index* index, T* values, T* old) {
    constexpr Index block = BLOCK_BYTES / sizeof(T);
    Index found = 0;
    const auto take = [&](Index i) {
        index[found] = start + i;
        std::memcpy(values + found, now + i, sizeof(T));
        std::memcpy(old + found, base + i, sizeof(T));
        ++found;
    };
    Index first = 0;
    for (; first + block <= n; first += block) {
        __builtin_prefetch(now + first + AHEAD_BYTES / sizeof(T));
        __builtin_prefetch(base + first + AHEAD_BYTES / sizeof(T));
        for (Word mask = differing(now + first, base + first); mask != 0; mask &= mask - 1)
            take(first + __builtin_ctzll(mask));
    }
    for (; first < n; ++first)
        if (load(now + first) != load(base + first)) take(first);
    return found;
}

inline void add(Word z, Word& once, Word& twice) {
    z = (z ^ (z >> 32)) * 0xD6E8FEB86659FD93u;
    once += z ^ (z >> 29);
    z = (z ^ (z >> 32)) * 0xFF51AFD7ED558CCDu;
    twice += z ^ (z >> 29);
}

constexpr Word STEP = 0x9E3779B97F4A7C15u;  // 2^64 over the golden ratio: its multiples lie far apart

template <class T>
void hash(const T* data, Index n, Index start, Word* sums) {
    Word once = 0, twice = 0;
    for (Index i = 0; i < n; ++i) add(Word(start + i) * STEP + load(data + i), once, twice);
    sums[0] += once, sums[1] += twice;
}

template <class T>
void hash_at(const Index* index, const T* values, Index n, Word* sums) {
    Word once = 0, twice = 0;
    for (Index i = 0; i < n; ++i) add(Word(index[i]) * STEP + load(values + i), once, twice);
    sums[0] += once, sums[1] += twice;
}

}  // namespace

// now, base, n, start, index, values, old -> how many differ. Room for n in each of the last three; `index` counts from
// `start`.
// data, n, start, sums; index, values, n, sums: add to two sums.
#define FROSTLINE_OF(BYTES, T)                                                                                      \
    extern "C" Index frostline_collect_##BYTES(const T* now, const T* base, Index n, Index start, Index* index,     \
                                               T* values, T* old) {                                                 \
        return collect(now, base, n, start, index, values, old);                                                    \
    }                                                                                                               \
    extern "C" void frostline_hash_##BYTES(const T* data, Index n, Index start, Word* sums) {                       \
        hash(data, n, start, sums);                                                                                 \
    }                                                                                                               \
    extern "C" void frostline_hash_at_##BYTES(const Index* index, const T* values, Index n, Word* sums) {           \
        hash_at(index, values, n, sums);                                                                            \
    }

FROSTLINE_OF(1, std::uint8_t)
FROSTLINE_OF(2, std::uint16_t)
FROSTLINE_OF(4, std::uint32_t)
FROSTLINE_OF(8, std::uint64_t)
