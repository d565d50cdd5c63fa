#include "client/spec_fields.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace qst {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;

std::string EnumPrefix(const EnumDescriptor* type) {
  return std::string(absl::StripSuffix(type->value(0)->name(), "UNSPECIFIED"));
}

std::string EnumShortName(const EnumValueDescriptor* value) {
  return absl::AsciiStrToLower(absl::StripPrefix(value->name(), EnumPrefix(value->type())));
}

const EnumValueDescriptor* FindEnumValue(const EnumDescriptor* type, absl::string_view short_name) {
  for (int i = 1; i < type->value_count(); ++i) {
    if (EnumShortName(type->value(i)) == short_name) return type->value(i);
  }
  return nullptr;
}

std::vector<std::string> EnumShortNames(const EnumDescriptor* type) {
  std::vector<std::string> names;
  for (int i = 1; i < type->value_count(); ++i) names.push_back(EnumShortName(type->value(i)));
  return names;
}

std::vector<std::string> FieldNames(const Descriptor* type) {
  std::vector<std::string> names;
  for (int i = 0; i < type->field_count(); ++i) names.push_back(type->field(i)->name());
  return names;
}

std::vector<std::string> FindFieldBelow(const Descriptor* type, absl::string_view name) {
  std::vector<std::string> paths;
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_repeated()) continue;
    if (field->message_type()->FindFieldByName(std::string(name)) != nullptr) {
      paths.push_back(absl::StrCat(field->name(), ".", name));
    }
    for (const std::string& below : FindFieldBelow(field->message_type(), name)) {
      paths.push_back(absl::StrCat(field->name(), ".", below));
    }
  }
  return paths;
}

}  // namespace qst
