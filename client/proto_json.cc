#include "client/proto_json.h"

#include <google/protobuf/descriptor.h>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "client/spec_fields.h"
#include "proto/qst/v1/resources.pb.h"

namespace qst {
namespace {

using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using Json = nlohmann::ordered_json;

std::string EnumText(const EnumValueDescriptor* value) {
  if (!absl::EndsWith(value->type()->name(), "State")) return EnumShortName(value);
  return std::string(absl::StripPrefix(value->name(), EnumPrefix(value->type())));
}

Json FieldValue(const Message& message, const FieldDescriptor* field, int i) {
  const Reflection* r = message.GetReflection();
  const bool repeated = field->is_repeated();
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return repeated ? r->GetRepeatedString(message, field, i) : r->GetString(message, field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return repeated ? r->GetRepeatedBool(message, field, i) : r->GetBool(message, field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return repeated ? r->GetRepeatedDouble(message, field, i) : r->GetDouble(message, field);
    case FieldDescriptor::CPPTYPE_FLOAT:
      return repeated ? r->GetRepeatedFloat(message, field, i) : r->GetFloat(message, field);
    case FieldDescriptor::CPPTYPE_INT32:
      return repeated ? r->GetRepeatedInt32(message, field, i) : r->GetInt32(message, field);
    case FieldDescriptor::CPPTYPE_INT64:
      return repeated ? r->GetRepeatedInt64(message, field, i) : r->GetInt64(message, field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return repeated ? r->GetRepeatedUInt32(message, field, i) : r->GetUInt32(message, field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return repeated ? r->GetRepeatedUInt64(message, field, i) : r->GetUInt64(message, field);
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumText(repeated ? r->GetRepeatedEnum(message, field, i) : r->GetEnum(message, field));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return ProtoToJson(repeated ? r->GetRepeatedMessage(message, field, i) : r->GetMessage(message, field));
  }
  return nullptr;
}

Json MapValue(const Message& message, const FieldDescriptor* field) {
  const Reflection* r = message.GetReflection();
  const FieldDescriptor* key = field->message_type()->map_key();
  const FieldDescriptor* value = field->message_type()->map_value();
  // The message keeps no order of its own; by key, the text is the same every time.
  std::map<std::string, Json> sorted;
  for (int i = 0; i < r->FieldSize(message, field); ++i) {
    const Message& entry = r->GetRepeatedMessage(message, field, i);
    sorted[entry.GetReflection()->GetString(entry, key)] = FieldValue(entry, value, 0);
  }
  Json json = Json::object();
  for (auto& [name, item] : sorted) json[name] = std::move(item);
  return json;
}

}  // namespace

Json ProtoToJson(const Message& message) {
  const Reflection* r = message.GetReflection();
  Json json = Json::object();
  for (int f = 0; f < message.GetDescriptor()->field_count(); ++f) {
    const FieldDescriptor* field = message.GetDescriptor()->field(f);
    if (field->is_map()) {
      json[field->name()] = MapValue(message, field);
    } else if (field->is_repeated()) {
      Json list = Json::array();
      for (int i = 0; i < r->FieldSize(message, field); ++i) list.push_back(FieldValue(message, field, i));
      json[field->name()] = std::move(list);
    } else if (r->HasField(message, field) || !field->has_presence()) {
      json[field->name()] = FieldValue(message, field, 0);
    }
  }
  // A metrics line is JSON already: nested, so that nobody needs to parse twice.
  if (message.GetDescriptor() == v1::JobEvent::descriptor() && json.contains("metrics_json")) {
    Json metrics = Json::parse(json["metrics_json"].get<std::string>(), nullptr, /*allow_exceptions=*/false);
    json.erase("metrics_json");
    json["metrics"] = metrics.is_discarded() ? Json() : std::move(metrics);
  }
  return json;
}

std::string JsonLine(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string ProtoToJsonLine(const Message& message) { return JsonLine(ProtoToJson(message)); }

}  // namespace qst
