#pragma once

#include <memory>

namespace CLI {
class FormatterBase;
}

namespace awex {

/// How --help is written: in two columns that fit kTextWidth.
[[nodiscard]] std::shared_ptr<CLI::FormatterBase> make_help_formatter();

}  // namespace awex
