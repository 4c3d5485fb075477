#include "cli/error_json.hpp"

#include <nlohmann/json.hpp>

namespace awex {
namespace {

using Json = nlohmann::ordered_json;

Json text_or_null(const std::string& text) { return text.empty() ? Json() : Json(text); }

}  // namespace

Json error_json(const Error& error) {
  const auto& context = error.context();
  return {{"code", static_cast<int>(error.code())},
          {"rank", context.rank ? Json(*context.rank) : Json()},
          {"host", text_or_null(context.host)},
          {"gpu", text_or_null(context.gpu)},
          {"role", text_or_null(context.role)},
          {"phase", text_or_null(context.phase)},
          {"tag", text_or_null(context.tag)},
          {"tensor", text_or_null(context.tensor)},
          {"message", error.what()},
          {"hint", text_or_null(error.hint())}};
}

}  // namespace awex
