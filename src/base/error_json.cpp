#include "base/error_json.hpp"

#include "base/json_values.hpp"

namespace awex {

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
