#include "worker/stream/inproc_transport.h"

#include "proto/support/status_matchers.h"
#include "worker/stream/transport_test_base.h"

namespace qst {
namespace {

World MakeWorld(int world_size) {
  const auto hub = InprocHub::Create(TestNames(world_size));
  World world;
  for (int rank = 0; rank < world_size; ++rank) world.push_back(hub->Endpoint(rank));
  return world;
}

INSTANTIATE_TEST_SUITE_P(Inproc, TransportTest, testing::Values(TransportTestParam{"inproc", MakeWorld, true, true}));

TEST(InprocTransportTest, MessageOfAnotherSizeFailsTheCommunicator) {
  World world = MakeWorld(2);
  SharedBuffer buffer = BufferPool::Create()->Get(3).value();
  QST_ASSERT_OK(world[0]->Send(1, 1, std::move(buffer)));
  EXPECT_THAT(world[1]->Receive(0, 1, 4).value()->Wait(absl::Seconds(5)),
              StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("rank 0 on test sent 3 bytes where 4")));
  EXPECT_THAT(world[0]->status(), StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace qst
