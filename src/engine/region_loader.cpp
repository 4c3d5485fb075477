#include "engine/region_loader.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "base/work_progress.hpp"

namespace awex {
namespace {

constexpr uint64_t kWindowBytes = 64ULL << 20;
constexpr uint64_t kBlockBytes = 1ULL << 20;
constexpr size_t kReaders = 16;  ///< At least: storage is waited for, not the processor.

/// Whether whole rows are read and the columns picked from them. Storage answers late: a read of
/// its own for each row costs more than the bytes between the columns, unless these are many.
bool reads_whole_rows(const TensorInfo& tensor, const Shard& shard) {
  constexpr uint64_t kPageBytes = 4096;
  constexpr uint64_t kMostBytesBetween = 64ULL << 10;
  constexpr uint64_t kMostTimesTheBytes = 16;
  const uint64_t element = element_bytes(tensor.dtype);
  const uint64_t cols = shard.box.cols.size();
  if (cols == tensor.cols) return true;
  if (tensor.cols * element <= kPageBytes) return true;
  return tensor.cols <= kMostTimesTheBytes * cols &&
         (tensor.cols - cols) * element <= kMostBytesBetween;
}

uint64_t cols_read(const TensorInfo& tensor, const Shard& shard) {
  return reads_whole_rows(tensor, shard) ? tensor.cols : shard.box.cols.size();
}

/// Some rows of a shard: the unit of work of one thread.
struct Block {
  const Shard* shard = nullptr;
  Range rows;  ///< Of the canonical tensor.
  uint64_t offset_bytes = 0;
  uint64_t bytes = 0;  ///< From the first row's first byte to the last row's last.
};

std::vector<Block> cut_into_blocks(const Catalogue& catalogue, const RankLayout& layout) {
  std::vector<Block> blocks;
  for (const auto& shard : layout.shards) {
    const TensorInfo& tensor = catalogue.tensors()[shard.tensor];
    const uint64_t element = element_bytes(tensor.dtype);
    const uint64_t stride = shard.row_stride * element;
    const uint64_t widest = std::max(stride, cols_read(tensor, shard) * element);
    const uint64_t at_once = std::max<uint64_t>(1, kBlockBytes / widest);
    for (uint64_t row = shard.box.rows.begin; row < shard.box.rows.end; row += at_once) {
      const Range rows{row, std::min(row + at_once, shard.box.rows.end)};
      blocks.push_back({&shard, rows, shard.offset_bytes + (row - shard.box.rows.begin) * stride,
                        (rows.size() - 1) * stride + shard.box.cols.size() * element});
    }
  }
  return blocks;
}

/// Calls read(first element, elements, index of the first row) for each read that a block takes.
template <class Read>
void for_each_read(const TensorInfo& tensor, const Block& block, const Read& read) {
  const Shard& shard = *block.shard;
  if (reads_whole_rows(tensor, shard)) {
    read(block.rows.begin * tensor.cols, block.rows.size() * tensor.cols, uint64_t{0});
    return;
  }
  for (uint64_t i = 0; i < block.rows.size(); ++i) {
    read((block.rows.begin + i) * tensor.cols + shard.box.cols.begin, shard.box.cols.size(), i);
  }
}

uint64_t bytes_to_read(const WeightSource& source, const std::vector<Block>& blocks) {
  uint64_t bytes = 0;
  for (const auto& block : blocks) {
    const uint32_t tensor = block.shard->tensor;
    for_each_read(source.catalogue().tensors()[tensor], block,
                  [&](uint64_t first, uint64_t elements, uint64_t /*row*/) {
                    bytes += source.bytes_to_read(tensor, first, elements);
                  });
  }
  return bytes;
}

/// Reads the rows at once, and picks the columns.
void read_rows(const WeightSource& source, const Block& block, std::byte* to) {
  const Shard& shard = *block.shard;
  const TensorInfo& tensor = source.catalogue().tensors()[shard.tensor];
  const uint64_t element = element_bytes(tensor.dtype);
  const uint64_t row_bytes = tensor.cols * element;
  const uint64_t bytes = block.rows.size() * row_bytes;
  const auto rows = std::make_unique_for_overwrite<std::byte[]>(bytes);
  source.read(shard.tensor, block.rows.begin * tensor.cols, {rows.get(), bytes});
  const std::byte* from = rows.get() + shard.box.cols.begin * element;
  for (uint64_t i = 0; i < block.rows.size(); ++i) {
    std::memcpy(to + i * shard.row_stride * element, from + i * row_bytes,
                shard.box.cols.size() * element);
  }
}

void read_block(const WeightSource& source, const Block& block, std::byte* to) {
  const Shard& shard = *block.shard;
  const TensorInfo& tensor = source.catalogue().tensors()[shard.tensor];
  const uint64_t element = element_bytes(tensor.dtype);
  const Range cols = shard.box.cols;
  if (cols.size() == tensor.cols && shard.row_stride == tensor.cols) {
    source.read(shard.tensor, block.rows.begin * tensor.cols, {to, block.bytes});
    return;
  }
  if (reads_whole_rows(tensor, shard)) return read_rows(source, block, to);
  for_each_read(tensor, block, [&](uint64_t first, uint64_t elements, uint64_t row) {
    source.read(shard.tensor, first, {to + row * shard.row_stride * element, elements * element});
  });
}

}  // namespace

uint64_t load_window_bytes(const Catalogue& catalogue, const RankLayout& layout) {
  uint64_t bytes = std::min(kWindowBytes, layout.bytes);
  for (const auto& block : cut_into_blocks(catalogue, layout)) bytes = std::max(bytes, block.bytes);
  return bytes;
}

uint64_t load_region(const WeightSource& source, const RankLayout& layout,
                     const PlacedMemory& memory, HostBlock& window, CopyQueue& queue,
                     size_t threads, const Deadline& deadline, WaitMonitor& monitor) {
  // A read that hangs may outlive this call: what it uses is its own.
  const auto shared =
      std::make_shared<const std::vector<Block>>(cut_into_blocks(source.catalogue(), layout));
  const auto readers = std::make_shared<ThreadPool>(std::max(threads, kReaders));
  const auto& blocks = *shared;
  work::Task task{"loading the weights", 0, bytes_to_read(source, *shared)};
  const uint64_t window_bytes = window.bytes().size();
  std::byte* const bytes = window.bytes().data();
  size_t next = 0;
  for (uint64_t begin = 0; begin < layout.bytes;) {
    const size_t first = next;
    while (next < blocks.size() &&
           blocks[next].offset_bytes + blocks[next].bytes <= begin + window_bytes) {
      ++next;
    }
    const uint64_t end = std::min(next < blocks.size() ? blocks[next].offset_bytes : layout.bytes,
                                  begin + window_bytes);
    const auto read = [shared, readers, &source, bytes, begin, end, first, next] {
      std::memset(bytes, 0, end - begin);
      readers->for_each(next - first, [&](size_t i) {
        const Block& block = (*shared)[first + i];
        read_block(source, block, bytes + (block.offset_bytes - begin));
      });
    };
    const uint64_t before = work::advanced();
    work::attend(read, task, deadline.allowed(), monitor);
    task.done_bytes += work::advanced() - before;
    for (uint64_t at = begin; at < end;) {
      const uint64_t part = std::min(end - at, memory.together_from(at));
      queue.copy(memory.at(at, part), bytes + (at - begin), part);
      at += part;
    }
    queue.finish("loading the weights", Deadline(deadline.allowed()), monitor);
    begin = end;
  }
  return task.all_bytes;
}

}  // namespace awex
