#include "client/spec_to_yaml.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/spec_fields.h"

namespace qst {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Whether YAML reads the text as itself without quotes: a name or path that is no other type's literal.
bool IsPlain(const std::string& text) {
  if (text.empty() || !(absl::ascii_isalpha(text[0]) || text[0] == '/' || text[0] == '_')) return false;
  for (char c : text) {
    if (!absl::ascii_isalnum(c) && c != '_' && c != '-' && c != '.' && c != '/') return false;
  }
  const std::string lower = absl::AsciiStrToLower(text);
  for (const char* literal : {"true", "false", "null", "yes", "no", "on", "off", "y", "n", "inf", "nan"}) {
    if (lower == literal) return false;
  }
  return true;
}

std::string Text(const std::string& text) {
  if (IsPlain(text)) return text;
  std::string quoted = "\"";
  for (char c : text) {
    switch (c) {
      case '"':
        quoted += "\\\"";
        break;
      case '\\':
        quoted += "\\\\";
        break;
      case '\n':
        quoted += "\\n";
        break;
      case '\t':
        quoted += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          absl::StrAppendFormat(&quoted, "\\x%02x", static_cast<unsigned char>(c));
        } else {
          quoted += c;
        }
    }
  }
  return quoted + "\"";
}

// The shortest decimal that reads back as the same double.
std::string Number(double value) {
  for (int digits = 6; digits < 17; ++digits) {
    const std::string text = absl::StrFormat("%.*g", digits, value);
    double back;
    if (absl::SimpleAtod(text, &back) && back == value) return text;
  }
  return absl::StrFormat("%.17g", value);
}

// Element `index` of a repeated field; the field itself with index -1.
std::string Value(const Message& message, const FieldDescriptor* field, int index) {
  const Reflection* r = message.GetReflection();
  const bool element = index >= 0;
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return Text(element ? r->GetRepeatedString(message, field, index) : r->GetString(message, field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return (element ? r->GetRepeatedBool(message, field, index) : r->GetBool(message, field)) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return Number(element ? r->GetRepeatedDouble(message, field, index) : r->GetDouble(message, field));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(element ? r->GetRepeatedUInt32(message, field, index) : r->GetUInt32(message, field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(element ? r->GetRepeatedUInt64(message, field, index) : r->GetUInt64(message, field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumShortName(element ? r->GetRepeatedEnum(message, field, index) : r->GetEnum(message, field));
    default:
      return "";
  }
}

void Append(const Message& message, int indent, std::string* out) {
  const Reflection* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string key = absl::StrCat(std::string(indent, ' '), field->name(), ":");
    if (field->is_repeated()) {
      std::vector<std::string> values;
      for (int i = 0; i < reflection->FieldSize(message, field); ++i) values.push_back(Value(message, field, i));
      absl::StrAppend(out, key, " [", absl::StrJoin(values, ", "), "]\n");
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      std::string section;
      Append(reflection->GetMessage(message, field), indent + 2, &section);
      if (!section.empty()) absl::StrAppend(out, key, "\n", section);
    } else {
      absl::StrAppend(out, key, " ", Value(message, field, -1), "\n");
    }
  }
}

}  // namespace

std::string SpecToYaml(const v1::JobSpec& spec, int indent) {
  std::string out;
  Append(spec, indent, &out);
  return out;
}

}  // namespace qst
