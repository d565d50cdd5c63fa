#include "worker/checkpoint/torch_pickle.h"

#include <cstring>
#include <limits>
#include <unordered_map>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using Kind = TorchValue::Kind;

// Bounds on what a small file can make of itself. A checkpoint of a thousand layers has some ten thousand values, and a
// storage's key is a number of a few digits.
constexpr std::size_t kMaxValues = 4 << 20;
constexpr std::size_t kMaxDimensions = 8;
constexpr std::size_t kMaxKeyBytes = 64;

std::string Printable(absl::string_view text) { return absl::CHexEscape(text.substr(0, 120)); }

bool IsStorageType(absl::string_view global) {
  for (const absl::string_view type : {"Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte",
                                       "Bool"}) {
    if (global == absl::StrCat("torch.", type, "Storage") || global == absl::StrCat("torch.cuda.", type, "Storage")) {
      return true;
    }
  }
  return false;
}

bool IsDtypeConstant(absl::string_view global) {
  for (const absl::string_view type : {"float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8",
                                       "uint8", "bool"}) {
    if (global == absl::StrCat("torch.", type)) return true;
  }
  return false;
}

bool IsAllowed(absl::string_view global) {
  return global == "collections.OrderedDict" || global == "torch._utils._rebuild_tensor_v2" ||
         global == "torch._utils._rebuild_tensor" || global == "torch._utils._rebuild_parameter" ||
         global == "torch.Size" || IsStorageType(global) || IsDtypeConstant(global);
}

// Numbers of a tuple, as shapes and strides are given.
bool ReadNumbers(const TorchValue& tuple, std::vector<std::int64_t>* out) {
  if ((tuple.kind != Kind::kTuple && tuple.kind != Kind::kList) || tuple.items.size() > kMaxDimensions) return false;
  for (const TorchValue* item : tuple.items) {
    if (item->kind != Kind::kInt) return false;
    out->push_back(item->number);
  }
  return true;
}

}  // namespace

const TorchValue* TorchValue::Find(absl::string_view key) const {
  if (kind != Kind::kDict) return nullptr;
  for (std::size_t i = items.size(); i >= 2; i -= 2) {
    if (items[i - 2]->kind == Kind::kString && items[i - 2]->text == key) return items[i - 1];
  }
  return nullptr;
}

// The pickle machine: a stack of values, marks in it, and a memo.
class TorchUnpickler {
 public:
  TorchUnpickler(absl::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  absl::StatusOr<TorchPickle> Run() {
    for (;;) {
      QST_ASSIGN_OR_RETURN(const std::uint8_t op, Byte());
      if (op == '.') break;
      QST_RETURN_IF_ERROR(Step(op));
    }
    QST_ASSIGN_OR_RETURN(pickle_.root_, Pop());
    pickle_.num_bytes_ = at_;
    return std::move(pickle_);
  }

 private:
  template <typename... Parts>
  absl::Status Broken(const Parts&... parts) const {
    return absl::InvalidArgumentError(absl::StrCat(where_, ": byte ", at_, " of the pickle: ", parts...));
  }

  // ---- Reading bytes ----

  absl::StatusOr<absl::string_view> Take(std::uint64_t n) {
    if (n > bytes_.size() - at_) {
      return absl::DataLossError(absl::StrCat(where_, ": cut short: the pickle wants ", n, " bytes after byte ", at_,
                                              ", ", bytes_.size() - at_, " are left"));
    }
    const absl::string_view taken = bytes_.substr(at_, n);
    at_ += n;
    return taken;
  }
  absl::StatusOr<std::uint8_t> Byte() {
    QST_ASSIGN_OR_RETURN(const absl::string_view taken, Take(1));
    return static_cast<std::uint8_t>(taken[0]);
  }
  // Little-endian, n <= 8.
  absl::StatusOr<std::uint64_t> Unsigned(int n) {
    QST_ASSIGN_OR_RETURN(const absl::string_view taken, Take(n));
    std::uint64_t value = 0;
    for (int i = 0; i < n; ++i) value |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(taken[i])) << (8 * i);
    return value;
  }
  absl::StatusOr<absl::string_view> Counted(int length_bytes) {
    QST_ASSIGN_OR_RETURN(const std::uint64_t n, Unsigned(length_bytes));
    return Take(n);
  }
  absl::StatusOr<absl::string_view> Line() {
    const std::size_t end = bytes_.find('\n', at_);
    if (end == absl::string_view::npos) {
      return absl::DataLossError(absl::StrCat(where_, ": cut short: a line of the pickle does not end"));
    }
    const absl::string_view line = bytes_.substr(at_, end - at_);
    at_ = end + 1;
    return line;
  }

  // ---- Values and the stack ----

  absl::StatusOr<TorchValue*> New(Kind kind) {
    if (pickle_.values_.size() >= kMaxValues) return Broken("more than ", kMaxValues, " values");
    pickle_.values_.emplace_back();
    pickle_.values_.back().kind = kind;
    return &pickle_.values_.back();
  }
  absl::Status Push(TorchValue* value) {
    if (stack_.size() >= kMaxValues) return Broken("more than ", kMaxValues, " values on the stack");
    stack_.push_back(value);
    return absl::OkStatus();
  }
  absl::Status PushNew(Kind kind) {
    QST_ASSIGN_OR_RETURN(TorchValue * value, New(kind));
    return Push(value);
  }
  absl::Status PushInt(std::int64_t number) {
    QST_RETURN_IF_ERROR(PushNew(Kind::kInt));
    stack_.back()->number = number;
    return absl::OkStatus();
  }
  absl::Status PushText(Kind kind, absl::string_view text) {
    QST_RETURN_IF_ERROR(PushNew(kind));
    stack_.back()->text = std::string(text);
    return absl::OkStatus();
  }
  absl::StatusOr<TorchValue*> Pop() {
    if (stack_.empty() || (!marks_.empty() && stack_.size() <= marks_.back())) return Broken("the stack is empty");
    TorchValue* const value = stack_.back();
    stack_.pop_back();
    return value;
  }
  // What lies above the last mark.
  absl::StatusOr<std::vector<TorchValue*>> PopToMark() {
    if (marks_.empty()) return Broken("no mark on the stack");
    std::vector<TorchValue*> values(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return values;
  }
  // The container that follows items; it stays on the stack.
  absl::StatusOr<TorchValue*> Top(Kind kind, absl::string_view what) {
    if (stack_.empty() || (!marks_.empty() && stack_.size() <= marks_.back()) || stack_.back()->kind != kind) {
      return Broken("there is no ", what, " to add to");
    }
    return stack_.back();
  }
  absl::Status AddPairs(const std::vector<TorchValue*>& pairs) {
    QST_ASSIGN_OR_RETURN(TorchValue * dict, Top(Kind::kDict, "dictionary"));
    if (pairs.size() % 2 != 0) return Broken("a key without a value");
    if (dict->items.size() + pairs.size() > kMaxValues) return Broken("more than ", kMaxValues, " items");
    dict->items.insert(dict->items.end(), pairs.begin(), pairs.end());
    return absl::OkStatus();
  }
  absl::Status AddItems(const std::vector<TorchValue*>& items) {
    QST_ASSIGN_OR_RETURN(TorchValue * list, Top(Kind::kList, "list"));
    if (list->items.size() + items.size() > kMaxValues) return Broken("more than ", kMaxValues, " items");
    list->items.insert(list->items.end(), items.begin(), items.end());
    return absl::OkStatus();
  }
  absl::Status PushTuple(int size) {
    std::vector<TorchValue*> items(static_cast<std::size_t>(size));
    for (int i = size - 1; i >= 0; --i) {
      QST_ASSIGN_OR_RETURN(items[static_cast<std::size_t>(i)], Pop());
    }
    QST_RETURN_IF_ERROR(PushNew(Kind::kTuple));
    stack_.back()->items.assign(items.begin(), items.end());
    return absl::OkStatus();
  }

  // ---- What is called ----

  absl::Status PushGlobal(absl::string_view module, absl::string_view name) {
    const std::string global = absl::StrCat(module, ".", name);
    if (!IsAllowed(global)) {
      return absl::InvalidArgumentError(
          absl::StrCat(where_, ": the pickle asks for '", Printable(global),
                       "', which tensors are not made of; refused, because loading it could run code of the file's "
                       "choice"));
    }
    return PushText(Kind::kGlobal, global);
  }

  absl::Status Call(const TorchValue& callable, const TorchValue& arguments) {
    if (callable.kind != Kind::kGlobal || arguments.kind != Kind::kTuple) {
      return Broken("calls something that is not callable");
    }
    const std::vector<const TorchValue*>& args = arguments.items;
    if (callable.text == "collections.OrderedDict") {
      if (!args.empty() && !(args.size() == 1 && args[0]->kind == Kind::kList && args[0]->items.empty())) {
        return Broken("an OrderedDict that is made from something");
      }
      return PushNew(Kind::kDict);
    }
    if (callable.text == "torch.Size") {
      if (args.size() != 1 || args[0]->items.size() > kMaxDimensions) {
        return Broken("torch.Size takes one tuple of at most ", kMaxDimensions, " numbers");
      }
      QST_RETURN_IF_ERROR(PushNew(Kind::kTuple));
      stack_.back()->items = args[0]->items;
      return absl::OkStatus();
    }
    if (callable.text == "torch._utils._rebuild_parameter") {
      if (args.empty() || args[0]->kind != Kind::kTensor) return Broken("a parameter that is no tensor");
      QST_RETURN_IF_ERROR(PushNew(Kind::kTensor));
      stack_.back()->tensor = args[0]->tensor;
      return absl::OkStatus();
    }
    if (absl::StartsWith(callable.text, "torch._utils._rebuild_tensor")) {
      TorchTensorRef tensor;
      if (args.size() < 4 || args[0]->kind != Kind::kStorage || args[1]->kind != Kind::kInt ||
          !ReadNumbers(*args[2], &tensor.shape) || !ReadNumbers(*args[3], &tensor.strides) ||
          tensor.shape.size() != tensor.strides.size()) {
        return Broken("a tensor needs a storage, an offset, a shape and strides of at most ", kMaxDimensions,
                      " dimensions");
      }
      tensor.storage = *args[0]->storage;
      tensor.offset = args[1]->number;
      QST_RETURN_IF_ERROR(PushNew(Kind::kTensor));
      pickle_.tensors_.push_back(std::move(tensor));
      stack_.back()->tensor = &pickle_.tensors_.back();
      return absl::OkStatus();
    }
    return Broken("calls '", Printable(callable.text), "'");
  }

  // ('storage', type, key, location, number of elements[, (view key, offset, size)])
  absl::Status PushStorage(const TorchValue& id) {
    const std::vector<const TorchValue*>& parts = id.items;
    if (id.kind != Kind::kTuple || parts.size() < 5 || parts[0]->kind != Kind::kString || parts[0]->text != "storage" ||
        parts[1]->kind != Kind::kGlobal || !IsStorageType(parts[1]->text) || parts[2]->kind != Kind::kString ||
        parts[2]->text.size() > kMaxKeyBytes || parts[4]->kind != Kind::kInt || parts[4]->number < 0) {
      return Broken("refers to something that is no storage of numbers");
    }
    TorchStorageRef storage;
    storage.type = parts[1]->text.substr(parts[1]->text.rfind('.') + 1);
    storage.key = parts[2]->text;
    storage.num_elems = parts[4]->number;
    if (parts.size() > 5 && parts[5]->kind == Kind::kTuple) {
      const std::vector<const TorchValue*>& view = parts[5]->items;
      if (view.size() != 3 || view[1]->kind != Kind::kInt || view[1]->number < 0) return Broken("a broken view");
      storage.view_offset = view[1]->number;
    }
    QST_RETURN_IF_ERROR(PushNew(Kind::kStorage));
    pickle_.storages_.push_back(std::move(storage));
    stack_.back()->storage = &pickle_.storages_.back();
    return absl::OkStatus();
  }

  // ---- Memo ----

  absl::Status Put(std::uint64_t index) {
    if (stack_.empty()) return Broken("nothing to remember");
    if (memo_.size() >= kMaxValues) return Broken("more than ", kMaxValues, " remembered values");
    memo_[index] = stack_.back();
    return absl::OkStatus();
  }
  absl::Status GetMemo(std::uint64_t index) {
    const auto it = memo_.find(index);
    if (it == memo_.end()) return Broken("value ", index, " was never remembered");
    return Push(it->second);
  }

  absl::Status PushLong(absl::string_view digits) {
    // Two's complement, little-endian. Longer numbers occur only as magic numbers, where no value is needed.
    if (digits.size() > 8) return PushText(Kind::kBytes, digits);
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < digits.size(); ++i) {
      bits |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(digits[i])) << (8 * i);
    }
    if (!digits.empty() && digits.size() < 8 && (digits.back() & 0x80) != 0) {
      bits |= ~std::uint64_t{0} << (8 * digits.size());
    }
    return PushInt(static_cast<std::int64_t>(bits));
  }

  absl::Status Step(std::uint8_t op);
  absl::Status StepNumber(std::uint8_t op);
  absl::Status StepText(std::uint8_t op);
  absl::Status StepContainer(std::uint8_t op);

  const absl::string_view bytes_;
  const std::string where_;
  std::uint64_t at_ = 0;
  TorchPickle pickle_;
  std::vector<TorchValue*> stack_;
  std::vector<std::size_t> marks_;  // sizes of the stack
  std::unordered_map<std::uint64_t, TorchValue*> memo_;
};

absl::Status TorchUnpickler::StepNumber(std::uint8_t op) {
  switch (op) {
    case 'J': {  // BININT
      QST_ASSIGN_OR_RETURN(const std::uint64_t bits, Unsigned(4));
      return PushInt(static_cast<std::int32_t>(static_cast<std::uint32_t>(bits)));
    }
    case 'K': {  // BININT1
      QST_ASSIGN_OR_RETURN(const std::uint64_t value, Unsigned(1));
      return PushInt(static_cast<std::int64_t>(value));
    }
    case 'M': {  // BININT2
      QST_ASSIGN_OR_RETURN(const std::uint64_t value, Unsigned(2));
      return PushInt(static_cast<std::int64_t>(value));
    }
    case 0x8a: {  // LONG1
      QST_ASSIGN_OR_RETURN(const absl::string_view digits, Counted(1));
      return PushLong(digits);
    }
    case 0x8b: {  // LONG4
      QST_ASSIGN_OR_RETURN(const absl::string_view digits, Counted(4));
      return PushLong(digits);
    }
    case 'I':    // INT
    case 'L': {  // LONG
      QST_ASSIGN_OR_RETURN(absl::string_view line, Line());
      if (op == 'I' && (line == "00" || line == "01")) {
        QST_RETURN_IF_ERROR(PushNew(Kind::kBool));
        stack_.back()->number = line == "01";
        return absl::OkStatus();
      }
      if (op == 'L' && absl::EndsWith(line, "L")) line.remove_suffix(1);
      std::int64_t number = 0;
      if (!absl::SimpleAtoi(line, &number)) return Broken("'", Printable(line), "' is not a number");
      return PushInt(number);
    }
    case 'G': {  // BINFLOAT, big-endian
      QST_ASSIGN_OR_RETURN(const absl::string_view taken, Take(8));
      std::uint64_t bits = 0;
      for (const char c : taken) bits = bits << 8 | static_cast<std::uint8_t>(c);
      QST_RETURN_IF_ERROR(PushNew(Kind::kFloat));
      std::memcpy(&stack_.back()->real, &bits, sizeof(bits));
      return absl::OkStatus();
    }
    default: {  // 'F', FLOAT
      QST_ASSIGN_OR_RETURN(const absl::string_view line, Line());
      double number = 0.0;
      if (!absl::SimpleAtod(line, &number)) return Broken("'", Printable(line), "' is not a number");
      QST_RETURN_IF_ERROR(PushNew(Kind::kFloat));
      stack_.back()->real = number;
      return absl::OkStatus();
    }
  }
}

absl::Status TorchUnpickler::StepText(std::uint8_t op) {
  const bool is_bytes = op == 'U' || op == 'T' || op == 'C' || op == 'B' || op == 0x8e;
  absl::StatusOr<absl::string_view> text = absl::string_view();
  switch (op) {
    case 'X':  // BINUNICODE
    case 'T':  // BINSTRING
    case 'B':  // BINBYTES
      text = Counted(4);
      break;
    case 0x8c:  // SHORT_BINUNICODE
    case 'U':   // SHORT_BINSTRING
    case 'C':   // SHORT_BINBYTES
      text = Counted(1);
      break;
    case 0x8d:  // BINUNICODE8
    case 0x8e:  // BINBYTES8
      text = Counted(8);
      break;
    default:  // 'V', UNICODE
      text = Line();
      break;
  }
  QST_RETURN_IF_ERROR(text.status());
  // Python 2 wrote names as byte strings.
  const bool is_old_string = op == 'U' || op == 'T';
  return PushText(is_bytes && !is_old_string ? Kind::kBytes : Kind::kString, *text);
}

absl::Status TorchUnpickler::StepContainer(std::uint8_t op) {
  switch (op) {
    case '(':  // MARK
      if (marks_.size() >= kMaxValues) return Broken("more than ", kMaxValues, " marks");
      marks_.push_back(stack_.size());
      return absl::OkStatus();
    case ')':  // EMPTY_TUPLE
      return PushNew(Kind::kTuple);
    case 0x85:  // TUPLE1
    case 0x86:  // TUPLE2
    case 0x87:  // TUPLE3
      return PushTuple(op - 0x84);
    case 't':    // TUPLE
    case 'l':    // LIST
    case 'd': {  // DICT
      QST_ASSIGN_OR_RETURN(const std::vector<TorchValue*> items, PopToMark());
      if (op == 'd' && items.size() % 2 != 0) return Broken("a key without a value");
      QST_RETURN_IF_ERROR(PushNew(op == 't' ? Kind::kTuple : op == 'l' ? Kind::kList : Kind::kDict));
      stack_.back()->items.assign(items.begin(), items.end());
      return absl::OkStatus();
    }
    case ']':  // EMPTY_LIST
      return PushNew(Kind::kList);
    case '}':  // EMPTY_DICT
      return PushNew(Kind::kDict);
    case 'a': {  // APPEND
      QST_ASSIGN_OR_RETURN(TorchValue * item, Pop());
      return AddItems({item});
    }
    case 'e': {  // APPENDS
      QST_ASSIGN_OR_RETURN(const std::vector<TorchValue*> items, PopToMark());
      return AddItems(items);
    }
    case 's': {  // SETITEM
      QST_ASSIGN_OR_RETURN(TorchValue * value, Pop());
      QST_ASSIGN_OR_RETURN(TorchValue * key, Pop());
      return AddPairs({key, value});
    }
    default: {  // 'u', SETITEMS
      QST_ASSIGN_OR_RETURN(const std::vector<TorchValue*> pairs, PopToMark());
      return AddPairs(pairs);
    }
  }
}

absl::Status TorchUnpickler::Step(std::uint8_t op) {
  switch (op) {
    case 0x80:  // PROTO
      return Take(1).status();
    case 0x95:  // FRAME
      return Take(8).status();
    case 'J': case 'K': case 'M': case 'I': case 'L': case 'F': case 'G': case 0x8a: case 0x8b:
      return StepNumber(op);
    case 'X': case 'T': case 'U': case 'B': case 'C': case 'V': case 0x8c: case 0x8d: case 0x8e:
      return StepText(op);
    case '(': case ')': case 0x85: case 0x86: case 0x87: case 't': case 'l': case 'd': case ']': case '}': case 'a':
    case 'e': case 's': case 'u':
      return StepContainer(op);
    case 'N':  // NONE
      return PushNew(Kind::kNone);
    case 0x88:  // NEWTRUE
    case 0x89:  // NEWFALSE
      QST_RETURN_IF_ERROR(PushNew(Kind::kBool));
      stack_.back()->number = op == 0x88;
      return absl::OkStatus();
    case '0':  // POP
      if (!marks_.empty() && stack_.size() == marks_.back()) {
        marks_.pop_back();
        return absl::OkStatus();
      }
      return Pop().status();
    case '1':  // POP_MARK
      return PopToMark().status();
    case '2':  // DUP
      if (stack_.empty()) return Broken("the stack is empty");
      return Push(stack_.back());
    case 'c': {  // GLOBAL
      QST_ASSIGN_OR_RETURN(const absl::string_view module, Line());
      QST_ASSIGN_OR_RETURN(const absl::string_view name, Line());
      return PushGlobal(module, name);
    }
    case 0x93: {  // STACK_GLOBAL
      QST_ASSIGN_OR_RETURN(TorchValue * name, Pop());
      QST_ASSIGN_OR_RETURN(TorchValue * module, Pop());
      if (name->kind != Kind::kString || module->kind != Kind::kString) return Broken("a callable without a name");
      return PushGlobal(module->text, name->text);
    }
    case 'R':     // REDUCE
    case 0x81: {  // NEWOBJ
      QST_ASSIGN_OR_RETURN(TorchValue * arguments, Pop());
      QST_ASSIGN_OR_RETURN(TorchValue * callable, Pop());
      return Call(*callable, *arguments);
    }
    case 'b': {  // BUILD: attributes of a dictionary (a state_dict's versions), which no tensor needs
      QST_RETURN_IF_ERROR(Pop().status());
      return Top(Kind::kDict, "dictionary").status();
    }
    case 'Q': {  // BINPERSID
      QST_ASSIGN_OR_RETURN(TorchValue * id, Pop());
      return PushStorage(*id);
    }
    case 'q': {  // BINPUT
      QST_ASSIGN_OR_RETURN(const std::uint64_t index, Unsigned(1));
      return Put(index);
    }
    case 'r': {  // LONG_BINPUT
      QST_ASSIGN_OR_RETURN(const std::uint64_t index, Unsigned(4));
      return Put(index);
    }
    case 'p': {  // PUT
      QST_ASSIGN_OR_RETURN(const absl::string_view line, Line());
      std::uint64_t index = 0;
      if (!absl::SimpleAtoi(line, &index)) return Broken("'", Printable(line), "' is not a number");
      return Put(index);
    }
    case 0x94:  // MEMOIZE
      return Put(memo_.size());
    case 'h': {  // BINGET
      QST_ASSIGN_OR_RETURN(const std::uint64_t index, Unsigned(1));
      return GetMemo(index);
    }
    case 'j': {  // LONG_BINGET
      QST_ASSIGN_OR_RETURN(const std::uint64_t index, Unsigned(4));
      return GetMemo(index);
    }
    case 'g': {  // GET
      QST_ASSIGN_OR_RETURN(const absl::string_view line, Line());
      std::uint64_t index = 0;
      if (!absl::SimpleAtoi(line, &index)) return Broken("'", Printable(line), "' is not a number");
      return GetMemo(index);
    }
    default:
      return absl::UnimplementedError(
          absl::StrCat(where_, ": byte ", at_ - 1, " of the pickle: opcode ", op, " is not used by checkpoints"));
  }
}

absl::StatusOr<TorchPickle> TorchPickle::Read(absl::string_view bytes, const std::string& where) {
  return TorchUnpickler(bytes, where).Run();
}

}  // namespace qst
