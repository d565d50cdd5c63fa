// Messages of the API as JSON, for --json. One rule for all: field names are those of the .proto files;
// values from the job file are written as in the job file ("nf4"), states in capitals ("RUNNING"), numbers as
// numbers; fields without a value are left out only if they are optional or sections.
#ifndef QST_CLIENT_PROTO_JSON_H_
#define QST_CLIENT_PROTO_JSON_H_

#include <google/protobuf/message.h>

#include <nlohmann/json.hpp>
#include <string>

namespace qst {

nlohmann::ordered_json ProtoToJson(const google::protobuf::Message& message);

// The object in one line without a line break.
std::string ProtoToJsonLine(const google::protobuf::Message& message);
std::string JsonLine(const nlohmann::ordered_json& json);

}  // namespace qst

#endif  // QST_CLIENT_PROTO_JSON_H_
