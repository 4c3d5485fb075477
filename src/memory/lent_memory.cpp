#include "memory/lent_memory.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/units.hpp"
#include "memory/device.hpp"

namespace awex {
namespace {

/// The blocks by their addresses, as they are opened here.
struct Here {
  const LentBlock* block = nullptr;
  std::byte* data = nullptr;
};

/// The lender's segments, cut where blocks end: here those may lie apart.
std::vector<MemorySegment> cut(const std::string& name, const std::vector<Here>& blocks,
                               const std::vector<MemorySegment>& segments) {
  std::vector<MemorySegment> found;
  for (const auto& segment : segments) {
    const auto address = reinterpret_cast<uintptr_t>(segment.address);
    for (uint64_t done = 0; done < segment.bytes;) {
      const uint64_t at = address + done;
      const auto after = std::upper_bound(
          blocks.begin(), blocks.end(), at,
          [](uint64_t value, const Here& one) { return value < one.block->address; });
      const Here* here = after == blocks.begin() ? nullptr : &*std::prev(after);
      if (here == nullptr || at - here->block->address >= here->block->bytes) {
        throw request_error(fmt::format("{} of {} from byte {} on lie in no memory that is lent",
                                        format_bytes(segment.bytes - done), name,
                                        segment.offset_bytes + done));
      }
      const uint64_t before = at - here->block->address;
      const uint64_t bytes = std::min(segment.bytes - done, here->block->bytes - before);
      found.push_back({segment.offset_bytes + done, here->data + before, bytes});
      done += bytes;
    }
  }
  return found;
}

}  // namespace

uint64_t LentMemory::bytes() const {
  uint64_t sum = 0;
  for (const auto& lending : lendings) sum += lending.block.bytes;
  return sum;
}

BorrowedMemory::BorrowedMemory(Device& device, const std::string& name, const LentMemory& lent)
    : number_(lent.number), stays_(lent.stays) {
  std::vector<Here> here;
  for (const auto& lending : lent.lendings) {
    blocks_.push_back(device.open_lent(name, lending.block, lending.fd));
    // It is read alone; what is placed has one type of address for all.
    here.push_back({&lending.block, const_cast<std::byte*>(blocks_.back()->data())});
  }
  std::sort(here.begin(), here.end(),
            [](const Here& a, const Here& b) { return a.block->address < b.block->address; });
  placed_ = PlacedMemory(name, cut(name, here, lent.segments));
}

}  // namespace awex
