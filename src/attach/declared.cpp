#include "attach/declared.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

namespace awex::attach {
namespace {

constexpr size_t kNamedDifferences = 12;
/// What addresses and places agree in (memory/placed_memory.hpp).
constexpr uint64_t kPlaceAlignment = 8;

std::string shape_of(const Parameter& tensor) {
  return fmt::format("{} {} x {}", dtype_name(tensor.dtype), tensor.rows, tensor.cols);
}

bool is_same_shape(const Parameter& a, const Parameter& b) {
  return a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols;
}

/// What is declared, found by name. Parts of a pipeline may have tensors of one name.
class ByName {
 public:
  explicit ByName(const std::vector<Parameter>& declared) {
    for (const auto& tensor : declared) left_.emplace(tensor.name, &tensor);
  }

  /// Takes the one that is wanted, or else another of its name.
  const Parameter* take(const Parameter& wanted) {
    const auto [first, last] = left_.equal_range(wanted.name);
    if (first == last) return nullptr;
    auto found = std::find_if(first, last,
                              [&](const auto& one) { return is_same_shape(*one.second, wanted); });
    if (found == last) found = first;
    const auto* tensor = found->second;
    left_.erase(found);
    return tensor;
  }
  [[nodiscard]] const std::multimap<std::string_view, const Parameter*>& left() const {
    return left_;
  }

 private:
  std::multimap<std::string_view, const Parameter*> left_;
};

/// Collects what differs, and what may have caused it.
class Findings {
 public:
  explicit Findings(const WantedWeights& wanted) : wanted_(wanted) {}

  void add(const std::string& finding, const std::string& tensor) {
    if (findings_.empty()) first_ = tensor;
    if (findings_.size() < kNamedDifferences) findings_.push_back(finding);
    ++count_;
  }
  void missing(const Parameter& one) {
    add(fmt::format("{} ({}) is missing", one.name, shape_of(one)), one.name);
    ++missing_;
  }
  void unknown(const Parameter& one) {
    add(fmt::format("{} ({}) is unknown", one.name, shape_of(one)), one.name);
    ++unknown_;
  }
  void reshaped(const Parameter& declared, const Parameter& one, TensorRole role) {
    add(fmt::format("{} is {}, its layout has {}", one.name, shape_of(declared), shape_of(one)),
        one.name);
    if (declared.dtype != one.dtype) ++dtypes_;
    const bool is_vocabulary = role == TensorRole::kEmbedding || role == TensorRole::kHead;
    if (declared.cols == one.cols && declared.rows != one.rows && is_vocabulary) ++vocabulary_;
    note_ratio(declared.rows, one.rows);
    note_ratio(declared.cols, one.cols);
  }

  [[nodiscard]] std::optional<Error> error() const {
    if (count_ == 0) return std::nullopt;
    auto text =
        fmt::format("what the engine declares differs in {} {} from its layout {}: {}", count_,
                    count_ == 1 ? "tensor" : "tensors", wanted_.spec, fmt::join(findings_, "; "));
    if (count_ > findings_.size()) text += fmt::format("; and {} more", count_ - findings_.size());
    return request_error(text, hint()).about_tag(tag_name(Tag::kWeights)).about_tensor(first_);
  }

 private:
  void note_ratio(uint64_t declared, uint64_t wanted) {
    if (declared == wanted || declared == 0 || wanted == 0) return;
    if (declared % wanted == 0) ratios_.insert({declared / wanted, 1});
    if (wanted % declared == 0) ratios_.insert({1, wanted / declared});
    reshaped_ += 1;
  }

  [[nodiscard]] std::string hint() const {
    if (missing_ == count_ && unknown_ == 0) {
      return "the likely cause: the engine holds fewer layers or experts than the job (pp, ep, "
             "--layers), or some of its modules were not declared";
    }
    if (dtypes_ > 0 && dtypes_ + 1 >= count_) {
      return "the likely cause: the dtype of the engine is not that of the job's --model";
    }
    if (vocabulary_ > 0 && vocabulary_ == count_) {
      return "the likely cause: the padding of the vocabulary (make-vocab-size-divisible-by, "
             "padding_size)";
    }
    if (reshaped_ > 0 && ratios_.size() == 1) {
      const auto [up, down] = *ratios_.begin();
      return up > 1 ? fmt::format("the likely cause: tp (the engine splits {} times less than {})",
                                  up, wanted_.spec)
                    : fmt::format("the likely cause: tp (the engine splits {} times more than {})",
                                  down, wanted_.spec);
    }
    if (missing_ > 0 && unknown_ > 0) {
      return "the likely cause: names of another engine or another pp or ep: declare under the "
             "names that awex_layout_tensor lists";
    }
    return "the engine and its spec must agree: look at tp, ep, pp, the dtype and the padding of "
           "the vocabulary";
  }

  const WantedWeights& wanted_;
  std::vector<std::string> findings_;
  std::string first_;
  size_t count_ = 0;
  size_t missing_ = 0;
  size_t unknown_ = 0;
  size_t dtypes_ = 0;
  size_t vocabulary_ = 0;
  size_t reshaped_ = 0;
  std::set<std::pair<uint64_t, uint64_t>> ratios_;
};

/// What a parameter's first shard is for.
std::vector<TensorRole> roles_of(const WantedWeights& wanted) {
  std::vector<TensorRole> roles(wanted.layout.parameters.size(), TensorRole::kNone);
  for (const auto& shard : wanted.layout.shards) {
    roles[shard.parameter] = wanted.catalogue.tensors()[shard.tensor].role;
  }
  return roles;
}

/// Tells each tensor that reaches out of the memory or into another.
template <class Tell>
void look_at_places(const std::vector<Parameter>& declared, uint64_t room_bytes, const Tell& tell) {
  std::vector<const Parameter*> by_place;
  for (const auto& tensor : declared) {
    if (tensor.offset_bytes > room_bytes || tensor.bytes() > room_bytes - tensor.offset_bytes) {
      tell(fmt::format("{} ({} at byte {}) reaches out of the {} of its memory", tensor.name,
                       format_bytes(tensor.bytes()), tensor.offset_bytes, format_bytes(room_bytes)),
           tensor.name);
    } else if (tensor.bytes() > 0) {
      by_place.push_back(&tensor);
    }
  }
  std::sort(by_place.begin(), by_place.end(), [](const Parameter* a, const Parameter* b) {
    return a->offset_bytes < b->offset_bytes;
  });
  for (size_t i = 1; i < by_place.size(); ++i) {
    const auto& before = *by_place[i - 1];
    if (before.offset_bytes + before.bytes() <= by_place[i]->offset_bytes) continue;
    tell(fmt::format("{} overlaps {}", by_place[i]->name, before.name), by_place[i]->name);
  }
}

}  // namespace

std::optional<Error> differences(const std::vector<Parameter>& declared,
                                 const WantedWeights& wanted) {
  Findings findings(wanted);
  ByName left(declared);
  const auto roles = roles_of(wanted);
  const auto& parameters = wanted.layout.parameters;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto* found = left.take(parameters[i]);
    if (found == nullptr) {
      findings.missing(parameters[i]);
    } else if (!is_same_shape(*found, parameters[i])) {
      findings.reshaped(*found, parameters[i], roles[i]);
    } else if (found->offset_bytes % kPlaceAlignment != 0) {
      findings.add(fmt::format("{} lies at byte {}, which is no multiple of {}", found->name,
                               found->offset_bytes, kPlaceAlignment),
                   found->name);
    } else if (!wanted.places.empty() && found->offset_bytes != wanted.places[i].offset_bytes) {
      findings.add(fmt::format("{} lies at byte {}, and at byte {} in the memory that a former "
                               "engine has left",
                               found->name, found->offset_bytes, wanted.places[i].offset_bytes),
                   found->name);
    }
  }
  for (const auto& [name, tensor] : left.left()) findings.unknown(*tensor);
  look_at_places(declared, wanted.room_bytes,
                 [&](const std::string& finding, const std::string& tensor) {
                   findings.add(finding, tensor);
                 });
  return findings.error();
}

std::optional<Error> misplaced(const std::vector<Parameter>& declared, Tag tag,
                               uint64_t room_bytes) {
  std::optional<Error> error;
  const auto tell = [&](const std::string& finding, const std::string& tensor) {
    if (error) return;
    error = request_error(fmt::format("what the engine declares as {}: {}", tag_name(tag), finding),
                          "ask for as many bytes as it needs when it attaches")
                .about_tag(tag_name(tag))
                .about_tensor(tensor);
  };
  look_at_places(declared, room_bytes, tell);
  for (const auto& tensor : declared) {
    const uint64_t element = element_bytes(tensor.dtype);
    if (tensor.offset_bytes % element == 0) continue;
    tell(fmt::format("{} lies at byte {}, which is no multiple of its element", tensor.name,
                     tensor.offset_bytes),
         tensor.name);
  }
  return error;
}

std::vector<Parameter> in_order_of(const RankLayout& layout,
                                   const std::vector<Parameter>& declared) {
  ByName left(declared);
  std::vector<Parameter> ordered;
  for (const auto& parameter : layout.parameters) ordered.push_back(*left.take(parameter));
  return ordered;
}

std::vector<MemorySegment> segments_of(const RankLayout& layout,
                                       const std::vector<Parameter>& places, std::byte* memory) {
  std::vector<MemorySegment> segments;
  std::vector<size_t> order(places.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return layout.parameters[a].offset_bytes < layout.parameters[b].offset_bytes;
  });
  for (const size_t i : order) {
    const auto& parameter = layout.parameters[i];
    if (parameter.bytes() == 0) continue;
    std::byte* address = memory + places[i].offset_bytes;
    const uint64_t offset = parameter.offset_bytes;
    // What lies as far apart here as there goes on, with what is between: nothing reads that.
    if (!segments.empty() &&
        segments.back().address + (offset - segments.back().offset_bytes) == address) {
      segments.back().bytes = offset + parameter.bytes() - segments.back().offset_bytes;
    } else {
      segments.push_back({offset, address, parameter.bytes()});
    }
  }
  return segments;
}

}  // namespace awex::attach
