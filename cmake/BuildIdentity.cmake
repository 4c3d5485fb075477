# Writes OUTPUT, a C++ file that defines awex::build_identity(): "<version>+g<commit>", with
# ".d<hash>" behind it where the sources are not those of the commit, or "<version>+s<hash>" without
# git. Run at every build (cmake -DSOURCE=... -DVERSION=... -DOUTPUT=... -P this file); the file is
# only touched when the identity changes.
function(hash_of_sources out)
  file(GLOB_RECURSE files ${SOURCE}/src/* ${SOURCE}/CMakeLists.txt)
  list(SORT files)
  set(all "")
  foreach(file ${files})
    file(SHA256 ${file} hash)
    string(APPEND all "${hash}")
  endforeach()
  string(SHA256 hash "${all}")
  string(SUBSTRING ${hash} 0 12 hash)
  set(${out} ${hash} PARENT_SCOPE)
endfunction()

function(run_git out)
  set(${out} "" PARENT_SCOPE)
  find_program(GIT git)
  if(GIT)
    execute_process(COMMAND ${GIT} -C ${SOURCE} ${ARGN} OUTPUT_VARIABLE text RESULT_VARIABLE code
                    ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(code EQUAL 0)
      set(${out} "${text}" PARENT_SCOPE)
    endif()
  endif()
endfunction()

# Not the commit of a repository that merely contains an unpacked archive of this one.
run_git(root rev-parse --show-toplevel)
file(REAL_PATH ${SOURCE} here)
if(root STREQUAL here)
  run_git(commit rev-parse --short=12 HEAD)
  run_git(changes status --porcelain -- src CMakeLists.txt)
endif()
if(commit AND NOT changes)
  set(build "g${commit}")
else()
  hash_of_sources(hash)
  if(commit)
    set(build "g${commit}.d${hash}")
  else()
    set(build "s${hash}")
  endif()
endif()

set(text "#include \"base/build_identity.hpp\"

namespace awex {

const char* build_identity() { return \"${VERSION}+${build}\"; }

}  // namespace awex
")
set(before "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} before)
endif()
if(NOT before STREQUAL text)
  file(WRITE ${OUTPUT} "${text}")
endif()
