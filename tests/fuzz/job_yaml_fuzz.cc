// Job files: any text either gives a job, which written as YAML reads back to the same job, or a usage error.
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/errors.h"
#include "client/spec_to_yaml.h"
#include "client/yaml_to_spec.h"
#include "proto/support/status_macros.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<qst::v1::JobSpec> spec = qst::YamlToSpec(text, "job.yaml");
  if (!spec.ok()) {
    QST_CHECK(qst::IsUsageError(spec.status()));
  } else if (size < qst::kMaxJobFileBytes / 8) {  // escapes may make the text longer
    const absl::StatusOr<qst::v1::JobSpec> back = qst::YamlToSpec(qst::SpecToYaml(*spec), "back.yaml");
    QST_CHECK(back.ok());
    QST_CHECK(qst::SpecToYaml(*back) == qst::SpecToYaml(*spec));
  }
  // The same bytes as an assignment.
  qst::v1::JobSpec assigned;
  const absl::Status status = qst::ApplyAssignment(text, &assigned);
  QST_CHECK(status.ok() || qst::IsUsageError(status));
  return 0;
}
