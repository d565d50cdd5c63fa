#include "worker/worker_options.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device.h"
#include "proto/support/status_matchers.h"
#include "worker/worker_address.h"
#include "worker/worker_memory.h"

namespace qst {
namespace {

using testing::HasSubstr;

absl::StatusOr<WorkerOptions> Resolve(std::vector<const char*> args) {
  args.insert(args.begin(), "qst-worker");
  const auto flags = ParseWorkerFlags(static_cast<int>(args.size()), args.data());
  if (!flags.ok()) return flags.status();
  return ResolveWorkerOptions(*flags);
}

TEST(WorkerOptionsTest, CompleteCommandLineIsTaken) {
  const std::string store = "--store=" + testing::TempDir();
  const auto options = Resolve({"--coordinator", "127.0.0.1:7310", store.c_str(), "--threads=3", "--isa=portable",
                                "--id=w7", "--data_host=127.0.0.2"});
  QST_ASSERT_OK(options);
  EXPECT_EQ(options->coordinator, "127.0.0.1:7310");
  EXPECT_EQ(options->id, "w7");
  EXPECT_EQ(options->compute.num_threads, 3);
  EXPECT_EQ(options->compute.isa, CpuIsa::kPortable);
  EXPECT_EQ(options->data_address.host, "127.0.0.2");
}

TEST(WorkerOptionsTest, LeftOutFlagsHaveDefaults) {
  const std::string store = "--store=" + testing::TempDir();
  const auto options = Resolve({"--coordinator=127.0.0.1:7310", store.c_str()});
  QST_ASSERT_OK(options);
  EXPECT_GE(options->compute.num_threads, 1);
  EXPECT_FALSE(options->id.empty());
  EXPECT_EQ(options->compute.gpu.has_value(), cuda::Device::Count() > 0);
  EXPECT_EQ(options->compute.gpu_memory_bytes, 0);
  EXPECT_EQ(options->data_address.host, "127.0.0.1");
}

TEST(WorkerOptionsTest, WrongFlagsAreNamed) {
  struct Case {
    std::vector<const char*> args;
    std::string message;
  };
  const std::string store_arg = "--store=" + testing::TempDir();
  const char* const store = store_arg.c_str();
  const char* const coordinator = "--coordinator=127.0.0.1:1";
  for (const Case& c : std::vector<Case>{{{}, "--coordinator is required"},
                                         {{coordinator}, "--store is required"},
                                         {{coordinator, "--store=/no/such/folder"}, "/no/such/folder"},
                                         {{"--coordinator=nowhere", store}, "HOST:PORT"},
                                         {{coordinator, store, "--threads=-1"}, "--threads"},
                                         {{coordinator, store, "--threads=two"}, "\"two\" is not a number"},
                                         {{coordinator, store, "--isa=sse9"}, "--isa"},
                                         {{coordinator, store, "--device=tpu"}, "--device: \"tpu\" is none of"},
                                         {{coordinator, store, "--device=cuda"}, "\"cuda\" is none of"},
                                         {{coordinator, store, "--device=cuda:"}, "\"cuda:\" is none of"},
                                         {{coordinator, store, "--device=cuda:-1"}, "\"cuda:-1\" is none of"},
                                         {{coordinator, store, "--device=cuda:1x"}, "\"cuda:1x\" is none of"},
                                         {{coordinator, store, "--device=cpu", "--device_memory=1GB"}, "goes with"},
                                         {{coordinator, store, "--device_memory=0"}, "--device_memory: \"0\" is no"},
                                         {{coordinator, store, "--device_memory=-1GB"}, "\"-1GB\" is no"},
                                         {{coordinator, store, "--device_memory=GB"}, "\"GB\" is no"},
                                         {{coordinator, store, "--device_memory=nanGB"}, "\"nanGB\" is no"},
                                         {{coordinator, store, "--device_memory=1e30"}, "\"1e30\" is no"},
                                         {{coordinator, store, "--device_memory=20 apples"}, "\"20 apples\" is no"},
                                         {{coordinator, store, "--log_level=loud"}, "--log_level"},
                                         {{coordinator, store, "--colour=red"}, "unknown flag --colour"},
                                         {{coordinator, coordinator}, "--coordinator is given twice"},
                                         {{coordinator, store, "--id"}, "--id needs a value"},
                                         {{"w0"}, "unexpected argument \"w0\""},
                                         {{coordinator, store, "--data_host=a", "--data_interface=b"}, "exclude"}}) {
    EXPECT_THAT(Resolve(c.args), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)));
  }
}

TEST(WorkerOptionsTest, DeviceIsANumberedGpuOrTheCpu) {
  const std::string store_arg = "--store=" + testing::TempDir();
  const auto resolve = [&](const char* device) {
    return Resolve({"--coordinator=127.0.0.1:1", store_arg.c_str(), device});
  };
  EXPECT_EQ(resolve("--device=cpu")->compute.gpu, std::nullopt);
  EXPECT_EQ(resolve("--device=cuda:0")->compute.gpu, 0);
  EXPECT_EQ(resolve("--device=cuda:13")->compute.gpu, 13);
}

TEST(WorkerOptionsTest, DeviceMemoryIsGivenInUnits) {
  const std::string store_arg = "--store=" + testing::TempDir();
  for (const auto& [text, bytes] : std::vector<std::pair<std::string, std::int64_t>>{{"1234567", 1234567},
                                                                                     {"20GB", 20000000000},
                                                                                     {"1.5GiB", 1610612736},
                                                                                     {"3KiB", 3072},
                                                                                     {"512MB", 512000000},
                                                                                     {"1TB", 1000000000000}}) {
    const std::string flag = "--device_memory=" + text;
    const auto options = Resolve({"--coordinator=127.0.0.1:1", store_arg.c_str(), "--device=cuda:0", flag.c_str()});
    QST_ASSERT_OK(options);
    EXPECT_EQ(options->compute.gpu_memory_bytes, bytes) << text;
  }
}

TEST(WorkerOptionsTest, HelpNamesEveryFlag) {
  const std::string usage = WorkerUsage();
  for (const char* flag :
       {"coordinator", "store", "id", "threads", "device", "device_memory", "isa", "data_interface", "data_host"}) {
    EXPECT_THAT(usage, HasSubstr(std::string("--") + flag + "="));
  }
}

TEST(WorkerAddressTest, HostsAndPortsAreSplit) {
  EXPECT_EQ(SplitHostPort("a.b:80")->first, "a.b");
  EXPECT_EQ(SplitHostPort("[::1]:80")->first, "::1");
  EXPECT_EQ(SplitHostPort("[::1]:80")->second, "80");
  for (const char* wrong : {"", "a", ":80", "a:", "a:0", "a:65536", "a:b", "::1:80", "[::1:80", "[]:80"}) {
    EXPECT_THAT(SplitHostPort(wrong), StatusIs(absl::StatusCode::kInvalidArgument)) << wrong;
  }
}

TEST(WorkerAddressTest, LoopbackIsReachedFromLoopback) {
  EXPECT_EQ(*LocalAddressTowards("localhost", "80"), "127.0.0.1");
  const auto address = LocalAddressTowards("127.0.0.1", "80");
  QST_ASSERT_OK(address);
  EXPECT_EQ(*address, "127.0.0.1");
}

TEST(WorkerMemoryTest, ResidentMemoryIsRead) {
  const ProcessMemory memory = ReadProcessMemory();
  EXPECT_GT(memory.resident_bytes, 1 << 20);
  EXPECT_GE(memory.peak_bytes, memory.resident_bytes);
  EXPECT_GT(MachineMemoryBytes(), memory.resident_bytes);
  EXPECT_EQ(FormatMegabytes(142300000), "142.3 MB");
  EXPECT_EQ(FormatBytes(142300000), "142.3 MB");
  EXPECT_EQ(FormatBytes(70040000000), "70.0 GB");
}

}  // namespace
}  // namespace qst
