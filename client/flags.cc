#include "client/flags.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "client/nearest_name.h"
#include "proto/support/status_macros.h"

namespace qst {
namespace {

const char* KindWords(FlagKind kind) {
  switch (kind) {
    case FlagKind::kBool:
      return "true or false";
    case FlagKind::kUint:
      return "a whole number, 0 or more";
    case FlagKind::kDouble:
      return "a number";
    case FlagKind::kDuration:
      return "a time such as 30s or 2m";
    case FlagKind::kString:
    case FlagKind::kList:
      return "text";
  }
  return "text";
}

bool ParseDurationText(absl::string_view text, absl::Duration* duration) {
  double seconds;
  if (absl::SimpleAtod(text, &seconds)) {
    if (!std::isfinite(seconds) || seconds < 0) return false;
    *duration = absl::Seconds(seconds);
    return true;
  }
  return absl::ParseDuration(text, duration) && *duration >= absl::ZeroDuration();
}

}  // namespace

class FlagParser {
 public:
  using Value = ParsedArgs::Value;

  explicit FlagParser(const std::vector<FlagSpec>& specs) : specs_(specs) {
    for (const FlagSpec& spec : specs) {
      Value& value = parsed_.values_[spec.name];
      value.kind = spec.kind;
      if (!spec.default_text.empty()) QST_CHECK(Store(spec.default_text, &value));
      value.given = false;
    }
  }

  absl::StatusOr<ParsedArgs> Parse(const std::vector<std::string>& args, std::vector<std::string>* rest) {
    size_t i = 0;
    for (; i < args.size(); ++i) {
      const std::string& arg = args[i];
      if (arg == "--") {
        parsed_.positional.insert(parsed_.positional.end(), args.begin() + i + 1, args.end());
        i = args.size();
        break;
      }
      if (arg.size() < 2 || arg[0] != '-') {
        if (rest != nullptr) break;
        parsed_.positional.push_back(arg);
        continue;
      }
      QST_RETURN_IF_ERROR(ParseOne(args, &i));
    }
    if (rest != nullptr) rest->assign(args.begin() + i, args.end());
    return std::move(parsed_);
  }

 private:
  absl::Status ParseOne(const std::vector<std::string>& args, size_t* i) {
    const std::string& arg = args[*i];
    const bool is_long = absl::StartsWith(arg, "--");
    const size_t equals = is_long ? arg.find('=') : std::string::npos;
    const std::string name = is_long ? arg.substr(2, equals == std::string::npos ? equals : equals - 2) : "";
    const FlagSpec* spec = is_long ? Find(name) : FindLetter(arg[1]);
    const std::string shown = is_long ? "--" + name : arg.substr(0, 2);
    if (spec == nullptr) {
      std::vector<std::string> known;
      for (const FlagSpec& s : specs_) known.push_back("--" + s.name);
      return UsageError(absl::StrCat("unknown flag ", shown, is_long ? DidYouMean(shown, known) : ""));
    }
    std::string text;
    if (equals != std::string::npos) {
      text = arg.substr(equals + 1);
    } else if (!is_long && arg.size() > 2) {
      if (spec->kind == FlagKind::kBool) {
        return UsageError(absl::StrCat("unknown flag ", arg, "; short flags are written one by one"));
      }
      text = arg.substr(2);
    } else if (spec->kind == FlagKind::kBool) {
      text = "true";
    } else if (*i + 1 < args.size()) {
      text = args[++*i];
    } else {
      return UsageError(absl::StrCat(shown, " needs a value: ", KindWords(spec->kind)));
    }
    Value& value = parsed_.values_.find(spec->name)->second;
    if (value.given && spec->kind != FlagKind::kList) {
      return UsageError(absl::StrCat("--", spec->name, " is given twice"));
    }
    if (!Store(text, &value)) {
      return UsageError(absl::StrCat("--", spec->name, ": '", text, "' is not ", KindWords(spec->kind)));
    }
    return absl::OkStatus();
  }

  static bool Store(const std::string& text, Value* value) {
    value->given = true;
    switch (value->kind) {
      case FlagKind::kBool:
        return absl::SimpleAtob(text, &value->bool_value);
      case FlagKind::kUint:
        return absl::SimpleAtoi(text, &value->uint_value);
      case FlagKind::kDouble:
        return absl::SimpleAtod(text, &value->double_value) && std::isfinite(value->double_value);
      case FlagKind::kDuration:
        return ParseDurationText(text, &value->duration_value);
      case FlagKind::kString:
        value->string_value = text;
        return true;
      case FlagKind::kList:
        value->list_value.push_back(text);
        return true;
    }
    return false;
  }

  const FlagSpec* Find(absl::string_view name) const {
    for (const FlagSpec& spec : specs_) {
      if (spec.name == name) return &spec;
    }
    return nullptr;
  }
  const FlagSpec* FindLetter(char letter) const {
    for (const FlagSpec& spec : specs_) {
      if (spec.letter == letter) return &spec;
    }
    return nullptr;
  }

  const std::vector<FlagSpec>& specs_;
  ParsedArgs parsed_;
};

const ParsedArgs::Value& ParsedArgs::Get(absl::string_view name, FlagKind kind) const {
  const auto it = values_.find(name);
  QST_CHECK(it != values_.end());
  QST_CHECK(it->second.kind == kind);
  return it->second;
}

bool ParsedArgs::Has(absl::string_view name) const {
  const auto it = values_.find(name);
  QST_CHECK(it != values_.end());
  return it->second.given;
}
bool ParsedArgs::Bool(absl::string_view name) const { return Get(name, FlagKind::kBool).bool_value; }
const std::string& ParsedArgs::String(absl::string_view name) const {
  return Get(name, FlagKind::kString).string_value;
}
uint64_t ParsedArgs::Uint(absl::string_view name) const { return Get(name, FlagKind::kUint).uint_value; }
double ParsedArgs::Double(absl::string_view name) const { return Get(name, FlagKind::kDouble).double_value; }
absl::Duration ParsedArgs::Duration(absl::string_view name) const {
  return Get(name, FlagKind::kDuration).duration_value;
}
const std::vector<std::string>& ParsedArgs::List(absl::string_view name) const {
  return Get(name, FlagKind::kList).list_value;
}

absl::StatusOr<ParsedArgs> ParseFlags(const std::vector<FlagSpec>& specs, const std::vector<std::string>& args) {
  return FlagParser(specs).Parse(args, nullptr);
}

absl::StatusOr<ParsedArgs> ParseLeadingFlags(const std::vector<FlagSpec>& specs, const std::vector<std::string>& args,
                                             std::vector<std::string>* rest) {
  return FlagParser(specs).Parse(args, rest);
}

std::string FlagHelp(const std::vector<FlagSpec>& specs) {
  std::vector<std::string> names;
  size_t width = 0;
  for (const FlagSpec& spec : specs) {
    names.push_back(absl::StrCat("  ", spec.letter ? absl::StrCat("-", std::string(1, spec.letter), ", ") : "    ",
                                 "--", spec.name, spec.value_name.empty() ? "" : "=", spec.value_name));
    width = std::max(width, names.back().size());
  }
  std::string help;
  for (size_t i = 0; i < specs.size(); ++i) {
    absl::StrAppend(&help, names[i], std::string(width + 2 - names[i].size(), ' '), specs[i].help);
    if (!specs[i].default_text.empty() && specs[i].kind != FlagKind::kBool) {
      absl::StrAppend(&help, " (default: ", specs[i].default_text, ")");
    }
    absl::StrAppend(&help, "\n");
  }
  return help;
}

}  // namespace qst
