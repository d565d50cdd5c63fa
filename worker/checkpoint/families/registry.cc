#include "proto/support/status_macros.h"
#include "worker/checkpoint/families/family.h"

namespace qst {

extern const FamilyDefinition kLlamaFamily;
extern const FamilyDefinition kMistralFamily;
extern const FamilyDefinition kQwen2Family;
extern const FamilyDefinition kOptFamily;

const std::vector<const FamilyDefinition*>& AllFamilies() {
  static const auto* const families =
      new std::vector<const FamilyDefinition*>{&kLlamaFamily, &kMistralFamily, &kQwen2Family, &kOptFamily};
  return *families;
}

const FamilyDefinition* FindFamily(absl::string_view architecture, absl::string_view model_type) {
  for (const FamilyDefinition* family : AllFamilies()) {
    if (architecture.empty() ? model_type == family->model_type : architecture == family->architecture) return family;
  }
  return nullptr;
}

const FamilyDefinition& FamilyOf(const ModelConfig& config) {
  const FamilyDefinition* const family = FindFamily("", config.model_type);
  QST_CHECK(family != nullptr);
  return *family;
}

}  // namespace qst
