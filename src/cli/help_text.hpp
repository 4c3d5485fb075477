#pragma once

#include <cstddef>
#include <memory>

namespace CLI {
class FormatterBase;
}

namespace awex {

/// How --help is written: in two columns that fit `width`; examples that do not are broken as a
/// shell takes it.
[[nodiscard]] std::shared_ptr<CLI::FormatterBase> make_help_formatter(size_t width);

}  // namespace awex
