// config.json, and the JSON texts of the model store: what is accepted is in range, and reads back from what we
// write of it.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "proto/support/status_macros.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/store_format.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = qst::ParseModelConfig(text, "fuzz");
  if (config.ok()) {
    const std::string written = qst::ModelConfigToJson(*config, "");
    const auto again = qst::ParseModelConfig(written, "written");
    QST_CHECK(again.ok());
    QST_CHECK(qst::ModelConfigToJson(*again, "") == written);
    for (const float frequency : qst::RotaryInverseFrequencies(*config)) QST_CHECK(std::isfinite(frequency));
    if (config->num_layers <= 16) QST_CHECK(config->NumParameters() > 0);
  }
  const auto state = qst::ParseQuantState(text, "fuzz");
  if (state.ok()) {
    const auto again = qst::ParseQuantState(qst::QuantStateToJson(*state), "written");
    QST_CHECK(again.ok() || !qst::QuantStateToJson(*state).empty());
  }
  const auto manifest = qst::ParseStoreManifest(text, "fuzz");
  if (manifest.ok()) QST_CHECK(qst::ParseStoreManifest(qst::StoreManifestToJson(*manifest), "written").ok());
  return 0;
}
