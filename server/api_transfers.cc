// Files over the public API: data sets up, results down. File work runs on the file pool, one piece at a time.
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "proto/support/grpc_status.h"
#include "proto/support/status_macros.h"
#include "server/api_service.h"
#include "server/dataset_writer.h"
#include "server/stream_reactor.h"

namespace qst {
namespace {

constexpr std::size_t kPieceBytes = 256 * 1024;
constexpr std::size_t kMaxUploadPieceBytes = 1024 * 1024;

// Reads a folder's files in pieces. Used by one task at a time.
class ResultsReader {
 public:
  ResultsReader(std::string folder, std::vector<StoredFile> files)
      : folder_(std::move(folder)), files_(std::move(files)) {}

  // The next piece, or nothing at the end. An empty file is one piece without data.
  absl::StatusOr<std::optional<v1::DownloadResultsResponse>> Next() {
    if (next_file_ == files_.size()) return {std::nullopt};
    const StoredFile& file = files_[next_file_];
    const std::string path = absl::StrCat(folder_, "/", file.path);
    if (offset_ == 0) {
      stream_ = std::ifstream(path, std::ios::binary);
      if (!stream_) return absl::DataLossError(absl::StrCat("cannot open ", path));
    }
    v1::DownloadResultsResponse piece;
    piece.set_path(file.path);
    piece.set_file_size(file.size_bytes);
    const std::size_t size = std::min<std::uint64_t>(kPieceBytes, file.size_bytes - offset_);
    piece.mutable_data()->resize(size);
    if (size > 0 && !stream_.read(piece.mutable_data()->data(), static_cast<std::streamsize>(size))) {
      return absl::DataLossError(absl::StrCat(path, " is shorter than it was: ", file.size_bytes, " bytes announced"));
    }
    offset_ += size;
    if (offset_ == file.size_bytes) {
      ++next_file_;
      offset_ = 0;
    }
    return {std::move(piece)};
  }

 private:
  const std::string folder_;
  const std::vector<StoredFile> files_;
  std::size_t next_file_ = 0;
  std::uint64_t offset_ = 0;
  std::ifstream stream_;
};

// One upload. Each piece is written before the next one is read; deletes itself.
class UploadReactor : public grpc::ServerReadReactor<v1::UploadDatasetRequest> {
 public:
  UploadReactor(ControlLoop* loop, TaskPool* files, Coordinator* coordinator, const StoreLayout& layout,
                grpc::CallbackServerContext* context, v1::UploadDatasetResponse* response)
      : loop_(loop), files_(files), coordinator_(coordinator), layout_(layout), context_(context), response_(response) {
    StartRead(&request_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Post(files_->Post([this] { FinishWriting(); }));
    } else if (request_.has_header()) {
      if (has_header_) {
        End(absl::InvalidArgumentError("a second header in one upload"));
        return;
      }
      has_header_ = true;
      header_ = request_.header();
      Post(loop_->Post([this] { CheckHeader(); }));
    } else if (!has_header_) {
      End(absl::InvalidArgumentError("the first message of an upload must be its header"));
    } else if (request_.data().size() > kMaxUploadPieceBytes) {
      End(absl::InvalidArgumentError(
          absl::StrCat("data: must be at most ", kMaxUploadPieceBytes, " bytes, is ", request_.data().size())));
    } else {
      Post(files_->Post([this] { WritePiece(); }));
    }
  }
  // Reads end with the call; nothing else to do.
  void OnCancel() override {}
  void OnDone() override { delete this; }

 private:
  // One operation at a time: End comes once, since nothing else is begun beside it.
  void End(const absl::Status& status) { Finish(ToGrpcStatus(status)); }
  void Post(bool is_posted) {
    if (!is_posted) End(absl::UnavailableError("the coordinator has stopped"));
  }

  void CheckHeader() {
    absl::Status status = coordinator_->CheckAccepting();
    if (status.ok() && !header_.sha256().empty() && !IsSha256(header_.sha256())) {
      status = absl::InvalidArgumentError(
          absl::StrCat("sha256: must be 64 hex digits, is '", header_.sha256().substr(0, 80), "'"));
    }
    if (status.ok()) status = coordinator_->datasets().CheckName(header_.name(), header_.sha256());
    status.ok() ? Post(files_->Post([this] { CreateFile(); })) : End(status);
  }
  static bool IsSha256(const std::string& text) {
    return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isxdigit(c); });
  }
  void CreateFile() {
    auto writer = DatasetWriter::Create(layout_, header_.file_name());
    if (!writer.ok()) {
      End(writer.status());
      return;
    }
    writer_ = *std::move(writer);
    StartRead(&request_);
  }
  void WritePiece() {
    const absl::Status status = writer_->Append(request_.data());
    status.ok() ? StartRead(&request_) : End(status);
  }
  void FinishWriting() {
    if (writer_ == nullptr) {
      End(absl::InvalidArgumentError("the upload has no header"));
      return;
    }
    // Reads also end when the client goes away in the middle; half a file must not be taken for a whole one.
    if (context_->IsCancelled()) {
      End(absl::CancelledError("cancelled by the client"));
      return;
    }
    absl::StatusOr<ReceivedDataset> received = writer_->Finish(header_.sha256());
    if (!received.ok()) {
      End(received.status());
      return;
    }
    Post(loop_->Post([this, received = *std::move(received)] {
      if (context_->IsCancelled()) {
        End(absl::CancelledError("cancelled by the client"));
        return;
      }
      absl::StatusOr<v1::UploadDatasetResponse> added = coordinator_->datasets().Add(header_.name(), received);
      if (added.ok()) *response_ = *std::move(added);
      End(added.status());
    }));
  }

  ControlLoop* const loop_;
  TaskPool* const files_;
  Coordinator* const coordinator_;
  const StoreLayout layout_;
  grpc::CallbackServerContext* const context_;
  v1::UploadDatasetResponse* const response_;
  v1::UploadDatasetRequest request_;
  v1::UploadDatasetHeader header_;
  bool has_header_ = false;
  std::unique_ptr<DatasetWriter> writer_;
};

}  // namespace

grpc::ServerWriteReactor<v1::DownloadResultsResponse>* ApiService::DownloadResults(
    grpc::CallbackServerContext* /*context*/, const v1::DownloadResultsRequest* request) {
  auto* reactor = new StreamReactor<v1::DownloadResultsResponse>();
  const auto handle = reactor->handle();
  auto reader = std::make_shared<std::unique_ptr<ResultsReader>>();
  const auto read_next = [handle, reader] {
    absl::StatusOr<std::optional<v1::DownloadResultsResponse>> piece = (*reader)->Next();
    if (!piece.ok()) {
      handle->Deliver({}, piece.status());
    } else if (!piece->has_value()) {
      handle->Deliver({}, absl::OkStatus());
    } else {
      std::vector<v1::DownloadResultsResponse> pieces;
      pieces.push_back(**std::move(piece));
      handle->Deliver(std::move(pieces));
    }
  };
  const auto open = [this, handle, reader, read_next](const std::string& job_id) {
    const std::string folder = layout_.ResultsPath(job_id);
    absl::StatusOr<std::vector<StoredFile>> files = ListFiles(folder);
    if (files.ok() && files->empty()) {
      files = absl::FailedPreconditionError(absl::StrCat("job ", job_id, " has no results yet"));
    }
    if (!files.ok()) {
      handle->Deliver({}, files.status());
      return;
    }
    *reader = std::make_unique<ResultsReader>(folder, *std::move(files));
    read_next();
  };
  const auto stopped = [handle] { handle->Deliver({}, absl::UnavailableError("the coordinator has stopped")); };
  const auto fetch = [this, handle, reader, read_next, open, stopped, job_id = request->job_id()] {
    // The first time, the job must exist: only then is its id part of a path.
    const bool is_posted = *reader != nullptr ? files_->Post(read_next) : loop_->Post([=] {
      const absl::Status known = coordinator_->jobs().Get(job_id).status();
      if (!known.ok()) {
        handle->Deliver({}, known);
      } else if (!files_->Post([open, job_id] { open(job_id); })) {
        stopped();
      }
    });
    if (!is_posted) stopped();
  };
  reactor->Begin(fetch, nullptr);
  return reactor;
}

grpc::ServerReadReactor<v1::UploadDatasetRequest>* ApiService::UploadDataset(grpc::CallbackServerContext* context,
                                                                             v1::UploadDatasetResponse* response) {
  return new UploadReactor(loop_, files_, coordinator_, layout_, context, response);
}

}  // namespace qst
