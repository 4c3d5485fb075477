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
    const uint64_t element = element_bytes(catalogue.tensors()[shard.tensor].dtype);
    const uint64_t stride = shard.row_stride * element;
    const uint64_t at_once = std::max<uint64_t>(1, kBlockBytes / stride);
    for (uint64_t row = shard.box.rows.begin; row < shard.box.rows.end; row += at_once) {
      const Range rows{row, std::min(row + at_once, shard.box.rows.end)};
      blocks.push_back({&shard, rows, shard.offset_bytes + (row - shard.box.rows.begin) * stride,
                        (rows.size() - 1) * stride + shard.box.cols.size() * element});
    }
  }
  return blocks;
}

uint64_t bytes_to_read(const Catalogue& catalogue, const RankLayout& layout) {
  uint64_t bytes = 0;
  for (const auto& shard : layout.shards) {
    bytes += shard.box.rows.size() * shard.box.cols.size() *
             element_bytes(catalogue.tensors()[shard.tensor].dtype);
  }
  return bytes;
}

void read_block(const WeightSource& source, const Block& block, std::byte* to) {
  const Shard& shard = *block.shard;
  const TensorInfo& tensor = source.catalogue().tensors()[shard.tensor];
  const uint64_t element = element_bytes(tensor.dtype);
  const Range cols = shard.box.cols;
  const bool is_one_run = cols.size() == tensor.cols && shard.row_stride == tensor.cols;
  const uint64_t runs = is_one_run ? 1 : block.rows.size();
  const uint64_t run_bytes = is_one_run ? block.bytes : cols.size() * element;
  for (uint64_t i = 0; i < runs; ++i) {
    source.read(shard.tensor, (block.rows.begin + i) * tensor.cols + cols.begin,
                {to + i * shard.row_stride * element, run_bytes});
  }
}

}  // namespace

uint64_t load_window_bytes(const Catalogue& catalogue, const RankLayout& layout) {
  uint64_t bytes = std::min(kWindowBytes, layout.bytes);
  for (const auto& block : cut_into_blocks(catalogue, layout)) bytes = std::max(bytes, block.bytes);
  return bytes;
}

void load_region(const WeightSource& source, const RankLayout& layout, Region& region,
                 HostBlock& window, CopyQueue& queue, ThreadPool& threads, const Deadline& deadline,
                 WaitMonitor& monitor) {
  // A read that hangs may outlive this call: what it uses is its own.
  const auto shared =
      std::make_shared<const std::vector<Block>>(cut_into_blocks(source.catalogue(), layout));
  const auto& blocks = *shared;
  work::Task task{"loading the weights", 0, bytes_to_read(source.catalogue(), layout)};
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
    const auto read = [shared, &source, &threads, bytes, begin, end, first, next] {
      std::memset(bytes, 0, end - begin);
      threads.for_each(next - first, [&](size_t i) {
        const Block& block = (*shared)[first + i];
        read_block(source, block, bytes + (block.offset_bytes - begin));
      });
    };
    const uint64_t before = work::advanced();
    work::attend(read, task, deadline.allowed(), monitor);
    task.done_bytes += work::advanced() - before;
    queue.copy(region.data() + begin, bytes, end - begin);
    queue.finish("loading the weights", Deadline(deadline.allowed()), monitor);
    begin = end;
  }
}

}  // namespace awex
