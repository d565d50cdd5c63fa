// The names that a job file uses for the fields and enum values of a message.
#ifndef QST_CLIENT_SPEC_FIELDS_H_
#define QST_CLIENT_SPEC_FIELDS_H_

#include <google/protobuf/descriptor.h>

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace qst {

// Text before the value's own name: "QUANTIZATION_TYPE_".
std::string EnumPrefix(const google::protobuf::EnumDescriptor* type);

// "nf4" for QUANTIZATION_TYPE_NF4.
std::string EnumShortName(const google::protobuf::EnumValueDescriptor* value);

// The value of that short name; null if there is none, and for "unspecified".
const google::protobuf::EnumValueDescriptor* FindEnumValue(const google::protobuf::EnumDescriptor* type,
                                                           absl::string_view short_name);

// All short names but "unspecified", in order.
std::vector<std::string> EnumShortNames(const google::protobuf::EnumDescriptor* type);

std::vector<std::string> FieldNames(const google::protobuf::Descriptor* type);

// Dotted paths, in messages below `type`, of fields called `name`.
std::vector<std::string> FindFieldBelow(const google::protobuf::Descriptor* type, absl::string_view name);

}  // namespace qst

#endif  // QST_CLIENT_SPEC_FIELDS_H_
