#include "client/resolve.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/nearest_name.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

// Ids are random: what a user means lies among the newest ones.
constexpr uint32_t kMaxJobs = 10000;

bool IsFullId(absl::string_view text) {
  return text.size() == 10 && absl::StartsWith(text, "j-") && std::all_of(text.begin() + 2, text.end(), [](char c) {
           return absl::ascii_isxdigit(c) && !absl::ascii_isupper(c);
         });
}

}  // namespace

absl::StatusOr<std::string> ResolveJob(absl::string_view text, const std::vector<v1::Job>& jobs) {
  std::vector<std::string> names, beginnings;
  for (const v1::Job& job : jobs) {
    if (job.id() == text) return job.id();
    names.push_back(job.spec().name());
  }
  for (const v1::Job& job : jobs) {
    if (job.spec().name() == text) return job.id();
    if (!text.empty() && (absl::StartsWith(job.id(), text) || absl::StartsWith(job.id(), absl::StrCat("j-", text)))) {
      beginnings.push_back(job.id());
    }
  }
  if (beginnings.size() == 1) return beginnings[0];
  if (beginnings.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", text, "' is the beginning of several jobs: ", absl::StrJoin(beginnings, ", "), "; write more of the id"));
  }
  const std::string hint = DidYouMean(text, names);
  return absl::NotFoundError(
      absl::StrCat("no job has the id or name '", text, "'", hint.empty() ? "; `qst jobs` lists all" : hint));
}

absl::StatusOr<std::string> ResolveJob(absl::string_view text, CoordinatorClient& client) {
  if (IsFullId(text)) return std::string(text);
  v1::ListJobsRequest request;
  request.set_limit(kMaxJobs);
  QST_ASSIGN_OR_RETURN(const v1::ListJobsResponse response, client.ListJobs(request));
  return ResolveJob(text, std::vector<v1::Job>(response.jobs().begin(), response.jobs().end()));
}

absl::StatusOr<std::string> ResolveDataset(const std::string& text, CoordinatorClient& client) {
  QST_ASSIGN_OR_RETURN(const v1::ListDatasetsResponse response, client.ListDatasets());
  std::vector<std::string> beginnings;
  for (const v1::Dataset& dataset : response.datasets()) {
    if (dataset.name() == text || dataset.id() == text) return text;
    if (text.size() >= 6 && absl::StartsWith(dataset.id(), text)) beginnings.push_back(dataset.id());
  }
  std::sort(beginnings.begin(), beginnings.end());
  beginnings.erase(std::unique(beginnings.begin(), beginnings.end()), beginnings.end());
  return beginnings.size() == 1 ? beginnings[0] : text;
}

}  // namespace qst
