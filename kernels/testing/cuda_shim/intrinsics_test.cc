// Device functions that concern one thread; they need no kernel here.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(CudaShimIntrinsicsTest, BitsAreCountedAsOnADevice) {
  EXPECT_EQ(__popc(0xf0f0u), 8);
  EXPECT_EQ(__popcll(0xf0f0f0f000000000ull), 16);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__clz(-1), 0);
  EXPECT_EQ(__clzll(0), 64);
  EXPECT_EQ(__clzll(1), 63);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__ffsll(1ll << 40), 41);
  EXPECT_EQ(__brev(1u), 0x80000000u);
  EXPECT_EQ(__brev(0x12345678u), 0x1e6a2c48u);
  EXPECT_EQ(__umulhi(0xffffffffu, 0xffffffffu), 0xfffffffeu);
  EXPECT_EQ(__mulhi(-1, 1), -1);
  EXPECT_EQ(__umul64hi(1ull << 63, 6), 3ull);
  EXPECT_EQ(__funnelshift_l(0x80000001u, 0x00000002u, 4), 0x00000028u);
  EXPECT_EQ(__funnelshift_r(0x80000001u, 0x00000002u, 4), 0x28000000u);
}

TEST(CudaShimIntrinsicsTest, BytePermutationPicksBytesAndSigns) {
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x3210u), 0x33221100u);
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x7654u), 0x77665544u);
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x0426u), 0x00442266u);
  EXPECT_EQ(__byte_perm(0x80007f00u, 0u, 0xba98u), 0xff000000u);
}

TEST(CudaShimIntrinsicsTest, FloatsAreReinterpreted) {
  EXPECT_EQ(__float_as_uint(1.0f), 0x3f800000u);
  EXPECT_EQ(__float_as_int(-0.0f), std::numeric_limits<int>::min());
  EXPECT_EQ(__uint_as_float(0x40490fdbu), 3.14159274f);
  EXPECT_EQ(__int_as_float(0x3f800000), 1.0f);
  EXPECT_EQ(__longlong_as_double(__double_as_longlong(0.1)), 0.1);
}

TEST(CudaShimIntrinsicsTest, ConversionsToIntegersRoundAndSaturate) {
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rn(3.5f), 4);
  EXPECT_EQ(__float2int_rn(-2.5f), -2);
  EXPECT_EQ(__float2int_rz(-2.9f), -2);
  EXPECT_EQ(__float2int_rd(-2.1f), -3);
  EXPECT_EQ(__float2int_ru(2.1f), 3);
  EXPECT_EQ(__float2int_rn(3e9f), std::numeric_limits<int>::max());
  EXPECT_EQ(__float2int_rn(-kInf), std::numeric_limits<int>::min());
  EXPECT_EQ(__float2int_rn(kNan), 0);
  EXPECT_EQ(__float2uint_rn(-1.0f), 0u);
  EXPECT_EQ(__float2uint_rn(4e9f), 4000000000u);
  EXPECT_EQ(__float2uint_rz(kInf), std::numeric_limits<unsigned int>::max());
}

TEST(CudaShimIntrinsicsTest, ArithmeticRoundsOnceAndFmaIsFused) {
  const float a = 1.0f + 0x1p-12f;
  EXPECT_EQ(__fmul_rn(a, a), 1.0f + 0x1p-11f);
  EXPECT_EQ(__fmaf_rn(a, a, -1.0f - 0x1p-11f), 0x1p-24f);
  EXPECT_EQ(__fadd_rn(1.0f, 0x1p-25f), 1.0f);
  EXPECT_EQ(__fsub_rn(1.0f, 0x1p-25f), 1.0f);
  EXPECT_EQ(__fdiv_rn(1.0f, 3.0f), 1.0f / 3.0f);
  EXPECT_EQ(__fdividef(1.0f, 3.0f), 1.0f / 3.0f);
  EXPECT_EQ(__frcp_rn(3.0f), 1.0f / 3.0f);
  EXPECT_EQ(__fsqrt_rn(2.0f), std::sqrt(2.0f));
  EXPECT_EQ(rsqrtf(4.0f), 0.5f);
  EXPECT_EQ(rsqrtf(0.0f), kInf);
  EXPECT_EQ(__expf(0.0f), 1.0f);
  EXPECT_EQ(__logf(1.0f), 0.0f);
  EXPECT_EQ(__saturatef(-1.0f), 0.0f);
  EXPECT_EQ(__saturatef(0.25f), 0.25f);
  EXPECT_EQ(__saturatef(kNan), 0.0f);
}

TEST(CudaShimIntrinsicsTest, MinAndMaxTakeTheDevicesTypes) {
  EXPECT_EQ(min(3, -2), -2);
  EXPECT_EQ(max(3, -2), 3);
  EXPECT_EQ(max(3u, 5), 5u);
  EXPECT_EQ(min(3ll, -2ll), -2ll);
  EXPECT_EQ(max(1.0f, kNan), 1.0f);
  EXPECT_EQ(min(kNan, 2.0f), 2.0f);
  EXPECT_EQ(max(1.0f, 2.5), 2.5);
}

TEST(CudaShimIntrinsicsTest, AtomicsGiveBackTheOldValue) {
  int i = 5;
  EXPECT_EQ(atomicAdd(&i, 3), 5);
  EXPECT_EQ(atomicSub(&i, 10), 8);
  EXPECT_EQ(atomicMax(&i, 4), -2);
  EXPECT_EQ(atomicMin(&i, 7), 4);
  EXPECT_EQ(atomicExch(&i, 12), 4);
  EXPECT_EQ(atomicAnd(&i, 10), 12);
  EXPECT_EQ(atomicOr(&i, 1), 8);
  EXPECT_EQ(atomicXor(&i, 3), 9);
  EXPECT_EQ(atomicCAS(&i, 9, 1), 10);
  EXPECT_EQ(atomicCAS(&i, 10, 1), 10);
  EXPECT_EQ(i, 1);
  unsigned int u = 2;
  EXPECT_EQ(atomicInc(&u, 3), 2u);
  EXPECT_EQ(atomicInc(&u, 3), 3u);
  EXPECT_EQ(u, 0u);
  unsigned long long l = 1ull << 40;
  EXPECT_EQ(atomicMax(&l, 5ull), 1ull << 40);
  EXPECT_EQ(atomicCAS(&l, 1ull << 40, 7ull), 1ull << 40);
  EXPECT_EQ(l, 7ull);
  float f = 0.5f;
  EXPECT_EQ(atomicAdd(&f, 0.25f), 0.5f);
  EXPECT_EQ(f, 0.75f);
}

TEST(CudaShimIntrinsicsTest, VectorsAreLaidOutAsOnADevice) {
  EXPECT_EQ(sizeof(float4), 16u);
  EXPECT_EQ(alignof(float4), 16u);
  EXPECT_EQ(alignof(float2), 8u);
  EXPECT_EQ(sizeof(float3), 12u);
  EXPECT_EQ(alignof(float3), 4u);
  EXPECT_EQ(alignof(uchar4), 4u);
  EXPECT_EQ(alignof(ushort4), 8u);
  EXPECT_EQ(alignof(double2), 16u);
  const uint4 v = make_uint4(1, 2, 3, 4);
  EXPECT_EQ(v.x + 10 * v.y + 100 * v.z + 1000 * v.w, 4321u);
  const dim3 dim(7);
  EXPECT_EQ(dim.x * dim.y * dim.z, 7u);
}

}  // namespace
