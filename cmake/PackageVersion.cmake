# Read by CPack before it packs: a package's version names the commit that was built, as -V does, and its
# time, so that newer commits are newer versions: 0.1.0+20261127193000.g0123456789ab. Without git it is
# 0.1.0+s and a hash of the sources.
file(READ ${CPACK_AWEX_BUILD_IDENTITY} text)
if(NOT text MATCHES "return \"([^\"]+)\\+((g[0-9a-f]+)?[^\"]*)\"")
  message(FATAL_ERROR "${CPACK_AWEX_BUILD_IDENTITY} names no version")
endif()
set(number ${CMAKE_MATCH_1})
set(build ${CMAKE_MATCH_2})
set(time "")
if(CMAKE_MATCH_3)
  string(SUBSTRING ${CMAKE_MATCH_3} 1 -1 commit)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env TZ=UTC0
            git -C ${CPACK_AWEX_SOURCE} show --no-patch --date=format-local:%Y%m%d%H%M%S --format=%cd. ${commit}
    OUTPUT_VARIABLE time OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
set(CPACK_DEBIAN_PACKAGE_VERSION ${number}+${time}${build})

# As Debian's own tools: who packs it may say so.
if(NOT "$ENV{DEBEMAIL}" STREQUAL "")
  set(CPACK_DEBIAN_PACKAGE_MAINTAINER "$ENV{DEBEMAIL}")
  if(NOT "$ENV{DEBFULLNAME}" STREQUAL "")
    set(CPACK_DEBIAN_PACKAGE_MAINTAINER "$ENV{DEBFULLNAME} <$ENV{DEBEMAIL}>")
  endif()
endif()
