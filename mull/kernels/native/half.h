// One float16 (IEEE 754 binary16) at a time; vectors of them are simd.h's.
#pragma once
#include <stdint.h>
#include <string.h>

inline float from_half(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half & 0x7fffu) << 13;
  float magnitude;
  memcpy(&magnitude, &bits, 4);
  magnitude *= 0x1p112f;
  return half & 0x8000u ? -magnitude : magnitude;
}

// To nearest, ties to even; beyond the range to the largest finite value.
inline uint16_t to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits >= 0x477ff000u) return sign | 0x7bffu;  // 65,520 and above, NaN too
  float magnitude;
  memcpy(&magnitude, &bits, 4);
  if (bits < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the value's last 10 bits in the mantissa, rounded.
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + (bits >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
}
