// What every transport must do; each implementation's test instantiates this suite with its own world.
#ifndef QST_WORKER_STREAM_TRANSPORT_TEST_BASE_H_
#define QST_WORKER_STREAM_TRANSPORT_TEST_BASE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/stream/transport.h"

namespace qst {

using World = std::vector<std::unique_ptr<Transport>>;

struct TransportTestParam {
  std::string name;
  // Connected ends of `world_size` ranks, named "rank 0 on test", "rank 1 on test", ...
  std::function<World(int world_size)> make;
  bool hands_over_buffers = false;     // no copy between ranks 0 and 1
  bool carries_device_memory = false;  // between ranks 0 and 1
  // Why there can be no world here; empty if there can. Null: always.
  std::function<std::string()> why_not = nullptr;
};

class TransportTest : public testing::TestWithParam<TransportTestParam> {
 protected:
  void SetUp() override {
    const std::string why_not = GetParam().why_not ? GetParam().why_not() : "";
    if (!why_not.empty()) GTEST_SKIP() << why_not;
  }
  World Make(int world_size) { return GetParam().make(world_size); }
  SharedBuffer Bytes(const std::string& text);
  static std::string Text(const SharedBuffer& buffer) {
    return std::string(reinterpret_cast<const char*>(buffer->data()), buffer->size());
  }
  std::shared_ptr<BufferPool> pool_ = BufferPool::Create();
};

std::vector<std::string> TestNames(int world_size);

}  // namespace qst

#endif  // QST_WORKER_STREAM_TRANSPORT_TEST_BASE_H_
