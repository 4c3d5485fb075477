#include "cli/report_files.hpp"

#include "cli/render_json.hpp"
#include "cli/render_trace.hpp"

namespace awex {

void ReportFiles::open(const std::string& json_path, const std::string& trace_path,
                       const Report& unfinished, Patience patience) {
  files_.open(json_path, trace_path, {render_json(unfinished), render_trace(unfinished)},
              std::move(patience));
}

OutputTexts ReportFiles::render(const Report& report) const {
  OutputTexts texts;
  if (files_.take(&OutputTexts::json)) texts.json = render_json(report);
  if (files_.take(&OutputTexts::trace)) texts.trace = render_trace(report);
  return texts;
}

}  // namespace awex
