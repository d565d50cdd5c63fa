// A pipeline of stages that are threads of the test, with layers that are quick to compute by hand.
#ifndef QST_WORKER_STREAM_TESTING_FAKE_PIPELINE_H_
#define QST_WORKER_STREAM_TESTING_FAKE_PIPELINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/device_memory.h"
#include "proto/support/status_macros.h"
#include "proto/support/status_matchers.h"
#include "worker/stream/gloo_transport.h"
#include "worker/stream/inproc_transport.h"
#include "worker/stream/live_stream.h"
#include "worker/stream/nccl_transport.h"
#include "worker/stream/stage_runner.h"
#include "worker/testing/test_device.h"

namespace qst {

constexpr std::int64_t kLayers = 6;
constexpr std::int64_t kWidth = 8;

// Layers that any split computes alike: each adds a number that depends on layer, channel and what came before.
// Computes on the host, whatever its device is.
class FakeStage : public Stage {
 public:
  FakeStage(const OpContext& ctx, std::int64_t first, std::int64_t count) : ctx_(ctx), first_(first), count_(count) {}

  absl::Status Forward(const TokenPass& pass, const MatrixView& residual, const HiddenStateSink& sink) override {
    if (before_pass) before_pass(pass);
    const std::int64_t bytes = residual.rows * residual.cols * 4;
    std::vector<float> x(static_cast<std::size_t>(residual.rows * residual.cols));
    const auto give = [&](std::int64_t layer) -> absl::Status {
      QST_RETURN_IF_ERROR(Upload(ctx_, x.data(), bytes, residual.data));
      return sink(layer, residual);
    };
    if (first_ == 0) {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = 0.1f * pass.tokens[i / kWidth] + 0.01f * (i % kWidth);
      QST_RETURN_IF_ERROR(give(0));
    }
    QST_RETURN_IF_ERROR(Download(ctx_, residual.data, bytes, x.data()));
    for (std::int64_t layer = first_ + 1; layer <= first_ + count_; ++layer) {
      if (layer == failing_layer && pass.id == failing_pass) return absl::ResourceExhaustedError("out of memory");
      for (float& value : x) value = value * 1.01f + 0.3f / layer;
      QST_RETURN_IF_ERROR(give(layer));
    }
    return absl::OkStatus();
  }
  std::int64_t hidden_size() const override { return kWidth; }
  std::int64_t first_layer() const override { return first_; }
  std::int64_t num_layers() const override { return count_; }

  std::function<void(const TokenPass&)> before_pass;
  std::int64_t failing_layer = -1;
  std::uint64_t failing_pass = 0;

 private:
  const OpContext ctx_;
  const std::int64_t first_;
  const std::int64_t count_;
};

inline std::vector<StageRange> Split(int num_stages) {
  std::vector<StageRange> ranges;
  for (int i = 0; i < num_stages; ++i) {
    const std::int64_t begin = i * kLayers / num_stages;
    ranges.push_back({begin, (i + 1) * kLayers / num_stages - begin});
  }
  return ranges;
}

inline std::vector<std::string> Names(int num_stages) {
  std::vector<std::string> names;
  for (int i = 0; i < num_stages; ++i) names.push_back(absl::StrCat("stage ", i, " on w", i));
  names.push_back("side network on w9");
  return names;
}

// Contexts of the ranks of one process: on a GPU each has a stream of its own.
class Contexts {
 public:
  explicit Contexts(DeviceType device) : threads_(1) {
    if (device == DeviceType::kCuda) device_ = &cuda::DeviceOf(*TestCuda::StreamOrNull());
  }
  OpContext Make() {
    if (device_ == nullptr) return OpContext{DeviceType::kCpu, &threads_, CpuIsa::kPortable, nullptr};
    streams_.push_back(device_->NewStream().value());
    return OpContext{DeviceType::kCuda, nullptr, CpuIsa::kAuto, streams_.back().get()};
  }

 private:
  ThreadPool threads_;
  cuda::Device* device_ = nullptr;
  std::vector<cuda::StreamPtr> streams_;
};

// How the ranks are connected.
enum class Way { kInProcess, kGloo, kNccl };

inline std::string WayName(Way way) {
  return way == Way::kInProcess ? "in process" : way == Way::kGloo ? "Gloo" : "NCCL";
}

// All that there are for ranks that are threads: NCCL wants a GPU for each of them, the shim does not.
inline std::vector<Way> Ways(DeviceType device) {
  std::vector<Way> ways = {Way::kInProcess, Way::kGloo};
  if (device == DeviceType::kCuda && absl::StrContains(cuda::DeviceOf(*TestCuda::StreamOrNull()).name(), "shim")) {
    ways.push_back(Way::kNccl);
  }
  return ways;
}

inline std::vector<std::unique_ptr<Transport>> Connect(int num_stages, Way way, Contexts& contexts) {
  const std::vector<std::string> names = Names(num_stages);
  const int size = num_stages + 1;
  std::vector<std::unique_ptr<Transport>> world(size);
  if (way == Way::kInProcess) {
    const auto hub = InprocHub::Create(names);
    for (int rank = 0; rank < size; ++rank) world[rank] = hub->Endpoint(rank);
    return world;
  }
  InMemoryKeyValueStore store;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    NcclOptions nccl_options;
    nccl_options.names = names;
    nccl_options.edges = PipelineEdges(num_stages);
    if (way == Way::kNccl) nccl_options.ctx = contexts.Make();
    threads.emplace_back([&, rank, nccl_options] {
      GlooOptions options;
      options.rank = rank;
      options.names = names;
      for (int peer = 0; peer < size; ++peer) {
        if (peer != rank) options.peers.push_back(peer);
      }
      auto gloo = GlooTransport::Create(options).value();
      QST_EXPECT_OK(gloo->Connect(store));
      if (way == Way::kGloo) {
        world[rank] = std::move(gloo);
        return;
      }
      auto nccl = NcclTransport::Create(std::move(gloo), nccl_options).value();
      QST_EXPECT_OK(nccl->Connect());
      world[rank] = std::move(nccl);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return world;
}

inline TokenPass MakePass(std::uint64_t id, int num_tokens) {
  TokenPass pass;
  pass.id = id;
  for (int i = 0; i < num_tokens; ++i) pass.tokens.push_back(static_cast<std::int32_t>(id * 100 + i));
  pass.offsets = {0, num_tokens / 2, num_tokens};
  return pass;
}

// Stages on threads, and the side's stream.
class Pipeline {
 public:
  // side_context: in which the side's stream hands out states; a new one if null.
  Pipeline(DeviceType device, int num_stages, Way way, DType wire_dtype = DType::kBF16,
           std::int64_t max_states_under_way = 0, const OpContext* side_context = nullptr)
      : contexts_(device), wire_dtype_(wire_dtype), max_states_under_way_(max_states_under_way) {
    world_ = Connect(num_stages, way, contexts_);
    for (const StageRange& range : Split(num_stages)) {
      stage_contexts_.push_back(contexts_.Make());
      stages_.push_back(std::make_unique<FakeStage>(stage_contexts_.back(), range.first_layer, range.num_layers));
    }
    results_.resize(num_stages);
    LiveStreamOptions options;
    options.stages = Split(num_stages);
    options.hidden_size = kWidth;
    options.wire_dtype = wire_dtype;
    options.max_pass_tokens = 64;
    options.ctx = side_context_ = side_context != nullptr ? *side_context : contexts_.Make();
    stream_ = LiveStream::Create(*world_.back(), options).value();
  }

  void Start() {
    for (int i = 0; i < static_cast<int>(stages_.size()); ++i) {
      runners_.emplace_back([this, i] {
        StageRunnerOptions options;
        options.num_stages = static_cast<int>(stages_.size());
        options.num_layers = kLayers;
        options.wire_dtype = wire_dtype_;
        options.max_pass_tokens = 64;
        options.max_states_under_way = max_states_under_way_;
        StageRunner runner(*stages_[i], *world_[i], stage_contexts_[i], options);
        results_[i] = runner.Run();
        if (results_[i].ok()) QST_EXPECT_OK(world_[i]->Close(absl::Seconds(10), ""));
      });
    }
  }

  void Join() {
    for (std::thread& runner : runners_) runner.join();
    runners_.clear();
  }

  ~Pipeline() {
    world_.back()->Abort(absl::CancelledError("test over"));
    Join();
  }

  LiveStream& stream() { return *stream_; }
  const OpContext& side_context() const { return side_context_; }
  FakeStage& stage(int i) { return *stages_[i]; }
  Transport& transport(int rank) { return *world_[rank]; }
  const absl::Status& result(int i) { return results_[i]; }
  std::vector<std::unique_ptr<Transport>>& world() { return world_; }

 private:
  Contexts contexts_;
  std::vector<OpContext> stage_contexts_;
  OpContext side_context_;
  const DType wire_dtype_;
  const std::int64_t max_states_under_way_;
  std::vector<std::unique_ptr<Transport>> world_;
  std::vector<std::unique_ptr<FakeStage>> stages_;
  std::vector<absl::Status> results_;
  std::unique_ptr<LiveStream> stream_;
  std::vector<std::thread> runners_;
};

// The states' bytes, through an op in the side's context: what training does with them.
inline std::string BytesOf(const OpContext& ctx, const ConstMatrixView& states) {
  const std::int64_t num_bytes = states.rows * states.cols * DTypeBytes(states.dtype);
  std::string bytes(static_cast<std::size_t>(num_bytes), '\0');
  DeviceMemory copy = DeviceMemory::Allocate(ctx, num_bytes).value();
  QST_EXPECT_OK(CopyBytes(ctx, states.data, num_bytes, copy.data()));
  QST_EXPECT_OK(Download(ctx, copy.data(), num_bytes, bytes.data()));
  return bytes;
}

}  // namespace qst

#endif  // QST_WORKER_STREAM_TESTING_FAKE_PIPELINE_H_
