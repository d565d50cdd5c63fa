#include <cuda_runtime.h>
#include <nccl.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/testing/cuda_shim/shim_test_util.h"

namespace qst::cuda_shim {
namespace {

constexpr std::size_t kSize = 1000;

// The state once nothing is in progress.
ncclResult_t Settled(ncclComm_t comm) {
  ncclResult_t result = ncclInProgress;
  while (result == ncclInProgress) {
    EXPECT_EQ(ncclCommGetAsyncError(comm, &result), ncclSuccess);
    std::this_thread::yield();
  }
  return result;
}

// Two ranks of this thread, each with a stream.
class ShimNcclTest : public testing::TestWithParam<std::string> {
 protected:
  ShimNcclTest() : mode_("QST_CUDA_SHIM_ASYNC", GetParam()) {}

  void SetUp() override {
    ncclUniqueId id;
    ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    for (const int rank : {0, 1}) {
      ASSERT_EQ(cudaStreamCreateWithFlags(&streams_[rank], cudaStreamNonBlocking), cudaSuccess);
      ASSERT_EQ(ncclCommInitRankConfig(&comms_[rank], 2, id, rank, &config), ncclInProgress);
    }
    for (const int rank : {0, 1}) ASSERT_EQ(Settled(comms_[rank]), ncclSuccess);
  }
  void TearDown() override {
    for (const int rank : {0, 1}) {
      ncclCommAbort(comms_[rank]);
      cudaStreamSynchronize(streams_[rank]);
      cudaStreamDestroy(streams_[rank]);
    }
  }
  void Abort(int rank) {
    ncclCommAbort(comms_[rank]);
    comms_[rank] = nullptr;
  }

  ncclResult_t Send(int rank, const DeviceArray<unsigned char>& from) {
    return ncclSend(from.data(), from.bytes(), ncclUint8, 1 - rank, comms_[rank], streams_[rank]);
  }
  ncclResult_t Receive(int rank, const DeviceArray<unsigned char>& to) {
    return ncclRecv(to.data(), to.bytes(), ncclUint8, 1 - rank, comms_[rank], streams_[rank]);
  }
  bool IsIdle(int rank) { return cudaStreamQuery(streams_[rank]) == cudaSuccess; }

  const ScopedEnvironment mode_;
  ncclComm_t comms_[2] = {};
  cudaStream_t streams_[2] = {};
};

INSTANTIATE_TEST_SUITE_P(Modes, ShimNcclTest, testing::Values("0", "1", "late", "early"),
                         [](const testing::TestParamInfo<std::string>& info) { return "Async" + info.param; });

std::vector<unsigned char> Filled(unsigned char value) { return std::vector<unsigned char>(kSize, value); }

TEST_P(ShimNcclTest, MessagesArriveInOrderOnceBothSidesHaveLaunched) {
  const DeviceArray<unsigned char> first(Filled(1)), second(Filled(2)), a(Filled(0)), b(Filled(0));
  ASSERT_EQ(Send(0, first), ncclInProgress);
  ncclResult_t result = ncclSuccess;
  for (int i = 0; i < 10; ++i) {
    ASSERT_EQ(ncclCommGetAsyncError(comms_[0], &result), ncclSuccess);
    EXPECT_EQ(result, ncclInProgress) << "the peer has launched nothing";
  }
  EXPECT_EQ(Send(0, second), ncclInvalidArgument) << "the call before is in progress";
  ASSERT_EQ(Receive(1, a), ncclInProgress);
  ASSERT_EQ(Settled(comms_[0]), ncclSuccess);
  ASSERT_EQ(Settled(comms_[1]), ncclSuccess);
  ASSERT_EQ(Send(0, second), ncclInProgress);
  ASSERT_EQ(Settled(comms_[0]), ncclSuccess);
  ASSERT_EQ(Receive(1, b), ncclInProgress);
  ASSERT_EQ(Settled(comms_[1]), ncclSuccess);
  while (!IsIdle(0) || !IsIdle(1)) {
  }
  EXPECT_EQ(a.Get(), Filled(1));
  EXPECT_EQ(b.Get(), Filled(2));
}

TEST_P(ShimNcclTest, SendsOfAGroupMeetSingleReceives) {
  const DeviceArray<unsigned char> first(Filled(1)), second(Filled(2)), a(Filled(0)), b(Filled(0));
  ASSERT_EQ(ncclGroupStart(), ncclSuccess);
  ASSERT_EQ(Send(0, first), ncclSuccess);
  ASSERT_EQ(Send(0, second), ncclSuccess);
  ASSERT_EQ(ncclGroupEnd(), ncclInProgress);
  ASSERT_EQ(Receive(1, a), ncclInProgress);
  ASSERT_EQ(Settled(comms_[0]), ncclSuccess);
  ASSERT_EQ(Settled(comms_[1]), ncclSuccess);
  ASSERT_EQ(Receive(1, b), ncclInProgress);
  ASSERT_EQ(Settled(comms_[1]), ncclSuccess);
  while (!IsIdle(0) || !IsIdle(1)) {
  }
  EXPECT_EQ(a.Get(), Filled(1));
  EXPECT_EQ(b.Get(), Filled(2));
}

TEST_P(ShimNcclTest, SendWaitsForItsReceiveAndAbortLetsItGo) {
  const DeviceArray<unsigned char> first(Filled(1)), second(Filled(2)), a(Filled(0));
  ASSERT_EQ(Send(0, first), ncclInProgress);
  ASSERT_EQ(Receive(1, a), ncclInProgress);
  ASSERT_EQ(Settled(comms_[0]), ncclSuccess);
  ASSERT_EQ(Settled(comms_[1]), ncclSuccess);
  ASSERT_EQ(Send(0, second), ncclInProgress);
  ASSERT_EQ(Settled(comms_[0]), ncclSuccess);
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(IsIdle(0));
  Abort(0);
  EXPECT_EQ(cudaStreamSynchronize(streams_[0]), cudaSuccess);
}

TEST_P(ShimNcclTest, PeerThatIsGoneIsReportedAndHoldsUpItsReceives) {
  const DeviceArray<unsigned char> first(Filled(1)), a(Filled(0)), b(Filled(9));
  ASSERT_EQ(Send(0, first), ncclInProgress);
  ASSERT_EQ(Receive(1, a), ncclInProgress);
  ASSERT_EQ(Settled(comms_[0]), ncclSuccess);
  ASSERT_EQ(Settled(comms_[1]), ncclSuccess);
  ASSERT_EQ(Receive(1, b), ncclInProgress);
  ASSERT_EQ(Settled(comms_[1]), ncclSuccess);
  while (!IsIdle(0)) {
  }
  Abort(0);
  ncclResult_t result = ncclSuccess;
  while (result == ncclSuccess) ASSERT_EQ(ncclCommGetAsyncError(comms_[1], &result), ncclSuccess);
  EXPECT_EQ(result, ncclRemoteError);
  EXPECT_FALSE(IsIdle(1));
  Abort(1);
  EXPECT_EQ(cudaStreamSynchronize(streams_[1]), cudaSuccess);
  EXPECT_EQ(b.Get(), Filled(9));
}

TEST_P(ShimNcclTest, WrongSizesAndWrongMemoryAreReported) {
  const DeviceArray<unsigned char> half(std::vector<unsigned char>(kSize / 2, 1)), a(Filled(0));
  std::vector<unsigned char> host(kSize);
  EXPECT_EQ(ncclSend(host.data(), kSize, ncclUint8, 1, comms_[0], streams_[0]), ncclInvalidArgument);
  EXPECT_EQ(ncclSend(a.data(), kSize, ncclUint8, 0, comms_[0], streams_[0]), ncclInvalidArgument);
  ASSERT_EQ(Send(0, half), ncclInProgress);
  ASSERT_EQ(Receive(1, a), ncclInProgress);
  ASSERT_EQ(Settled(comms_[0]), ncclSuccess);
  ncclResult_t result = ncclSuccess;
  while (result == ncclSuccess || result == ncclInProgress) {
    IsIdle(0);
    IsIdle(1);
    ASSERT_EQ(ncclCommGetAsyncError(comms_[1], &result), ncclSuccess);
  }
  EXPECT_EQ(result, ncclInvalidUsage);
}

TEST_P(ShimNcclTest, RanksThatFinalizeLeaveInPeace) {
  const DeviceArray<unsigned char> first(Filled(1)), a(Filled(0));
  ASSERT_EQ(Send(0, first), ncclInProgress);
  ASSERT_EQ(Receive(1, a), ncclInProgress);
  for (const int rank : {0, 1}) ASSERT_EQ(Settled(comms_[rank]), ncclSuccess);
  while (!IsIdle(0) || !IsIdle(1)) {
  }
  ASSERT_EQ(ncclCommFinalize(comms_[0]), ncclInProgress);
  ASSERT_EQ(Settled(comms_[0]), ncclSuccess);
  ASSERT_EQ(ncclCommDestroy(comms_[0]), ncclSuccess);
  comms_[0] = nullptr;
  ASSERT_EQ(ncclCommFinalize(comms_[1]), ncclInProgress);
  ASSERT_EQ(Settled(comms_[1]), ncclSuccess);
  ASSERT_EQ(ncclCommDestroy(comms_[1]), ncclSuccess);
  comms_[1] = nullptr;
  EXPECT_EQ(a.Get(), Filled(1));
}

TEST(ShimNcclInitTest, ConfigMustBeInitialized) {
  ncclUniqueId id;
  ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
  ncclConfig_t config = {};
  ncclComm_t comm = nullptr;
  EXPECT_EQ(ncclCommInitRankConfig(&comm, 2, id, 0, &config), ncclInvalidArgument);
  EXPECT_EQ(ncclCommInitRankConfig(&comm, 3, id, 0, nullptr), ncclInvalidArgument);
  EXPECT_NE(std::string(ncclGetLastError(nullptr)), "");
}

TEST(ShimNcclInitTest, AbortEndsTheWaitForAPeerThatNeverComes) {
  for (const int rank : {0, 1}) {
    ncclUniqueId id;
    ASSERT_EQ(ncclGetUniqueId(&id), ncclSuccess);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t comm = nullptr;
    ASSERT_EQ(ncclCommInitRankConfig(&comm, 2, id, rank, &config), ncclInProgress);
    ncclResult_t result = ncclSuccess;
    ASSERT_EQ(ncclCommGetAsyncError(comm, &result), ncclSuccess);
    EXPECT_EQ(result, ncclInProgress);
    EXPECT_EQ(ncclCommAbort(comm), ncclSuccess);
  }
}

}  // namespace
}  // namespace qst::cuda_shim
