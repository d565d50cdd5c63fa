// Writes permanent lines and, on a terminal, one line below them that is refreshed in place.
#ifndef QST_CLIENT_LIVE_LINE_H_
#define QST_CLIENT_LIVE_LINE_H_

#include <ostream>
#include <string>

namespace qst {

// Not thread-safe. The destructor takes the refreshed line away.
class LiveLine {
 public:
  LiveLine(std::ostream& out, bool is_terminal) : out_(out), is_terminal_(is_terminal) {}
  ~LiveLine() { Clear(); }
  LiveLine(const LiveLine&) = delete;
  LiveLine& operator=(const LiveLine&) = delete;

  void Print(const std::string& line) {
    Erase();
    out_ << line << '\n';
    Draw();
  }

  // Nothing where there is no terminal.
  void Refresh(const std::string& line) {
    if (!is_terminal_ || line == live_) return;
    live_ = line;
    Erase();
    Draw();
  }

  void Clear() {
    Erase();
    live_.clear();
    out_.flush();
  }

 private:
  void Erase() {
    if (is_terminal_ && drawn_) out_ << "\r\x1b[K";
    drawn_ = false;
  }
  void Draw() {
    if (is_terminal_ && !live_.empty()) {
      out_ << live_;
      drawn_ = true;
    }
    out_.flush();
  }

  std::ostream& out_;
  const bool is_terminal_;
  bool drawn_ = false;
  std::string live_;
};

}  // namespace qst

#endif  // QST_CLIENT_LIVE_LINE_H_
