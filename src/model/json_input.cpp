#include "model/json_input.hpp"

#include <algorithm>
#include <unordered_set>
#include <vector>

#include "base/error.hpp"

namespace awex {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;
constexpr size_t kMaxShown = 120;

/// nlohmann keeps the last of two equal keys, so a file could mean two things; this notices.
class DuplicateKeys {
 public:
  explicit DuplicateKeys(const std::string& what) : what_(what) {}

  void see(int depth, json::parse_event_t event, const json& parsed) {
    if (depth > kMaxDepth) {
      throw request_error(fmt::format("{}: JSON nested deeper than {}", what_, kMaxDepth));
    }
    if (event == json::parse_event_t::object_start) open_objects_.emplace_back();
    if (event == json::parse_event_t::object_end) open_objects_.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!open_objects_.back().insert(key).second) {
        throw request_error(fmt::format("{}: the key {} appears twice", what_, in_quotes(key)));
      }
    }
  }

 private:
  const std::string& what_;
  std::vector<std::unordered_set<std::string>> open_objects_;
};

/// The longest beginning of at most `limit` bytes that does not cut a UTF-8 character.
std::string_view cut_utf8(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xc0U) == 0x80U) --limit;
  return text.substr(0, limit);
}

std::string cut(std::string_view text) {
  const auto kept = cut_utf8(text, kMaxShown);
  return kept.size() == text.size() ? std::string(text) : std::string(kept) + "...";
}

}  // namespace

json parse_json(std::string_view text, const std::string& what) {
  // The parser takes a NUL for the end: what stands behind it would not count.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    throw request_error(fmt::format("{}: not valid JSON at byte {} of {}: a byte of value 0", what,
                                    nul + 1, text.size()));
  }
  DuplicateKeys duplicates(what);
  try {
    return json::parse(text, [&](int depth, json::parse_event_t event, json& parsed) {
      duplicates.see(depth, event, parsed);
      return true;
    });
  } catch (const json::parse_error& error) {
    throw request_error(
        fmt::format("{}: not valid JSON at byte {} of {}", what, error.byte, text.size()));
  } catch (const json::exception&) {
    throw request_error(fmt::format("{}: not valid JSON: a number is out of range", what));
  }
}

std::string in_quotes(std::string_view text) {
  auto result = cut(text);
  std::replace_if(
      result.begin(), result.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return '"' + result + '"';
}

std::string shown(const json& value) {
  return cut(value.dump(-1, ' ', true, json::error_handler_t::replace));
}

}  // namespace awex
