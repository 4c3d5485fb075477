# Compiler flags that all of our targets share, as the interface library awex_options.
add_library(awex_options INTERFACE)
target_compile_options(awex_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion>)
# g++ 12 sees overlapping copies in std::string concatenation that are not there.
target_compile_options(awex_options INTERFACE
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
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
