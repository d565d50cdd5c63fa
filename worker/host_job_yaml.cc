#include "worker/host_job_yaml.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cctype>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace qst {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Double-quoted YAML, which takes JSON's escapes.
std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      absl::StrAppend(&out, "\\", std::string(1, c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppendFormat(&out, "\\x%02x", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// The shortest decimal that reads back as the same number.
std::string Number(double value) {
  for (int digits = 6; digits < 17; ++digits) {
    const std::string text = absl::StrFormat("%.*g", digits, value);
    if (std::strtod(text.c_str(), nullptr) == value) return text;
  }
  return absl::StrFormat("%.17g", value);
}

// SIDE_PRESET_TUNED of enum SidePreset is "tuned".
std::string EnumName(const EnumValueDescriptor& value) {
  std::string prefix;
  for (const char c : value.type()->name()) {
    if (std::isupper(static_cast<unsigned char>(c)) && !prefix.empty()) prefix += '_';
    prefix += absl::ascii_toupper(static_cast<unsigned char>(c));
  }
  absl::string_view name = value.name();
  absl::ConsumePrefix(&name, prefix + "_");
  return absl::AsciiStrToLower(name);
}

// Value number `index` of a field; -1 for one that is not repeated.
std::string Scalar(const Message& message, const FieldDescriptor& field, int index) {
  const Reflection& r = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return Quoted(index < 0 ? r.GetString(message, &field) : r.GetRepeatedString(message, &field, index));
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumName(*(index < 0 ? r.GetEnum(message, &field) : r.GetRepeatedEnum(message, &field, index)));
    case FieldDescriptor::CPPTYPE_BOOL:
      return (index < 0 ? r.GetBool(message, &field) : r.GetRepeatedBool(message, &field, index)) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return Number(index < 0 ? r.GetDouble(message, &field) : r.GetRepeatedDouble(message, &field, index));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return Number(index < 0 ? r.GetFloat(message, &field) : r.GetRepeatedFloat(message, &field, index));
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(index < 0 ? r.GetInt32(message, &field) : r.GetRepeatedInt32(message, &field, index));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(index < 0 ? r.GetUInt32(message, &field) : r.GetRepeatedUInt32(message, &field, index));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(index < 0 ? r.GetInt64(message, &field) : r.GetRepeatedInt64(message, &field, index));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(index < 0 ? r.GetUInt64(message, &field) : r.GetRepeatedUInt64(message, &field, index));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
  return "null";
}

void AppendMessage(const Message& message, int indent, std::string* out) {
  const Reflection& reflection = *message.GetReflection();
  const std::string margin(static_cast<std::size_t>(indent), ' ');
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    if (field.is_repeated()) {
      const int size = reflection.FieldSize(message, &field);
      if (size == 0) continue;
      absl::StrAppend(out, margin, field.name(), ":\n");
      for (int k = 0; k < size; ++k) absl::StrAppend(out, margin, "  - ", Scalar(message, field, k), "\n");
    } else if (!reflection.HasField(message, &field)) {
      continue;
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      std::string inner;
      AppendMessage(reflection.GetMessage(message, &field), indent + 2, &inner);
      if (!inner.empty()) absl::StrAppend(out, margin, field.name(), ":\n", inner);
    } else {
      absl::StrAppend(out, margin, field.name(), ": ", Scalar(message, field, -1), "\n");
    }
  }
}

}  // namespace

std::string JobSpecToYaml(const v1::JobSpec& spec) {
  std::string out;
  AppendMessage(spec, 0, &out);
  return out;
}

}  // namespace qst
