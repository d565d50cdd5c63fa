// The conversations of prompt_template.h: one renderer for each way in which templates put turns together.
#ifndef QST_WORKER_TEXT_PROMPT_TURNS_H_
#define QST_WORKER_TEXT_PROMPT_TURNS_H_

#include <string>
#include <vector>

#include "worker/text/prompt_template.h"

namespace qst {

// With `wants_answer`, ends with what stands before the next answer.
std::vector<PromptSegment> RenderTurns(const PromptFormat& format, const std::vector<ChatMessage>& messages,
                                       bool wants_answer);

// Alpaca and plain: texts before each question, before its input and before the answer.
struct PromptFrame {
  std::string introduction;
  std::string before_question;
  std::string before_input;
  std::string before_answer;
};
PromptFrame PromptFrameOf(PromptTemplate name, bool has_input);

}  // namespace qst

#endif  // QST_WORKER_TEXT_PROMPT_TURNS_H_
