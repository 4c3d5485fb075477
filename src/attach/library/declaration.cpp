#include "attach/library/declaration.hpp"

#include <bit>
#include <iterator>
#include <utility>

#include "base/checked.hpp"
#include "base/error.hpp"
#include "model/json_input.hpp"

namespace awex::attach {
namespace {

constexpr auto kWeights = static_cast<size_t>(Tag::kWeights);

uint64_t bytes_of(const Parameter& parameter) {
  const auto elements = checked_mul(parameter.rows, parameter.cols, "a tensor");
  return checked_mul(elements, element_bytes(parameter.dtype), "a tensor");
}

uint64_t end_of(const Parameter& parameter) {
  return checked_add(parameter.offset_bytes, bytes_of(parameter), "a tensor's end");
}

/// The block that holds an address, where one of them does.
const LentBlock* block_of(const Declaration::Blocks& blocks, uint64_t address) {
  const auto next = blocks.upper_bound(address);
  if (next == blocks.begin()) return nullptr;
  const auto& block = std::prev(next)->second;
  return address - block.address < block.bytes ? &block : nullptr;
}

/// What a device lends of the memory at an address.
Lending lend_at(MappingDevice& device, uint64_t address) {
  auto lending = device.lend(std::bit_cast<const std::byte*>(address));
  const auto& block = lending.block;
  if (address >= block.address && address - block.address < block.bytes) return lending;
  throw runtime_error(fmt::format("{} at {:#x} are no block that holds {:#x}",
                                  format_bytes(block.bytes), block.address, address));
}

/// What `work` returns; its errors name the tensor.
template <class Work>
auto about(const Parameter& parameter, const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    throw cannot_declare(parameter, error.what(), error.hint());
  }
}

/// Lends the blocks that a tensor lies in, but for those that are lent already, and adds them to
/// these.
void lend_new_blocks(const Parameter& parameter, Declaration::Blocks& lent, MappingDevice& device,
                     const Declaration::Lend& lend) {
  const uint64_t end = about(parameter, [&] { return end_of(parameter); });
  for (uint64_t at = parameter.offset_bytes; at < end;) {
    const auto* block = block_of(lent, at);
    if (block == nullptr) {
      if (lent.size() == kMostLentBlocks) {
        throw cannot_declare(
            parameter,
            fmt::format("the weights lie in more than {} blocks of memory", kMostLentBlocks),
            "let a job that is started anew have them (adopt)");
      }
      auto lending = about(parameter, [&] { return lend_at(device, at); });
      block = &lent.insert_or_assign(lending.block.address, lending.block).first->second;
      lend(std::move(lending));
    }
    at = block->address + block->bytes;
  }
}

}  // namespace

Error cannot_declare(const Parameter& parameter, const std::string& why, const std::string& hint) {
  return request_error(fmt::format("cannot declare {}: {}", in_quotes(parameter.name), why), hint)
      .about_tensor(parameter.name);
}

const std::vector<Parameter>& Declaration::weights() const { return tensors_.at(kWeights); }

void Declaration::add(Tag tag, const Parameter& parameter, uint64_t bytes) {
  const auto element = element_bytes(parameter.dtype);
  const auto end = end_of(parameter);
  if (parameter.offset_bytes % element != 0) {
    throw cannot_declare(parameter,
                         fmt::format("offset {} is no multiple of its element's {} bytes",
                                     parameter.offset_bytes, element));
  }
  if (end > bytes) {
    throw cannot_declare(
        parameter, fmt::format("it ends at byte {}, and {} has {}", end, tag_name(tag), bytes));
  }
  begin_list();
  put(tag, parameter);
}

void Declaration::add_own(const Parameter& parameter, MappingDevice* device) {
  if (parameter.offset_bytes % element_bytes(parameter.dtype) != 0) {
    throw cannot_declare(parameter, fmt::format("its address {:#x} is no multiple of its element",
                                                parameter.offset_bytes));
  }
  begin_list();
  const auto keep_none = [](const Lending&) {};
  if (device != nullptr) lend_new_blocks(parameter, blocks_, *device, keep_none);
  put(Tag::kWeights, parameter);
}

void Declaration::begin_list() {
  const auto next = std::exchange(next_, Next::kAdds);
  if (next == Next::kAdds) return;
  if (next == Next::kBeginsAll) {
    tensors_ = {};
    names_ = {};
  }
  tensors_.at(kWeights).clear();
  names_.at(kWeights).clear();
  blocks_.clear();
}

void Declaration::put(Tag tag, const Parameter& parameter) {
  const auto at = static_cast<size_t>(tag);
  if (!names_.at(at).insert(parameter.name).second) {
    throw cannot_declare(parameter, fmt::format("{} has it already", tag_name(tag)),
                         "a tensor is declared once; awex_seal begins a new list");
  }
  tensors_.at(at).push_back(parameter);
}

void Declaration::lend_weights(MappingDevice& device, const Lend& lend) const {
  Blocks lent;
  for (const auto& tensor : weights()) lend_new_blocks(tensor, lent, device, lend);
}

}  // namespace awex::attach
