#include "attach/library/mapped_page.hpp"

#include "attach/message.hpp"
#include "base/error.hpp"

namespace awex::attach {

MappedPage::MappedPage(const UniqueFd& fd)
    : mapping_(map_file("the rank's control page", fd, sizeof(ControlPage))) {
  if ((**this).magic != ControlPage::kMagic) {
    throw runtime_error("the rank's control page is none", kOtherBuild);
  }
}

}  // namespace awex::attach
