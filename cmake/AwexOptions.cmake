# Compiler flags that all of our targets share, as the interface library awex_options.
add_library(awex_options INTERFACE)
target_compile_options(awex_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion>)
# g++ 12 sees overlapping copies in std::string concatenation that are not there.
target_compile_options(awex_options INTERFACE
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
# awex_for_shared_library(<target>...): static libraries whose code also goes into libawex_colocate.so. Hidden
# symbols keep them as fast as in a program.
function(awex_for_shared_library)
  set_target_properties(${ARGN} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
endfunction()
if(AWEX_WERROR)
  target_compile_options(awex_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(AWEX_SANITIZE)
  # Without vptr: it opens a pipe for each new type, and calls every object broken where a test leaves
  # the process no descriptor.
  target_compile_options(awex_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${AWEX_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all;-fno-sanitize=vptr>)
  target_link_options(awex_options INTERFACE -fsanitize=${AWEX_SANITIZE} -fno-sanitize=vptr)
endif()
