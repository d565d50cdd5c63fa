// Sets of code points as the Hugging Face library knows them, ascending and not touching each other.
// Made by tests/oracle/unicode_tables.py.
#ifndef QST_WORKER_TEXT_UNICODE_TABLES_H_
#define QST_WORKER_TEXT_UNICODE_TABLES_H_

#include <cstddef>
#include <cstdint>

namespace qst {

struct CodePointRange {
  uint32_t first;
  uint32_t last;  // included
};

// \p{L}, \p{N} and \s of its patterns.
extern const CodePointRange kLetterRanges[];
extern const size_t kLetterRangesSize;
extern const CodePointRange kNumberRanges[];
extern const size_t kNumberRangesSize;
extern const CodePointRange kSpaceRanges[];
extern const size_t kSpaceRangesSize;

// Letters and numbers that came after Unicode 14.
extern const CodePointRange kNewLetterRanges[];
extern const size_t kNewLetterRangesSize;
extern const CodePointRange kNewNumberRanges[];
extern const size_t kNewNumberRangesSize;

// What StripAccents removes.
extern const CodePointRange kMarkRanges[];
extern const size_t kMarkRangesSize;

// Characters that its normal forms leave alone because they are younger than its tables.
extern const CodePointRange kInertRanges[];
extern const size_t kInertRangesSize;

}  // namespace qst

#endif  // QST_WORKER_TEXT_UNICODE_TABLES_H_
