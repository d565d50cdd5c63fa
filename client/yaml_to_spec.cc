#include "client/yaml_to_spec.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <cmath>
#include <limits>
#include <set>
#include <sstream>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/errors.h"
#include "client/nearest_name.h"
#include "client/spec_fields.h"
#include "client/utf8.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Text that a message quotes, cut to what fits a line.
std::string Quoted(absl::string_view text) {
  std::string shown;
  for (char c : text.substr(0, 60)) shown += (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) ? ' ' : c;
  return absl::StrCat("'", shown, text.size() > 60 ? "..." : "", "'");
}

// Converts one scalar and sets it, or adds it to a repeated field. `quoted` is YAML's "..." or '...': text then.
absl::Status SetScalar(absl::string_view text, bool quoted, const FieldDescriptor* field, Message* message) {
  const Reflection* reflection = message->GetReflection();
  const auto store = [&](auto set, auto add, auto value) {
    if (field->is_repeated()) {
      (reflection->*add)(message, field, value);
    } else {
      (reflection->*set)(message, field, value);
    }
    return absl::OkStatus();
  };
  const auto expected = [&](absl::string_view what) {
    return UsageError(absl::StrCat("expected ", what, ", not ", quoted ? "the text " : "", Quoted(text)));
  };
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      if (!IsValidUtf8(text)) return UsageError("not text in UTF-8");
      return store(&Reflection::SetString, &Reflection::AddString, std::string(text));
    case FieldDescriptor::CPPTYPE_BOOL:
      if (quoted || (text != "true" && text != "false")) return expected("true or false");
      return store(&Reflection::SetBool, &Reflection::AddBool, text == "true");
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double value;
      if (quoted || !absl::SimpleAtod(text, &value) || !std::isfinite(value)) return expected("a number");
      return store(&Reflection::SetDouble, &Reflection::AddDouble, value);
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      uint32_t value;
      if (quoted || !absl::SimpleAtoi(text, &value)) {
        return expected(absl::StrCat("a whole number from 0 to ", std::numeric_limits<uint32_t>::max()));
      }
      return store(&Reflection::SetUInt32, &Reflection::AddUInt32, value);
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t value;
      if (quoted || !absl::SimpleAtoi(text, &value)) return expected("a whole number, 0 or more");
      return store(&Reflection::SetUInt64, &Reflection::AddUInt64, value);
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      const EnumValueDescriptor* value = FindEnumValue(field->enum_type(), text);
      if (value == nullptr) {
        const std::vector<std::string> names = EnumShortNames(field->enum_type());
        return UsageError(absl::StrCat("unknown value ", Quoted(text), "; one of ", absl::StrJoin(names, ", ")));
      }
      return store(&Reflection::SetEnum, &Reflection::AddEnum, value);
    }
    default:
      return absl::InternalError(absl::StrCat(field->full_name(), ": no job file syntax for this type of field"));
  }
}

// "unknown key", with the nearest sibling or the place where a key of this name belongs.
std::string UnknownKey(absl::string_view name, const Descriptor* type) {
  std::string hint = DidYouMean(name, FieldNames(type));
  if (hint.empty()) {
    const std::vector<std::string> elsewhere = FindFieldBelow(v1::JobSpec::descriptor(), name);
    if (!elsewhere.empty()) {
      hint = absl::StrCat("; did you mean '", elsewhere.front(), "'?");
    } else if (v1::JobSpec::descriptor()->FindFieldByName(std::string(name)) != nullptr) {
      hint = absl::StrCat("; '", name, "' belongs at the top level");
    } else {
      hint = absl::StrCat("; known here: ", absl::StrJoin(FieldNames(type), ", "));
    }
  }
  return absl::StrCat("unknown key", hint);
}

std::string Join(absl::string_view path, absl::string_view name) {
  return path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
}

class YamlReader {
 public:
  explicit YamlReader(absl::string_view file_name) : file_name_(file_name) {}

  absl::Status ReadMessage(const YAML::Node& node, const std::string& path, Message* message) {
    if (node.IsNull()) return absl::OkStatus();  // a section left empty
    const Descriptor* type = message->GetDescriptor();
    if (!node.IsMap()) {
      return Error(node, path, absl::StrCat("expected a section with keys such as ", type->field(0)->name(), ": ..."));
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) return Error(entry.first, path, "a key must be a plain name");
      const std::string& name = entry.first.Scalar();
      const FieldDescriptor* field = type->FindFieldByName(name);
      if (field == nullptr) return Error(entry.first, Join(path, Shown(name)), UnknownKey(name, type));
      if (!seen.insert(name).second) return Error(entry.first, Join(path, name), "this key is given twice");
      QST_RETURN_IF_ERROR(ReadField(entry.second, entry.first, Join(path, name), field, message));
    }
    return absl::OkStatus();
  }

  absl::Status Error(const YAML::Node& node, absl::string_view path, absl::string_view what) const {
    return ErrorAt(node.Mark(), path, what);
  }
  absl::Status ErrorAt(const YAML::Mark& mark, absl::string_view path, absl::string_view what) const {
    return UsageError(absl::StrCat(file_name_, mark.is_null() ? "" : absl::StrCat(":", mark.line + 1), ": ", path,
                                   path.empty() ? "" : ": ", what));
  }

 private:
  static std::string Shown(const std::string& name) {
    const std::string quoted = Quoted(name);
    return quoted.substr(1, quoted.size() - 2);
  }

  absl::Status ReadField(const YAML::Node& node, const YAML::Node& key, const std::string& path,
                         const FieldDescriptor* field, Message* message) {
    const Reflection* reflection = message->GetReflection();
    if (field->is_repeated()) {
      if (!node.IsSequence()) return Error(key, path, "expected a list: [a, b] or lines that start with '- '");
      reflection->ClearField(message, field);
      for (const YAML::Node& element : node) {
        if (!element.IsScalar()) return Error(element, path, "a list holds plain values only");
        QST_RETURN_IF_ERROR(Scalar(element, key, path, field, message));
      }
      return absl::OkStatus();
    }
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      // An empty section says nothing, so it leaves no trace.
      if (node.IsNull()) return absl::OkStatus();
      return ReadMessage(node, path, reflection->MutableMessage(message, field));
    }
    if (node.IsNull()) return absl::OkStatus();  // "seed:" without a value: the default
    if (!node.IsScalar()) return Error(key, path, "expected a single value, not a list or section");
    return Scalar(node, key, path, field, message);
  }

  absl::Status Scalar(const YAML::Node& node, const YAML::Node& key, const std::string& path,
                      const FieldDescriptor* field, Message* message) {
    // yaml-cpp tags quoted scalars "!" and plain ones "?".
    const absl::Status status = SetScalar(node.Scalar(), node.Tag() == "!", field, message);
    if (status.ok()) return status;
    return Error(node.Mark().is_null() ? key : node, path, status.message());
  }

  absl::string_view file_name_;
};

// Stops the parser before it has built or recursed into what no job file holds.
class LimitChecker : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark& mark) override { document_start_ = mark; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { Count(mark); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { Count(mark); }
  void OnScalar(const YAML::Mark& mark, const std::string&, YAML::anchor_t, const std::string&) override {
    Count(mark);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {
    Enter(mark);
  }
  void OnSequenceEnd() override { --depth_; }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {
    Enter(mark);
  }
  void OnMapEnd() override { --depth_; }

  // Of the newest document.
  const YAML::Mark& document_start() const { return document_start_; }

 private:
  void Count(const YAML::Mark& mark) {
    if (++num_values_ > kMaxJobFileValues) {
      throw YAML::ParserException(mark, absl::StrCat("more than ", kMaxJobFileValues, " values"));
    }
  }
  void Enter(const YAML::Mark& mark) {
    Count(mark);
    if (++depth_ > kMaxJobFileDepth) {
      throw YAML::ParserException(mark, absl::StrCat("nested deeper than ", kMaxJobFileDepth, " levels"));
    }
  }
  YAML::Mark document_start_;
  int depth_ = 0;
  int num_values_ = 0;
};

absl::Status ReadDocument(absl::string_view text, YamlReader* reader, Message* message) {
  const std::string owned(text);
  std::istringstream in(owned);
  YAML::Parser parser(in);
  LimitChecker checker;
  // One document at a time: where yaml-cpp cannot make sense of a token, it reports empty documents for ever.
  if (!parser.HandleNextDocument(checker)) return absl::OkStatus();
  if (parser.HandleNextDocument(checker)) {
    return reader->ErrorAt(checker.document_start(), "",
                           "what begins here is no part of the job: a second document ('---'), or a stray character");
  }
  return reader->ReadMessage(YAML::Load(owned), "", message);
}

}  // namespace

absl::StatusOr<v1::JobSpec> YamlToSpec(absl::string_view text, absl::string_view file_name) {
  if (text.size() > kMaxJobFileBytes) {
    return UsageError(absl::StrCat(file_name, ": ", text.size(), " bytes; a job file has at most ", kMaxJobFileBytes));
  }
  if (!IsValidUtf8(text) || text.find('\0') != absl::string_view::npos) {
    return UsageError(absl::StrCat(file_name, ": not a text file in UTF-8"));
  }
  YamlReader reader(file_name);
  v1::JobSpec spec;
  try {
    // yaml-cpp takes a line end at the end of the text as the end of an unclosed quote.
    text = absl::StripTrailingAsciiWhitespace(text);
    QST_RETURN_IF_ERROR(ReadDocument(text, &reader, &spec));
  } catch (const YAML::Exception& e) {
    return reader.ErrorAt(e.mark, "", absl::StrCat("not YAML: ", e.msg));
  } catch (const std::exception& e) {
    return UsageError(absl::StrCat(file_name, ": not YAML: ", e.what()));
  }
  return spec;
}

absl::Status ApplyAssignment(absl::string_view assignment, v1::JobSpec* spec) {
  const size_t equals = assignment.find('=');
  if (equals == absl::string_view::npos || equals == 0) {
    return UsageError(absl::StrCat("--set ", Quoted(assignment), ": expected KEY=VALUE, such as train.epochs=1"));
  }
  const std::string path(assignment.substr(0, equals));
  const absl::string_view value = assignment.substr(equals + 1);
  const auto error = [&path](absl::string_view what) { return UsageError(absl::StrCat("--set ", path, ": ", what)); };

  v1::JobSpec result = *spec;
  Message* message = &result;
  const std::vector<std::string> names = absl::StrSplit(path, '.');
  for (size_t i = 0; i < names.size(); ++i) {
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(names[i]);
    if (field == nullptr) return error(UnknownKey(names[i], message->GetDescriptor()));
    const bool is_section = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (i + 1 < names.size()) {
      if (!is_section) return error(absl::StrCat("'", names[i], "' has no keys below it"));
      message = message->GetReflection()->MutableMessage(message, field);
      continue;
    }
    if (is_section) {
      return error(
          absl::StrCat("is a section; set one of its keys: ", absl::StrJoin(FieldNames(field->message_type()), ", ")));
    }
    message->GetReflection()->ClearField(message, field);
    const std::vector<absl::string_view> parts = !field->is_repeated() ? std::vector<absl::string_view>{value}
                                                 : value.empty()       ? std::vector<absl::string_view>{}
                                                                       : absl::StrSplit(value, ',');
    for (absl::string_view part : parts) {
      const absl::Status status = SetScalar(part, /*quoted=*/false, field, message);
      if (!status.ok()) return error(status.message());
    }
  }
  *spec = std::move(result);
  return absl::OkStatus();
}

}  // namespace qst
