// Shows a job's events as they come: as JSON lines, as a live display, or as plain lines.
#ifndef QST_CLIENT_JOB_REPORTER_H_
#define QST_CLIENT_JOB_REPORTER_H_

#include <cstdint>
#include <ostream>
#include <string>

#include "client/live_line.h"
#include "client/progress_view.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {

struct ReporterOptions {
  bool json = false;
  bool is_terminal = false;
  // Columns of the terminal.
  int width = 80;
};

// Permanent lines: state changes (on a terminal, but for running and evaluating, which the refreshed line shows),
// evaluations, messages. Progress: refreshed in place on a terminal; else a line
// whenever another tenth of the steps is done, or 5 s (by the events' own times) have passed.
class JobReporter {
 public:
  JobReporter(std::ostream& out, const ReporterOptions& options);

  void OnEvent(const v1::JobEvent& event);
  // A line about the watching itself, such as a lost connection; left out of JSON.
  void OnNotice(const std::string& notice);
  // Takes the live line away.
  void Finish();

  // UNSPECIFIED before the first state event.
  v1::JobState state() const { return view_.state; }
  const std::string& status_message() const { return view_.status_message; }
  const JobView& view() const { return view_; }

 private:
  void OnState(const v1::StateChange& change);
  void OnProgress(int64_t time_ms);

  std::ostream& out_;
  const ReporterOptions options_;
  LiveLine live_;
  JobView view_;
  int64_t last_progress_ms_ = 0;
  int last_tenth_ = -1;
};

}  // namespace qst

#endif  // QST_CLIENT_JOB_REPORTER_H_
