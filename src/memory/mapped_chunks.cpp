#include "memory/mapped_chunks.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace awex {
namespace {

constexpr const char* kOurFault = "this is a fault of awex-colocate: please report it";

}  // namespace

void MappedChunks::map(OwnedChunks& owner, uint64_t first, uint64_t count) {
  owner.expect_taken(first, count);
  const auto& theirs = owner.chunking();
  if (theirs.bytes != chunking_.bytes || theirs.chunk_bytes != chunking_.chunk_bytes) {
    throw runtime_error(fmt::format("cannot map \"{}\" as \"{}\": {} bytes in chunks of {} are not "
                                    "{} in chunks of {}",
                                    theirs.name, chunking_.name, theirs.bytes, theirs.chunk_bytes,
                                    chunking_.bytes, chunking_.chunk_bytes),
                        kOurFault);
  }
  expect_unmapped(first, count);
  do_map(owner, first, count);
  note(first, count, Mapped::kOwned);
}

void MappedChunks::map(uint64_t first, std::vector<UniqueFd> fds) {
  const uint64_t count = fds.size();
  if (count == 0 || first + count > mapped_.size()) {
    throw runtime_error(fmt::format("cannot map \"{}\": got {} descriptors from chunk {} of {} on",
                                    chunking_.name, count, first + 1, mapped_.size()));
  }
  expect_unmapped(first, count);
  do_map(first, std::move(fds));
  note(first, count, Mapped::kImported);
}

void MappedChunks::map(std::vector<UniqueFd> fds) {
  expect_unmapped(0, mapped_.size());
  if (fds.size() != mapped_.size()) {
    throw runtime_error(fmt::format("cannot map \"{}\": got {} descriptors for {} chunks",
                                    chunking_.name, fds.size(), mapped_.size()));
  }
  map(0, std::move(fds));
}

void MappedChunks::unmap(uint64_t first, uint64_t count) {
  for (uint64_t chunk = first; chunk < first + count; ++chunk) {
    if (chunk < mapped_.size() && is_mapped(chunk)) continue;
    throw runtime_error(chunking_.describe(chunk, 1) + " is not mapped", kOurFault);
  }
  const bool imported = mapped_.at(first) == Mapped::kImported;
  do_unmap(first, count, (imported ? "imported " : "") + chunking_.describe(first, count));
  note(first, count, Mapped::kNothing);
}

void MappedChunks::unmap() {
  auto begin = mapped_.begin();
  while (true) {
    begin = std::find_if(begin, mapped_.end(), [](Mapped m) { return m != Mapped::kNothing; });
    if (begin == mapped_.end()) return;
    const auto end =
        std::find_if(begin, mapped_.end(), [&](Mapped other) { return other != *begin; });
    unmap(static_cast<uint64_t>(begin - mapped_.begin()), static_cast<uint64_t>(end - begin));
    begin = end;
  }
}

void MappedChunks::expect_unmapped(uint64_t first, uint64_t count) const {
  const auto begin = mapped_.begin() + static_cast<ptrdiff_t>(first);
  const auto is_free = [](Mapped what) { return what == Mapped::kNothing; };
  if (std::all_of(begin, begin + static_cast<ptrdiff_t>(count), is_free)) return;
  throw runtime_error(
      fmt::format("cannot map \"{}\": it is mapped already, and nothing maps over a "
                  "mapping",
                  chunking_.name),
      kOurFault);
}

void MappedChunks::note(uint64_t first, uint64_t count, Mapped what) noexcept {
  std::fill_n(mapped_.begin() + static_cast<ptrdiff_t>(first), count, what);
}

}  // namespace awex
