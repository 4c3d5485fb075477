#include "cli/wrapped_text.hpp"

#include <sstream>

namespace awex {

std::string wrapped(const std::string& text, size_t width, size_t indent) {
  const std::string blanks(indent, ' ');
  std::string out;
  std::istringstream paragraphs(text);
  for (std::string paragraph; std::getline(paragraphs, paragraph);) {
    if (!out.empty()) out += "\n" + blanks;
    // The first line, too, stands behind `indent` bytes that are not in the text.
    size_t used = indent;
    std::istringstream words(paragraph);
    for (std::string word; words >> word;) {
      const bool is_first = used == indent;
      if (!is_first && used + 1 + word.size() > width) {
        out += "\n" + blanks;
        used = indent;
      } else if (!is_first) {
        out += " ";
        ++used;
      }
      out += word;
      used += word.size();
    }
  }
  return out;
}

}  // namespace awex
