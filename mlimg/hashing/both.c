/* SHA-256 (FIPS 180-4) of the same bytes into two digests at once, with the processor's own instructions.

   One digest alone leaves a processor idle half of the time: each of its 64 rounds waits for the one before. Two
   digests of the same bytes share the message schedule as well, and together take no longer than one.

   No C library is needed: the object loads on glibc and on musl alike. Who calls gives each struct to one thread at a
   time; `__init__.py` has the other half. */

#include <cpuid.h>
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

enum { BLOCK = 64 };

typedef struct {
    uint32_t state[8];
    uint64_t size;       /* bytes so far */
    uint8_t tail[BLOCK]; /* the last of them, which are no whole block yet */
} digest;

static const uint32_t ROUND[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* Whether this processor has the instructions that `update` and `finish` are made of. */
int supported(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1))
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}

/* The instructions keep the eight words of a state as ABEF and CDGH. */
typedef struct {
    __m128i abef, cdgh;
} words;

#define INSTRUCTIONS __attribute__((target("sha,ssse3,sse4.1")))

INSTRUCTIONS static inline words unpack(const uint32_t state[8])
{
    __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xB1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1B);
    return (words){_mm_alignr_epi8(abcd, efgh, 8), _mm_blend_epi16(efgh, abcd, 0xF0)};
}

INSTRUCTIONS static inline void pack(words from, uint32_t state[8])
{
    __m128i feba = _mm_shuffle_epi32(from.abef, 0x1B);
    __m128i dchg = _mm_shuffle_epi32(from.cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

/* Whole blocks into one state, or into two: `second` may be null. */
INSTRUCTIONS static inline __attribute__((always_inline)) void blocks(
    uint32_t *first, uint32_t *second, const uint8_t *data, size_t count)
{
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bULL, 0x0405060700010203ULL);
    words one = unpack(first), two = second ? unpack(second) : one;
    for (; count; count--, data += BLOCK) {
        const words one_before = one, two_before = two;
        __m128i message[4];
        for (int i = 0; i < 4; i++)
            message[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)data + i), big_endian);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const __m128i now = message[i & 3], last = message[(i + 3) & 3];
            const __m128i scheduled = _mm_add_epi32(now, _mm_load_si128((const __m128i *)ROUND + i));
            const __m128i second_half = _mm_shuffle_epi32(scheduled, 0x0E);
            one.cdgh = _mm_sha256rnds2_epu32(one.cdgh, one.abef, scheduled);
            if (second)
                two.cdgh = _mm_sha256rnds2_epu32(two.cdgh, two.abef, scheduled);
            one.abef = _mm_sha256rnds2_epu32(one.abef, one.cdgh, second_half);
            if (second)
                two.abef = _mm_sha256rnds2_epu32(two.abef, two.cdgh, second_half);
            if (i < 12) /* the words that are used four steps on */
                message[i & 3] = _mm_sha256msg2_epu32(
                    _mm_add_epi32(_mm_sha256msg1_epu32(now, message[(i + 1) & 3]),
                                  _mm_alignr_epi8(last, message[(i + 2) & 3], 4)),
                    last);
        }
        one.abef = _mm_add_epi32(one.abef, one_before.abef);
        one.cdgh = _mm_add_epi32(one.cdgh, one_before.cdgh);
        two.abef = _mm_add_epi32(two.abef, two_before.abef);
        two.cdgh = _mm_add_epi32(two.cdgh, two_before.cdgh);
    }
    pack(one, first);
    if (second)
        pack(two, second);
}

INSTRUCTIONS static void one_state(uint32_t *state, const uint8_t *data, size_t count)
{
    blocks(state, NULL, data, count);
}

INSTRUCTIONS static void two_states(uint32_t *first, uint32_t *second, const uint8_t *data, size_t count)
{
    blocks(first, second, data, count);
}

static void copy(uint8_t *to, const uint8_t *from, size_t size)
{
    while (size--)
        *(volatile uint8_t *)to++ = *from++; /* or the compiler calls a library's memcpy */
}

/* Hash more bytes. */
void update(digest *into, const uint8_t *data, size_t size)
{
    const size_t held = into->size % BLOCK;
    into->size += size;
    if (held) {
        const size_t missing = BLOCK - held;
        if (size < missing) {
            copy(into->tail + held, data, size);
            return;
        }
        copy(into->tail + held, data, missing);
        one_state(into->state, into->tail, 1);
        data += missing;
        size -= missing;
    }
    one_state(into->state, data, size / BLOCK);
    copy(into->tail, data + size / BLOCK * BLOCK, size % BLOCK);
}

/* Hash the same bytes into both. What each has had before ends equally far from the end of a block. */
void update_both(digest *first, digest *second, const uint8_t *data, size_t size)
{
    const size_t held = first->size % BLOCK;
    const size_t missing = held ? BLOCK - held : 0;
    if (size < missing + BLOCK) {
        update(first, data, size);
        update(second, data, size);
        return;
    }
    update(first, data, missing);
    update(second, data, missing);
    data += missing;
    size -= missing;
    two_states(first->state, second->state, data, size / BLOCK);
    first->size += size / BLOCK * BLOCK;
    second->size += size / BLOCK * BLOCK;
    update(first, data + size / BLOCK * BLOCK, size % BLOCK);
    update(second, data + size / BLOCK * BLOCK, size % BLOCK);
}

/* The digest of all bytes; `from` stays as it is. */
void finish(const digest *from, uint8_t result[32])
{
    digest last;
    copy((uint8_t *)&last, (const uint8_t *)from, sizeof last);
    uint8_t end[2 * BLOCK];
    const size_t held = from->size % BLOCK, zeros = (held < 56 ? 56 : 120) - held;
    for (size_t i = 0; i < zeros; i++)
        *(volatile uint8_t *)&end[i] = i ? 0 : 0x80;
    for (size_t i = 0; i < 8; i++)
        end[zeros + i] = (uint8_t)(from->size * 8 >> (56 - 8 * i));
    update(&last, end, zeros + 8);
    for (size_t i = 0; i < 32; i++)
        result[i] = (uint8_t)(last.state[i / 4] >> (24 - 8 * (i % 4)));
}
