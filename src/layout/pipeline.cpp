#include "layout/pipeline.hpp"

namespace awex {

Pipeline make_pipeline(const std::vector<uint64_t>& layers_of, uint32_t stages) {
  Pipeline pipeline(stages);
  uint64_t begin = 0;
  for (size_t run = 0; run < layers_of.size(); ++run) {
    pipeline[run % stages].push_back({.layers = {begin, begin + layers_of[run]}});
    begin += layers_of[run];
  }
  pipeline.front().front().embedding = true;
  pipeline.back().back().final_norm = true;
  pipeline.back().back().head = true;
  return pipeline;
}

}  // namespace awex
