#pragma once

#include <string>
#include <utility>

#include "cli/output_files.hpp"
#include "cycle/report.hpp"

namespace awex {

/// The files a report is exported to: OutputFiles for which it is rendered.
class ReportFiles {
 public:
  /// Opens the files and writes `unfinished`, as OutputFiles::open.
  void open(const std::string& json_path, const std::string& trace_path, const Report& unfinished,
            Patience patience = {});
  /// The same for a report that is rendered elsewhere.
  void open(const std::string& json_path, const std::string& trace_path,
            const OutputTexts& unfinished, Patience patience = {}) {
    files_.open(json_path, trace_path, unfinished, std::move(patience));
  }
  /// As OutputFiles::be_patient.
  void be_patient(Patience patience) { files_.be_patient(std::move(patience)); }

  /// The report as the files that are open take it; empty for what none takes.
  [[nodiscard]] OutputTexts render(const Report& report) const;
  /// As OutputFiles::update.
  void update(const Report& report) { files_.update(render(report)); }
  /// As OutputFiles::write.
  void write(const Report& report) { files_.write(render(report)); }
  void write(const OutputTexts& rendered) { files_.write(rendered); }

 private:
  OutputFiles files_;
};

}  // namespace awex
