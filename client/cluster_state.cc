#include "client/cluster_state.h"

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/atomic_file.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;
constexpr size_t kMaxBytes = 1 << 20;

std::string StatePath(const std::string& store) { return store + "/cluster.json"; }

std::string CurrentPath(const GetEnv& getenv) {
  const std::string folder = DefaultStore(getenv);
  return folder.empty() ? "" : folder + "/current_cluster";
}

}  // namespace

const ClusterMember* ClusterState::Find(const std::string& name) const {
  for (const ClusterMember& member : members) {
    if (member.name == name) return &member;
  }
  return nullptr;
}

bool ClusterState::IsMemberAlive(const std::string& name) const {
  const ClusterMember* member = Find(name);
  return member != nullptr && boot_id == BootId() && IsAlive(member->process);
}

std::string DefaultStore(const GetEnv& getenv) {
  const std::string data = getenv("XDG_DATA_HOME").value_or("");
  if (!data.empty()) return data + "/qst";
  const std::string home = getenv("HOME").value_or("");
  return home.empty() ? "" : home + "/.local/share/qst";
}

absl::StatusOr<std::optional<ClusterState>> LoadClusterState(const std::string& store) {
  const absl::StatusOr<std::string> text = ReadFile(StatePath(store), kMaxBytes);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  if (!text.ok()) return text.status();
  ClusterState state;
  try {
    const Json json = Json::parse(*text);
    if (json.at("version").get<int>() != kVersion) {
      return absl::DataLossError(absl::StrCat(StatePath(store), ": written by another version of qst"));
    }
    state.store = json.at("store").get<std::string>();
    state.address = json.at("address").get<std::string>();
    state.listen = json.at("listen").get<std::string>();
    state.boot_id = json.at("boot_id").get<std::string>();
    state.threads_per_worker = json.at("threads_per_worker").get<uint64_t>();
    // Absent in files of before there were GPUs.
    state.device = json.value("device", "cpu");
    state.num_gpus = json.value("gpus", uint64_t{1});
    for (const Json& item : json.at("members")) {
      state.members.push_back({item.at("name").get<std::string>(),
                               {item.at("pid").get<pid_t>(), item.at("start_ticks").get<uint64_t>()},
                               item.at("log").get<std::string>()});
    }
  } catch (const std::exception&) {
    return absl::DataLossError(absl::StrCat(StatePath(store), ": damaged; if no cluster runs there, remove the file"));
  }
  return std::optional<ClusterState>(std::move(state));
}

absl::Status SaveClusterState(const ClusterState& state) {
  Json json;
  json["version"] = kVersion;
  json["store"] = state.store;
  json["address"] = state.address;
  json["listen"] = state.listen;
  json["boot_id"] = state.boot_id;
  json["threads_per_worker"] = state.threads_per_worker;
  json["device"] = state.device;
  json["gpus"] = state.num_gpus;
  json["members"] = Json::array();
  for (const ClusterMember& member : state.members) {
    json["members"].push_back({{"name", member.name},
                               {"pid", member.process.pid},
                               {"start_ticks", member.process.start_ticks},
                               {"log", member.log_path}});
  }
  return WriteFileAtomically(StatePath(state.store), json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::string CurrentStore(const GetEnv& getenv) {
  const std::string path = CurrentPath(getenv);
  if (path.empty()) return "";
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxBytes);
  const std::string store = text.ok() ? std::string(absl::StripAsciiWhitespace(*text)) : "";
  return store.empty() ? DefaultStore(getenv) : store;
}

absl::Status SetCurrentStore(const GetEnv& getenv, const std::string& store) {
  const std::string folder = DefaultStore(getenv);
  if (folder.empty()) return absl::FailedPreconditionError("neither XDG_DATA_HOME nor HOME is set");
  QST_RETURN_IF_ERROR(MakeFolders(folder));
  return WriteFileAtomically(CurrentPath(getenv), store + "\n");
}

std::optional<std::string> CurrentAddress(const GetEnv& getenv) {
  const std::string store = CurrentStore(getenv);
  if (store.empty()) return std::nullopt;
  const auto state = LoadClusterState(store);
  if (!state.ok() || !state->has_value()) return std::nullopt;
  // With workers alive, a dead coordinator will come back there.
  for (const ClusterMember& member : (*state)->members) {
    if ((*state)->IsMemberAlive(member.name)) return (*state)->address;
  }
  return std::nullopt;
}

}  // namespace qst
